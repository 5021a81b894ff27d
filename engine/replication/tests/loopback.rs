// SPDX-License-Identifier: Apache-2.0
//! Both sides in memory, with bytes that arrive late, in pieces or never, lost connections,
//! reconnection and resync, and at the end a failover. It runs the code the engine runs.
//!
//! Checked throughout: no output leaves before the passive side holds its epoch (or while it holds
//! anything, under a solo licence), and after every commit both RAMs are equal. At the end: the
//! replay joins what left without a gap.

mod pair;

use std::collections::{BTreeMap, BTreeSet};

use kemari_replication::active::ActiveEvent;
use kemari_replication::event_tap::{EventTap, TapConfig};
use kemari_replication::gate::OutputGate;
use kemari_replication::licence::{Joining, Licence, LicenceEvent, Permission};
use kemari_replication::passive::Replica;
use kemari_replication::{Epoch, OutputKind, PageIndex};
use pair::{ActiveSide, G, Guest, PassiveSide, carry, indices};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Step {
    /// The guest writes a page and says so many bytes.
    Run {
        page: usize,
        value: u8,
        says: usize,
    },
    Connect,
    Checkpoint,
    /// Bytes towards the passive side arrive.
    Forward(usize),
    /// Bytes towards the active side arrive.
    Back(usize),
    Release,
    /// The connection is lost, with all that was under way.
    Cut,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0usize..8, any::<u8>(), 0usize..6)
            .prop_map(|(page, value, says)| Step::Run { page, value, says }),
        3 => Just(Step::Connect),
        6 => Just(Step::Checkpoint),
        6 => prop_oneof![1usize..200, 1000usize..60_000].prop_map(Step::Forward),
        6 => (1usize..200).prop_map(Step::Back),
        4 => Just(Step::Release),
        1 => Just(Step::Cut),
    ];
    prop::collection::vec(step, 1..150)
}

/// Both hosts and the outside.
struct World {
    guest: Guest,
    gate: OutputGate,
    /// Pages written in each epoch since the beginning.
    dirty: BTreeMap<Epoch, BTreeSet<PageIndex>>,
    /// The guest at the end of each epoch.
    history: BTreeMap<Epoch, (Guest, u64)>,
    sent: Epoch,
    acked: Epoch,
    active: Option<ActiveSide>,
    /// Which epochs the peer does not have, once the session was welcomed and the copy made.
    since: Option<Epoch>,
    first: bool,
    passive: Option<PassiveSide>,
    resting: Option<(Replica, Guest)>,
    to_passive: Vec<u8>,
    to_active: Vec<u8>,
    /// How far the outside has the console's stream.
    outside: u64,
    /// The newest epoch the passive side ever held.
    ever_held: Epoch,
    commits: usize,
}

impl World {
    fn new() -> Self {
        let mut gate = OutputGate::new(EventTap::new(&TapConfig::default()));
        gate.handle(LicenceEvent::SoloGranted { generation: G })
            .expect("it fits the licence");
        Self {
            guest: Guest::new(),
            gate,
            dirty: BTreeMap::new(),
            history: BTreeMap::new(),
            sent: Epoch::new(0),
            acked: Epoch::new(0),
            active: None,
            since: None,
            first: true,
            passive: None,
            resting: Some((Replica::new(G), Guest::new())),
            to_passive: Vec::new(),
            to_active: Vec::new(),
            outside: 0,
            ever_held: Epoch::new(0),
            commits: 0,
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Run { page, value, says } => self.run(*page, *value, *says),
            Step::Connect => self.connect(),
            Step::Checkpoint => self.checkpoint(),
            Step::Forward(count) => self.forward(*count),
            Step::Back(count) => self.back(*count),
            Step::Release => self.release(),
            Step::Cut => self.cut(),
        }
    }

    fn run(&mut self, page: usize, value: u8, says: usize) {
        let index = indices().nth(page).expect("one of eight");
        self.guest.write(index, value);
        self.guest.state.push(value);
        self.dirty
            .entry(self.gate.tap().open_epoch())
            .or_default()
            .insert(index);
        for _ in 0..says {
            let position = self.gate.tap().console_position();
            self.gate.push(
                OutputKind::Console,
                &[u8::try_from(position % 256).expect("below 256")],
            );
        }
    }

    fn connect(&mut self) {
        if self.active.is_some() {
            return;
        }
        let (replica, guest) = self.resting.take().expect("no session has it");
        self.passive = Some(PassiveSide::new(replica, guest));
        let mut active = ActiveSide::new(self.sent.get(), self.acked.get());
        self.to_passive.extend(active.take_out());
        self.active = Some(active);
        self.first = true;
    }

    fn checkpoint(&mut self) {
        let (Some(active), Some(since)) = (&mut self.active, self.since) else {
            return;
        };
        if matches!(self.gate.licence(), Licence::Solo { .. }) {
            self.gate
                .handle(LicenceEvent::Hold)
                .expect("it fits the licence");
            self.gate
                .handle(LicenceEvent::PairedRecorded)
                .expect("it fits the licence");
        }
        let closed = self.gate.close_epoch(carry(self.first));
        let epoch = closed.epoch;
        let pages: BTreeSet<_> = self
            .dirty
            .range(since.next()..=epoch)
            .flat_map(|(_, pages)| pages)
            .copied()
            .collect();
        let pages: Vec<_> = pages.into_iter().collect();
        self.gate
            .handle(LicenceEvent::CommitSent)
            .expect("it fits the licence");
        active.checkpoint(&closed, &self.guest, &pages);
        self.to_passive.extend(active.take_out());
        self.history
            .insert(epoch, (self.guest.clone(), closed.console_position));
        (self.sent, self.since, self.first) = (epoch, Some(epoch), false);
    }

    fn forward(&mut self, count: usize) {
        let Some(passive) = &mut self.passive else {
            return;
        };
        let bytes: Vec<_> = self
            .to_passive
            .drain(..count.min(self.to_passive.len()))
            .collect();
        let accepted = passive.accepted.len();
        passive.receive(&bytes).expect("right frames");
        self.to_active.append(&mut passive.out);
        if let Some(held) = passive.session.replica().held() {
            let (guest, position) = &self.history[&held.epoch];
            assert_eq!(&passive.guest, guest, "RAM after epoch {}", held.epoch);
            assert_eq!(passive.session.replica().console_position(), *position);
            self.ever_held = self.ever_held.max(held.epoch);
        }
        self.commits += passive.accepted.len() - accepted;
    }

    fn back(&mut self, count: usize) {
        let Some(mut active) = self.active.take() else {
            return;
        };
        let bytes: Vec<_> = self
            .to_active
            .drain(..count.min(self.to_active.len()))
            .collect();
        for event in active.receive(&bytes).expect("right frames") {
            match event {
                ActiveEvent::Welcomed { held, .. } => self.welcomed(&mut active, held),
                ActiveEvent::Acked { epoch } => {
                    self.gate.committed(epoch).expect("it fits the licence");
                    self.acked = epoch;
                }
                other => panic!("{other:?}"),
            }
        }
        self.active = Some(active);
    }

    fn welcomed(&mut self, active: &mut ActiveSide, held: Option<Epoch>) {
        if matches!(self.gate.licence(), Licence::Cut { .. }) {
            self.gate
                .handle(LicenceEvent::Rejoin)
                .expect("it fits the licence");
        }
        if let Some(held) = held {
            self.gate.committed(held).expect("it fits the licence");
            self.acked = held;
            active.build_on(held);
            self.since = Some(held);
        } else {
            active.copy(&self.guest);
            self.to_passive.extend(active.take_out());
            // What is written from here on in the open epoch is sent again with it.
            let open = self.gate.tap().open_epoch();
            self.since = Some(Epoch::new(open.get() - 1));
        }
    }

    fn release(&mut self) {
        let permission = self.gate.licence().permission();
        while let Some(release) = self.gate.next_release() {
            match permission {
                Permission::Nothing => panic!("released without permission"),
                Permission::All => assert_eq!(self.ever_held, Epoch::new(0), "solo beside a pair"),
                Permission::Committed => assert!(release.epoch <= self.ever_held),
            }
            assert_eq!(
                release.output.position, self.outside,
                "in order, nothing twice"
            );
            self.outside = release.output.end();
            self.gate.taken();
        }
    }

    fn cut(&mut self) {
        self.to_passive.clear();
        self.to_active.clear();
        (self.active, self.since) = (None, None);
        if let Some(passive) = self.passive.take() {
            self.resting = Some((passive.session.into_replica(), passive.guest));
            let licence = self
                .gate
                .handle(LicenceEvent::SessionLost)
                .expect("it fits the licence");
            if matches!(licence, Licence::Reverting { .. }) {
                self.gate
                    .handle(LicenceEvent::SoloGranted { generation: G })
                    .expect("it fits the licence");
            }
        }
    }

    /// The active host dies. What the passive one would do must fit what the outside has seen.
    fn failover(mut self) {
        self.cut();
        let (replica, guest) = self.resting.take().expect("no session has it");
        let Some(held) = replica.held() else {
            return;
        };
        let (snapshot, position) = &self.history[&held.epoch];
        assert_eq!(&guest, snapshot);
        assert!(
            self.outside <= *position,
            "an output left that the new active does not know"
        );
        let mut tap = EventTap::take_over(4096, held.epoch, *position, replica.retained());
        tap.release_all_solo();
        let mut outside = self.outside;
        while let Some(release) = tap.next_release() {
            assert!(release.output.position <= outside, "a gap in the console");
            for (at, byte) in (release.output.position..).zip(&release.output.bytes) {
                assert_eq!(u64::from(*byte), at % 256);
            }
            outside = outside.max(release.output.end());
        }
        assert_eq!(
            outside, *position,
            "the console is complete up to the checkpoint"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_failover_at_any_moment_fits_what_the_outside_saw(steps in steps()) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
        }
        world.failover();
    }
}

#[test]
fn a_long_quiet_run_commits_and_releases_everything() {
    let mut world = World::new();
    world.step(&Step::Connect);
    for round in 0..50u8 {
        for step in [
            Step::Run {
                page: usize::from(round % 8),
                value: round,
                says: 3,
            },
            Step::Checkpoint,
            Step::Forward(1 << 20),
            Step::Back(1 << 20),
            Step::Release,
        ] {
            world.step(&step);
        }
    }
    assert!(world.commits >= 49, "{} commits", world.commits);
    assert_eq!(world.outside, 150);
    assert!(matches!(world.gate.licence(), Licence::Paired { .. }));
    world.failover();
}

#[test]
fn a_connection_lost_again_and_again_comes_back_each_time() {
    let mut world = World::new();
    for round in 0..20u8 {
        for step in [
            Step::Connect,
            Step::Forward(1 << 20),
            Step::Back(1 << 20),
            Step::Run {
                page: 2,
                value: round,
                says: 2,
            },
            Step::Checkpoint,
            Step::Forward(1 << 20),
            // Every other acknowledgement is lost with its connection.
            Step::Back(if round % 2 == 0 { 1 << 20 } else { 0 }),
            Step::Release,
            Step::Cut,
        ] {
            world.step(&step);
        }
    }
    assert_eq!(world.commits, 20);
    assert!(!matches!(
        world.gate.licence(),
        Licence::Joining {
            stage: Joining::Holding,
            ..
        }
    ));
    world.failover();
}
