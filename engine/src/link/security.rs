// SPDX-License-Identifier: Apache-2.0
//! Which transport the link is to have, and by what the other side is known.
//!
//! The files are read once, while the engine may still read them; the sandbox hides them. Where
//! this node has a key, nothing falls back to TCP by itself: somebody on the way could bring that
//! about.

use std::path::PathBuf;
use std::sync::Arc;

use kemari_api::cluster_key::{self, ClusterKeyError};
use kemari_api::config::ReplicationSection;
use kemari_api::config::{AbsolutePath, HostPort, LinkTransport, ReplicationAddress};
use kemari_transport::{Tls, TlsFileError, TlsFiles};

use crate::exit::FailureKind;

/// How an engine ends that cannot secure its link.
pub fn failure_kind(error: &TlsFileError) -> FailureKind {
    match error {
        TlsFileError::Key(ClusterKeyError::Missing { .. }) | TlsFileError::Unreadable { .. } => {
            FailureKind::NotInstalled
        }
        TlsFileError::Key(
            ClusterKeyError::Open { .. }
            | ClusterKeyError::Owner { .. }
            | ClusterKeyError::Unreadable { .. },
        ) => FailureKind::Permission,
        _ => FailureKind::Configuration,
    }
}

/// What a description and this node's files say of the link's security.
#[derive(Debug, Clone)]
pub struct Security {
    transport: LinkTransport,
    tls: Result<Tls, Arc<TlsFileError>>,
    /// The description names the files.
    named: bool,
}

impl Security {
    /// Reads the files that the description names.
    pub fn read(section: &ReplicationSection) -> Self {
        let path = |path: &AbsolutePath| path.as_path().to_owned();
        let certificates = (
            &section.tls_authority,
            &section.tls_certificate,
            &section.tls_key,
        );
        let files = match certificates {
            (Some(authority), Some(certificate), Some(key)) => TlsFiles::Certificates {
                authority: path(authority),
                certificate: path(certificate),
                key: path(key),
            },
            _ => TlsFiles::ClusterKey(
                section
                    .cluster_key
                    .as_ref()
                    .map_or_else(|| PathBuf::from(cluster_key::DEFAULT_PATH), path),
            ),
        };
        Self {
            transport: section.transport,
            named: section.cluster_key.is_some() || section.tls_key.is_some(),
            tls: Tls::load(&files).map_err(Arc::new),
        }
    }

    /// This node's means, where it has them.
    pub fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref().ok()
    }

    /// The address at this place that stands for `--incoming auto`.
    ///
    /// # Errors
    /// TLS is asked for, or there is a key, and it cannot be used.
    pub fn address(&self, place: HostPort) -> Result<ReplicationAddress, Arc<TlsFileError>> {
        match (self.transport, &self.tls) {
            (LinkTransport::Tcp, _) => Ok(ReplicationAddress::Tcp(place)),
            (_, Ok(_)) => Ok(ReplicationAddress::Tls(place)),
            (LinkTransport::Auto, Err(error)) if self.has_nothing(error) => {
                Ok(ReplicationAddress::Tcp(place))
            }
            (_, Err(error)) => Err(Arc::clone(error)),
        }
    }

    /// Nothing was said and there is nothing.
    fn has_nothing(&self, error: &TlsFileError) -> bool {
        error.is_missing_key() && !self.named
    }

    /// What an administrator should know about a link without TLS that nobody asked for.
    pub fn warning(&self) -> Option<String> {
        let open = self.transport == LinkTransport::Auto
            && matches!(&self.tls, Err(error) if self.has_nothing(error));
        open.then(|| {
            format!(
                "The replication link is neither encrypted nor authenticated, since there is no \
                 cluster key {}: make one with kemarictl keygen, copy it to every node and start \
                 the engines again; or say with replication.transport = \"tcp\" that this is meant",
                cluster_key::DEFAULT_PATH
            )
        })
    }

    /// Whether an address may be used, by either side.
    ///
    /// # Errors
    /// In words: it needs what this node does not have, or lacks what this node insists on.
    pub fn check(&self, address: &ReplicationAddress) -> Result<(), String> {
        match (address, self.transport, &self.tls) {
            (ReplicationAddress::Unix(_), ..)
            | (ReplicationAddress::Tls(_), _, Ok(_))
            | (ReplicationAddress::Tcp(_), LinkTransport::Tcp, _) => Ok(()),
            (ReplicationAddress::Tls(_), _, Err(error)) => Err(format!(
                "{address} needs TLS, which this node cannot use: {error}"
            )),
            (ReplicationAddress::Tcp(_), LinkTransport::Tls, _) => Err(format!(
                "{address} is without TLS, and replication.transport is \"tls\": use kemari:tls:, \
                 or change the description"
            )),
            (ReplicationAddress::Tcp(_), LinkTransport::Auto, Err(error))
                if self.has_nothing(error) =>
            {
                Ok(())
            }
            (ReplicationAddress::Tcp(_), LinkTransport::Auto, Ok(tls)) => Err(format!(
                "{address} is without TLS, and this node has {tls}: copy the key to the other node \
                 too and start its engine again, or set replication.transport = \"tcp\" on both"
            )),
            (ReplicationAddress::Tcp(_), LinkTransport::Auto, Err(error)) => Err(format!(
                "{address} is without TLS, which this node is meant to use and cannot: {error}"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use kemari_api::config::VmConfig;

    use super::*;

    const TCP: &str = "kemari:tcp:node2:4444";
    const TLS: &str = "kemari:tls:node2:4444";

    fn security(lines: &str) -> Security {
        let text = format!(
            "[vm]\nname = \"vm\"\nmemory_mib = 64\n[boot]\nkernel = \"/k\"\n[replication]\n{lines}"
        );
        let config = VmConfig::parse(Path::new("vm.toml"), &text).unwrap();
        Security::read(&config.replication)
    }

    fn own(security: &Security) -> Result<String, String> {
        let place = HostPort {
            host: "node2".into(),
            port: 4444,
        };
        let address = security.address(place);
        address
            .map(|address| address.to_string())
            .map_err(|error| error.to_string())
    }

    fn allowed(security: &Security, address: &str) -> Result<(), String> {
        security.check(&address.parse().unwrap())
    }

    fn key(mode: u32) -> (tempfile::TempDir, String) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cluster.key");
        let secret = cluster_key::ClusterSecret::generate().unwrap();
        fs::write(&path, cluster_key::ClusterKeys::of(secret).to_text()).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        let line = format!("cluster_key = {path:?}\n");
        (directory, line)
    }

    #[test]
    fn with_a_key_the_link_is_tls_and_does_not_fall_back() {
        let (_directory, line) = key(0o600);
        let security = security(&line);
        assert_eq!(own(&security), Ok(TLS.into()));
        assert_eq!(security.warning(), None);
        assert!(allowed(&security, TLS).is_ok());
        let told = allowed(&security, TCP).unwrap_err();
        assert!(told.contains("copy the key to the other node"), "{told}");
    }

    #[test]
    fn a_key_that_cannot_be_used_is_no_reason_to_do_without() {
        let (_directory, line) = key(0o644);
        let security = security(&line);
        for told in [
            own(&security).unwrap_err(),
            allowed(&security, TCP).unwrap_err(),
            allowed(&security, TLS).unwrap_err(),
        ] {
            assert!(told.contains("chmod 0600"), "{told}");
        }
    }

    #[test]
    fn a_key_that_is_named_must_be_there() {
        let security = security("cluster_key = \"/nonexistent/cluster.key\"\n");
        let told = own(&security).unwrap_err();
        assert!(told.contains("/nonexistent/cluster.key"), "{told}");
        assert_eq!(security.warning(), None);
    }

    #[test]
    fn what_the_description_says_holds() {
        let (_directory, line) = key(0o600);
        let tcp = security(&format!("transport = \"tcp\"\n{line}"));
        assert_eq!(own(&tcp), Ok(TCP.into()));
        assert_eq!((allowed(&tcp, TCP), tcp.warning()), (Ok(()), None));
        // By hand, TLS can be used all the same.
        assert!(allowed(&tcp, TLS).is_ok());
        let tls = security(&format!("transport = \"tls\"\n{line}"));
        assert_eq!(own(&tls), Ok(TLS.into()));
        assert!(allowed(&tls, TCP).unwrap_err().contains("\"tls\""));
        assert!(allowed(&tls, "kemari:unix:/run/kemari/link").is_ok());
    }
}
