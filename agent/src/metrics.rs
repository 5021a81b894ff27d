// SPDX-License-Identifier: Apache-2.0
//! Metrics of this node, for Prometheus: which there are, and what they are made of.
//!
//! [`ALL`] is the list; alert rules, dashboard and `docs/metrics.md` are held against it by a test.
//! Everything is read when somebody asks ([`server`]) and put into text by [`expose`]; only what would
//! be forgotten otherwise is counted as it happens ([`counters`]).

pub mod counters;
pub mod expose;
pub mod server;

use std::collections::BTreeMap;

use kemari_api::VmName;
use kemari_api::agent::ClusterView;
use kemari_api::figures::ReplicaFigures;
use tokio::sync::oneshot;

use counters::Counters;

/// How a metric behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A value now.
    Gauge,
    /// Only grows while the process it is of runs; the exposed name ends in `_total`.
    Counter,
    /// Durations in buckets; the exposed names end in `_bucket`, `_sum` and `_count`.
    Histogram,
}

/// One metric.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// As Prometheus knows it, without the ending that its kind adds.
    pub name: &'static str,
    /// One sentence.
    pub help: &'static str,
    /// How it behaves.
    pub kind: Kind,
}

const fn gauge(name: &'static str, help: &'static str) -> Metric {
    let kind = Kind::Gauge;
    Metric { name, help, kind }
}

const fn counter(name: &'static str, help: &'static str) -> Metric {
    let kind = Kind::Counter;
    Metric { name, help, kind }
}

const fn histogram(name: &'static str, help: &'static str) -> Metric {
    let kind = Kind::Histogram;
    Metric { name, help, kind }
}

macro_rules! metrics {
    ($($constant:ident = $metric:expr;)*) => {
        $(pub(crate) const $constant: Metric = $metric;)*
        /// Every metric of the agent.
        pub const ALL: &[Metric] = &[$($constant),*];
    };
}

metrics! {
    AGENT = gauge("kemari_agent", "1; its label is the version of this agent");
    QUORATE = gauge("kemari_quorate", "This node's partition is quorate");
    NODES = gauge("kemari_nodes", "Nodes in corosync.conf");
    MEMBERS = gauge("kemari_members", "Nodes in the membership now");
    AGENTS = gauge("kemari_agents", "Nodes whose agents are in the group now");
    RECORDED = gauge("kemari_recorded_generation", "The newest generation this agent has recorded");
    ROLE = gauge("kemari_replica_role", "1 for the role of the replica on this node, 0 for the others");
    LICENCE = gauge("kemari_replica_licence", "1 for the licence of the replica on this node, 0 for the others");
    IN_SYNC = gauge("kemari_replica_in_sync", "A complete checkpoint is held by the passive replica");
    PROTECTED = gauge("kemari_vm_protected", "The active replica on this node has a passive one in sync");
    GENERATION = gauge("kemari_replica_generation", "How often the right to run has changed hands");
    EPOCH = gauge("kemari_replica_epoch", "Active: the epoch last committed. Passive: the epoch it would run from");
    ENGINE = gauge("kemari_engine_answers", "The engine told its figures when asked for them");
    LAG = gauge("kemari_lag_seconds", "How old the state is that the passive replica would run from");
    COPYING = gauge("kemari_copying", "The first copy to a passive replica is under way");
    QUEUE_OUTPUTS = gauge("kemari_queue_outputs", "Outputs that were caught and have not left");
    QUEUE_BYTES = gauge("kemari_queue_bytes", "The memory taken by outputs that have not left");
    CHECKPOINTS = counter("kemari_checkpoints", "Checkpoints committed: epochs");
    SENT = counter("kemari_sent_bytes", "Bytes of checkpoints handed to the link");
    DIRTY = counter("kemari_dirty_bytes", "Guest memory found changed in all checkpoints");
    LINK_FAILURES = counter("kemari_link_failures", "Links to a passive replica that ended in failure");
    PAUSE = histogram("kemari_pause_seconds", "How long the guest stood still for a checkpoint");
    COMMIT = histogram("kemari_commit_seconds", "From the end of an epoch to its commit");
    CLAIMS = counter("kemari_claims", "Claims that this agent made, by purpose");
    PROMOTIONS = counter("kemari_promotions", "Promotions asked of this node's engines, by kind and grounds");
    FAILOVERS = counter("kemari_failovers", "Take-overs here from a replica that was lost");
    SOLO = counter("kemari_solo", "Solo licences given to this node's active replicas");
    OUTDATED = counter("kemari_outdated", "Replicas here that were told to be outdated");
    REFUSALS = counter("kemari_refusals", "Requests of Pacemaker or a person that this agent refused");
}

/// What the exposition is made of.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// What the agent knows.
    pub view: ClusterView,
    /// Nodes in `corosync.conf`.
    pub nodes: usize,
    /// What happened.
    pub counters: Counters,
    /// What the engines of this node told; those that did not are not in it.
    pub figures: BTreeMap<VmName, ReplicaFigures>,
}

/// Asks the daemon for a snapshot, without the engines' figures.
#[derive(Debug)]
pub struct Wanted(pub oneshot::Sender<Snapshot>);

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const RULES: &str = include_str!("../../packaging/prometheus/kemari.rules.yml");
    const DASHBOARD: &str = include_str!("../../packaging/grafana/kemari.json");
    const PAGE: &str = include_str!("../../docs/metrics.md");

    /// Words that begin with `kemari_` in a text, without the endings that Prometheus adds.
    fn named(text: &str) -> BTreeSet<String> {
        let word = |char: char| char.is_ascii_alphanumeric() || char == '_';
        text.split(|char| !word(char))
            .filter(|word| word.starts_with("kemari_"))
            .map(|word| {
                let endings = ["_total", "_bucket", "_sum", "_count"];
                let bare = endings.iter().find_map(|end| word.strip_suffix(end));
                bare.unwrap_or(word).to_owned()
            })
            .collect()
    }

    #[test]
    fn rules_dashboard_and_page_know_the_metrics_that_there_are() {
        let known: BTreeSet<String> = ALL.iter().map(|it| it.name.to_owned()).collect();
        assert_eq!(known.len(), ALL.len(), "a name twice");
        let used = named(RULES).union(&named(DASHBOARD)).cloned().collect();
        assert_eq!(
            known, used,
            "rules and dashboard together (right) and the code"
        );
        assert_eq!(known, named(PAGE), "docs/metrics.md (right) and the code");
        for text in [RULES, DASHBOARD] {
            assert!(named(text).is_subset(&known));
        }
    }

    #[test]
    fn every_alert_has_its_paragraph_and_the_dashboard_is_json() {
        let alerts: Vec<&str> = RULES
            .lines()
            .filter_map(|line| line.trim().strip_prefix("- alert: "))
            .collect();
        assert!(alerts.len() > 5, "{alerts:?}");
        for alert in alerts {
            assert!(PAGE.contains(&format!("`{alert}`")), "{alert}");
        }
        let _: serde_json::Value = serde_json::from_str(DASHBOARD).unwrap();
    }

    #[test]
    fn counters_are_used_with_their_ending() {
        for metric in ALL {
            let (bare, full) = (metric.name, format!("{}_total", metric.name));
            let uses = |text: &str, name: &str| {
                text.match_indices(name).any(|(at, _)| {
                    let next = text
                        .get(at + name.len()..)
                        .and_then(|rest| rest.chars().next());
                    !next.is_some_and(|char| char.is_ascii_alphanumeric() || char == '_')
                })
            };
            for text in [RULES, DASHBOARD] {
                match metric.kind {
                    Kind::Counter => assert!(!uses(text, bare), "{bare} without _total"),
                    Kind::Gauge => assert!(!uses(text, &full), "{full} is a gauge"),
                    Kind::Histogram => assert!(!uses(text, bare), "{bare} without its ending"),
                }
            }
        }
    }
}
