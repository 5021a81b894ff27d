// SPDX-License-Identifier: Apache-2.0
//! What becomes of the replicas in Pacemaker's transition, of which an action is one step.
//!
//! With `notify=true` Pacemaker tells it not only in notifications: `start`, `stop`, `promote` and
//! `demote` carry the same lists (Pacemaker's `pcmk_sched_notif.c`, "Copy notification details into
//! standard ops"). The names are kept as Pacemaker wrote them: one that was left out would be a
//! replica that remains.

use std::collections::BTreeSet;

/// Nodes, by what is done to the replicas on them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Transition {
    /// A replica runs there, in whichever role, when the transition begins.
    pub(crate) running: BTreeSet<String>,
    /// One is promoted there, as far as Pacemaker knows, when the transition begins.
    pub(crate) held: BTreeSet<String>,
    /// It is stopped, or its node is fenced.
    pub(crate) stopped: BTreeSet<String>,
    /// One is started.
    pub(crate) started: BTreeSet<String>,
    /// One is promoted.
    pub(crate) promoted: BTreeSet<String>,
}

impl Transition {
    /// Reads the lists by name; `None` if Pacemaker did not tell them.
    pub(crate) fn read(list: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let nodes = |key: &str| Some(names(&list(&format!("notify_{key}_uname"))?));
        let mut running = nodes("active")?;
        // By their names of before 2.1 and since.
        let either = |new, old| [new, old].into_iter().filter_map(nodes).flatten();
        let held: BTreeSet<String> = either("promoted", "master").collect();
        // `active` has both roles; the others are asked too.
        running.extend(held.clone());
        running.extend(either("unpromoted", "slave"));
        Some(Self {
            running,
            held,
            stopped: nodes("stop")?,
            started: nodes("start")?,
            promoted: nodes("promote")?,
        })
    }

    /// Whether the replica on this node is stopped.
    pub(crate) fn stops(&self, node: &str) -> bool {
        self.stopped.contains(node)
    }

    /// Whether Pacemaker finds a promoted replica on a node other than this one, which no move of the role does.
    pub(crate) fn finds_another_than(&self, node: &str) -> bool {
        self.held.iter().any(|other| other != node)
    }

    /// Whether no replica that runs now survives. One that is started anew, or promoted after
    /// that, has nothing to go on from.
    pub(crate) fn ends_all(&self) -> bool {
        !self.running.is_empty()
            && self.running.is_subset(&self.stopped)
            && self.promoted.is_subset(&self.started)
    }
}

/// Pacemaker separates names by blanks; a place without a name is a blank too.
fn names(text: &str) -> BTreeSet<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(lists: &[(&str, &str)]) -> Option<Transition> {
        Transition::read(|key| {
            lists
                .iter()
                .find(|(name, _)| *name == key)
                .map(|(_, nodes)| (*nodes).to_owned())
        })
    }

    #[test]
    fn two_that_are_promoted_are_told_from_a_move_of_the_role() {
        for (held, promoted, finds_another) in [
            // A node that was silent is back.
            ("n1 n2", "", true),
            ("n1 n2", "n2", true),
            ("n2", "", true),
            // A move of the role, and the end of it.
            ("n1", "n2", false),
            ("n1", "", false),
            ("", "", false),
        ] {
            let lists = [
                ("notify_active_uname", "n1 n2 n3"),
                ("notify_promoted_uname", held),
                ("notify_stop_uname", ""),
                ("notify_start_uname", ""),
                ("notify_promote_uname", promoted),
            ];
            let transition = told(&lists).unwrap();
            assert_eq!(
                transition.finds_another_than("n1"),
                finds_another,
                "{transition:?}"
            );
        }
    }

    fn transition(running: &str, stopped: &str, started: &str, promoted: &str) -> Transition {
        told(&[
            ("notify_active_uname", running),
            ("notify_stop_uname", stopped),
            ("notify_start_uname", started),
            ("notify_promote_uname", promoted),
        ])
        .unwrap()
    }

    #[test]
    fn a_stop_of_every_replica_ends_all_and_no_other() {
        for (running, stopped, started, promoted, ends_all) in [
            // `pcs resource disable`, `crm resource stop`.
            ("n1 n2", "n1 n2", " ", " ", true),
            // The last node that has a replica leaves.
            ("n1", "n1", "", "", true),
            // A restart, and a move of both: nothing is left to go on from.
            ("n1 n2", "n1 n2", "n1 n2", "n1", true),
            ("n1 n2", "n1 n2", "n3 n4", "n3", true),
            // Standby of the active node, with and without a third to go to.
            ("n1 n2", "n1", "", "n2", false),
            ("n1 n2", "n1", "n3", "n2", false),
            // A move of the role.
            ("n1 n2", "", "", "n2", false),
            // What does not fit together is not acted upon.
            ("n1", "n1", "", "n2", false),
            ("", "n1", "", "", false),
        ] {
            let transition = transition(running, stopped, started, promoted);
            assert_eq!(transition.ends_all(), ends_all, "{transition:?}");
            assert_eq!(transition.stops("n1"), stopped.contains("n1"));
        }
    }

    #[test]
    fn a_replica_in_any_list_and_of_any_name_is_one_that_runs() {
        for role in ["promoted", "unpromoted", "master", "slave"] {
            let key = format!("notify_{role}_uname");
            let transition = told(&[
                ("notify_active_uname", "n1"),
                (&key, "weird:näme"),
                ("notify_stop_uname", "n1"),
                ("notify_start_uname", ""),
                ("notify_promote_uname", ""),
            ])
            .unwrap();
            assert!(!transition.ends_all(), "{transition:?}");
        }
    }

    #[test]
    fn a_list_that_is_missing_makes_it_unknown() {
        let all = [
            ("notify_active_uname", "n1"),
            ("notify_stop_uname", "n1"),
            ("notify_start_uname", " "),
            ("notify_promote_uname", " "),
        ];
        assert!(told(&all).is_some());
        for missing in 0..all.len() {
            let mut some = all.to_vec();
            some.remove(missing);
            assert_eq!(told(&some), None);
        }
    }
}
