// SPDX-License-Identifier: Apache-2.0
//! `kemari:tcp:HOST:PORT`, the migration address of the first Kemari, and its other transports.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;

/// The forms there are, for messages.
const FORMS: &str = "kemari:tcp:HOST:PORT, kemari:tls:HOST:PORT or kemari:unix:/PATH";

/// The longest path a Unix socket can have (`unix(7)`, without the final zero).
const UNIX_PATH_MAX: usize = 107;

/// Why an address was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AddressError {
    /// It does not begin as a Kemari address does.
    #[error("{0:?} is no replication address: give {FORMS}")]
    Form(String),
    /// The transport is not known to this release.
    #[error("{address:?}: transport {transport:?} is not in this release: give {FORMS}")]
    Transport {
        /// The whole address.
        address: String,
        /// The part between the first two colons.
        transport: String,
    },
    /// The port is no number from 1 to 65535.
    #[error("{address:?}: {port:?} is no port: give 1 to 65535")]
    Port {
        /// The whole address.
        address: String,
        /// What stands where the port should.
        port: String,
    },
    /// The path cannot be that of a Unix socket.
    #[error(
        "{0:?}: give the absolute path of a Unix socket, at most {UNIX_PATH_MAX} bytes long, as in \
         kemari:unix:/run/kemari/web.link"
    )]
    Path(String),
    /// The same link is named twice.
    #[error("{0} is given twice: give each link to the other replica once")]
    Twice(String),
    /// There are more links than a pair can have.
    #[error("{0} addresses are given: give at most {max}", max = super::LINKS_MAX)]
    TooMany(usize),
}

/// A host and one of its ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    /// Host name, IPv4 address or IPv6 address (without brackets).
    pub host: String,
    /// TCP port, not 0.
    pub port: u16,
}

/// A place where a replica accepts replication connections, and how it is spoken to there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplicationAddress {
    /// Bytes as they are. Whoever reaches the port can speak and listen.
    Tcp(HostPort),
    /// TLS 1.3; both sides prove who they are.
    Tls(HostPort),
    /// A Unix socket of this host, for tests and tunnels.
    Unix(PathBuf),
}

impl FromStr for ReplicationAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let (transport, rest) = text
            .strip_prefix("kemari:")
            .and_then(|rest| rest.split_once(':'))
            .ok_or_else(|| AddressError::Form(text.to_owned()))?;
        match transport {
            "tcp" => host_port(text, rest).map(Self::Tcp),
            "tls" => host_port(text, rest).map(Self::Tls),
            "unix" => {
                let fits = rest.starts_with('/')
                    && rest.len() <= UNIX_PATH_MAX
                    && !rest.contains('\0')
                    && !rest.ends_with('/');
                fits.then(|| Self::Unix(rest.into()))
                    .ok_or_else(|| AddressError::Path(text.to_owned()))
            }
            other => Err(AddressError::Transport {
                address: text.to_owned(),
                transport: other.to_owned(),
            }),
        }
    }
}

fn host_port(text: &str, rest: &str) -> Result<HostPort, AddressError> {
    let form = || AddressError::Form(text.to_owned());
    let (host, port) = rest.rsplit_once(':').ok_or_else(form)?;
    let host = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    if host.is_empty() || host.contains(['/', ' ', ',']) {
        return Err(form());
    }
    match port.parse() {
        Ok(number) if number != 0 => Ok(HostPort {
            host: host.to_owned(),
            port: number,
        }),
        _ => Err(AddressError::Port {
            address: text.to_owned(),
            port: port.to_owned(),
        }),
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for ReplicationAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(place) => write!(f, "kemari:tcp:{place}"),
            Self::Tls(place) => write!(f, "kemari:tls:{place}"),
            Self::Unix(path) => write!(f, "kemari:unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_back_as_they_were_written() {
        for text in [
            "kemari:tcp:192.168.0.20:4444",
            "kemari:tcp:node2:1",
            "kemari:tcp:[::1]:65535",
            "kemari:tls:node2.example.org:4444",
            "kemari:tls:[fe80::1]:4444",
            "kemari:unix:/run/kemari/web.link",
        ] {
            assert_eq!(
                text.parse::<ReplicationAddress>().unwrap().to_string(),
                text
            );
        }
    }

    #[test]
    fn wrong_addresses_are_refused_with_what_is_wrong() {
        let message = |text: &str| text.parse::<ReplicationAddress>().unwrap_err().to_string();
        assert!(message("tcp:a:1").contains("give kemari:tcp:HOST:PORT, kemari:tls:HOST:PORT"));
        assert!(message("kemari:rdma:a:1").contains("\"rdma\" is not in this release"));
        assert!(message("kemari:tcp:a:0").contains("\"0\" is no port"));
        assert!(message("kemari:tls:a:x").contains("\"x\" is no port"));
        assert!(message("kemari:tcp:a").contains("no replication address"));
        assert!(message("kemari:tcp::1").contains("no replication address"));
        for path in ["web.link", "", "/run/", &format!("/{}", "x".repeat(107))] {
            let message = message(&format!("kemari:unix:{path}"));
            assert!(message.contains("absolute path of a Unix socket"), "{path}");
        }
    }
}
