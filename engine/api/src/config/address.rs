// SPDX-License-Identifier: Apache-2.0
//! `kemari:tcp:HOST:PORT`: the migration address of the first Kemari.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// Why an address was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AddressError {
    /// It does not begin as a Kemari address does.
    #[error("{0:?} is no replication address: give kemari:tcp:HOST:PORT")]
    Form(String),
    /// The transport is not known to this release.
    #[error("{address:?}: transport {transport:?} is not in this release: use kemari:tcp:")]
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
}

/// A place where a replica accepts replication connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicationAddress {
    /// Host name, IPv4 address or IPv6 address (without brackets).
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl FromStr for ReplicationAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let form = || AddressError::Form(text.to_owned());
        let (transport, rest) = text
            .strip_prefix("kemari:")
            .and_then(|rest| rest.split_once(':'))
            .ok_or_else(form)?;
        if transport != "tcp" {
            let (address, transport) = (text.to_owned(), transport.to_owned());
            return Err(AddressError::Transport { address, transport });
        }
        let (host, port) = rest.rsplit_once(':').ok_or_else(form)?;
        let host = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        if host.is_empty() || host.contains(['/', ' ']) {
            return Err(form());
        }
        match port.parse() {
            Ok(number) if number != 0 => Ok(Self {
                host: host.to_owned(),
                port: number,
            }),
            _ => Err(AddressError::Port {
                address: text.to_owned(),
                port: port.to_owned(),
            }),
        }
    }
}

impl fmt::Display for ReplicationAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "kemari:tcp:[{}]:{}", self.host, self.port)
        } else {
            write!(f, "kemari:tcp:{}:{}", self.host, self.port)
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
        assert!(message("tcp:a:1").contains("give kemari:tcp:HOST:PORT"));
        assert!(message("kemari:rdma:a:1").contains("\"rdma\" is not in this release"));
        assert!(message("kemari:tcp:a:0").contains("\"0\" is no port"));
        assert!(message("kemari:tcp:a").contains("no replication address"));
        assert!(message("kemari:tcp::1").contains("no replication address"));
    }
}
