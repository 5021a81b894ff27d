// SPDX-License-Identifier: Apache-2.0
//! The policy `fenced`: nothing changes hands after a loss before Pacemaker has spoken.

use kemari_api::{Licence, Role};

use super::world::World;

const PAIRED: Option<(Role, Licence)> = Some((Role::Active, Licence::Paired));
const CUT: Option<(Role, Licence)> = Some((Role::Active, Licence::Cut));
const SOLO: Option<(Role, Licence)> = Some((Role::Active, Licence::Solo));
const PASSIVE: Option<(Role, Licence)> = Some((Role::Passive, Licence::None));

fn pair(nodes: usize) -> World {
    let mut world = World::fenced(nodes);
    world.settle(1);
    world.promote(0);
    world.settle(3);
    assert_eq!((world.role(0), world.role(1)), (PAIRED, PASSIVE));
    world
}

#[test]
fn a_lost_active_replica_is_taken_over_when_pacemaker_promotes() {
    let losses: [fn(&mut World, usize); 2] = [World::kill_node, World::kill_engine];
    for nodes in [2, 3, 5] {
        for lose in losses {
            let mut world = pair(nodes);
            lose(&mut world, 0);
            world.settle(5);
            assert_eq!(world.role(1), PASSIVE, "{nodes} nodes, not unasked");
            let request = world.promote(1);
            world.settle(1);
            assert_eq!(world.answers.get(&request), Some(&Ok(())), "{nodes} nodes");
            assert_eq!(world.role(1), SOLO, "{nodes} nodes");
        }
    }
}

#[test]
fn a_lost_passive_replica_is_done_without_when_pacemaker_says_so() {
    let losses: [fn(&mut World, usize); 2] = [World::kill_node, World::kill_engine];
    for nodes in [2, 3, 5] {
        for lose in losses {
            let mut world = pair(nodes);
            lose(&mut world, 1);
            world.settle(5);
            assert_eq!(world.role(0), CUT, "{nodes} nodes, not unasked");
            world.passive_gone(0, 1);
            world.settle(1);
            assert_eq!(world.role(0), SOLO, "{nodes} nodes");
        }
    }
}

#[test]
fn with_three_nodes_pacemakers_word_alone_is_not_enough() {
    let mut world = pair(3);
    world.kill_agent(2);
    world.kill_node(1);
    world.passive_gone(0, 1);
    world.settle(5);
    assert_eq!(world.role(0), CUT, "one of three agents has recorded it");
    world.start_agent(2);
    world.settle(2);
    assert_eq!(world.role(0), SOLO);
}
