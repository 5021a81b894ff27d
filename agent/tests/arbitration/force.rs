// SPDX-License-Identifier: Apache-2.0
//! A person forces a start: what that takes the place of, and what it does not.

use kemari_agent::arbitration::RequestId;
use kemari_api::{Licence, Role};

use super::world::{World, name, vm};

const SOLO: Option<(Role, Licence)> = Some((Role::Active, Licence::Solo));
const PASSIVE: Option<(Role, Licence)> = Some((Role::Passive, Licence::None));
const WAITING: Option<(Role, Licence)> = Some((Role::Waiting, Licence::None));

/// n1 ran the VM, with its own disk, and is gone for good; n2 was booted anew and waits.
fn last_holder_lost(nodes: usize) -> World {
    let mut world = World::with_disks(nodes);
    world.settle(1);
    world.promote(0);
    world.settle(3);
    assert_eq!(world.role(1), PASSIVE);
    world.kill_node(1);
    world.settle(1);
    world.passive_gone(0, 1);
    world.settle(2);
    assert_eq!(world.role(0), SOLO, "{nodes} nodes");
    world.kill_node(0);
    world.boot(1);
    world.settle(2);
    assert_eq!(world.role(1), WAITING);
    world
}

#[test]
fn a_refused_start_is_forced_by_a_person() {
    for nodes in [2, 3, 5] {
        let mut world = last_holder_lost(nodes);
        let asked = world.promote(1);
        world.settle(5);
        assert_ne!(world.answers.get(&asked), Some(&Ok(())), "{nodes} nodes");
        let forced = world.force(1);
        world.settle(2);
        assert_eq!(world.answers.get(&forced), Some(&Ok(())), "{nodes} nodes");
        assert_eq!(world.role(1), SOLO, "{nodes} nodes");
    }
}

#[test]
fn an_empty_disk_under_the_name_of_the_last_holder_is_not_booted_from() {
    for nodes in [2, 3] {
        let mut world = last_holder_lost(nodes);
        world.replace_machine(0);
        world.settle(3);
        let empty = world.promote(0);
        world.settle(5);
        let refusal = world.answers.get(&empty).cloned();
        assert!(
            matches!(&refusal, Some(Err(reason)) if reason.contains("never ran on those of node n1")),
            "{nodes} nodes: {refusal:?}"
        );
        if nodes == 2 {
            // Nobody is left who knows the last generation: the runbook forces first, and replaces then.
            continue;
        }
        // What is left of the guest is booted when a person says so.
        let copy = world.force(1);
        world.settle(3);
        assert_eq!(world.answers.get(&copy), Some(&Ok(())), "{nodes} nodes");
        world.settle(3);
        assert_eq!(world.role(0), PASSIVE, "{nodes} nodes");
    }
}

#[test]
fn what_was_overruled_does_not_run_when_it_returns() {
    for nodes in [2, 3] {
        let mut world = last_holder_lost(nodes);
        world.force(1);
        world.settle(2);
        world.boot(0);
        world.settle(3);
        assert_eq!(world.role(0), PASSIVE, "{nodes} nodes");
        let request = world.promote(0);
        world.settle(5);
        let refusal = world.answers.get(&request).cloned().unwrap().unwrap_err();
        assert!(refusal.contains("active on node n2"), "{refusal}");
    }
}

#[test]
fn a_replica_that_runs_is_not_forced_away() {
    for nodes in [2, 3] {
        let mut world = World::new(nodes);
        world.settle(1);
        world.promote(0);
        world.settle(3);
        let forced = world.force(1);
        world.settle(5);
        let refusal = refusal_of(&world, forced);
        assert!(refusal.contains("active on node n1"), "{refusal}");
        assert_eq!(world.role(1), PASSIVE);
    }
}

/// n1's engine has ended unnoticed and was started anew; n2 holds the state, n3's agent is away.
fn state_on_the_other_node() -> World {
    let mut world = World::new(3);
    world.settle(1);
    world.promote(0);
    world.settle(3);
    world.kill_agent(0);
    world.kill_agent(2);
    world.kill_engine(0);
    world.start_agent(0);
    world.start_engine(0);
    world
}

fn refusal_of(world: &World, request: RequestId) -> String {
    match world.answers.get(&request) {
        Some(Err(text)) => text.clone(),
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn a_promotable_replica_elsewhere_goes_before_a_person() {
    let mut world = state_on_the_other_node();
    world.settle(0);
    let forced = world.force(0);
    world.settle(1);
    let refusal = refusal_of(&world, forced);
    assert!(refusal.contains("Node n2 holds a state"), "{refusal}");
}

#[test]
fn an_agent_that_was_not_heard_yet_refuses_for_its_replica() {
    let mut world = state_on_the_other_node();
    // Before n2's announcement has come.
    let forced = world.force(0);
    world.settle(1);
    let refusal = refusal_of(&world, forced);
    assert!(refusal.contains("did not grant"), "{refusal}");
    assert_eq!((world.role(0), world.role(1)), (WAITING, PASSIVE));
}

#[test]
fn without_quorum_a_person_cannot_force_either() {
    let mut world = last_holder_lost(3);
    world.kill_node(2);
    let forced = world.force(1);
    world.settle(0);
    let refusal = refusal_of(&world, forced);
    assert!(refusal.contains("no quorum"), "{refusal}");
    // What was said then is not done later.
    world.boot(2);
    world.settle(2);
    assert_eq!(world.role(1), WAITING);
}

#[test]
fn a_majority_records_what_was_forced() {
    let mut world = last_holder_lost(3);
    world.kill_agent(2);
    let forced = world.force(1);
    world.settle(0);
    let refusal = refusal_of(&world, forced);
    assert!(refusal.contains("agents of 2 of 3 nodes"), "{refusal}");
    world.start_agent(2);
    world.settle(2);
    assert_eq!(world.role(1), WAITING);
    let forced = world.force(1);
    world.settle(2);
    assert_eq!(world.answers.get(&forced), Some(&Ok(())));
    let votes = world.votes(1);
    assert!(
        votes
            .iter()
            .any(|vote| vote.node == name(2) && vote.holder == name(1) && vote.purpose == "forced"),
        "{votes:?} of {}",
        vm()
    );
}

#[test]
fn what_a_person_said_is_void_when_the_cluster_changes() {
    let mut world = last_holder_lost(3);
    let forced = world.force(1);
    // The request is heard first; a node returns before anybody has answered the claim.
    world.boot(0);
    world.settle(2);
    let refusal = refusal_of(&world, forced);
    assert!(refusal.contains("look again"), "{refusal}");
    assert_eq!(world.role(1), WAITING);
}
