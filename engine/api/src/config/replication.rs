// SPDX-License-Identifier: Apache-2.0
//! `[replication]`: how the two replicas find each other and how often they synchronise.

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    AbsolutePath, DeltaCacheMib, EpochMsMax, GatherUs, LinkHosts, PeerTimeoutMs, Port, QueueKib,
    ResyncMib,
};
use crate::NodeName;
use crate::replica::FailoverPolicy;

/// What checkpoints are spaced for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum ReplicationPolicy {
    /// Outputs leave as soon as possible.
    Latency,
    /// Outputs leave soon, and the guest keeps most of its time.
    #[default]
    Auto,
    /// The guest keeps its time.
    Throughput,
}

/// What carries the replication link where no address says it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum LinkTransport {
    /// TLS where this node has what it needs for it, otherwise TCP.
    #[default]
    Auto,
    /// TCP, readable by whoever is on the way.
    Tcp,
    /// TLS, and nothing else.
    Tls,
}

/// How the two replicas find each other and how often they synchronise.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ReplicationSection {
    /// The TCP port a replica listens on, 1 to 65535; default 4444. Each VM of a node needs its
    /// own.
    pub port: Port,
    /// What carries the link between the replicas: `tls`, encrypted, and both sides prove that they
    /// belong together; `tcp`, open to whoever is on the way; `auto` (the default), `tls` where this
    /// node has a cluster key or certificates, otherwise `tcp` with a warning.
    pub transport: LinkTransport,
    /// The file with the cluster's key, the same on every node, made by `kemarictl keygen`; default
    /// `/etc/kemari/cluster.key`. It must belong to root or the engine's user and be readable by
    /// nobody else.
    pub cluster_key: Option<AbsolutePath>,
    /// Instead of a cluster key: PEM file with the certificates of the authorities that sign the
    /// nodes' certificates; default: none. Whoever has a certificate of theirs can be a replica.
    pub tls_authority: Option<AbsolutePath>,
    /// PEM file with this node's certificate, then those between it and the authority; default:
    /// none. It must be valid for the name or address other nodes connect to.
    pub tls_certificate: Option<AbsolutePath>,
    /// PEM file with the private key of this node's certificate, readable by its owner only;
    /// default: none.
    pub tls_key: Option<AbsolutePath>,
    /// Stop the guest until each checkpoint is acknowledged, as the first Kemari did; default
    /// false. For comparison: the guest stands still for a round trip each time.
    pub synchronous: bool,
    /// What checkpoints are spaced for: `latency`, outputs leave as soon as possible; `auto` (the
    /// default), the same, but the guest keeps nine tenths of its time; `throughput`, outputs wait
    /// for `epoch_ms_max`.
    pub policy: ReplicationPolicy,
    /// The longest time between checkpoints in milliseconds, 1 to 10000; default 25. Longer means
    /// fewer and larger checkpoints; an output ends the epoch earlier anyway.
    pub epoch_ms_max: EpochMsMax,
    /// Whose word the replicas wait for when a node or an engine is lost: `auto` (the default), the
    /// majority of agents where there are three nodes or more, otherwise Pacemaker's; `fenced`,
    /// always Pacemaker's, which fences first. Must agree on all nodes.
    pub failover: FailoverPolicy,
    /// How long the first output waits for others before a checkpoint, in microseconds, 0 to
    /// 1000000; default 500. It is added to the latency of every output, and saves checkpoints.
    pub gather_us: GatherUs,
    /// How much output may wait for commit before the guest is held back, in KiB, 4 to 32768;
    /// default 4096.
    pub queue_kib_max: QueueKib,
    /// Silence after which the other replica counts as out of reach, in milliseconds, 50 to 60000;
    /// default 1000.
    pub peer_timeout_ms: PeerTimeoutMs,
    /// The most that the copy of disks to a new passive replica may read and send, in MiB per
    /// second, 1 to 100000; default: as much as disks and link carry.
    pub resync_mib_per_s: Option<ResyncMib>,
    /// How pages are made short on the way to the other replica; default "auto": by what the link
    /// and the CPUs can do. "off": only pages of zeros. "delta": as the difference to what was sent
    /// last. "lz4": and compressed.
    pub compression: Compression,
    /// How much memory holds copies of the pages sent last, in MiB, 0 to 65536; default 64. Pages
    /// that are written again and again then go as differences.
    pub delta_cache_mib: DeltaCacheMib,
    /// Hash all memory and the machine's state at the end of each epoch, on the active replica while
    /// the guest stands still and on the passive one when it holds the epoch, and log both; default
    /// false. For tests and for doubts: it costs about a tenth of a second per GiB each time.
    pub hash_epochs: bool,
    /// Replication addresses (IP address or host name) by the names Pacemaker gives the nodes;
    /// default: the node's name itself is looked up. A direct link of its own is best. A list, of up
    /// to 8, names the node's address on each network between the replicas, the preferred one
    /// first: when a link fails, the pair goes on over the next.
    pub addresses: BTreeMap<NodeName, LinkHosts>,
}

/// How pages are made short.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum Compression {
    /// As the link and the CPUs can do it.
    #[default]
    Auto,
    /// Only pages of zeros are.
    Off,
    /// As the difference to what was sent last.
    Delta,
    /// As the difference, and compressed with LZ4.
    Lz4,
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Off => "off",
            Self::Delta => "delta",
            Self::Lz4 => "lz4",
        })
    }
}
