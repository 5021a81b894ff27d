// SPDX-License-Identifier: Apache-2.0
//! `org.kemari.Replica1`: the control interface of one engine process.
//!
//! It is served peer to peer (D-Bus without a bus) on [`crate::place::control_socket`], so it works
//! without a bus and without the agent. The engine checks every request against its own state: a
//! caller can ask for a promotion, it cannot make an outdated replica run.

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use zbus::zvariant::Type;
use zbus::{Fd, OwnedFd};

use crate::figures::{Comparison, ReplicaFigures};
use crate::place;
use crate::{Epoch, Generation, Licence, NodeName, Role, VmName};

/// Object path of the interface on the control socket.
pub const PATH: &str = "/org/kemari/Replica1";

/// What a replica says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, Type)]
pub struct ReplicaStatus {
    /// The VM.
    pub vm: VmName,
    /// The node this replica is on.
    pub node: NodeName,
    /// Process id of the engine, in the node's pid namespace.
    pub pid: u32,
    /// What it is.
    pub role: Role,
    /// Its right to let outputs out.
    pub licence: Licence,
    /// Passive: it holds a complete checkpoint it could run from. Active: its peer does.
    pub in_sync: bool,
    /// Active: the guest is executing. False while a person stopped it (`stop`).
    pub running: bool,
    /// The generation this replica last had or received; 0 before the first.
    pub generation: Generation,
    /// Active: the epoch last committed by the peer. Passive: the epoch it would run from.
    pub epoch: Epoch,
    /// What this node's replicated disks are.
    pub disks: DiskState,
    /// Whose word a change of hands after a loss waits for.
    pub failover: FailoverPolicy,
    /// The node of the other replica, empty if unknown.
    pub peer: String,
    /// Where this replica accepts a replication connection, such as `kemari:tls:HOST:PORT`, several
    /// links with commas between them, the preferred one first; or empty.
    pub listen: String,
    /// Why it is in this state, one sentence for people.
    pub detail: String,
}

impl ReplicaStatus {
    /// The same without what changes while something goes on: the epoch, and the sentence that says
    /// how far it is.
    #[must_use]
    pub fn without_progress(&self) -> Self {
        Self {
            epoch: Epoch::default(),
            detail: String::new(),
            ..self.clone()
        }
    }
}

/// What the replicated disks of a VM on one node are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Type)]
#[serde(rename_all = "kebab-case")]
#[zvariant(signature = "s")]
pub enum DiskState {
    /// The VM has none.
    None,
    /// Nobody but the guest on this node has written to them, as far as this node knows.
    Own,
    /// A complete copy of the other replica's, as of its last commit here.
    Copy,
    /// Partly overwritten by a copy that has not ended: nothing to boot from.
    Incomplete,
    /// The guest writes to a disk that both nodes see: no take-over before the other node is fenced.
    Shared,
}

/// Whose word a change of hands after a loss waits for.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, Type, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
#[zvariant(signature = "s")]
#[schemars(inline)]
pub enum FailoverPolicy {
    /// The majority of agents where there are three or more, otherwise Pacemaker, which fences.
    #[default]
    Auto,
    /// Pacemaker, which fences, and then the majority as well.
    Fenced,
}

impl std::fmt::Display for FailoverPolicy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Fenced => "fenced",
        })
    }
}

impl std::fmt::Display for DiskState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Own => "own",
            Self::Copy => "copy",
            Self::Incomplete => "incomplete",
            Self::Shared => "shared",
        })
    }
}

/// One link to the other replica.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, Type)]
pub struct LinkView {
    /// Active: where it leads, such as `kemari:tls:HOST:PORT`. Passive: which address of this node
    /// the active replica has reached.
    pub address: String,
    /// What it is used for.
    pub state: LinkUse,
    /// Why it failed last, empty if it did not since it carried the pair.
    pub failure: String,
}

impl std::fmt::Display for LinkView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.address, self.state)?;
        if self.failure.is_empty() {
            return Ok(());
        }
        write!(f, ": {}", self.failure)
    }
}

/// What a link is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Type)]
#[serde(rename_all = "kebab-case")]
#[zvariant(signature = "s")]
pub enum LinkUse {
    /// It carries the pair.
    InUse,
    /// It is being tried.
    Tried,
    /// Nothing, and nothing is known against it.
    Idle,
    /// It failed when it was used last.
    Failed,
}

impl std::fmt::Display for LinkUse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::InUse => "in use",
            Self::Tried => "tried",
            Self::Idle => "idle",
            Self::Failed => "failed",
        })
    }
}

/// From what a replica is made active.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Type)]
#[serde(rename_all = "kebab-case")]
#[zvariant(signature = "s")]
pub enum Promotion {
    /// Continue from the last committed checkpoint. The replica must be passive and in sync.
    TakeOver,
    /// Boot the guest from nothing. The replica must be waiting.
    ColdStart,
    /// The same, also from disks that are a copy of the other replica's: a person said that what may
    /// be newer there is lost.
    ForcedColdStart,
}

/// What becomes of a guest after it was written to a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Type)]
#[serde(rename_all = "kebab-case")]
#[zvariant(signature = "s")]
pub enum AfterSnapshot {
    /// It goes on. Its disks go on changing, so the snapshot needs a copy of them made before.
    Continue,
    /// It ends with its engine; the snapshot goes on from there.
    Stop,
}

/// The interface. Every method fails with `org.freedesktop.DBus.Error.Failed` and a sentence that
/// names what stood against it.
#[zbus::proxy(
    interface = "org.kemari.Replica1",
    default_service = "org.kemari.Replica",
    default_path = "/org/kemari/Replica1"
)]
pub trait Replica {
    /// What the replica says of itself.
    fn status(&self) -> zbus::Result<ReplicaStatus>;

    /// Sent whenever role, licence, in_sync, running, generation or peer change (not every epoch).
    #[zbus(signal)]
    fn changed(&self, status: ReplicaStatus) -> zbus::Result<()>;

    /// Makes this replica the active one, with a solo licence of `generation`, which must be newer
    /// than every one it knows. Returns when the guest executes.
    fn promote(&self, how: Promotion, generation: Generation) -> zbus::Result<()>;

    /// Ends being active. With an in-sync peer the last checkpoint is committed first, so the peer
    /// can take over and nothing is lost; without one the guest is powered off. Afterwards the
    /// replica is waiting (for a checkpoint). A no-op on a replica that is not active.
    fn demote(&self) -> zbus::Result<()>;

    /// Starts replication to the peer at an address such as `kemari:tls:HOST:PORT` in the background,
    /// or at several with commas between them, one for each link, the preferred one first. A no-op
    /// when already replicating or connecting to it.
    fn protect(&self, address: &str) -> zbus::Result<()>;

    /// Grants a solo licence of `generation` to an active replica whose peer is provably out.
    fn go_solo(&self, generation: Generation) -> zbus::Result<()>;

    /// Tells the replica that `generation` exists. If that is newer than its own and it did not
    /// receive it as a passive replica, it stops at once, drops held outputs and is outdated. A passive replica
    /// waits for a resync then.
    fn outdate(&self, generation: Generation) -> zbus::Result<()>;

    /// Writes the active guest, memory and all, to the end of this file, which must be empty. The
    /// guest stands still meanwhile. The replica must hold a solo licence.
    fn save_snapshot(&self, file: Fd<'_>, after: AfterSnapshot) -> zbus::Result<()>;

    /// Attaches to the active guest's console. Returns a stream socket, on which the engine sends
    /// what was let out ([`crate::console`]) from this position on, or from as near to it as is
    /// still kept, and then what follows, until the replica is active no more. What is sent to it is
    /// typed at the guest; once that direction is shut down, the engine sends what was let out until
    /// then and closes. Who reads slowly is skipped ahead.
    fn console(&self, from: u64) -> zbus::Result<OwnedFd>;

    /// Presses the guest's power button.
    fn power_button(&self) -> zbus::Result<()>;

    /// Ends the engine process. An active replica's guest is stopped hard. Returns before the end.
    fn quit(&self) -> zbus::Result<()>;

    /// The links to the other replica, the preferred one first.
    fn links(&self) -> zbus::Result<Vec<LinkView>>;

    /// What the replication costs.
    fn figures(&self) -> zbus::Result<ReplicaFigures>;

    /// Compares the disks of both replicas while the guest runs. The active one of a pair in sync only.
    /// Returns when it is done, which may take hours; how far it is, `Changed` says.
    fn verify(&self) -> zbus::Result<Comparison>;

    /// Runs one line of the monitor and returns what it prints.
    fn monitor(&self, line: &str) -> zbus::Result<String>;
}

/// Why the engine of a VM could not be reached.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// There is no control socket, or nobody listens on it.
    #[error("No engine of VM {vm} runs on this node (nothing answers at {socket})")]
    NotRunning {
        /// The VM.
        vm: VmName,
        /// Path of the control socket.
        socket: String,
    },
    /// The socket is there but this user may not use it.
    #[error("No permission to talk to the engine of VM {vm} at {socket}: run as root")]
    Permission {
        /// The VM.
        vm: VmName,
        /// Path of the control socket.
        socket: String,
    },
    /// Any other error of the socket.
    #[error("Cannot reach the engine of VM {vm}")]
    Io {
        /// The VM.
        vm: VmName,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The engine did not speak D-Bus as it should.
    #[error("The engine of VM {vm} does not answer as expected")]
    Bus {
        /// The VM.
        vm: VmName,
        /// What zbus said.
        #[source]
        source: zbus::Error,
    },
}

/// Connects to the engine of a VM on this node.
///
/// The connection ends with the engine process; the second value is that process's id as the
/// kernel reports it for the socket's other end.
///
/// # Errors
/// [`ConnectError`], of which `NotRunning` is the ordinary case of a stopped replica.
pub async fn connect(vm: &VmName) -> Result<(ReplicaProxy<'static>, Option<i32>), ConnectError> {
    connect_at(vm, &place::control_socket(vm)).await
}

/// [`connect`] for a control socket elsewhere.
///
/// # Errors
/// As [`connect`].
pub async fn connect_at(
    vm: &VmName,
    path: &Path,
) -> Result<(ReplicaProxy<'static>, Option<i32>), ConnectError> {
    let socket = path.display().to_string();
    let stream = tokio::net::UnixStream::connect(path)
        .await
        .map_err(|source| {
            use std::io::ErrorKind::{ConnectionRefused, NotFound, PermissionDenied};
            match source.kind() {
                NotFound | ConnectionRefused => ConnectError::NotRunning {
                    vm: vm.clone(),
                    socket,
                },
                PermissionDenied => ConnectError::Permission {
                    vm: vm.clone(),
                    socket,
                },
                _ => ConnectError::Io {
                    vm: vm.clone(),
                    source,
                },
            }
        })?;
    let pid = stream
        .peer_cred()
        .ok()
        .and_then(|credentials| credentials.pid());
    let on_bus = |source| ConnectError::Bus {
        vm: vm.clone(),
        source,
    };
    let stream = stream.into_std().map_err(|source| ConnectError::Io {
        vm: vm.clone(),
        source,
    })?;
    let connection = zbus::connection::Builder::unix_stream(stream)
        .p2p()
        .build()
        .await
        .map_err(on_bus)?;
    let proxy = ReplicaProxy::builder(&connection)
        .cache_properties(zbus::proxy::CacheProperties::No)
        .build()
        .await
        .map_err(on_bus)?;
    Ok((proxy, pid))
}

/// What the other side said, without D-Bus's name for the error around it.
#[must_use]
pub fn refusal_text(error: &zbus::Error) -> String {
    match error {
        zbus::Error::MethodError(_, Some(text), _) => text.clone(),
        zbus::Error::FDO(error) => match error.as_ref() {
            zbus::fdo::Error::Failed(text) => text.clone(),
            other => other.to_string(),
        },
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_in_the_words_of_the_other_side() {
        let refused = zbus::Error::from(zbus::fdo::Error::Failed("demote it first".to_owned()));
        assert_eq!(refusal_text(&refused), "demote it first");
        assert!(!refusal_text(&zbus::Error::InvalidReply).is_empty());
    }
}
