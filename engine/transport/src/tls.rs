// SPDX-License-Identifier: Apache-2.0
//! TLS 1.3 in which both sides prove who they are.
//!
//! By a cluster key: both show the raw public key (RFC 7250) derived from the shared secret and
//! sign the handshake with its private half; what is accepted is exactly those keys. Or by
//! certificates of an authority. Sessions are never resumed: each connection proves everything
//! anew, so a key that was taken out of the file is of no use.

mod channel;
mod error;
mod files;
mod handshake;
mod raw_key;

use std::fmt;
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use kemari_api::cluster_key::{ClusterKeys, Fingerprint};
use rustls::client::Resumption;
use rustls::crypto::ring::cipher_suite::{
    TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::ServerName;
use rustls::server::NoServerSessionStorage;
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};

use crate::Connection;
pub use error::TlsError;
pub use files::{TlsFileError, TlsFiles};

/// What is spoken inside, so that a server of something else with a certificate of the same
/// authority is no replica (ALPN, RFC 7301).
const PROTOCOL: &[u8] = b"kemari";

/// What this node has to prove who it is, and by what it judges others. Read once.
#[derive(Debug, Clone)]
pub struct Tls {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    means: Arc<Means>,
}

/// By what nodes know each other.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Means {
    /// A secret that all have.
    ClusterKey {
        path: PathBuf,
        shown: Fingerprint,
        accepted: Vec<Fingerprint>,
    },
    /// An authority that all trust.
    Certificates {
        authority: PathBuf,
        certificate: PathBuf,
    },
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// A file is missing, may be read by others, or does not hold what it should.
    pub fn load(files: &TlsFiles) -> Result<Self, TlsFileError> {
        match files {
            TlsFiles::ClusterKey(path) => {
                let keys = ClusterKeys::read(path)?;
                let (client, server) = raw_key::configs(&keys, provider())?;
                let fingerprint =
                    |key: &kemari_api::cluster_key::ClusterSecret| key.public_key().fingerprint();
                let means = Means::ClusterKey {
                    path: path.clone(),
                    shown: fingerprint(keys.shown()),
                    accepted: keys.accepted().iter().map(fingerprint).collect(),
                };
                Ok(Self::of(client, server, means))
            }
            TlsFiles::Certificates {
                authority,
                certificate,
                key,
            } => {
                let (client, server) = files::configs(authority, certificate, key)?;
                let means = Means::Certificates {
                    authority: authority.clone(),
                    certificate: certificate.clone(),
                };
                Ok(Self::of(client, server, means))
            }
        }
    }

    fn of(mut client: ClientConfig, mut server: ServerConfig, means: Means) -> Self {
        client.alpn_protocols = vec![PROTOCOL.to_vec()];
        client.resumption = Resumption::disabled();
        server.alpn_protocols = vec![PROTOCOL.to_vec()];
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        Self {
            client: Arc::new(client),
            server: Arc::new(server),
            means: Arc::new(means),
        }
    }

    /// The connecting side of a handshake with `host`.
    pub(crate) fn connect(
        &self,
        socket: TcpStream,
        host: &str,
        deadline: Instant,
    ) -> Result<Connection, TlsError> {
        let name = match *self.means {
            // Not looked at, and not sent.
            Means::ClusterKey { .. } => ServerName::try_from("replica.invalid"),
            Means::Certificates { .. } => ServerName::try_from(host.to_owned()),
        };
        let name = name.map_err(|_| TlsError::Name(host.to_owned()))?;
        let session = ClientConnection::new(Arc::clone(&self.client), name)
            .map_err(|error| self.explain(&error))?;
        handshake::run(session.into(), socket, deadline, &self.means)
    }

    /// The accepting side of a handshake.
    pub(crate) fn accept(
        &self,
        socket: TcpStream,
        deadline: Instant,
    ) -> Result<Connection, TlsError> {
        let session = ServerConnection::new(Arc::clone(&self.server))
            .map_err(|error| self.explain(&error))?;
        handshake::run(session.into(), socket, deadline, &self.means)
    }

    fn explain(&self, error: &rustls::Error) -> TlsError {
        TlsError::of(error, &self.means)
    }
}

/// Ring's algorithms, the cheapest cipher first: 128 bits are enough, and AES-256 has fourteen
/// rounds to its ten.
fn provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: vec![
            TLS13_AES_128_GCM_SHA256,
            TLS13_AES_256_GCM_SHA384,
            TLS13_CHACHA20_POLY1305_SHA256,
        ],
        ..ring::default_provider()
    }
}

/// For the log: by what this node is known.
impl fmt::Display for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.means.fmt(f)
    }
}

impl fmt::Display for Means {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClusterKey {
                path,
                shown,
                accepted,
            } => {
                write!(f, "the cluster key {shown} of {}", path.display())?;
                for other in accepted.iter().filter(|other| *other != shown) {
                    write!(f, " (also accepted: {other})")?;
                }
                Ok(())
            }
            Self::Certificates {
                authority,
                certificate,
            } => {
                let (authority, certificate) = (authority.display(), certificate.display());
                write!(
                    f,
                    "the certificate {certificate} and the authority {authority}"
                )
            }
        }
    }
}
