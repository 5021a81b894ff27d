// SPDX-License-Identifier: Apache-2.0
//! Changes of role (`engine/src/conductor/roles.rs`): whether this replica may, and doing it.

use kemari_replication::event_tap::EventTap;
use kemari_replication::gate::OutputGate;
use kemari_replication::licence::{Licence, LicenceEvent};
use kemari_replication::passive::{Replica, Retained};
use kemari_replication::wire::Goodbye;
use kemari_replication::{Generation, Output};

use super::finish::Finish;
use super::passive::{Held, PassiveEvent};
use super::{Engine, LinkState, Progress, Request, Role, new_tap};
use crate::env::Env;
use crate::guest::{Machine, Registers};
use crate::mutant::Mutant;
use crate::profile::QUEUE_BYTES;

impl Engine {
    pub(super) fn request(&mut self, env: &mut Env, request: Request) {
        env.tell(self.host, || {
            format!("asked as {:?}: {request:?}", self.role)
        });
        match request {
            Request::TakeOver(generation) => self.take_over(env, generation),
            Request::ColdStart(generation, boot) => self.cold_start(env, generation, boot),
            Request::GoSolo(generation) => self.go_solo(env, generation),
            Request::Outdate(generation) => self.outdate(env, generation),
            Request::Protect => self.protect(env),
            Request::Demote if self.role == Role::Active => {
                self.begin_finish(env, Finish::demote());
            }
            Request::Demote => {}
        }
    }

    /// Continues from the last committed checkpoint.
    fn take_over(&mut self, env: &mut Env, generation: Generation) {
        let may = matches!(self.role, Role::Passive | Role::Waiting);
        if !may || generation <= self.generation {
            return;
        }
        let Some(held) = self.seize(env, generation) else {
            return;
        };
        let (Some(checkpoint), Some(state)) = (held.replica.held(), held.state) else {
            self.endpoint.receive(held);
            self.in_sync = false;
            return;
        };
        self.run_from(env, checkpoint, &held.replica, state, generation);
    }

    /// Goes on with a guest from its whole state; RAM holds its memory already.
    fn run_from(
        &mut self,
        env: &mut Env,
        from: kemari_replication::wire::Held,
        replica: &Replica,
        state: Registers,
        generation: Generation,
    ) {
        self.machine.registers = state;
        let hash = self.machine.hash(&state);
        env.outside.takes_over((from.generation, from.epoch), hash);
        assert_eq!(replica.console_position(), state.console, "console bytes");
        let nothing = Retained::default();
        let retained = if env.is(Mutant::DropOutputsOnTakeover) {
            &nothing
        } else {
            replica.retained()
        };
        let position = replica.console_position();
        let tap = EventTap::take_over(QUEUE_BYTES, from.epoch, position, retained);
        let replay: Vec<&Output> = retained.replay().collect();
        env.counts.failovers += 1;
        env.tell(self.host, || {
            format!("takes over from {from:?}, replays {}", replay.len())
        });
        let bytes = Self::bytes_of(replay.into_iter());
        self.activate(env, generation, tap, bytes);
    }

    /// Boots the guest from nothing.
    fn cold_start(&mut self, env: &mut Env, generation: Generation, boot: u64) {
        if self.role != Role::Waiting || generation <= self.generation {
            return;
        }
        self.seize(env, generation);
        env.counts.cold_starts += 1;
        env.outside.reboot();
        self.machine = Machine::new();
        self.machine.registers.boot = boot;
        self.machine.registers.mix = boot;
        self.activate(env, generation, new_tap(), 0);
    }

    /// Gives the machine the right to run, on disk first, and lets it.
    fn activate(&mut self, env: &mut Env, generation: Generation, tap: EventTap, bytes: usize) {
        self.generation = generation;
        if !self.write_record(env) {
            return;
        }
        env.outside
            .runs(generation, self.machine.registers.next_output);
        self.replace_tap(env, tap, bytes);
        self.tell_gate(env, LicenceEvent::SoloGranted { generation });
        self.role = Role::Active;
        self.in_sync = false;
        self.no_link(env);
        self.progress = Progress::default();
        self.machine.executes = true;
    }

    fn replace_tap(&mut self, env: &mut Env, tap: EventTap, bytes: usize) {
        self.settle(env);
        self.gate = OutputGate::new(tap);
        self.output_since = None;
        self.queued_bytes = bytes;
    }

    fn protect(&mut self, env: &mut Env) {
        if self.role != Role::Active || self.finish.is_some() {
            return;
        }
        if matches!(self.link, LinkState::None | LinkState::Retry { .. }) {
            self.connect(env);
        }
    }

    /// The passive replica is provably out: outputs may leave at once.
    fn go_solo(&mut self, env: &mut Env, generation: Generation) {
        if self.role != Role::Active || generation <= self.generation {
            return;
        }
        self.stop_tracking(env);
        if !matches!(self.licence(), Licence::Solo { .. }) {
            self.tell_gate(env, LicenceEvent::SessionLost);
        }
        self.generation = generation;
        self.progress = Progress::default();
        if !self.write_record(env) {
            return;
        }
        env.counts.solos += 1;
        self.tell_gate(env, LicenceEvent::SoloGranted { generation });
        self.resume_guest();
    }

    fn outdate(&mut self, env: &mut Env, generation: Generation) {
        if generation <= self.generation {
            return;
        }
        match self.role {
            Role::Active => self.become_outdated(env, generation),
            Role::Waiting | Role::Passive => {
                let held = self.seize(env, generation);
                let mut replica =
                    held.map_or_else(|| Replica::new(generation), |held| held.replica);
                replica.outdate(generation);
                self.generation = generation;
                let state = None;
                self.endpoint.receive(Held { replica, state });
                self.lose_state();
            }
            Role::Outdated => {}
        }
    }

    /// An active replica learned that the right to run has gone on: it stops at once.
    pub(super) fn become_outdated(&mut self, env: &mut Env, generation: Generation) {
        env.counts.outdated += 1;
        self.tell_gate(env, LicenceEvent::Learned { generation });
        self.machine.executes = false;
        self.settle(env);
        self.generation = generation;
        self.write_record(env);
        self.no_link(env);
        self.role = Role::Outdated;
        self.in_sync = false;
        self.finish = None;
    }

    /// Gives the guest up and waits for the next checkpoint or promotion.
    pub(super) fn become_waiting(&mut self, env: &mut Env) {
        self.machine.executes = false;
        self.no_link(env);
        self.replace_tap(env, new_tap(), 0);
        self.progress = Progress::default();
        self.machine = Machine::new();
        self.endpoint.receive(Held {
            replica: Replica::new(self.generation),
            state: None,
        });
        self.lose_state();
    }

    /// There is nothing to run from any more.
    const fn lose_state(&mut self) {
        self.role = Role::Waiting;
        self.in_sync = false;
    }

    pub(super) fn passive_event(&mut self, env: &mut Env, event: &PassiveEvent) {
        if !matches!(self.role, Role::Waiting | Role::Passive) {
            // What was still queued when this replica took over.
            return;
        }
        env.tell(self.host, || format!("{event:?}"));
        match *event {
            PassiveEvent::Joined {
                generation,
                in_sync,
            } => {
                self.role = Role::Passive;
                self.in_sync = in_sync;
                self.generation = self.generation.max(generation);
            }
            PassiveEvent::Copying => self.in_sync = false,
            PassiveEvent::Committed => {
                self.role = Role::Passive;
                self.in_sync = true;
            }
            PassiveEvent::Goodbye(Goodbye::Unprotected) => self.lose_state(),
            PassiveEvent::Goodbye(_) => {}
            PassiveEvent::Lost => {
                if self.role == Role::Passive && !self.in_sync {
                    self.lose_state();
                }
            }
        }
    }
}
