// SPDX-License-Identifier: Apache-2.0
//! The decisions of design.md's table, one by one.

use kemari_api::{Licence, Role};

use super::world::{World, name, vm};

const PAIRED: Option<(Role, Licence)> = Some((Role::Active, Licence::Paired));
const SOLO: Option<(Role, Licence)> = Some((Role::Active, Licence::Solo));
const PASSIVE: Option<(Role, Licence)> = Some((Role::Passive, Licence::None));
const WAITING: Option<(Role, Licence)> = Some((Role::Waiting, Licence::None));

/// n1 active and paired with n2.
fn pair(nodes: usize) -> World {
    paired(World::new(nodes))
}

/// The same, and the VM writes to a disk that both nodes see.
fn pair_with_shared_disk(nodes: usize) -> World {
    paired(World::with_shared_disk(nodes))
}

fn paired(mut world: World) -> World {
    world.settle(1);
    let request = world.promote(0);
    world.settle(3);
    assert_eq!(world.answers.get(&request), Some(&Ok(())));
    assert_eq!((world.role(0), world.role(1)), (PAIRED, PASSIVE));
    world
}

#[test]
fn a_cold_start_is_granted_and_finds_a_passive_replica() {
    pair(2);
    pair(3);
    pair(5);
}

#[test]
fn a_lost_node_is_taken_over_without_being_asked() {
    let mut world = pair(3);
    world.kill_node(0);
    world.settle(0);
    assert_eq!(world.role(1), SOLO);
    let request = world.promote(1);
    world.settle(0);
    assert_eq!(
        world.answers.get(&request),
        Some(&Ok(())),
        "the work is done"
    );
}

#[test]
fn a_node_that_returns_becomes_passive() {
    let mut world = pair(3);
    world.kill_node(0);
    world.settle(0);
    world.boot(0);
    world.settle(2);
    assert_eq!((world.role(0), world.role(1)), (PASSIVE, PAIRED));
    world.kill_node(1);
    world.settle(0);
    assert_eq!(world.role(0), SOLO);
}

#[test]
fn without_quorum_nothing_is_promoted() {
    let mut world = pair(3);
    world.kill_node(2);
    world.kill_node(0);
    let request = world.promote(1);
    world.settle(5);
    assert_eq!(world.role(1), PASSIVE);
    assert_eq!(world.answers.get(&request), None, "it waits for quorum");
    world.boot(2);
    world.settle(2);
    assert_eq!(world.role(1), SOLO);
}

#[test]
fn an_engine_that_ended_is_taken_over_at_once_with_any_number_of_nodes() {
    for nodes in [2, 3, 5] {
        let mut world = pair(nodes);
        world.kill_engine(0);
        world.settle(0);
        assert_eq!(world.role(1), SOLO, "{nodes} nodes");
    }
}

#[test]
fn an_agent_that_vanished_says_nothing_about_its_engine() {
    let mut world = pair(3);
    world.kill_agent(0);
    world.settle(3);
    assert_eq!((world.role(0), world.role(1)), (PAIRED, PASSIVE));
}

#[test]
fn two_nodes_leave_a_lost_node_to_pacemaker() {
    let mut world = pair(2);
    world.kill_node(0);
    world.settle(3);
    assert_eq!(world.role(1), PASSIVE);
    let request = world.promote(1);
    world.settle(0);
    assert_eq!(world.answers.get(&request), Some(&Ok(())));
    assert_eq!(world.role(1), SOLO);
}

#[test]
fn a_node_cut_off_and_back_finds_itself_outdated() {
    let mut world = pair(3);
    world.isolate(0);
    world.settle(1);
    assert_eq!(world.role(0), Some((Role::Active, Licence::Cut)));
    assert_eq!(world.role(1), SOLO);
    world.heal();
    world.settle(0);
    assert_eq!(world.role(0), Some((Role::Outdated, Licence::None)));
    let request = world.promote(0);
    world.settle(0);
    let refusal = world.answers.get(&request).cloned().unwrap().unwrap_err();
    assert!(
        refusal.contains("outdated") && refusal.contains("n2"),
        "{refusal}"
    );
}

#[test]
fn a_passive_replica_whose_active_one_has_another_partner_waits_for_a_resync() {
    // Found by a random history: it stayed passive and in sync, of a generation that was over.
    let mut world = pair(3);
    world.start_engine(2);
    world.isolate(1);
    world.settle(3);
    assert_eq!((world.role(0), world.role(2)), (PAIRED, PASSIVE));
    assert_eq!(world.role(1), PASSIVE, "it knows of nothing");
    world.heal();
    world.settle(1);
    assert_eq!((world.role(0), world.role(2)), (PAIRED, PASSIVE));
    assert_eq!(world.role(1), WAITING);
}

#[test]
fn an_outdated_replica_whose_engine_is_slow_claims_nothing() {
    // Found by the model: each message made the agent claim anew, each claim made two messages.
    let mut world = pair(3);
    world.isolate(0);
    world.settle(1);
    world.heal();
    // n1 learns of n2's generation, and its engine has not been told yet when n2 is lost.
    while (0..3).any(|node| world.deliver(node)) {}
    world.kill_node(1);
    let mut messages = 0;
    while (0..3).any(|node| world.deliver(node)) {
        messages += 1;
        assert!(messages < 100, "the agents do not come to rest");
    }
    world.settle(1);
    assert_eq!(world.role(0), Some((Role::Outdated, Licence::None)));
}

#[test]
fn a_cold_start_that_nobody_consented_to_outdates_nobody() {
    // Found by the model: both hosts are told to promote. The agents record n1's claim, then n2's
    // of the next generation, which names n1; n1 refuses, and its guest must go on.
    let mut world = World::new(3);
    world.settle(1);
    world.promote(0);
    world.deliver(0);
    while (0..3).any(|node| world.deliver(node)) {}
    // n1's claim is being recorded, n2 has heard of it and names n1.
    world.write(0);
    while world.deliver(0) {}
    while world.deliver(1) {}
    world.promote(1);
    world.settle(0);
    world.settle(3);
    assert_eq!((world.role(0), world.role(1)), (PAIRED, PASSIVE));
}

#[test]
fn with_two_nodes_the_active_goes_solo_on_pacemakers_word_only() {
    let mut world = pair(2);
    world.kill_node(1);
    world.settle(4);
    assert_eq!(world.role(0), Some((Role::Active, Licence::Cut)));
    world.passive_gone(0, 1);
    world.settle(0);
    assert_eq!(world.role(0), SOLO);
}

#[test]
fn with_three_nodes_a_majority_lets_the_active_go_solo() {
    let mut world = pair(3);
    world.kill_node(1);
    world.settle(4);
    assert_eq!(world.role(0), SOLO, "the node is gone");
    for nodes in [2, 3] {
        let mut world = pair(nodes);
        world.kill_engine(1);
        world.settle(4);
        assert_eq!(
            world.role(0),
            SOLO,
            "the node itself said that the engine ended"
        );
    }
}

#[test]
fn a_word_that_comes_first_is_remembered_and_a_wrong_one_forgotten() {
    let mut world = pair(3);
    world.passive_gone(0, 1);
    world.settle(1);
    assert_eq!(world.role(0), PAIRED);
    world.kill_engine(1);
    world.settle(1);
    assert_eq!(world.role(0), SOLO, "kept for a while");

    let mut world = pair(2);
    world.passive_gone(0, 1);
    world.settle(5);
    world.isolate(1);
    world.settle(5);
    assert_eq!(world.role(0), Some((Role::Active, Licence::Cut)));
}

#[test]
fn a_passive_replica_stays_so_while_the_other_runs() {
    let mut world = pair(3);
    let request = world.promote(1);
    world.settle(5);
    let refusal = world.answers.get(&request).cloned().unwrap().unwrap_err();
    assert!(
        refusal.contains("n1") && refusal.contains("demote"),
        "{refusal}"
    );
    assert_eq!((world.role(0), world.role(1)), (PAIRED, PASSIVE));
}

#[test]
fn a_handover_is_demote_then_promote() {
    for nodes in [2, 3] {
        let mut world = pair(nodes);
        world.demote(0);
        world.settle(3);
        assert_eq!(
            (world.role(0), world.role(1)),
            (WAITING, PASSIVE),
            "not unasked"
        );
        let request = world.promote(1);
        world.settle(2);
        assert_eq!(world.answers.get(&request), Some(&Ok(())));
        assert_eq!((world.role(0), world.role(1)), (PASSIVE, PAIRED));
    }
}

#[test]
fn an_engine_that_ends_after_its_demotion_is_no_loss() {
    // `crm resource stop`: both replicas are to end, neither is to take over from the other.
    let mut world = pair(3);
    world.demote(0);
    world.settle(1);
    world.kill_engine(0);
    world.settle(3);
    assert_eq!(world.role(1), PASSIVE);
}

#[test]
fn a_cold_start_is_refused_while_another_node_may_have_the_state() {
    let mut world = pair(3);
    world.kill_engine(1);
    world.start_engine(1);
    world.settle(0);
    world.kill_node(0);
    world.settle(0);
    // n2 has been resynchronised meanwhile or not; without state it must not boot anew.
    if world.role(1) == WAITING {
        let request = world.promote(1);
        world.settle(5);
        let refusal = world.answers.get(&request).cloned().unwrap().unwrap_err();
        assert!(refusal.contains("n1"), "{refusal}");
    }
}

#[test]
fn an_agent_without_records_learns_before_it_votes() {
    let mut world = World::new(3);
    world.kill_node(2);
    world.settle(0);
    let mut fresh = World::new(3);
    fresh.isolate(2);
    let request = fresh.promote(0);
    fresh.settle(3);
    assert_eq!(
        fresh.answers.get(&request),
        None,
        "{} was never heard",
        name(2)
    );
    fresh.heal();
    fresh.settle(3);
    assert_eq!(fresh.answers.get(&request), Some(&Ok(())), "{}", vm());
}

/// n1 active and paired with n2, the VM has a replicated disk.
fn pair_with_disks(nodes: usize) -> World {
    let mut world = World::with_disks(nodes);
    world.settle(1);
    let request = world.promote(0);
    world.settle(3);
    assert_eq!(world.answers.get(&request), Some(&Ok(())));
    world
}

#[test]
fn after_a_power_cut_the_guest_boots_where_it_ran_last() {
    for nodes in [2, 3] {
        let mut world = pair_with_disks(nodes);
        for node in 0..nodes {
            world.kill_node(node);
        }
        (0..nodes).for_each(|node| world.boot(node));
        world.settle(3);
        let copy = world.promote(1);
        world.settle(5);
        let refused = world.answers.get(&copy).cloned();
        assert!(
            matches!(&refused, Some(Err(reason)) if reason.contains("a copy") && reason.contains("as recorded")),
            "{refused:?}"
        );
        let own = world.promote(0);
        world.settle(5);
        assert_eq!(world.answers.get(&own), Some(&Ok(())), "{nodes} nodes");
    }
}

#[test]
fn an_older_disk_is_not_booted_from_while_the_newer_one_is_away() {
    let mut world = pair_with_disks(3);
    world.kill_node(0);
    world.settle(3);
    assert_eq!(world.role(1), SOLO);
    world.kill_node(1);
    world.kill_node(2);
    world.boot(0);
    world.boot(2);
    world.settle(3);
    let older = world.promote(0);
    world.settle(5);
    assert_eq!(world.answers.get(&older), None, "it waits for n2");
    world.boot(1);
    world.settle(5);
    let newer = world.promote(1);
    world.settle(5);
    assert_eq!(world.answers.get(&newer), Some(&Ok(())));
}

#[test]
fn with_a_shared_disk_a_lost_node_is_left_to_pacemaker_which_fences() {
    for nodes in [2, 3, 5] {
        let mut world = pair_with_shared_disk(nodes);
        world.kill_node(0);
        world.settle(5);
        assert_eq!(world.role(1), PASSIVE, "{nodes} nodes");
        let request = world.promote(1);
        world.settle(0);
        assert_eq!(world.answers.get(&request), Some(&Ok(())));
        assert_eq!(world.role(1), SOLO, "{nodes} nodes");
    }
}

#[test]
fn with_a_shared_disk_an_engine_that_ended_waits_until_its_node_is_fenced() {
    for nodes in [3, 5] {
        let mut world = pair_with_shared_disk(nodes);
        world.kill_engine(0);
        world.settle(5);
        assert_eq!(world.role(1), PASSIVE, "{nodes} nodes");
        let request = world.promote(1);
        world.settle(5);
        assert_eq!(world.role(1), PASSIVE, "{nodes} nodes");
        assert_eq!(world.answers.get(&request), None, "it waits for fencing");
        world.kill_node(0);
        world.settle(1);
        assert_eq!(world.answers.get(&request), Some(&Ok(())));
        assert_eq!(world.role(1), SOLO, "{nodes} nodes");
    }
}

#[test]
fn a_shared_disk_is_handed_over_without_fencing() {
    for nodes in [2, 3] {
        let mut world = pair_with_shared_disk(nodes);
        world.demote(0);
        world.settle(1);
        let request = world.promote(1);
        world.settle(3);
        assert_eq!(world.answers.get(&request), Some(&Ok(())));
        assert_eq!((world.role(0), world.role(1)), (PASSIVE, PAIRED));
    }
}
