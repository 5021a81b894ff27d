// SPDX-License-Identifier: Apache-2.0
//! Making a connection.

use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use kemari_api::config::{HostPort, ReplicationAddress};
use thiserror::Error;

use crate::Connection;
use crate::plain::Socket;
use crate::tls::{Tls, TlsError};

/// How long a connection may take to be made.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For each address of the host, until it is reached.
    pub reach: Duration,
    /// For the TLS handshake as a whole, and afterwards for each wait in sending.
    pub answer: Duration,
}

/// No connection was made.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The address could not be resolved or connected to.
    #[error("Cannot connect to {address}: {source}; is the other engine running and waiting?")]
    Reach {
        /// Where to.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// The other side was reached, but no TLS session came about.
    #[error("Cannot connect to {address}: {source}")]
    Tls {
        /// Where to.
        address: String,
        /// Why.
        source: TlsError,
    },
}

/// Connects and, with TLS, makes sure who the other side is. Blocks.
///
/// # Errors
/// [`ConnectError`]; `tls` is `None` and the address needs it.
pub fn connect(
    address: &ReplicationAddress,
    tls: Option<&Tls>,
    patience: Patience,
) -> Result<Connection, ConnectError> {
    let unreachable = |source| ConnectError::Reach {
        address: address.to_string(),
        source,
    };
    let connection = match address {
        ReplicationAddress::Tcp(place) => {
            Connection::new(Socket::Tcp(reach(place, patience).map_err(unreachable)?))
        }
        ReplicationAddress::Unix(path) => {
            let socket = UnixStream::connect(path).map_err(unreachable)?;
            Connection::new(Socket::Unix(socket))
        }
        ReplicationAddress::Tls(place) => {
            let failed = |source| ConnectError::Tls {
                address: address.to_string(),
                source,
            };
            let tls = tls.ok_or(TlsError::NoIdentity).map_err(failed)?;
            let socket = reach(place, patience).map_err(unreachable)?;
            let deadline = Instant::now() + patience.answer;
            tls.connect(socket, &place.host, deadline).map_err(failed)?
        }
    };
    connection
        .set_send_patience(patience.answer)
        .map_err(unreachable)?;
    Ok(connection)
}

fn reach(place: &HostPort, patience: Patience) -> io::Result<TcpStream> {
    let mut last = io::Error::other("the name has no address");
    for address in (place.host.as_str(), place.port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, patience.reach) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}
