// SPDX-License-Identifier: Apache-2.0
//! Properties of the event-tap and of the gate before it: order, completeness, and nothing out
//! that is not committed, under any interleaving.

use std::sync::Arc;

use kemari_replication::event_tap::{Carry, EventTap, TapConfig};
use kemari_replication::gate::OutputGate;
use kemari_replication::licence::{LicenceEvent, Permission};
use kemari_replication::output::OUTPUT_BYTES_MAX;
use kemari_replication::passive::Retained;
use kemari_replication::{Epoch, Generation, Output, OutputKind};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Step {
    Push(usize),
    Close,
    /// Commit this many of the epochs that are closed and not committed.
    Commit(u64),
    Release,
    Taken,
    Again,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (1usize..40).prop_map(Step::Push),
        1 => Just(Step::Push(OUTPUT_BYTES_MAX + 5)),
        3 => Just(Step::Close),
        2 => (1u64..4).prop_map(Step::Commit),
        4 => Just(Step::Release),
        3 => Just(Step::Taken),
        1 => Just(Step::Again),
    ];
    prop::collection::vec(step, 1..80)
}

/// The console's stream: byte `n` of it.
fn byte(position: u64) -> u8 {
    u8::try_from(position % 251).expect("below 251")
}

/// A tap and what must be true of it.
struct Watched {
    tap: EventTap,
    /// Position of the stream at the end of each closed epoch, from epoch 1.
    ends: Vec<u64>,
    handed_out: Vec<Arc<Output>>,
    taken_to: u64,
}

impl Watched {
    fn new() -> Self {
        let tap = EventTap::new(&TapConfig::default());
        Self {
            tap,
            ends: Vec::new(),
            handed_out: Vec::new(),
            taken_to: 0,
        }
    }

    /// The position up to which everything is committed.
    fn committed_to(&self) -> u64 {
        let committed = usize::try_from(self.tap.committed().get()).expect("a small number");
        if committed == 0 {
            0
        } else {
            self.ends[committed - 1]
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Push(length) => {
                let start = self.tap.console_position();
                let bytes: Vec<_> = (start..start + *length as u64).map(byte).collect();
                self.tap.push(OutputKind::Console, &bytes);
                assert!(self.tap.has_pending());
            }
            Step::Close => {
                let start = self.ends.last().copied().unwrap_or(0);
                let closed = self.tap.close_epoch(Carry::Epoch);
                let end = check_stream(start, closed.outputs.iter().map(Arc::as_ref));
                assert_eq!(
                    end, closed.console_position,
                    "the epoch's outputs are complete"
                );
                assert!(closed.delivered_up_to < closed.epoch);
                self.ends.push(end);
            }
            Step::Commit(count) => {
                let newest = Epoch::new(self.tap.committed().get() + count);
                if newest < self.tap.open_epoch() {
                    self.tap.commit(newest);
                }
            }
            Step::Release => {
                let before = self
                    .handed_out
                    .last()
                    .map_or(self.taken_to, |output| output.end());
                match self.tap.next_release() {
                    Some(release) => {
                        assert_eq!(
                            release.output.position, before,
                            "in order, nothing left out"
                        );
                        assert!(release.epoch <= self.tap.committed());
                        assert!(release.output.end() <= self.committed_to());
                        self.handed_out.push(release.output);
                    }
                    None => assert_eq!(before, self.committed_to(), "all that may leave did"),
                }
            }
            Step::Taken => {
                if !self.handed_out.is_empty() {
                    self.tap.taken();
                    self.taken_to = self.handed_out.remove(0).end();
                }
            }
            Step::Again => {
                self.tap.hand_out_again();
                self.handed_out.clear();
            }
        }
        let delivered = usize::try_from(self.tap.delivered_up_to().get()).expect("a small number");
        let delivered_to = if delivered == 0 {
            0
        } else {
            self.ends[delivered - 1]
        };
        assert!(delivered_to <= self.taken_to, "delivered means taken");
        assert!(self.tap.delivered_up_to() <= self.tap.committed());
    }
}

/// Checks that outputs follow each other from `start` and hold the stream's bytes. Returns the end.
fn check_stream<'a>(start: u64, outputs: impl Iterator<Item = &'a Output>) -> u64 {
    let mut at = start;
    for output in outputs {
        assert_eq!(output.position, at);
        assert!(!output.bytes.is_empty() && output.bytes.len() <= OUTPUT_BYTES_MAX);
        for (offset, value) in (0..).zip(&output.bytes) {
            assert_eq!(*value, byte(at + offset));
        }
        at = output.end();
    }
    at
}

proptest! {
    #[test]
    fn order_is_kept_and_nothing_uncommitted_leaves(steps in steps()) {
        let mut watched = Watched::new();
        for step in &steps {
            watched.step(step);
        }
        // At the end of the day everything arrives.
        watched.step(&Step::Close);
        let last = Epoch::new(watched.tap.open_epoch().get() - 1);
        watched.tap.commit(last);
        watched.step(&Step::Again);
        while let Some(release) = watched.tap.next_release() {
            check_stream(watched.taken_to, std::iter::once(&*release.output));
            watched.tap.taken();
            watched.taken_to = release.output.end();
        }
        prop_assert_eq!(watched.taken_to, watched.tap.console_position());
        prop_assert!(watched.tap.is_empty());
        prop_assert_eq!(watched.tap.delivered_up_to(), last);
        prop_assert!(watched.tap.has_room());
    }

    #[test]
    fn a_resync_carries_all_that_was_not_taken(steps in steps()) {
        let mut watched = Watched::new();
        for step in &steps {
            watched.step(step);
        }
        let closed = watched.tap.close_epoch(Carry::Undelivered);
        let end = check_stream(watched.taken_to, closed.outputs.iter().map(Arc::as_ref));
        prop_assert_eq!(end, watched.tap.console_position());
    }

    #[test]
    fn the_gate_lets_nothing_out_without_permission(
        events in prop::collection::vec(0..9usize, 1..40),
    ) {
        let mut gate = OutputGate::new(EventTap::new(&TapConfig::default()));
        let mut generation = Generation::new(1);
        for event in events {
            gate.push(OutputKind::Console, b"x");
            let _ = match event {
                0 => {
                    generation = generation.next();
                    gate.handle(LicenceEvent::SoloGranted { generation })
                }
                1 => gate.handle(LicenceEvent::SoloGranted { generation }),
                2 => gate.handle(LicenceEvent::Hold),
                3 => gate.handle(LicenceEvent::PairedRecorded),
                4 => gate.handle(LicenceEvent::CommitSent),
                5 => {
                    let epoch = gate.close_epoch(Carry::Epoch).epoch;
                    gate.committed(epoch)
                }
                6 => gate.handle(LicenceEvent::SessionLost),
                7 => gate.handle(LicenceEvent::Rejoin),
                _ => gate.handle(LicenceEvent::Learned { generation }),
            };
            let permission = gate.licence().permission();
            while let Some(release) = gate.next_release() {
                prop_assert_ne!(permission, Permission::Nothing);
                if permission == Permission::Committed {
                    prop_assert!(release.epoch <= gate.tap().committed());
                }
                gate.taken();
            }
            if permission == Permission::All {
                prop_assert!(gate.tap().is_empty(), "a solo licence lets everything out");
            }
        }
    }
}

#[test]
fn a_replica_that_takes_over_replays_first_and_goes_on_in_the_same_stream() {
    let mut retained = Retained::default();
    let output = Output {
        kind: OutputKind::Console,
        position: 90,
        bytes: vec![b'r'; 10],
    };
    retained.commit(Epoch::new(7), vec![output]);
    let mut gate = OutputGate::new(EventTap::take_over(4096, Epoch::new(7), 100, &retained));
    gate.push(OutputKind::Console, b"new");
    assert_eq!(
        gate.next_release(),
        None,
        "not before the licence is granted"
    );
    gate.handle(LicenceEvent::SoloGranted {
        generation: Generation::new(2),
    })
    .unwrap();
    let replayed = gate.next_release().unwrap();
    assert_eq!(
        (replayed.output.position, replayed.output.bytes.len()),
        (90, 10)
    );
    let new = gate.next_release().unwrap();
    assert_eq!(
        (new.output.position, new.output.bytes.as_slice()),
        (100, b"new".as_slice())
    );
    assert_eq!(gate.next_release(), None);
}

#[test]
fn the_tap_says_when_it_is_full_and_keeps_what_comes_nevertheless() {
    let config = TapConfig {
        bytes_max: 100,
        ..TapConfig::default()
    };
    let mut tap = EventTap::new(&config);
    assert!(tap.has_room());
    tap.push(OutputKind::Console, &[0; 60]);
    assert!(!tap.has_room());
    tap.push(OutputKind::Console, &[0; 60]);
    let closed = tap.close_epoch(Carry::Epoch);
    assert_eq!(closed.console_position, 120);
    tap.commit(closed.epoch);
    while tap.next_release().is_some() {
        tap.taken();
    }
    assert!(tap.has_room());
}

#[test]
#[should_panic(expected = "committed while")]
fn an_epoch_that_is_still_open_cannot_be_committed() {
    EventTap::new(&TapConfig::default()).commit(Epoch::new(1));
}
