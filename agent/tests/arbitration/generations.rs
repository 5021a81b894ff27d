// SPDX-License-Identifier: Apache-2.0
//! A claim that is not granted must not stand in the way of the next one.

use kemari_agent::arbitration::RequestId;
use kemari_api::{Licence, Role};

use super::world::World;

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
