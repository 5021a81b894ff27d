// SPDX-License-Identifier: Apache-2.0
//! A claim that is not granted must not stand in the way of the next one.

use kemari_agent::arbitration::RequestId;
use kemari_api::{Licence, Role};

use super::world::{World, name};

const PAIRED: Option<(Role, Licence)> = Some((Role::Active, Licence::Paired));
const SOLO: Option<(Role, Licence)> = Some((Role::Active, Licence::Solo));
const PASSIVE: Option<(Role, Licence)> = Some((Role::Passive, Licence::None));

/// Both hosts are told to promote, at a cold start: n2 has heard of n1's claim, not that n1 is
/// active. n1 boots the guest; n2's claim, of the next generation, is refused by n1.
fn both_told_to_promote(nodes: usize) -> (World, RequestId) {
    let mut world = World::new(nodes);
    world.settle(1);
    world.promote(0);
    world.deliver(0);
    while (0..nodes).any(|node| world.deliver(node)) {}
    world.write(0);
    while world.deliver(0) {}
    while world.deliver(1) {}
    let second = world.promote(1);
    world.settle(0);
    world.settle(3);
    (world, second)
}

#[test]
fn of_two_hosts_told_to_promote_one_boots_and_is_protected_by_the_other() {
    for nodes in [2, 3, 5] {
        let (world, second) = both_told_to_promote(nodes);
        assert_eq!((world.role(0), world.role(1)), (PAIRED, PASSIVE), "{nodes}");
        let answer = world.answers.get(&second).cloned();
        assert!(matches!(answer, Some(Err(_))), "{nodes}: {answer:?}");
    }
}

#[test]
fn after_a_refused_cold_start_the_active_replica_goes_solo_when_it_loses_the_passive_one() {
    for nodes in [3, 5] {
        let (mut world, _) = both_told_to_promote(nodes);
        world.kill_node(1);
        world.settle(4);
        assert_eq!(world.role(0), SOLO, "{nodes} nodes, the node is lost");
        world.boot(1);
        world.settle(4);
        assert_eq!(world.role(0), PAIRED, "{nodes} nodes, it is back");
    }
    for nodes in [2, 3, 5] {
        let (mut world, _) = both_told_to_promote(nodes);
        world.kill_engine(1);
        world.settle(4);
        assert_eq!(world.role(0), SOLO, "{nodes} nodes, the engine is lost");
        world.start_engine(1);
        world.settle(4);
        assert_eq!(world.role(0), PAIRED, "{nodes} nodes, it is back");
    }
}

#[test]
fn after_a_refused_cold_start_the_passive_replica_takes_over() {
    for nodes in [3, 5] {
        let (mut world, _) = both_told_to_promote(nodes);
        world.kill_node(0);
        world.settle(4);
        assert_eq!(world.role(1), SOLO, "{nodes} nodes");
    }
}

#[test]
fn a_claim_that_counted_is_not_passed_over() {
    // n1 is cut off and n2 takes over, lets outputs out and dies. All that n1 can learn, from n3 whose
    // agent was started anew, is one record of it.
    let mut world = World::new(3);
    world.settle(1);
    world.promote(0);
    world.settle(3);
    world.isolate(0);
    world.settle(1);
    assert_eq!(world.role(1), SOLO);
    world.run_guest(1);
    world.kill_agent(2);
    world.kill_node(1);
    world.start_agent(2);
    world.heal();
    world.settle(4);
    world.passive_gone(0, 1);
    world.settle(4);
    assert_ne!(world.role(0), SOLO, "n2 ran on without it");
}

#[test]
fn a_start_that_one_of_two_consented_to_is_passed_over_by_the_other() {
    let mut world = World::new(3);
    world.settle(1);
    world.promote(0);
    world.settle(3);
    world.kill_node(0);
    world.settle(1);
    assert_eq!(world.role(1), SOLO);
    world.kill_node(1);
    // n1 boots the guest again with n2's consent, so it is either's turn on record; n3 is its passive
    // replica to be.
    world.boot(0);
    world.boot(1);
    world.settle(1);
    world.kill_engine(1);
    world.promote(0);
    world.settle(1);
    assert_eq!(world.role(0), SOLO);
    // n3, whose agent has just started and heard of nothing, is told to boot it, too: n2 consents.
    world.kill_agent(2);
    world.start_agent(2);
    world.start_engine(2);
    world.promote(2);
    world.settle(1);
    let refused: Vec<_> = world
        .votes(0)
        .into_iter()
        .filter(|it| it.holder == name(2))
        .collect();
    assert_eq!(refused.len(), 1, "on record with n2: {refused:?}");
    world.settle(3);
    assert_eq!((world.role(0), world.role(2)), (PAIRED, PASSIVE));
    // Also by an agent that has just started, and learns of n2's record from its refusal.
    world.kill_agent(0);
    world.kill_node(2);
    world.start_agent(0);
    world.settle(3);
    assert_eq!(world.role(0), SOLO);
}

#[test]
fn what_a_later_start_hides_is_not_forgotten() {
    // n1 goes solo with the votes of n3 and n4. n2, which they had not heard, has recorded its own
    // take-over of the same generation.
    let mut world = World::new(5);
    world.settle(1);
    world.promote(0);
    world.settle(3);
    world.kill_node(4);
    world.kill_agent(2);
    world.kill_agent(3);
    world.settle(0);
    world.isolate(0);
    while world.deliver(1) | world.write(1) {}
    world.isolate(1);
    world.rejoin(0);
    world.start_agent(2);
    world.start_agent(3);
    world.settle(4);
    assert_eq!(world.role(0), SOLO);
    // It runs on, cut off. n2's engine has ended; n5, which has heard n2 only, is told to boot.
    world.isolate(0);
    world.run_guest(0);
    world.kill_engine(1);
    world.start_engine(1);
    world.boot(4);
    world.rejoin(1);
    world.start_engine(4);
    while world.deliver(1) | world.write(1) {}
    while world.deliver(4) | world.write(4) {}
    world.promote(4);
    for _ in 0..4 {
        while world.deliver(4) | world.write(4) {}
        while world.deliver(1) | world.write(1) {}
    }
    world.settle(2);
    world.kill_engine(4);
    world.settle(1);
    // Now n2, whose agent was started anew, too: all of its own claim and n1's is on record with
    // somebody, but nothing says which of them counted.
    world.kill_agent(1);
    world.start_agent(1);
    world.settle(1);
    let request = world.promote(1);
    world.settle(5);
    assert_ne!(world.answers.get(&request), Some(&Ok(())), "n1 is running");
    world.run_guest(0);
}
