// SPDX-License-Identifier: Apache-2.0
//! The description of a VM: a TOML file, the same on every node.
//!
//! Every value is checked when it is read. An error names file, line, key and remedy; unknown keys
//! are errors, so that a mistyped one cannot be silently without effect. Paths named in the file
//! are opened by the engine, not here: a description can be checked on any machine.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;

mod address;
mod bounded;
mod sink;

pub use address::{AddressError, ReplicationAddress};
pub use bounded::{EpochMsMax, GatherUs, MemoryMib, PeerTimeoutMs, QueueKib, Vcpus};
pub use sink::{ConsoleSink, SinkError};

use crate::{NodeName, VmName};

/// The port replicas use when the description names none.
pub const DEFAULT_PORT: u16 = 4444;

/// A description that could not be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("Cannot read the VM description {}: {cause}; {}", path.display(), remedy(cause))]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said; part of the message.
        cause: io::Error,
    },
    /// Something in the file is wrong.
    #[error("{}:{line}: {}{message}", path.display(), key_prefix(key))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The key, empty where the file as a whole is meant.
        key: String,
        /// What is wrong and what would be right.
        message: String,
    },
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => {
            "create it (see kemari-vm.toml(5)) or correct the resource parameter 'config'"
        }
        io::ErrorKind::PermissionDenied => "make it readable for root",
        _ => "check the file and its file system",
    }
}

fn key_prefix(key: &str) -> String {
    if key.is_empty() {
        String::new()
    } else {
        format!("{key}: ")
    }
}

/// A whole description.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmConfig {
    /// `[vm]`
    pub vm: VmSection,
    /// `[boot]`
    pub boot: BootSection,
    /// `[console]`
    #[serde(default)]
    pub console: ConsoleSection,
    /// `[replication]`
    #[serde(default)]
    pub replication: ReplicationSection,
}

/// `[vm]`: what the machine is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmSection {
    /// Its name, unique in the cluster.
    pub name: VmName,
    /// RAM.
    pub memory_mib: MemoryMib,
    /// Virtual CPUs.
    #[serde(default)]
    pub vcpus: Vcpus,
}

/// `[boot]`: what it starts.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootSection {
    /// A Linux bzImage, or an ELF file with a PVH entry note.
    pub kernel: PathBuf,
    /// The initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    #[serde(default)]
    pub cmdline: String,
}

/// `[console]`: where the serial console goes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsoleSection {
    /// The sink; nothing when it is not named.
    #[serde(default)]
    pub output: ConsoleSink,
}

/// `[replication]`: how the two replicas find each other and how often they synchronise.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReplicationSection {
    /// The port a replica listens on.
    pub port: u16,
    /// Stop the guest until each acknowledgement, as the first Kemari did.
    pub synchronous: bool,
    /// The longest epoch.
    pub epoch_ms_max: EpochMsMax,
    /// How long the first queued output waits for company.
    pub gather_us: GatherUs,
    /// How much output may wait for commit before the guest is held back.
    pub queue_kib_max: QueueKib,
    /// Silence after which the other replica counts as out of reach.
    pub peer_timeout_ms: PeerTimeoutMs,
    /// Replication addresses by node, where they differ from the node's name.
    pub addresses: BTreeMap<NodeName, String>,
}

impl Default for ReplicationSection {
    fn default() -> Self {
        Self {
            port: DEFAULT_PORT,
            synchronous: false,
            epoch_ms_max: EpochMsMax::default(),
            gather_us: GatherUs::default(),
            queue_kib_max: QueueKib::default(),
            peer_timeout_ms: PeerTimeoutMs::default(),
            addresses: BTreeMap::new(),
        }
    }
}

impl VmConfig {
    /// Reads and checks a description.
    ///
    /// # Errors
    /// [`ConfigError`] with the file, the line, the key and what would be right.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path).map_err(|cause| ConfigError::Read {
            path: path.to_owned(),
            cause,
        })?;
        Self::parse(path, &text)
    }

    /// Checks a description that was read already; `path` is for messages.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| invalid(path, text, &error))?;
        config.check_addresses(path, text)?;
        Ok(config)
    }

    /// Where the replica on `node` listens: its configured address or its name, and the port.
    #[must_use]
    pub fn replication_address(&self, node: &NodeName) -> ReplicationAddress {
        let host = self
            .replication
            .addresses
            .get(node)
            .map_or_else(|| node.as_str().to_owned(), Clone::clone);
        ReplicationAddress {
            host,
            port: self.replication.port,
        }
    }

    fn check_addresses(&self, path: &Path, text: &str) -> Result<(), ConfigError> {
        for (node, host) in &self.replication.addresses {
            if !host.is_empty() && !host.contains(['/', ' ', '[']) {
                continue;
            }
            let line = line_containing(text, host);
            return Err(ConfigError::Invalid {
                path: path.to_owned(),
                line,
                key: format!("replication.addresses.{node}"),
                message: format!(
                    "{host:?} is no address: give an IP address or a host name, without port \
                     or brackets"
                ),
            });
        }
        Ok(())
    }
}

fn line_containing(text: &str, needle: &str) -> usize {
    text.lines()
        .position(|line| line.contains(needle))
        .map_or(1, |index| index + 1)
}

/// Turns toml's error, which knows a span, into one that names line and key.
fn invalid(path: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let at = error.span().map_or(0, |span| span.start);
    let before = text.get(..at).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let table = before
        .lines()
        .chain(text.lines().nth(line - 1))
        .filter_map(|line| line.trim().strip_prefix('[')?.split(']').next())
        .next_back()
        .unwrap_or_default()
        .trim();
    let key = text
        .lines()
        .nth(line - 1)
        .and_then(|line| line.split_once('='))
        .map_or("", |(key, _)| key.trim());
    let key = [table, key]
        .iter()
        .filter(|part| !part.is_empty())
        .copied()
        .collect::<Vec<_>>();
    ConfigError::Invalid {
        path: path.to_owned(),
        line,
        key: key.join("."),
        message: error.message().to_owned(),
    }
}

impl fmt::Display for VmConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "VM {}: {} MiB, {} vCPU, kernel {}",
            self.vm.name,
            self.vm.memory_mib,
            self.vm.vcpus,
            self.boot.kernel.display()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "[vm]\nname = \"web\"\nmemory_mib = 256\n\n[boot]\nkernel = \"/k\"\n";

    fn error_of(text: &str) -> String {
        VmConfig::parse(Path::new("/etc/kemari/web.toml"), text)
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn the_shortest_description_has_sensible_defaults() {
        let config = VmConfig::parse(Path::new("x"), GOOD).unwrap();
        assert_eq!(config.replication.port, 4444);
        assert_eq!(config.vm.vcpus.get(), 1);
        assert_eq!(
            config
                .replication_address(&"node2".parse().unwrap())
                .to_string(),
            "kemari:tcp:node2:4444"
        );
    }

    #[test]
    fn an_unknown_key_is_refused_with_file_line_and_key() {
        let text = error_of(&GOOD.replace("memory_mib", "memory"));
        assert!(
            text.starts_with("/etc/kemari/web.toml:3: vm.memory: "),
            "{text}"
        );
        assert!(
            text.contains("memory_mib"),
            "the remedy names the known keys: {text}"
        );
    }

    #[test]
    fn a_value_out_of_range_is_refused_with_the_range() {
        let text = error_of(&GOOD.replace("256", "4"));
        assert!(
            text.starts_with("/etc/kemari/web.toml:3: vm.memory_mib: 4 "),
            "{text}"
        );
        assert!(text.contains("16 to 3072"), "{text}");
    }

    #[test]
    fn a_missing_key_a_wrong_type_and_a_bad_name_are_named() {
        assert!(error_of("[vm]\nname = \"a\"\nmemory_mib = 64\n").contains("boot"));
        assert!(error_of(&GOOD.replace("256", "\"256\"")).contains("vm.memory_mib"));
        assert!(error_of(&GOOD.replace("web", "../web")).contains("vm.name"));
    }

    #[test]
    fn an_address_that_is_none_is_refused() {
        let text = error_of(&format!("{GOOD}[replication.addresses]\nnode1 = \"a b\"\n"));
        assert!(
            text.contains(":8: replication.addresses.node1: \"a b\""),
            "{text}"
        );
    }

    #[test]
    fn a_missing_file_is_named_with_a_remedy() {
        let text = VmConfig::load(Path::new("/nonexistent.toml"))
            .unwrap_err()
            .to_string();
        assert!(
            text.contains("/nonexistent.toml") && text.contains("create it"),
            "{text}"
        );
    }
}
