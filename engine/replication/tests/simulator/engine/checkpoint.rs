// SPDX-License-Identifier: Apache-2.0
//! What the active side sends (`engine/src/conductor/pair.rs`, `capture.rs`): the copy, the first
//! checkpoint of a pair, and those after it.

use std::time::Duration;

use kemari_replication::active::{Base, BeginTransaction};
use kemari_replication::compression::Effort;
use kemari_replication::event_tap::{Carry, ClosedEpoch};
use kemari_replication::licence::{Joining, Licence, LicenceEvent};
use kemari_replication::trigger::Decision;
use kemari_replication::{Epoch, PAGE_BYTES, PageIndex};

use super::Engine;
use super::active::{LinkState, Phase};
use crate::env::Env;
use crate::guest::PageSet;
use crate::mutant::Mutant;
use crate::outside::CutRecord;

/// The initial copy pauses while this much waits to be written.
const COPY_AHEAD_BYTES: usize = 4 * PAGE_BYTES;
const COPY_CHUNK_PAGES: usize = 3;
const COPY_REST_PAGES: u32 = 2;
const COPY_ROUNDS_MAX: u32 = 4;

/// One cut: the whole state at one instant.
#[derive(Debug)]
pub struct Cut {
    closed: ClosedEpoch,
    dirty: PageSet,
    pages: Vec<(PageIndex, [u8; PAGE_BYTES])>,
    state: Vec<u8>,
    at: Duration,
}

impl Engine {
    /// Sends the next part of the copy; ends it when little is left.
    pub(super) fn copy_some(&mut self, env: &mut Env) {
        let LinkState::Up(pair) = &self.link else {
            return;
        };
        let conn = pair.link.conn;
        if self.waiting_bytes(conn) >= COPY_AHEAD_BYTES {
            return;
        }
        let LinkState::Up(pair) = &mut self.link else {
            return;
        };
        let Phase::Copying { rest, round } = &mut pair.phase else {
            return;
        };
        if rest.len() == 0 {
            let round = *round;
            return self.next_round(env, round);
        }
        let chunk = rest.take_first(COPY_CHUNK_PAGES);
        self.machine.arm_dirty_tracking(chunk);
        let pages = self.machine.read(chunk);
        let mut frames = Vec::new();
        let mut pages = pages.iter().map(|(index, bytes)| (*index, bytes));
        while pair.link.session.copy_pages(&mut frames, &mut pages) > 0 {}
        pair.last_sent = env.local(self.host);
        self.send(env, conn, frames);
    }

    fn next_round(&mut self, env: &mut Env, round: u32) {
        let dirty = self.machine.harvest_dirty();
        let LinkState::Up(pair) = &mut self.link else {
            return;
        };
        if dirty.len() > COPY_REST_PAGES && round < COPY_ROUNDS_MAX {
            pair.phase = Phase::Copying {
                rest: dirty,
                round: round + 1,
            };
            return;
        }
        self.machine.mark_dirty(dirty);
        self.progress.tracked = true;
        pair.phase = Phase::Checkpoints { base: Base::Copy };
        self.first_checkpoint(env);
    }

    /// Outputs are held before the first state of a new pair is captured, and the record says
    /// `paired` before the passive replica can run from it.
    pub(super) fn first_checkpoint(&mut self, env: &mut Env) {
        loop {
            match self.licence() {
                Licence::Solo { .. } if env.is(Mutant::HoldAfterCapture) => {
                    let cut = self.cut(env, Carry::Undelivered);
                    self.captured_early = Some(cut);
                    return self.resume_guest();
                }
                Licence::Solo { .. } => self.tell_gate(env, LicenceEvent::Hold),
                Licence::Joining {
                    stage: Joining::Holding,
                    ..
                } => {
                    if !self.write_record(env) {
                        return;
                    }
                    self.tell_gate(env, LicenceEvent::PairedRecorded);
                }
                _ => break,
            }
            if env.profile.slow_join {
                return;
            }
        }
        self.cut_and_send(env, Carry::Undelivered);
    }

    /// Holding outputs, or `paired` on disk, and no Commit sent yet: the next step is due.
    pub(super) fn is_joining(&self) -> bool {
        matches!(
            self.licence(),
            Licence::Joining {
                stage: Joining::Holding | Joining::Recorded,
                ..
            }
        )
    }

    pub(super) fn hold_after_capture(&mut self, env: &mut Env) {
        let cut = self.captured_early.take();
        let solo = matches!(self.licence(), Licence::Solo { .. });
        let up = matches!(self.link, LinkState::Up(_));
        if let Some(cut) = cut.filter(|_| solo && up) {
            self.tell_gate(env, LicenceEvent::Hold);
            self.tell_gate(env, LicenceEvent::PairedRecorded);
            self.tell_gate(env, LicenceEvent::CommitSent);
            self.send_checkpoint(env, &cut);
        }
    }

    pub(super) fn checkpoint_if_due(&mut self, env: &mut Env) {
        let LinkState::Up(pair) = &self.link else {
            return;
        };
        if !self.may_cut(env) || self.captured_early.is_some() {
            return;
        }
        if let Decision::Now(_) = self.trigger.decide(&self.trigger_input(env, pair)) {
            self.cut_and_send(env, self.carry());
        }
    }

    /// The first transaction of a session carries everything the outside has not taken.
    pub(super) const fn carry(&self) -> Carry {
        if self.progress.session_sent {
            Carry::Epoch
        } else {
            Carry::Undelivered
        }
    }

    fn cut(&mut self, env: &mut Env, carry: Carry) -> Cut {
        self.machine.executes = false;
        let registers = self.machine.registers;
        let mut state = registers.encode();
        let dirty = self.machine.harvest_dirty();
        let pages = self.machine.read(dirty);
        let closed = self.gate.close_epoch(carry);
        assert_eq!(closed.console_position, registers.console, "console bytes");
        let cut = CutRecord {
            hash: self.machine.hash(&registers),
            next_output: registers.next_output,
        };
        env.outside.cut(self.generation, closed.epoch, cut);
        if env.fault(env.profile.undecodable) {
            env.counts.undecodable += 1;
            state[0] ^= 1;
        }
        Cut {
            closed,
            dirty,
            pages,
            state,
            at: env.local(self.host),
        }
    }

    /// Cuts, lets the guest go on, and sends the checkpoint. Returns its epoch.
    pub(super) fn cut_and_send(&mut self, env: &mut Env, carry: Carry) -> Option<Epoch> {
        let cut = self.cut(env, carry);
        self.output_since = None;
        if !env.profile.synchronous {
            self.resume_guest();
        }
        // Whatever the licence was, from here on it must hold outputs until the commit.
        self.tell_gate(env, LicenceEvent::CommitSent);
        self.send_checkpoint(env, &cut)
    }

    fn send_checkpoint(&mut self, env: &mut Env, cut: &Cut) -> Option<Epoch> {
        let LinkState::Up(pair) = &mut self.link else {
            return None;
        };
        let Phase::Checkpoints { base } = pair.phase else {
            return None;
        };
        let epoch = cut.closed.epoch;
        let mut frames = Vec::new();
        let session = &mut pair.link.session;
        let begin = BeginTransaction {
            epoch,
            base,
            pages: cut.pages.len() as u64,
            delivered_up_to: cut.closed.delivered_up_to,
            console_position: cut.closed.console_position,
        };
        // Every way of encoding pages gets its turn.
        let turn = usize::try_from(epoch.get()).expect("few epochs") / 3 % Effort::ALL.len();
        session.set_effort(Effort::ALL[turn]);
        session.begin(&mut frames, begin);
        let mut pages = cut.pages.iter().map(|(index, bytes)| (*index, bytes));
        while session.pages(&mut frames, &mut pages) > 0 {}
        session.state(&mut frames, &cut.state);
        session.outputs(&mut frames, &cut.closed.outputs);
        session.commit(&mut frames);
        pair.phase = Phase::Checkpoints {
            base: Base::Epoch(epoch),
        };
        pair.last_start = cut.at;
        pair.last_sent = env.local(self.host);
        let conn = pair.link.conn;
        self.send(env, conn, frames);
        self.progress.sent = epoch;
        self.progress.session_sent = true;
        self.progress.in_flight.push_back((epoch, cut.dirty));
        env.tell(self.host, || format!("sent epoch {epoch} on {base:?}"));
        Some(epoch)
    }
}
