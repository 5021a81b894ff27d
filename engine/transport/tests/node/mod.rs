// SPDX-License-Identifier: Apache-2.0
//! Nodes of a test: what they prove themselves with, and how two of them meet.

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use kemari_api::cluster_key::ClusterKeys;
use kemari_api::config::ReplicationAddress;
use kemari_transport::{Connection, Listener, Patience, Tls, TlsFileError, TlsFiles, connect};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair,
};
use tempfile::TempDir;

/// No step takes longer than this on a sound machine, however slow.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What happened on one side, with the error as an administrator reads it.
pub type Met = Result<Connection, String>;

/// An address.
pub fn address(text: &str) -> ReplicationAddress {
    text.parse().unwrap()
}

/// A file of cluster keys.
#[derive(Clone)]
pub struct KeyFile {
    _directory: Arc<TempDir>,
    pub path: PathBuf,
}

impl KeyFile {
    /// One that is not there.
    pub fn missing() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cluster.key");
        Self {
            _directory: Arc::new(directory),
            path,
        }
    }

    /// Of the key that is shown.
    pub fn fingerprint(&self) -> String {
        let keys = ClusterKeys::read(&self.path).unwrap();
        keys.shown().public_key().fingerprint().to_string()
    }
}

/// A file with these keys, the same for the same numbers.
pub fn key_file(keys: &[u8]) -> KeyFile {
    let file = KeyFile::missing();
    let line = |key: &u8| format!("kemari-cluster-key-1 {}\n", format!("{key:02x}").repeat(32));
    write_private(&file.path, &keys.iter().map(line).collect::<String>());
    file
}

fn write_private(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
}

/// A node.
#[derive(Clone, Debug)]
pub struct Node(Tls);

impl Node {
    /// Tries to read a key file.
    pub fn load(key: &KeyFile) -> Result<Tls, TlsFileError> {
        Tls::load(&TlsFiles::ClusterKey(key.path.clone()))
    }

    /// With the keys of this file.
    pub fn with_key(key: &KeyFile) -> Self {
        Self(Self::load(key).unwrap())
    }

    /// Connects.
    pub fn connect(&self, to: &str) -> Met {
        let patience = Patience {
            reach: PATIENCE,
            answer: PATIENCE,
        };
        connect(&address(to), Some(&self.0), patience).map_err(|error| error.to_string())
    }

    /// Listens at a port of its own.
    pub fn listen(&self, without_port: &str) -> (Listener, SocketAddr) {
        loop {
            let free = TcpListener::bind("127.0.0.1:0").unwrap();
            let place = free.local_addr().unwrap();
            drop(free);
            let address = address(&format!("{without_port}:{}", place.port()));
            // Another test may have taken it.
            if let Ok(listener) = Listener::bind(&address, Some(self.0.clone()), None) {
                return (listener, place);
            }
        }
    }
}

/// Both sides of an encounter over TLS.
pub fn meet(active: &Node, passive: &Node) -> (Met, Met) {
    meet_at(active, passive, "localhost")
}

/// The same, where the active side calls the passive one by this name.
pub fn meet_at(active: &Node, passive: &Node, name: &str) -> (Met, Met) {
    let (listener, place) = passive.listen("kemari:tls:127.0.0.1");
    encounter(
        active,
        listener,
        &format!("kemari:tls:{name}:{}", place.port()),
    )
}

/// The same over any transport; `connect` is the address where `listen` is a whole one too.
pub fn meet_over(active: &Node, passive: &Node, listen: &str, connect: Option<&str>) -> (Met, Met) {
    match connect {
        Some(to) => {
            let listener = Listener::bind(&address(listen), None, None).unwrap();
            encounter(active, listener, to)
        }
        None => {
            let (listener, place) = passive.listen(listen);
            encounter(active, listener, &format!("{listen}:{}", place.port()))
        }
    }
}

fn encounter(active: &Node, listener: Listener, to: &str) -> (Met, Met) {
    let passive = thread::spawn(move || {
        let caller = listener.accept().unwrap();
        let deadline = Instant::now() + PATIENCE;
        caller.greet(deadline).map_err(|error| error.to_string())
    });
    // The active side hears of a refusal of its own key only with the first bytes.
    let active = active.connect(to);
    let passive = passive.join().unwrap();
    let active = match (active, &passive) {
        (Ok(connection), Err(_)) => match connection.receive(&mut [0]) {
            Ok(length) => panic!("{length} bytes from a side that refused"),
            Err(error) => Err(error.to_string()),
        },
        (active, _) => active,
    };
    (active, passive)
}

/// Forwards a connection to `to`, and changes one byte on the way there. Where it is.
pub fn meddle(to: SocketAddr, at: usize, flip: u8) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let place = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (mut from, _) = listener.accept().unwrap();
        let mut to = TcpStream::connect(to).unwrap();
        let (mut back_from, mut back_to) = (to.try_clone().unwrap(), from.try_clone().unwrap());
        thread::spawn(move || {
            let _ = std::io::copy(&mut back_from, &mut back_to);
            let _ = back_to.shutdown(Shutdown::Write);
        });
        let mut buffer = vec![0; 16 * 1024];
        let mut passed = 0;
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            if let Some(byte) = at
                .checked_sub(passed)
                .and_then(|at| buffer[..length].get_mut(at))
            {
                *byte ^= flip;
            }
            passed += length;
            if to.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    });
    place
}

/// An authority of a cluster.
pub struct Authority {
    directory: Arc<TempDir>,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// The files of a node that one signed.
#[derive(Clone)]
pub struct CertificateFiles {
    _directory: Arc<TempDir>,
    pub authority: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl CertificateFiles {
    /// Reads them.
    pub fn load(&self) -> Result<Tls, TlsFileError> {
        Tls::load(&TlsFiles::Certificates {
            authority: self.authority.clone(),
            certificate: self.certificate.clone(),
            key: self.key.clone(),
        })
    }
}

impl Authority {
    /// A new one.
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("ca.pem"), issuer.pem()).unwrap();
        Self {
            directory: Arc::new(directory),
            issuer,
        }
    }

    /// A node with a certificate for these names.
    pub fn node(&self, names: &[&str]) -> Node {
        self.node_valid(names, -1, 30)
    }

    /// A node whose certificate is valid between these days from now.
    pub fn node_valid(&self, names: &[&str], from_days: i64, to_days: i64) -> Node {
        Node(self.files_valid(names, from_days, to_days).load().unwrap())
    }

    /// The files of a node with a certificate for these names.
    pub fn files(&self, names: &[&str]) -> CertificateFiles {
        self.files_valid(names, -1, 30)
    }

    fn files_valid(&self, names: &[&str], from_days: i64, to_days: i64) -> CertificateFiles {
        let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        // An hour aside, so that the days are whole however long the test takes.
        let day = |days: i64| {
            let seconds = days * 86_400 - 3_600;
            let now = std::time::SystemTime::now();
            let then = match u64::try_from(seconds) {
                Ok(later) => now + Duration::from_secs(later),
                Err(_) => now - Duration::from_secs(seconds.unsigned_abs()),
            };
            then.into()
        };
        params.not_before = day(from_days);
        params.not_after = day(to_days);
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let number = fastrand::u64(..);
        let path = |end: &str| self.directory.path().join(format!("{number:x}.{end}"));
        fs::write(path("pem"), certificate.pem()).unwrap();
        write_private(&path("key"), &key.serialize_pem());
        CertificateFiles {
            _directory: Arc::clone(&self.directory),
            authority: self.directory.path().join("ca.pem"),
            certificate: path("pem"),
            key: path("key"),
        }
    }
}
