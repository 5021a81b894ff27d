// SPDX-License-Identifier: Apache-2.0
//! What the unit tests of several modules share, and the tests of the score table.

use kemari_api::agent::{ClusterView, ReplicaView, Vote};
use kemari_api::replica::{DiskState, FailoverPolicy, ReplicaStatus};
use kemari_api::{Epoch, Generation, Licence, Role};

use crate::cluster::Known;
use crate::engine::Engine;
use crate::score::{Score, may_boot, of};

/// The status of a replica in this role on node1.
pub(crate) fn status(role: Role) -> ReplicaStatus {
    ReplicaStatus {
        vm: "vm".parse().unwrap(),
        node: "node1".parse().unwrap(),
        pid: 1,
        role,
        licence: Licence::None,
        in_sync: false,
        running: false,
        generation: Generation::new(3),
        epoch: Epoch::new(0),
        disks: DiskState::None,
        failover: FailoverPolicy::Auto,
        peer: String::new(),
        listen: String::new(),
        detail: String::new(),
    }
}

fn answers(role: Role, in_sync: bool) -> Engine {
    let mut status = status(role);
    status.in_sync = in_sync;
    Engine::Answers(Box::new(status))
}

fn view() -> ClusterView {
    ClusterView {
        node: "node1".parse().unwrap(),
        quorate: true,
        members: Vec::new(),
        agents: Vec::new(),
        replicas: Vec::new(),
        generations: Vec::new(),
    }
}

fn view_of_node2(role: Role, in_sync: bool, present: bool) -> ClusterView {
    let mut status = status(role);
    status.node = "node2".parse().unwrap();
    status.in_sync = in_sync;
    ClusterView {
        replicas: vec![ReplicaView { status, present }],
        ..view()
    }
}

#[test]
fn the_score_table_in_the_documentation_holds() {
    for (engine, first_boot, score) in [
        (answers(Role::Active, false), false, Score::Value(10_000)),
        (answers(Role::Active, true), true, Score::Value(10_000)),
        (answers(Role::Passive, true), false, Score::Value(1_000)),
        (answers(Role::Passive, false), true, Score::Never),
        (answers(Role::Waiting, false), true, Score::Value(5)),
        (answers(Role::Waiting, false), false, Score::None),
        (answers(Role::Outdated, true), true, Score::Never),
        (Engine::Stopped, true, Score::None),
        (Engine::Dead(String::new()), true, Score::None),
        (Engine::Mute(String::new()), true, Score::None),
    ] {
        assert_eq!(of(&engine, first_boot), score, "{engine:?}");
    }
}

fn known(view: ClusterView) -> Known {
    let votes = Vec::new();
    Known { view, votes }
}

/// What node1 knows where some agent has recorded this.
fn recorded(holder: &str, generation: u64, view: ClusterView) -> Known {
    let vote = Vote {
        node: "node3".parse().unwrap(),
        generation: Generation::new(generation),
        holder: holder.parse().unwrap(),
        purpose: "take-over".to_owned(),
    };
    let votes = vec![vote];
    Known { view, votes }
}

#[test]
fn the_first_boot_needs_quorum() {
    let own = status(Role::Waiting);
    assert_eq!(may_boot(&known(view()), &own), Ok(()));
    let inquorate = ClusterView {
        quorate: false,
        ..view()
    };
    assert!(may_boot(&known(inquorate), &own).is_err());
}

#[test]
fn a_better_copy_elsewhere_forbids_a_boot_also_when_its_node_is_away() {
    let own = status(Role::Waiting);
    for present in [true, false] {
        for (role, in_sync) in [(Role::Active, false), (Role::Passive, true)] {
            let known = known(view_of_node2(role, in_sync, present));
            assert!(may_boot(&known, &own).is_err(), "{known:?}");
        }
        for (role, in_sync) in [(Role::Waiting, false), (Role::Passive, false)] {
            let known = known(view_of_node2(role, in_sync, present));
            assert_eq!(may_boot(&known, &own), Ok(()), "{known:?}");
        }
    }
}

#[test]
fn a_last_holder_nothing_is_known_of_forbids_a_boot() {
    let own = status(Role::Waiting);
    assert_eq!(may_boot(&recorded("node1", 3, view()), &own), Ok(()));
    assert!(may_boot(&recorded("node2", 3, view()), &own).is_err());
    assert_eq!(may_boot(&recorded("node2", 0, view()), &own), Ok(()));
    let heard = ClusterView {
        agents: vec!["node2".parse().unwrap()],
        ..view()
    };
    assert_eq!(may_boot(&recorded("node2", 3, heard), &own), Ok(()));
    let spoke = view_of_node2(Role::Waiting, false, false);
    assert_eq!(may_boot(&recorded("node2", 3, spoke), &own), Ok(()));
}

/// An agent knows who ran last, and not what is on the disks there: an engine does.
#[test]
fn newer_disks_that_no_engine_speaks_for_forbid_a_boot() {
    let own = ReplicaStatus {
        disks: DiskState::Own,
        ..status(Role::Waiting)
    };
    let heard = || ClusterView {
        agents: vec!["node2".parse().unwrap()],
        ..view()
    };
    let boots = |generation| may_boot(&recorded("node2", generation, heard()), &own).is_ok();
    assert!(boots(own.generation.get()));
    assert!(!boots(own.generation.get() + 1));
}

#[test]
fn an_empty_disk_is_not_taken_for_the_one_that_was_copied() {
    let mut view = view_of_node2(Role::Waiting, false, true);
    for replica in &mut view.replicas {
        replica.status.disks = DiskState::Copy;
    }
    let boots = |generation| {
        let own = ReplicaStatus {
            disks: DiskState::Own,
            generation: Generation::new(generation),
            ..status(Role::Waiting)
        };
        may_boot(&recorded("node1", 3, view.clone()), &own).is_ok()
    };
    assert!(boots(3));
    assert!(!boots(0));
}

#[test]
fn who_waits_with_a_copy_is_told_where_the_guest_ran_last() {
    let own = ReplicaStatus {
        disks: DiskState::Copy,
        ..status(Role::Waiting)
    };
    let reason = |known: &Known| may_boot(known, &own).unwrap_err();
    assert!(!reason(&known(view())).contains("recorded"));
    let elsewhere = reason(&recorded("node2", 3, view()));
    assert!(
        elsewhere.ends_with("ran last (node2, as recorded)"),
        "{elsewhere}"
    );
    assert!(!reason(&recorded("node1", 3, view())).contains("recorded"));
}

#[test]
fn the_example_description_is_accepted() {
    let text = include_str!("../../packaging/examples/vm.toml");
    let path = std::path::Path::new("packaging/examples/vm.toml");
    let config = kemari_api::config::VmConfig::parse(path, text).unwrap();
    assert_eq!(config.vm.name.as_str(), "vm");
}
