// SPDX-License-Identifier: Apache-2.0
//! The splice, against histories that keep the two rules and histories that break them.
//!
//! A history is a list of deliveries by engines; the bytes come from two executions that differ in
//! every position, so that a stretch executed twice never looks like a repetition.

use proptest::prelude::*;

use super::header::Header;
use super::splice::Splice;
use super::verdict::Violation;

const MILLISECOND: u64 = 1_000_000;

/// A splice under a clock that goes on by a tenth of a millisecond with each delivery.
#[derive(Default)]
struct World {
    splice: Splice,
    now: u64,
}

impl World {
    /// `node1` uses odd generations, `node2` even ones.
    fn connect(&mut self, generation: u64, position: usize) -> usize {
        let node = if generation % 2 == 1 {
            "node1"
        } else {
            "node2"
        };
        self.connect_as(node, generation, position)
    }

    fn connect_as(&mut self, node: &str, generation: u64, position: usize) -> usize {
        let (vm, node) = ("web".to_owned(), node.to_owned());
        let header = Header {
            vm,
            node,
            generation,
            position: position as u64,
        };
        let connection = self.splice.open();
        self.send(connection, format!("{header}\n").as_bytes());
        connection
    }

    fn send(&mut self, connection: usize, bytes: &[u8]) {
        self.now += MILLISECOND / 10;
        self.splice.receive(connection, bytes, self.now);
    }

    /// In cuts of the lengths given, over and over.
    fn send_cut(&mut self, connection: usize, bytes: &[u8], cuts: &[usize]) {
        let mut rest = bytes;
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, left) = rest.split_at((*cut).clamp(1, rest.len()));
            self.send(connection, piece);
            rest = left;
        }
    }
}

/// The console of execution `run`; executions differ everywhere.
fn console(run: u8, length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| {
            if at % 23 == 22 {
                b'\n' - run
            } else {
                b'a' + run
            }
        })
        .collect()
}

#[test]
fn one_engine_is_what_it_sent() {
    let mut world = World::default();
    let only = world.connect(1, 0);
    world.send(only, b"LEDGER START\n1 00");
    world.send(only, b"01\n2 ");
    assert_eq!(world.splice.bytes(), b"LEDGER START\n1 0001\n2 ");
    let latest = world.splice.latest().unwrap();
    assert_eq!(
        (latest.line.as_str(), latest.source.node.as_str()),
        ("1 0001", "node1")
    );
    assert_eq!(world.splice.violations(), []);
    assert_eq!(world.splice.takeovers(), []);
    assert_eq!(world.splice.outages(), []);
}

#[test]
fn a_failover_replays_and_the_silence_is_measured() {
    let stream = console(0, 300);
    let mut world = World::default();
    let old = world.connect(1, 0);
    world.send(old, &stream[..200]);
    let last = world.now;
    world.now += 80 * MILLISECOND;
    let new = world.connect(2, 150);
    world.send(new, &stream[150..190]);
    world.now += 5 * MILLISECOND;
    world.send(new, &stream[190..300]);

    assert_eq!(world.splice.bytes(), stream);
    assert_eq!(world.splice.violations(), []);
    let [takeover] = world.splice.takeovers() else {
        panic!("one takeover")
    };
    assert_eq!((takeover.position, takeover.replayed), (150, 50));
    assert_eq!((takeover.from.generation, takeover.to.generation), (1, 2));
    assert_eq!(
        (takeover.silent_from_ns, takeover.resumed_ns),
        (last, Some(world.now))
    );
    let [outage] = world.splice.outages() else {
        panic!("one outage")
    };
    assert_eq!(
        (outage.from_ns, outage.to_ns, outage.position),
        (last, world.now, 200)
    );
    let counts = world.splice.bytes_by_node();
    assert_eq!((counts["node1"], counts["node2"]), ((200, 200), (150, 100)));
}

#[test]
fn what_never_came_is_a_gap_until_it_comes_late() {
    let stream = console(0, 100);
    let mut world = World::default();
    let old = world.connect(1, 0);
    world.send(old, &stream[..40]);
    let new = world.connect(2, 60);
    world.send(new, &stream[60..]);
    assert_eq!(
        world.splice.violations(),
        [Violation::Gap { from: 40, to: 60 }]
    );

    world.send(old, &stream[40..50]);
    let violations = world.splice.violations();
    let [
        Violation::Late {
            from: 40,
            to: 50,
            by,
        },
        Violation::Gap { from: 50, to: 60 },
    ] = &violations[..]
    else {
        panic!("{violations:?}");
    };
    assert_eq!(by.generation, 1);
    world.send(old, &stream[50..60]);
    assert_eq!(world.splice.bytes(), stream);
    let late = |violation: &Violation| matches!(violation, Violation::Late { .. });
    assert!(world.splice.violations().iter().all(late));
}

#[test]
fn a_stretch_executed_twice_is_a_conflict() {
    let mut world = World::default();
    let old = world.connect(1, 0);
    world.send(old, &console(0, 100));
    let new = world.connect(2, 80);
    world.send_cut(new, &console(1, 200)[80..], &[7]);
    let violations = world.splice.violations();
    let [
        Violation::Conflict {
            from: 80,
            bytes: 20,
            first,
            second,
        },
    ] = &violations[..]
    else {
        panic!("{violations:?}");
    };
    assert_eq!((first.generation, second.generation), (1, 2));
}

#[test]
fn a_thawed_active_replica_may_repeat() {
    let stream = console(0, 300);
    let mut world = World::default();
    let old = world.connect(1, 0);
    world.send(old, &stream[..100]);
    let new = world.connect(2, 100);
    world.send(new, &stream[100..200]);
    world.send(old, &stream[100..150]);
    assert_eq!(world.splice.violations(), []);
}

#[test]
fn a_thawed_active_replica_may_outrun_the_replay_but_not_go_its_own_way() {
    let stream = console(0, 300);
    let mut world = World::default();
    let old = world.connect(1, 0);
    world.send(old, &stream[..100]);
    let new = world.connect(2, 90);
    world.send(new, &stream[90..110]);
    world.send(old, &stream[100..150]);
    let suspected = world.splice.violations();
    let [
        Violation::OldGeneration {
            from: 110,
            to: 150,
            by,
            newer: 2,
        },
    ] = &suspected[..]
    else {
        panic!("{suspected:?}");
    };
    assert_eq!(by.generation, 1);
    world.send_cut(new, &stream[110..200], &[9]);
    assert_eq!(world.splice.violations(), []);

    world.send(old, &stream[150..200]);
    world.send(old, &console(1, 60));
    assert!(matches!(
        world.splice.violations()[..],
        [Violation::OldGeneration { .. }]
    ));
    world.send(new, &stream[200..300]);
    let violations = world.splice.violations();
    assert!(
        violations
            .iter()
            .any(|one| matches!(one, Violation::Conflict { bytes: 60, .. }))
    );
    assert!(
        violations
            .iter()
            .any(|one| matches!(one, Violation::OldGeneration { .. }))
    );
}

#[test]
fn one_generation_is_of_one_node() {
    let mut world = World::default();
    world.connect_as("node1", 4, 0);
    world.connect_as("node1", 4, 0);
    assert_eq!(world.splice.violations(), []);
    world.connect_as("node2", 4, 0);
    assert!(matches!(
        world.splice.violations()[..],
        [Violation::TwoNodes { .. }]
    ));
}

#[test]
fn strangers_are_named_and_ignored() {
    let mut world = World::default();
    let good = world.connect(1, 0);
    world.send(good, b"x");
    for stranger in [
        "GET / HTTP/1.1\r\n".to_owned(),
        "x".repeat(600),
        "KEMARI-CONSOLE 1 vm=other node=n generation=1 position=0\nabc".to_owned(),
        format!(
            "KEMARI-CONSOLE 1 vm=web node=node1 generation=1 position={}\n",
            u64::MAX
        ),
    ] {
        let connection = world.splice.open();
        world.send(connection, stranger.as_bytes());
        world.send(connection, b"more\n");
    }
    let unreadable = |violation: &Violation| matches!(violation, Violation::Unreadable { .. });
    assert_eq!(world.splice.violations().len(), 4);
    assert!(world.splice.violations().iter().all(unreadable));
    assert_eq!(world.splice.bytes(), b"x");
}

/// Lengths in which a sender's bytes arrive.
fn cuts() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(1_usize..60, 1..6)
}

/// For each generation: how many new bytes it adds and how far back it starts.
fn generations() -> impl Strategy<Value = Vec<(usize, usize)>> {
    prop::collection::vec((1_usize..200, 0_usize..80), 1..6)
}

/// Plays generations one after the other, from the stream given by `run` for each.
fn play(
    world: &mut World,
    generations: &[(usize, usize)],
    cuts: &[usize],
    mut start_of: impl FnMut(u64, usize, usize) -> usize,
    run: impl Fn(u64) -> u8,
) -> usize {
    let mut end = 0;
    for (index, (new, back)) in generations.iter().enumerate() {
        let generation = index as u64 + 1;
        let start = start_of(generation, end, *back);
        let connection = world.connect(generation, start);
        end = end.max(start) + new;
        world.send_cut(connection, &console(run(generation), end)[start..], cuts);
    }
    end
}

proptest! {
    #[test]
    fn replays_of_any_length_are_spliced_without_complaint(
        generations in generations(),
        cuts in cuts(),
    ) {
        let mut world = World::default();
        let back = |_, end: usize, back| end.saturating_sub(back);
        let end = play(&mut world, &generations, &cuts, back, |_| 0);
        prop_assert_eq!(world.splice.bytes(), console(0, end));
        prop_assert_eq!(world.splice.violations(), []);
        prop_assert_eq!(world.splice.takeovers().len(), generations.len() - 1);
        let replayed: u64 = world.splice.takeovers().iter().map(|one| one.replayed).sum();
        let sent: u64 = world.splice.bytes_by_node().values().map(|(all, _)| all).sum();
        prop_assert_eq!(sent, end as u64 + replayed);
    }

    #[test]
    fn lost_outputs_are_gaps(
        generations in generations(),
        cuts in cuts(),
        lossy in 1_u64..6,
        lost in 1_usize..50,
    ) {
        let lossy = lossy.min(generations.len() as u64);
        let mut world = World::default();
        let mut gap = 0;
        let start = |generation, end: usize, back| {
            if generation != lossy {
                // No further back than the loss, or it would be made good.
                return end;
            }
            let _: usize = back;
            gap = end;
            end + lost
        };
        play(&mut world, &generations, &cuts, start, |_| 0);
        let (from, to) = (gap as u64, (gap + lost) as u64);
        prop_assert_eq!(world.splice.violations(), [Violation::Gap { from, to }]);
    }

    #[test]
    fn stretches_executed_twice_are_conflicts(
        generations in generations(),
        cuts in cuts(),
        astray in 2_u64..6,
    ) {
        prop_assume!(generations.len() >= 2);
        let astray = astray.min(generations.len() as u64);
        let mut world = World::default();
        let mut expected = 0;
        let start = |generation, end: usize, back: usize| {
            if generation != astray {
                return end;
            }
            let start = end.saturating_sub(back.max(1));
            expected = end - start;
            start
        };
        play(&mut world, &generations, &cuts, start, |generation| u8::from(generation == astray));
        let violations = world.splice.violations();
        let [Violation::Conflict { bytes, second, .. }] = &violations[..] else {
            return Err(TestCaseError::fail(format!("{violations:?}")));
        };
        prop_assert_eq!((*bytes, second.generation), (expected as u64, astray));
    }

    /// Old and new active replica, interleaved as the network likes. All the old one releases was
    /// acknowledged, so it is part of what the new one replays: no verdict may remain.
    #[test]
    fn a_thawed_active_replica_within_the_replay_is_innocent(
        (released, committed, end) in (0_usize..100, 0_usize..100, 1_usize..100)
            .prop_map(|(a, b, c)| (a, a + b, a + b + c)),
        back in 0_usize..50,
        turns in prop::collection::vec((any::<bool>(), 1_usize..40), 0..30),
    ) {
        let stream = console(0, end);
        let mut world = World::default();
        let old = world.connect(1, 0);
        world.send(old, &stream[..released]);
        let mut at = [released, released.saturating_sub(back)];
        let new = world.connect(2, at[1]);
        let finish = [(false, end), (true, end)];
        for (is_new, length) in turns.into_iter().chain(finish) {
            let (connection, limit) = if is_new { (new, end) } else { (old, committed) };
            let from = at[usize::from(is_new)];
            let to = (from + length).min(limit);
            world.send(connection, &stream[from..to]);
            at[usize::from(is_new)] = to;
        }
        prop_assert_eq!(world.splice.bytes(), stream);
        prop_assert_eq!(world.splice.violations(), []);
    }

    /// The same, but the old one goes on alone beyond what was committed: always found out, either
    /// at once or when the new one reaches the same positions.
    #[test]
    fn a_replica_that_runs_on_without_licence_is_found(
        (committed, beyond) in (0_usize..100, 1_usize..100),
        turns in prop::collection::vec((any::<bool>(), 1_usize..40), 0..30),
    ) {
        let end = committed + beyond;
        let shared = console(0, committed);
        let streams = [0, 1].map(|run| [&shared, &console(run, end)[committed..]].concat());
        let mut world = World::default();
        let connections = [world.connect(1, 0), world.connect(2, 0)];
        let mut at = [0, 0];
        let finish = [(false, end), (true, end)];
        for (is_new, length) in turns.into_iter().chain(finish) {
            let who = usize::from(is_new);
            let to = (at[who] + length).min(end);
            world.send(connections[who], &streams[who][at[who]..to]);
            at[who] = to;
        }
        let conflict = |violation: &Violation| matches!(violation, Violation::Conflict { .. });
        prop_assert!(world.splice.violations().iter().any(conflict));
    }

    #[test]
    fn nothing_makes_it_panic(
        pieces in prop::collection::vec((0_usize..4, prop::collection::vec(any::<u8>(), 0..40)), 0..20),
        headers in prop::collection::vec((any::<u64>(), any::<u64>()), 0..3),
    ) {
        let mut world = World::default();
        for (generation, position) in headers {
            world.connect(generation, usize::try_from(position).unwrap_or(usize::MAX));
        }
        for (connection, bytes) in pieces {
            world.splice.open();
            world.send(connection, &bytes);
        }
        let _ = (world.splice.violations(), world.splice.latest(), world.splice.bytes_by_node());
    }
}
