// SPDX-License-Identifier: Apache-2.0
//! The active side of a pair (`engine/src/conductor/pair.rs`): what is due, acknowledgements, loss
//! and return of the link.

use std::collections::VecDeque;
use std::time::Duration;

use kemari_replication::Epoch;
use kemari_replication::active::{ActiveConfig, Base};
use kemari_replication::licence::{Licence, LicenceEvent};
use kemari_replication::trigger::{Decision, TriggerInput};
use kemari_replication::wire::{Goodbye, Purpose, Refusal};

use super::Engine;
use super::link::{Link, LinkEvent, LinkId};
use super::passive::identity;
use super::reader::LinkError;
use crate::env::Env;
use crate::guest::PageSet;
use crate::mutant::Mutant;
use crate::profile::{RETRY, SILENCE_MAX};

/// Epochs that may be in flight.
const IN_FLIGHT_MAX: usize = 4;
/// Where the replication stands on the active side.
#[derive(Debug)]
pub enum LinkState {
    None,
    Connecting { id: LinkId },
    Retry { at: Duration },
    Up(Box<Pair>),
}

/// A connection to the passive replica and what is under way on it.
#[derive(Debug)]
pub struct Pair {
    id: LinkId,
    pub(super) link: Link,
    pub(super) phase: Phase,
    pub(super) last_start: Duration,
    pub(super) last_sent: Duration,
}

#[derive(Debug)]
pub(super) enum Phase {
    Copying { rest: PageSet, round: u32 },
    Checkpoints { base: Base },
}

/// What the active side remembers between connections.
#[derive(Debug, Default)]
pub struct Progress {
    pub sent: Epoch,
    pub acked: Epoch,
    pub(super) in_flight: VecDeque<(Epoch, PageSet)>,
    pub(super) tracked: bool,
    pub(super) session_sent: bool,
}

impl Progress {
    pub fn check_bounds(&self) {
        let in_flight = self.in_flight.len();
        assert!(in_flight <= IN_FLIGHT_MAX + 1, "{in_flight} in flight");
    }
}

impl Engine {
    pub(super) fn connect(&mut self, env: &mut Env) {
        self.next_link += 1;
        let id = LinkId(self.next_link);
        env.tell(self.host, || format!("link {}: connecting", id.0));
        let config = ActiveConfig {
            identity: identity(),
            node: ["a", "b"][self.host].parse().expect("a valid name"),
            purpose: Purpose::Replication,
            generation: self.generation,
            sent: self.progress.sent,
            acked: self.progress.acked,
        };
        self.link = LinkState::Connecting { id };
        self.start_link(env, id, config);
    }

    pub(super) fn link_event(&mut self, env: &mut Env, id: LinkId, event: LinkEvent) {
        let current = match &self.link {
            LinkState::Connecting { id } => Some(*id),
            LinkState::Up(pair) => Some(pair.id),
            LinkState::None | LinkState::Retry { .. } => None,
        };
        if current != Some(id) {
            if let LinkEvent::Up(link) = event {
                self.drop_link(env, link.conn);
            }
            return;
        }
        match event {
            LinkEvent::Up(link) => self.link_up(env, id, *link),
            LinkEvent::Acked(epoch) => self.acked(env, epoch),
            LinkEvent::Goodbye(Goodbye::Outdated) => self.finish_peer_outdated(env),
            LinkEvent::Alive | LinkEvent::Goodbye(_) => {}
            LinkEvent::Lost(error) => self.link_lost(env, &error),
        }
    }

    fn link_up(&mut self, env: &mut Env, id: LinkId, link: Link) {
        env.counts.sessions += 1;
        let rejoining = matches!(self.licence(), Licence::Cut { .. });
        let acked = self.progress.acked;
        let held = link
            .held
            .filter(|held| self.progress.tracked && *held >= acked);
        if rejoining {
            self.tell_gate(env, LicenceEvent::Rejoin);
        }
        let phase = match held {
            Some(epoch) => self.continue_from(env, epoch),
            None => self.copy_everything(env),
        };
        let now = env.local(self.host);
        self.link = LinkState::Up(Box::new(Pair {
            id,
            link,
            phase,
            last_start: now,
            last_sent: now,
        }));
    }

    /// The other side holds this epoch: only what was written since must be sent.
    fn continue_from(&mut self, env: &mut Env, epoch: Epoch) -> Phase {
        env.counts.resumed += 1;
        if epoch > self.progress.acked {
            self.acked(env, epoch);
        }
        for (_, dirty) in self.progress.in_flight.drain(..) {
            if !env.is(Mutant::ForgetInFlight) {
                self.machine.mark_dirty(dirty);
            }
        }
        Phase::Checkpoints {
            base: Base::Epoch(epoch),
        }
    }

    fn copy_everything(&mut self, env: &mut Env) -> Phase {
        env.counts.copies += 1;
        self.progress.in_flight.clear();
        self.in_sync = false;
        self.machine.start_dirty_tracking();
        Phase::Copying {
            rest: PageSet::ALL,
            round: 1,
        }
    }

    /// Everything that is due: copy, checkpoint, sign of life, another attempt.
    pub(super) fn work(&mut self, env: &mut Env) {
        if self.captured_early.is_some() {
            self.hold_after_capture(env);
        }
        match &self.link {
            LinkState::None | LinkState::Connecting { .. } => {}
            LinkState::Retry { at } => {
                if env.local(self.host) >= *at {
                    self.connect(env);
                }
            }
            LinkState::Up(pair) => match pair.phase {
                Phase::Copying { .. } => self.copy_some(env),
                Phase::Checkpoints { .. } if self.is_joining() => self.first_checkpoint(env),
                Phase::Checkpoints { .. } => self.checkpoint_if_due(env),
            },
        }
        self.sign_of_life(env);
        self.finish_if_possible(env);
    }

    /// When [`Self::work`] has something to do again, if nothing happens before.
    pub(super) fn next_deadline(&self, env: &Env) -> Duration {
        let now = env.local(self.host);
        let idle = now + Duration::from_millis(40);
        let link = match &self.link {
            LinkState::None | LinkState::Connecting { .. } => idle,
            LinkState::Retry { at } => *at,
            LinkState::Up(pair) => {
                let due = match pair.phase {
                    // The writer's "drained" wakes the conductor; here it looks again by itself.
                    Phase::Copying { .. } => now + Duration::from_micros(50),
                    Phase::Checkpoints { .. } if self.is_joining() => now,
                    Phase::Checkpoints { .. } if !self.may_cut(env) => idle,
                    Phase::Checkpoints { .. } => {
                        match self.trigger.decide(&self.trigger_input(env, pair)) {
                            Decision::Now(_) => now,
                            Decision::Wait(until) => until,
                        }
                    }
                };
                if self.has_said_goodbye() {
                    due
                } else {
                    due.min(pair.last_sent + SILENCE_MAX / 4)
                }
            }
        };
        self.finish
            .as_ref()
            .map_or(link, |finish| link.min(finish.deadline()))
    }

    pub(super) fn trigger_input(&self, env: &Env, pair: &Pair) -> TriggerInput {
        TriggerInput {
            now: env.local(self.host),
            last_start: pair.last_start,
            output_since: self.output_since.filter(|_| self.gate.tap().has_pending()),
            dirty_pages: None,
        }
    }

    pub(super) fn may_cut(&self, env: &Env) -> bool {
        let window = if env.profile.synchronous {
            1
        } else {
            IN_FLIGHT_MAX
        };
        self.progress.in_flight.len() < window && self.finish.is_none()
    }

    /// The passive side holds everything up to this epoch.
    fn acked(&mut self, env: &mut Env, epoch: Epoch) {
        let licence = self.gate.committed(epoch).expect("an event that fits");
        env.tell(self.host, || {
            format!("acknowledged: epoch {epoch}, {licence:?}")
        });
        self.gate_changed(env);
        self.progress.acked = epoch;
        while self
            .progress
            .in_flight
            .pop_front_if(|(sent, _)| *sent <= epoch)
            .is_some()
        {}
        if env.profile.synchronous {
            self.resume_guest();
            // An epoch is as long as the guest runs.
            if let LinkState::Up(pair) = &mut self.link
                && !env.is(Mutant::EpochFromCut)
            {
                pair.last_start = env.local(self.host);
            }
        }
        self.in_sync = true;
        self.finish_acked(env, epoch);
    }

    fn sign_of_life(&mut self, env: &mut Env) {
        if self.has_said_goodbye() {
            return;
        }
        let now = env.local(self.host);
        let LinkState::Up(pair) = &mut self.link else {
            return;
        };
        if now >= pair.last_sent + SILENCE_MAX / 4 {
            let mut frames = Vec::new();
            pair.link.session.heartbeat(&mut frames);
            pair.last_sent = now;
            let conn = pair.link.conn;
            self.send(env, conn, frames);
        }
    }

    /// Ends the link; what dropping it does to the connection.
    pub(super) fn no_link(&mut self, env: &mut Env) {
        if let LinkState::Up(pair) = std::mem::replace(&mut self.link, LinkState::None) {
            self.drop_link(env, pair.link.conn);
        }
    }

    /// The passive replica is out of reach. What that means is the licence's affair.
    fn link_lost(&mut self, env: &mut Env, error: &LinkError) {
        self.no_link(env);
        self.progress.session_sent = false;
        if let LinkError::Refused(Refusal::Outdated { generation }) = error {
            return self.become_outdated(env, *generation);
        }
        if matches!(error, LinkError::Refused(_)) {
            env.counts.refusals += 1;
        }
        self.tell_gate(env, LicenceEvent::SessionLost);
        self.in_sync = false;
        match self.licence() {
            Licence::Cut { generation } if env.is(Mutant::SoloOnLinkLoss) => {
                let generation = generation.next();
                self.tell_gate(env, LicenceEvent::SoloGranted { generation });
            }
            Licence::Cut { .. } => {
                let at = env.local(self.host) + RETRY;
                self.link = LinkState::Retry { at };
            }
            Licence::Reverting { generation } => {
                // Nothing was offered to the passive replica yet: still the only one.
                if self.write_record(env) {
                    env.counts.reverts += 1;
                    self.tell_gate(env, LicenceEvent::SoloGranted { generation });
                    self.stop_tracking(env);
                }
            }
            _ => self.stop_tracking(env),
        }
    }

    /// Ends replication and forgets how far it had come.
    pub(super) fn stop_tracking(&mut self, env: &mut Env) {
        self.no_link(env);
        self.in_sync = false;
        self.progress = Progress {
            sent: self.progress.sent,
            acked: self.progress.acked,
            ..Progress::default()
        };
        self.machine.stop_dirty_tracking();
    }

    /// Ends the session on the current link. What the outside has taken need not be replayed.
    pub(super) fn say_goodbye(&mut self, env: &mut Env, goodbye: Goodbye) {
        let delivered = self.gate.tap().delivered_up_to();
        let LinkState::Up(pair) = &mut self.link else {
            return;
        };
        let mut frames = Vec::new();
        let session = &mut pair.link.session;
        session.delivered(&mut frames, delivered.min(self.progress.sent));
        session.goodbye(&mut frames, goodbye);
        let conn = pair.link.conn;
        self.send(env, conn, frames);
    }

    /// Whether the pair is complete: a handover can lose nothing.
    pub(super) fn is_paired(&self) -> bool {
        self.in_sync
            && matches!(self.licence(), Licence::Paired { .. })
            && matches!(self.link, LinkState::Up(_))
    }
}
