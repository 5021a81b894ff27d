// SPDX-License-Identifier: Apache-2.0
//! Ending an active replica in good order (`engine/src/conductor/finish.rs`): a demotion, and a
//! guest that powered itself off.

use std::time::Duration;

use kemari_replication::Epoch;
use kemari_replication::licence::{Licence, LicenceEvent};
use kemari_replication::wire::Goodbye;

use super::{Engine, LinkState};
use crate::env::Env;
use crate::profile::{DISSOLVE, FINISH_PATIENCE};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Demote,
    PowerOff,
    /// Powered off, and the peer was told; its answer is waited for.
    Dissolve,
}

/// An end that is under way.
#[derive(Debug, Clone, Copy)]
pub struct Finish {
    purpose: Purpose,
    /// The epoch whose commit is waited for.
    last: Option<Epoch>,
    deadline: Duration,
}

impl Finish {
    pub const fn demote() -> Self {
        Self {
            purpose: Purpose::Demote,
            last: None,
            deadline: Duration::MAX,
        }
    }

    pub const fn power_off() -> Self {
        Self {
            purpose: Purpose::PowerOff,
            ..Self::demote()
        }
    }

    pub const fn deadline(&self) -> Duration {
        self.deadline
    }
}

impl Engine {
    pub(super) fn has_said_goodbye(&self) -> bool {
        self.finish
            .is_some_and(|finish| finish.purpose == Purpose::Dissolve)
    }

    pub(super) fn begin_finish(&mut self, env: &mut Env, mut finish: Finish) {
        if self.finish.is_some() {
            return;
        }
        self.machine.executes = false;
        finish.deadline = env.local(self.host) + FINISH_PATIENCE;
        self.finish = Some(finish);
        if self.is_paired() {
            let last = self.cut_and_send(env, self.carry());
            if let Some(finish) = &mut self.finish {
                finish.last = last;
            }
        } else {
            self.complete_finish(env);
        }
    }

    /// The peer holds everything up to this epoch.
    pub(super) fn finish_acked(&mut self, env: &mut Env, epoch: Epoch) {
        let waited_for = self.finish.and_then(|finish| finish.last);
        if waited_for.is_some_and(|last| last <= epoch) {
            self.complete_finish(env);
        }
    }

    /// Gives up waiting when there is nobody left to wait for.
    pub(super) fn finish_if_possible(&mut self, env: &mut Env) {
        let Some(finish) = &self.finish else { return };
        if env.local(self.host) >= finish.deadline || !self.is_paired() {
            self.complete_finish(env);
        }
    }

    /// The peer has let go of its state after a power off.
    pub(super) fn finish_peer_outdated(&mut self, env: &mut Env) {
        if self.has_said_goodbye() {
            self.complete_finish(env);
        }
    }

    fn complete_finish(&mut self, env: &mut Env) {
        let Some(finish) = self.finish.take() else {
            return;
        };
        let handed_over = finish
            .last
            .filter(|last| self.is_paired() && self.progress.acked >= *last);
        if handed_over.is_some() && finish.purpose == Purpose::PowerOff {
            self.say_goodbye(env, Goodbye::Unprotected);
            self.finish = Some(Finish {
                purpose: Purpose::Dissolve,
                deadline: env.local(self.host) + DISSOLVE,
                ..finish
            });
            return;
        }
        let committed = finish.last.is_some_and(|last| self.progress.acked >= last);
        if committed || matches!(self.licence(), Licence::Solo { .. }) {
            self.drain(env);
        }
        match finish.purpose {
            Purpose::Demote => {
                if let Some(epoch) = handed_over {
                    env.counts.handovers += 1;
                    self.tell_gate(env, LicenceEvent::HandedOver);
                    self.say_goodbye(env, Goodbye::HandedOver { epoch });
                }
                self.become_waiting(env);
            }
            Purpose::PowerOff | Purpose::Dissolve => self.end = Some("powered off".into()),
        }
    }

    /// Whether an end is under way, or nothing is.
    pub const fn is_ending(&self) -> bool {
        self.finish.is_some()
    }

    /// Whether the link is tried again.
    pub const fn retries(&self) -> bool {
        matches!(self.link, LinkState::Retry { .. })
    }
}
