// SPDX-License-Identifier: Apache-2.0
//! An engine process: the shipped gate and sessions, put together as `engine/src/conductor` and
//! `engine/src/link` do it. Where those have threads, the model has steps.
//!
//! This file has what a replica is and its changes of role (`conductor/roles.rs`).

use kemari_agent::arbitration::Action;
use kemari_api::replica::{DiskState, FailoverPolicy, Promotion, ReplicaStatus};
use kemari_api::{Epoch, Generation, Licence as Shown, Role};
use kemari_replication::event_tap::{EventTap, TapConfig};
use kemari_replication::gate::OutputGate;
use kemari_replication::licence::{Licence, LicenceEvent, Permission};
use kemari_replication::output::{NetworkPort, OutputKind};
use kemari_replication::passive::Replica;

use super::active::{Link, Progress};
use super::network::Network;
use super::outside::{Guest, Outside, short};
use super::passive::{Endpoint, Held};
use super::setup::Setup;
use super::world::{index, name, vm};

/// Room in the event-tap, in bytes: more than a history fills.
const QUEUE_BYTES: usize = 1 << 20;

/// What an engine acts on.
pub struct Around<'a> {
    pub host: usize,
    pub setup: Setup,
    pub network: &'a mut Network,
    pub outside: &'a mut Outside,
    /// The generation in the licence record on this host's disk.
    pub record: &'a mut Generation,
}

/// One engine process.
#[derive(Debug, Clone, Hash)]
pub struct Engine {
    pub pid: u32,
    pub role: Role,
    pub generation: Generation,
    pub in_sync: bool,
    pub peer: Option<usize>,
    pub gate: OutputGate,
    /// The guest, while active.
    pub guest: Guest,
    /// The state of the next checkpoint will not decode on the other side.
    pub undecodable: bool,
    pub(super) link: Link,
    pub(super) progress: Progress,
    pub(super) endpoint: Endpoint,
    /// Something did not fit: the process ends.
    pub failed: bool,
    /// What the agent was told last.
    pub said: Option<ReplicaStatus>,
}

pub fn new_tap() -> EventTap {
    EventTap::new(&TapConfig {
        bytes_max: QUEUE_BYTES,
        ..TapConfig::default()
    })
}

impl Engine {
    /// A process that has just started and knows the newest generation of its record.
    pub fn new(pid: u32, record: Generation) -> Self {
        Self {
            pid,
            role: Role::Waiting,
            generation: record,
            in_sync: false,
            peer: None,
            gate: OutputGate::new(new_tap()),
            guest: Guest::default(),
            undecodable: false,
            link: Link::None,
            progress: Progress::default(),
            endpoint: Endpoint::new(Held::nothing(record)),
            failed: false,
            said: None,
        }
    }

    pub fn status(&self, host: usize) -> ReplicaStatus {
        let licence = match self.role {
            Role::Active => self.gate.licence().shown(),
            _ => Shown::None,
        };
        ReplicaStatus {
            vm: vm(),
            node: name(host),
            pid: self.pid,
            role: self.role,
            licence,
            in_sync: self.in_sync,
            running: true,
            generation: self.generation,
            // Not news to an agent, and not used by it.
            epoch: Epoch::default(),
            disks: DiskState::None,
            failover: FailoverPolicy::Auto,
            peer: self
                .peer
                .map(|peer| name(peer).to_string())
                .unwrap_or_default(),
            listen: format!("kemari:tcp:{}:4444", name(host)),
            detail: String::new(),
        }
    }

    /// Does what the agent asked. Whether it was done.
    pub fn obey(&mut self, around: &mut Around<'_>, order: &Action) -> bool {
        match order {
            Action::Promote {
                how: Promotion::TakeOver,
                generation,
                ..
            } => self.take_over(around, *generation),
            Action::Promote {
                how: Promotion::ColdStart,
                generation,
                ..
            } => self.cold_start(around, *generation),
            Action::GoSolo { generation, .. } => self.go_solo(around, *generation),
            Action::Outdate { generation, .. } => {
                self.outdate(around, *generation);
                true
            }
            Action::Protect { address, .. } => {
                let peer = address.split(':').nth(2).map(index);
                self.protect(around, peer.expect("an address of this cluster"))
            }
            other => panic!("{other:?} is none for an engine"),
        }
    }

    fn take_over(&mut self, around: &mut Around<'_>, generation: Generation) -> bool {
        let fits = matches!(self.role, Role::Passive | Role::Waiting);
        if !fits || generation <= self.generation {
            return false;
        }
        let Some(held) = self.seize(around, generation) else {
            return false;
        };
        let (Some(checkpoint), Some(guest)) = (held.replica.held(), held.guest.clone()) else {
            self.endpoint.receive(held);
            self.in_sync = false;
            return false;
        };
        around.outside.runs_from(around.host, &guest);
        let tap = EventTap::take_over(
            QUEUE_BYTES,
            checkpoint.epoch,
            held.replica.console_position(),
            held.replica.retained(),
        );
        self.guest = guest;
        self.activate(around, generation, tap);
        true
    }

    fn cold_start(&mut self, around: &mut Around<'_>, generation: Generation) -> bool {
        if self.role != Role::Waiting || generation <= self.generation {
            return false;
        }
        self.seize(around, generation);
        around.outside.reboots(generation);
        self.guest = Guest {
            boot: short(generation),
            made: Vec::new(),
        };
        self.activate(around, generation, new_tap());
        true
    }

    /// Gives the guest the right to run, on disk first.
    fn activate(&mut self, around: &mut Around<'_>, generation: Generation, tap: EventTap) {
        self.generation = generation;
        *around.record = generation;
        self.gate = OutputGate::new(tap);
        self.grant(around, generation);
        self.role = Role::Active;
        self.in_sync = false;
        self.peer = None;
        self.link = Link::None;
        self.progress = Progress::default();
        self.release(around);
    }

    fn grant(&mut self, around: &mut Around<'_>, generation: Generation) {
        around.outside.given(around.host, generation);
        self.tell_gate(LicenceEvent::SoloGranted { generation });
    }

    pub(super) fn go_solo(&mut self, around: &mut Around<'_>, generation: Generation) -> bool {
        if self.role != Role::Active || generation <= self.generation {
            return false;
        }
        self.stop_tracking(around);
        if !matches!(self.gate.licence(), Licence::Solo { .. }) {
            self.tell_gate(LicenceEvent::SessionLost);
        }
        self.generation = generation;
        self.progress = Progress::default();
        *around.record = generation;
        self.grant(around, generation);
        self.peer = None;
        around.outside.happened.solo = true;
        self.release(around);
        true
    }

    fn outdate(&mut self, around: &mut Around<'_>, generation: Generation) {
        if generation <= self.generation {
            return;
        }
        match self.role {
            Role::Active => self.become_outdated(around, generation),
            Role::Waiting | Role::Passive => {
                let held = self.seize(around, generation);
                let mut replica =
                    held.map_or_else(|| Replica::new(generation), |held| held.replica);
                replica.outdate(generation);
                self.generation = generation;
                self.endpoint.receive(Held {
                    replica,
                    guest: None,
                });
                self.lose_state();
            }
            Role::Outdated => {}
        }
    }

    /// It stops at once, and what it held back never leaves.
    pub(super) fn become_outdated(&mut self, around: &mut Around<'_>, generation: Generation) {
        self.tell_gate(LicenceEvent::Learned { generation });
        self.generation = generation;
        *around.record = generation;
        self.drop_link(around);
        self.role = Role::Outdated;
        self.in_sync = false;
        around.outside.happened.outdated = true;
    }

    /// There is nothing to run from any more.
    pub(super) fn lose_state(&mut self) {
        self.role = Role::Waiting;
        self.in_sync = false;
        self.peer = None;
    }

    pub(super) fn tell_gate(&mut self, event: LicenceEvent) -> bool {
        let fits = self.gate.handle(event).is_ok();
        self.failed |= !fits;
        fits
    }

    /// What may leave, leaves.
    pub(super) fn release(&mut self, around: &mut Around<'_>) {
        let solo = self.gate.licence().permission() == Permission::All;
        while let Some(release) = self.gate.next_release() {
            let (generation, boot) = (self.generation, self.guest.boot);
            let bytes = &release.output.bytes;
            around
                .outside
                .takes(around.host, generation, boot, bytes, solo);
            self.gate.taken();
        }
    }

    /// The guest goes on by one output.
    pub fn run_guest(&mut self, around: &mut Around<'_>) {
        let bytes = self.guest.step(self.generation);
        let port = NetworkPort::new(0).expect("the first one");
        self.gate.push(OutputKind::Network(port), &bytes);
        self.release(around);
    }

    /// Every history contains an output of each generation, so that no change of hands goes
    /// without one.
    pub(super) fn owes_output(&self) -> bool {
        self.role == Role::Active && self.guest.made.last() != Some(&short(self.generation))
    }
}
