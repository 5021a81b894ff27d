// SPDX-License-Identifier: Apache-2.0
//! The description of a VM: a TOML file, the same on every node.
//!
//! Every value is checked when it is read. An error names file, line, key and remedy; unknown keys
//! are errors, so that a mistyped one cannot be silently without effect. Paths named in the file
//! are opened by the engine, not here: a description can be checked on any machine.
//!
//! There is one file for each section of the description, one for what must hold between keys
//! (`across`) and one for each kind of value. The comments of the sections' fields are what
//! [`schema()`] tells people; the manual page kemari-vm.toml(5) and the commented example must know
//! every key, which a test checks.
//!
//! Names and addresses that are left out are made from the names of VM and interface alone
//! ([`MacAddress::made_for`], [`NetworkSection::tap`]): both hosts make the same ones.

use std::fmt;
use std::path::Path;

use schemars::JsonSchema;

mod across;
mod address;
mod boot;
mod bounded;
mod devices;
mod disk;
mod error;
mod files;
mod lines;
mod link_addresses;
mod link_hosts;
mod mac;
mod memory;
mod network;
mod read;
mod replication;
mod sandbox;
mod schema;
mod sink;
#[cfg(test)]
mod tests;
mod text;
mod vm;

pub use address::{AddressError, HostPort, ReplicationAddress};
pub use boot::{BootSection, DiskBoot, KernelBoot};
pub use bounded::{
    DeltaCacheMib, EpochMsMax, GatherUs, MemoryMib, Mtu, NumaNode, OutOfRange, PeerTimeoutMs, Port,
    QueueKib, QueuePairs, ResyncMib, Vcpus,
};
pub use devices::{BalloonSection, ConsoleSection, RngSection};
pub use disk::{DISKS_MAX, DiskIo, DiskSection, DiskStorage};
pub use error::ConfigError;
pub use files::NamedFile;
pub use lines::{KeyLines, shown};
pub use link_addresses::{LINKS_MAX, LinkAddresses};
pub use link_hosts::LinkHosts;
pub use mac::{MacAddress, MacError};
pub use memory::{DirtyTracking, HugePages, MemorySection};
pub use network::{NETWORKS_MAX, NetworkOutside, NetworkSection, TAP_PREFIX};
pub use read::Description;
pub use replication::{Compression, LinkTransport, ReplicationPolicy, ReplicationSection};
pub use sandbox::SandboxSection;
pub use schema::schema;
pub use sink::{ConsoleSink, SinkError};
pub use text::{AbsolutePath, DeviceId, DiskSerial, HostName, InterfaceName, TextError, UserName};
pub use vm::{CpuModel, VmSection};

use crate::NodeName;

/// A virtual machine of Kemari, described once for all nodes.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VmConfig {
    /// What the machine is.
    pub vm: VmSection,
    /// Where the guest's RAM lies on the host and how changes to it are found.
    #[serde(default)]
    pub memory: MemorySection,
    /// What the machine starts.
    #[schemars(with = "boot::BootKeys")]
    pub boot: BootSection,
    /// Disks, at most 16, in the order the guest finds them.
    #[serde(default)]
    #[schemars(length(max = DISKS_MAX))]
    pub disk: Vec<DiskSection>,
    /// Network interfaces, at most 8, in the order the guest finds them.
    #[serde(default)]
    #[schemars(with = "Vec<network::NetworkKeys>", length(max = NETWORKS_MAX))]
    pub network: Vec<NetworkSection>,
    /// Consoles.
    #[serde(default)]
    pub console: ConsoleSection,
    /// Random numbers.
    #[serde(default)]
    pub rng: RngSection,
    /// Memory given back.
    #[serde(default)]
    pub balloon: BalloonSection,
    /// The engine's rights.
    #[serde(default)]
    pub sandbox: SandboxSection,
    /// The other replica.
    #[serde(default)]
    pub replication: ReplicationSection,
}

impl VmConfig {
    /// Reads and checks a description.
    ///
    /// # Errors
    /// [`ConfigError`] with the file, the line, the key and what would be right: of several, the
    /// first. [`Description::load`] tells all.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Description::load(path).map_or_else(|problems| Err(first(problems)), |it| Ok(it.config))
    }

    /// Checks a description that was read already; `path` is for messages.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let read = Description::parse(path, text);
        read.map_or_else(|problems| Err(first(problems)), |it| Ok(it.config))
    }

    /// Where the replica on `node` listens: its configured addresses, the preferred one first, or
    /// its name, and the port.
    #[must_use]
    pub fn replication_places(&self, node: &NodeName) -> Vec<HostPort> {
        let place = |host: &str| HostPort {
            host: host.to_owned(),
            port: self.replication.port.number(),
        };
        self.replication.addresses.get(node).map_or_else(
            || vec![place(node.as_str())],
            |hosts| hosts.iter().map(|host| place(host.as_str())).collect(),
        )
    }
}

/// The first problem, with a word about the others.
fn first(problems: Vec<ConfigError>) -> ConfigError {
    let others = problems.len().saturating_sub(1);
    let mut first = problems
        .into_iter()
        .next()
        .expect("a description that is refused has a problem");
    if let (1.., ConfigError::Invalid { path, message, .. }) = (others, &mut first) {
        let more = format!(
            " (and {others} more: kemari-engine check {})",
            path.display()
        );
        message.push_str(&more);
    }
    first
}

/// A short line for logs.
impl fmt::Display for VmConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let VmSection {
            name,
            memory_mib,
            vcpus,
            ..
        } = &self.vm;
        write!(
            f,
            "VM {name}: {memory_mib} MiB, {vcpus} vCPU, {}",
            self.boot
        )?;
        count(f, self.disk.len(), "disk")?;
        count(f, self.network.len(), "interface")
    }
}

fn count(f: &mut fmt::Formatter<'_>, number: usize, what: &str) -> fmt::Result {
    match number {
        0 => Ok(()),
        1 => write!(f, ", 1 {what}"),
        _ => write!(f, ", {number} {what}s"),
    }
}
