// SPDX-License-Identifier: Apache-2.0
//! `notify`: Pacemaker tells what it did to the other replica.
//!
//! After a stop, and after fencing, which Pacemaker notifies alike, the active replica learns from
//! this that its passive one is gone and may go solo; the agent decides. The action never fails:
//! Pacemaker could do nothing about it.
//!
//! Before an active replica is demoted, the scores that Pacemaker goes by are written to its cluster information
//! base anew. Where two parts of a cluster merge, those of nodes that were there all the time may be missing in
//! it, and Pacemaker demotes every replica; what it reads now makes it calculate again, before it has begun.

use std::collections::BTreeSet;

use kemari_api::{NodeName, Role};
use tokio::time::timeout;

use crate::cluster::{self, Answer};
use crate::engine::Engine;
use crate::environment::Notice;
use crate::exit::{Code, Outcome, inform, warn};
use crate::instance::Instance;
use crate::score;

/// Passes the word on, and refreshes the score.
pub(super) async fn run(instance: &Instance) -> Outcome {
    let engine = instance.observe().await;
    if let Engine::Answers(status) = &engine
        && status.role == Role::Active
    {
        for node in gone(&instance.environment.notice, &status.node) {
            instance.waits_for(format!("kemari-agent to hear that {node} was stopped"));
            let told = timeout(
                instance.left() / 2,
                cluster::passive_gone(&instance.vm, &node),
            );
            let answer = told
                .await
                .unwrap_or_else(|_| Answer::Absent(cluster::MISSING.to_owned()));
            match answer {
                Answer::Done => inform(format!("The replica on {node} is gone")),
                Answer::Refused(reason) => warn(format!("The agent says: {reason}")),
                Answer::Absent(remedy) => warn(remedy),
            }
        }
    }
    if matches!(engine, Engine::Answers(_)) {
        instance.refresh_score(&engine).await;
    }
    if let Engine::Answers(status) = &engine
        && status.role == Role::Active
        && is_demoted_next(&instance.environment.notice, &status.node)
    {
        instance.waits_for("Pacemaker to read the promotion scores again");
        score::write_again(&instance.environment, instance.left() / 4).await;
    }
    Ok(Code::Success)
}

/// Whether this is the word before the demotion of the own replica.
fn is_demoted_next(notice: &Notice, own: &NodeName) -> bool {
    notice.moment == "pre" && notice.operation == "demote" && notice.demoted.contains(own)
}

/// The nodes whose replica is gone now. One that is started again in the same transition may be
/// back before this is heard, so it is not named: the replicas then find each other.
fn gone(notice: &Notice, own: &NodeName) -> BTreeSet<NodeName> {
    if notice.moment != "post" || notice.operation != "stop" {
        return BTreeSet::new();
    }
    notice
        .stopped
        .difference(&notice.started)
        .filter(|node| *node != own)
        .cloned()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(names: &str) -> BTreeSet<NodeName> {
        names
            .split_whitespace()
            .map(|name| name.parse().unwrap())
            .collect()
    }

    fn named(moment: &str, operation: &str, stopped: &str, started: &str) -> BTreeSet<NodeName> {
        let notice = Notice {
            moment: moment.to_owned(),
            operation: operation.to_owned(),
            stopped: nodes(stopped),
            started: nodes(started),
            demoted: BTreeSet::new(),
        };
        gone(&notice, &"node1".parse().unwrap())
    }

    #[test]
    fn another_nodes_stop_counts_once_it_is_done() {
        assert_eq!(named("post", "stop", "node2", ""), nodes("node2"));
        assert_eq!(named("pre", "stop", "node2", ""), nodes(""));
        assert_eq!(named("post", "start", "node2", ""), nodes(""));
        assert_eq!(named("", "", "", ""), nodes(""));
    }

    #[test]
    fn the_word_before_the_own_demotion_is_told_from_all_others() {
        let own = "node1".parse().unwrap();
        for (moment, operation, demoted, is_next) in [
            ("pre", "demote", "node1 node2", true),
            ("pre", "demote", "node2", false),
            ("post", "demote", "node1", false),
            ("pre", "stop", "node1", false),
        ] {
            let notice = Notice {
                moment: moment.to_owned(),
                operation: operation.to_owned(),
                demoted: nodes(demoted),
                ..Notice::default()
            };
            assert_eq!(is_demoted_next(&notice, &own), is_next, "{notice:?}");
        }
    }

    #[test]
    fn the_own_node_and_a_restart_do_not_count() {
        assert_eq!(named("post", "stop", "node1 node2", ""), nodes("node2"));
        assert_eq!(
            named("post", "stop", "node2 node3", "node2"),
            nodes("node3")
        );
    }
}
