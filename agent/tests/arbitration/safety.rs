// SPDX-License-Identifier: Apache-2.0
//! Random histories: crashes, splits, late views, false words. The world itself checks the rules.

use proptest::prelude::*;

use super::world::World;

#[derive(Debug, Clone, Copy)]
enum Step {
    Deliver(usize),
    Obey(usize),
    Write(usize),
    Guest(usize),
    Tick(usize),
    Settle,
    KillNode(usize),
    Boot(usize),
    KillEngine(usize),
    StartEngine(usize),
    KillAgent(usize),
    StartAgent(usize),
    Isolate(usize),
    Heal,
    Link(bool),
    Promote(usize),
    PassiveGone(usize),
    Force(usize),
    Demote(usize),
}

fn step(nodes: usize) -> impl Strategy<Value = Step> {
    let node = 0..nodes;
    let host = 0..2_usize;
    prop_oneof![
        30 => node.clone().prop_map(Step::Deliver),
        8 => host.clone().prop_map(Step::Obey),
        10 => node.clone().prop_map(Step::Write),
        8 => host.clone().prop_map(Step::Guest),
        4 => node.clone().prop_map(Step::Tick),
        6 => Just(Step::Settle),
        2 => node.clone().prop_map(Step::KillNode),
        3 => node.clone().prop_map(Step::Boot),
        1 => host.clone().prop_map(Step::KillEngine),
        2 => host.clone().prop_map(Step::StartEngine),
        1 => node.clone().prop_map(Step::KillAgent),
        2 => node.clone().prop_map(Step::StartAgent),
        2 => node.prop_map(Step::Isolate),
        3 => Just(Step::Heal),
        1 => any::<bool>().prop_map(Step::Link),
        4 => host.clone().prop_map(Step::Promote),
        3 => host.clone().prop_map(Step::PassiveGone),
        1 => host.clone().prop_map(Step::Force),
        1 => host.prop_map(Step::Demote),
    ]
}

/// Fewer than three nodes: Pacemaker's word must be true, fencing makes it so. Otherwise it may
/// say anything.
fn take(world: &mut World, step: Step, truthful: bool) {
    match step {
        Step::Deliver(node) => drop(world.deliver(node)),
        Step::Obey(node) => drop(world.obey(node)),
        Step::Write(node) => drop(world.write(node)),
        Step::Guest(node) => world.run_guest(node),
        Step::Tick(node) => world.tick(node),
        Step::Settle => world.settle(1),
        Step::KillNode(node) => world.kill_node(node),
        Step::Boot(node) => world.boot(node),
        Step::KillEngine(node) => world.kill_engine(node),
        Step::StartEngine(node) => world.start_engine(node),
        Step::KillAgent(node) => world.kill_agent(node),
        Step::StartAgent(node) => world.start_agent(node),
        Step::Isolate(node) if !truthful => world.isolate(node),
        Step::Isolate(_) => {}
        Step::Heal => world.heal(),
        Step::Link(up) => world.link = up,
        Step::Promote(node) if !truthful || world.is_not_active(1 - node) => {
            end_earlier_word(world, truthful);
            world.promote(node);
            hear_while_true(world, truthful);
        }
        Step::PassiveGone(node) if !truthful || world.nodes[1 - node].engine.is_none() => {
            end_earlier_word(world, truthful);
            world.passive_gone(node, 1 - node);
            hear_while_true(world, truthful);
        }
        // What a person says is true: nothing else runs or can take over. The agents may still refuse.
        // With two nodes, of which one is gone for good, it is never said on both.
        Step::Force(node)
            if world.nothing_runs_but(node)
                && (!truthful || world.forced_on.is_none_or(|before| before == node)) =>
        {
            world.forced_on = Some(node);
            world.force(node);
            world.settle(0);
        }
        Step::Promote(_) | Step::PassiveGone(_) | Step::Force(_) => {}
        Step::Demote(node) => world.demote(node),
    }
}

/// A `promote` that waits is Pacemaker's word until it ends, which Pacemaker waits for before it does anything else.
fn end_earlier_word(world: &mut World, truthful: bool) {
    if truthful {
        world.cancel_requests();
        world.settle(0);
    }
}

/// Pacemaker starts nothing elsewhere before the agent has heard its word.
fn hear_while_true(world: &mut World, truthful: bool) {
    if truthful {
        world.settle(0);
    }
}

fn history(nodes: usize, steps: &[Step]) {
    history_of(World::new(nodes), nodes, steps);
    history_of(World::with_disks(nodes), nodes, steps);
    history_of(World::with_shared_disk(nodes), nodes, steps);
    history_of(World::fenced(nodes), nodes, steps);
}

fn history_of(mut world: World, nodes: usize, steps: &[Step]) {
    world.settle(1);
    world.promote(0);
    world.settle(2);
    for &step in steps {
        take(&mut world, step, nodes < 3);
    }
    world.heal();
    world.settle(3);
}

proptest! {
    // PROPTEST_CASES asks for more.
    #![proptest_config(ProptestConfig {
        cases: ProptestConfig::default().cases.max(400),
        ..ProptestConfig::default()
    })]

    #[test]
    fn two_agents_and_pacemaker_keep_the_rules(steps in prop::collection::vec(step(2), 1..150)) {
        history(2, &steps);
    }

    #[test]
    fn three_agents_keep_the_rules(steps in prop::collection::vec(step(3), 1..150)) {
        history(3, &steps);
    }

    #[test]
    fn five_agents_keep_the_rules(steps in prop::collection::vec(step(5), 1..150)) {
        history(5, &steps);
    }
}
