// SPDX-License-Identifier: Apache-2.0
//! What the unit tests of several modules share, and the tests of the score table.

use kemari_api::agent::{ClusterView, ReplicaView};
use kemari_api::replica::{DiskState, FailoverPolicy, ReplicaStatus};
use kemari_api::{Epoch, Generation, Licence, Role};

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

#[test]
fn the_first_boot_needs_quorum() {
    let own = status(Role::Waiting);
    assert_eq!(may_boot(&view(), &own), Ok(()));
    let inquorate = ClusterView {
        quorate: false,
        ..view()
    };
    assert!(may_boot(&inquorate, &own).is_err());
}

#[test]
fn a_better_copy_elsewhere_forbids_a_boot_also_when_its_node_is_away() {
    let own = status(Role::Waiting);
    for present in [true, false] {
        for (role, in_sync) in [(Role::Active, false), (Role::Passive, true)] {
            let view = view_of_node2(role, in_sync, present);
            assert!(may_boot(&view, &own).is_err(), "{view:?}");
        }
        for (role, in_sync) in [(Role::Waiting, false), (Role::Passive, false)] {
            let view = view_of_node2(role, in_sync, present);
            assert_eq!(may_boot(&view, &own), Ok(()), "{view:?}");
        }
    }
}

#[test]
fn a_last_holder_nothing_is_known_of_forbids_a_boot() {
    let own = status(Role::Waiting);
    let held_by = |node: &str, generation| ClusterView {
        generations: vec![(
            own.vm.clone(),
            Generation::new(generation),
            node.parse().unwrap(),
        )],
        ..view()
    };
    assert_eq!(may_boot(&held_by("node1", 3), &own), Ok(()));
    assert!(may_boot(&held_by("node2", 3), &own).is_err());
    assert_eq!(may_boot(&held_by("node2", 0), &own), Ok(()));
    let heard = ClusterView {
        agents: vec!["node2".parse().unwrap()],
        ..held_by("node2", 3)
    };
    assert_eq!(may_boot(&heard, &own), Ok(()));
    let spoke = ClusterView {
        replicas: view_of_node2(Role::Waiting, false, false).replicas,
        ..held_by("node2", 3)
    };
    assert_eq!(may_boot(&spoke, &own), Ok(()));
}

#[test]
fn the_example_description_is_accepted() {
    let text = include_str!("../../packaging/examples/vm.toml");
    let path = std::path::Path::new("packaging/examples/vm.toml");
    let config = kemari_api::config::VmConfig::parse(path, text).unwrap();
    assert_eq!(config.vm.name.as_str(), "vm");
}
