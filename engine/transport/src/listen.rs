// SPDX-License-Identifier: Apache-2.0
//! Waiting for connections.

use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Instant;

use kemari_api::config::ReplicationAddress;
use nix::unistd::{Gid, Uid};
use thiserror::Error;

use crate::plain::Socket;
use crate::tls::{Tls, TlsError};
use crate::{Channel, Connection};

/// Who may connect to a Unix socket, besides root.
#[derive(Debug, Clone, Copy)]
pub struct Owner(pub Uid, pub Gid);

/// An address that cannot be listened at.
#[derive(Debug, Error)]
#[error("Cannot listen at {address}: {source}; {remedy}")]
pub struct ListenError {
    address: String,
    source: io::Error,
    remedy: &'static str,
}

/// Accepts connections at an address.
#[derive(Debug)]
pub struct Listener {
    socket: Socketed,
    tls: Option<Tls>,
}

#[derive(Debug)]
enum Socketed {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Begins to listen. A Unix socket is made with mode 0600 and given to `owner`; one that is
    /// there and that nobody listens at is replaced.
    ///
    /// # Errors
    /// [`ListenError`], also where the address needs TLS and `tls` is `None`.
    pub fn bind(
        address: &ReplicationAddress,
        tls: Option<Tls>,
        owner: Option<Owner>,
    ) -> Result<Self, ListenError> {
        let failed = |source: io::Error| ListenError {
            address: address.to_string(),
            remedy: remedy(address, source.kind()),
            source,
        };
        let (socket, tls) = match address {
            ReplicationAddress::Tcp(place) => (tcp(&place.host, place.port), None),
            ReplicationAddress::Tls(place) => {
                let tls = tls
                    .ok_or_else(|| io::Error::other(TlsError::NoIdentity))
                    .map_err(failed)?;
                (tcp(&place.host, place.port), Some(tls))
            }
            ReplicationAddress::Unix(path) => (unix(path, owner).map(Socketed::Unix), None),
        };
        let socket = socket.map_err(failed)?;
        Ok(Self { socket, tls })
    }

    /// Waits for the next connection. Whoever made it has proved nothing yet.
    ///
    /// # Errors
    /// The socket failed, or there are too many descriptors.
    pub fn accept(&self) -> io::Result<Caller> {
        let (socket, name, at) = match &self.socket {
            Socketed::Tcp(listener) => {
                let (socket, address) = listener.accept()?;
                socket.set_nodelay(true)?;
                let at = socket.local_addr()?.to_string();
                (Socket::Tcp(socket), address.to_string(), at)
            }
            Socketed::Unix(listener) => {
                let (socket, _) = listener.accept()?;
                let (name, at) = ("a process of this host", "a Unix socket");
                (Socket::Unix(socket), name.to_owned(), at.to_owned())
            }
        };
        Ok(Caller {
            socket,
            tls: self.tls.clone(),
            name,
            at,
        })
    }
}

fn tcp(host: &str, port: u16) -> io::Result<Socketed> {
    TcpListener::bind((host, port)).map(Socketed::Tcp)
}

/// Whoever sees the path can connect, and nobody who should not ever can: the socket is made beside
/// it, and moved there once it is as it must be.
fn unix(path: &Path, owner: Option<Owner>) -> io::Result<UnixListener> {
    check_stale(path)?;
    let mut new = path.as_os_str().to_owned();
    new.push(format!(".{}", std::process::id()));
    let new = PathBuf::from(new);
    let listener = UnixListener::bind(&new)?;
    let placed = fs::set_permissions(&new, fs::Permissions::from_mode(0o600))
        .and_then(|()| match owner {
            Some(Owner(user, group)) => {
                nix::unistd::chown(&new, Some(user), Some(group)).map_err(io::Error::from)
            }
            None => Ok(()),
        })
        .and_then(|()| fs::rename(&new, path));
    if placed.is_err() {
        let _ = fs::remove_file(&new);
    }
    placed.map(|()| listener)
}

/// What is at the path may be replaced: nothing, or a socket that nobody listens at.
fn check_stale(path: &Path) -> io::Result<()> {
    let there = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        there => there?,
    };
    if !there.file_type().is_socket() {
        return Err(io::Error::from(io::ErrorKind::AlreadyExists));
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(io::Error::from(io::ErrorKind::AddrInUse)),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(error) => Err(error),
    }
}

fn remedy(address: &ReplicationAddress, kind: io::ErrorKind) -> &'static str {
    match (address, kind) {
        (ReplicationAddress::Unix(_), io::ErrorKind::AddrInUse) => {
            "another program (another VM's engine?) listens there; give each VM a path of its own"
        }
        (ReplicationAddress::Unix(_), io::ErrorKind::AlreadyExists) => {
            "there is a file that is no socket; name another path"
        }
        (ReplicationAddress::Unix(_), _) => "check that its directory exists and is writable",
        (_, io::ErrorKind::AddrInUse) => {
            "another program (another VM's engine?) uses the port; give each VM its own \
             replication.port"
        }
        (_, io::ErrorKind::AddrNotAvailable) => "this node does not have that address",
        _ => "check address and port",
    }
}

/// Somebody who has connected and proved nothing yet.
#[derive(Debug)]
pub struct Caller {
    socket: Socket,
    tls: Option<Tls>,
    name: String,
    at: String,
}

impl Caller {
    /// Where it calls from, for the log.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Which address of this node it has reached, for people.
    #[must_use]
    pub fn at(&self) -> &str {
        &self.at
    }

    /// By which another thread ends the connection.
    ///
    /// # Errors
    /// There are too many descriptors.
    pub fn hangup(&self) -> io::Result<Hangup> {
        self.socket.try_clone().map(Hangup)
    }

    /// Makes sure who it is, where the transport can tell. Blocks, at the longest until `deadline`.
    ///
    /// # Errors
    /// The caller is not who it should be, or does not answer.
    pub fn greet(self, deadline: Instant) -> Result<Connection, TlsError> {
        match (self.socket, self.tls) {
            (Socket::Tcp(socket), Some(tls)) => tls.accept(socket, deadline),
            (socket, _) => Ok(Connection::new(socket)),
        }
    }
}

/// Ends a caller's connection.
#[derive(Debug)]
pub struct Hangup(Socket);

impl Hangup {
    /// Does so now.
    pub fn shut(&self) {
        self.0.shut();
    }
}
