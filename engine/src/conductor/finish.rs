// SPDX-License-Identifier: Apache-2.0
//! Ending an active replica in good order: demotion, and a guest that powered itself off.
//!
//! The guest stands still. With an in-sync peer one last checkpoint is committed and its outputs
//! leave; then the peer is told that it may run on (demotion) or that there is nothing left to run
//! (power off).

use std::time::Duration;

use kemari_api::Epoch;
use kemari_replication::licence::{Licence, LicenceEvent};
use kemari_replication::wire::Goodbye;
use tokio::sync::oneshot;

use super::pair::LinkState;
use super::{Answer, Conductor, End};
use crate::clock;

/// How long the outside may take to accept the last outputs.
pub(super) const DRAIN: Duration = Duration::from_secs(2);
/// How long the peer may take to say that it has let go of its state.
const DISSOLVE: Duration = Duration::from_secs(2);

/// An end that is under way.
#[derive(Debug)]
pub struct Finish {
    purpose: Purpose,
    /// The epoch whose commit is waited for.
    last: Option<Epoch>,
    deadline: Duration,
}

#[derive(Debug)]
enum Purpose {
    Demote(oneshot::Sender<Answer>),
    /// Another engine goes on with the guest.
    Migrate,
    /// The other engine was given the right to run; it closes the connection when it has heard.
    Left,
    PowerOff,
    /// Powered off, and the peer was told; its answer is waited for, since a peer that has not
    /// heard would go on with the guest when this process ends.
    Dissolve,
}

impl Finish {
    /// A demotion that somebody waits for.
    pub fn demote(reply: oneshot::Sender<Answer>) -> Self {
        Self {
            purpose: Purpose::Demote(reply),
            last: None,
            deadline: Duration::MAX,
        }
    }

    /// The guest moves to another engine.
    pub fn migrate() -> Self {
        Self {
            purpose: Purpose::Migrate,
            last: None,
            deadline: Duration::MAX,
        }
    }

    /// The guest has left.
    pub fn left() -> Self {
        Self {
            purpose: Purpose::Left,
            last: None,
            deadline: clock::now() + DISSOLVE,
        }
    }

    /// Whether the guest has left.
    pub fn has_left(&self) -> bool {
        matches!(self.purpose, Purpose::Left)
    }

    /// The guest is off.
    pub fn power_off() -> Self {
        Self {
            purpose: Purpose::PowerOff,
            last: None,
            deadline: Duration::MAX,
        }
    }

    /// The session said goodbye: nothing may be sent on it any more.
    pub fn has_said_goodbye(&self) -> bool {
        matches!(self.purpose, Purpose::Dissolve | Purpose::Left)
    }

    /// When waiting ends.
    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Answers whoever waits.
    pub fn answer(self, answer: Answer) {
        if let Purpose::Demote(reply) = self.purpose {
            let _ = reply.send(answer);
        }
    }
}

impl Conductor {
    pub(super) fn begin_finish(&mut self, mut finish: Finish) {
        if let Some(other) = self.finish.take() {
            finish.answer(Err(super::Refusal::Ending));
            self.finish = Some(other);
            return;
        }
        if let Err(error) = self.stand_still() {
            let text = crate::exit::chain(&error);
            finish.answer(Err(super::Refusal::Failed(text.clone())));
            self.end = Some(End::Failed(text));
            return;
        }
        if let Some(migration) = &mut self.migration {
            migration.stops();
        }
        finish.deadline = clock::now() + self.finish_patience();
        if self.is_paired() || matches!(finish.purpose, Purpose::Migrate) {
            self.finish = Some(finish);
            let carry = self.carry();
            let last = self.cut_and_send(carry);
            if let Some(finish) = &mut self.finish {
                finish.last = last;
            }
        } else {
            self.finish = Some(finish);
            self.complete_finish();
        }
    }

    /// Stops the guest with nothing in flight. Changes of shared disks that wait for a commit cannot
    /// be waited for: the next checkpoint names them, if it is the last one, too.
    pub(super) fn stand_still(&mut self) -> Result<(), kemari_vmm::PauseError> {
        let _long = self.pulse.long_work();
        let solo = matches!(self.licence(), Licence::Solo { .. });
        if self.attachments.writes_shared_disks() && !solo {
            self.machine.freeze()
        } else {
            self.machine.pause()
        }
    }

    /// The last checkpoint is committed: what the guest wrote to shared disks gets there before
    /// another node goes on with it.
    fn land_shared_changes(&mut self) {
        let _long = self.pulse.long_work();
        if self.attachments.writes_shared_disks()
            && let Err(error) = self.machine.pause()
        {
            self.end = Some(End::Failed(crate::exit::chain(&error)));
        }
    }

    /// The peer holds everything up to this epoch.
    pub(super) fn finish_acked(&mut self, epoch: Epoch) {
        let waited_for = self.finish.as_ref().and_then(|finish| finish.last);
        if waited_for.is_some_and(|last| last <= epoch) {
            self.complete_finish();
        }
    }

    /// Gives up waiting when there is nobody left to wait for.
    pub(super) fn finish_if_possible(&mut self) {
        let Some(finish) = &self.finish else { return };
        let somebody_listens = match finish.purpose {
            // In sync it is only with the commit that is waited for.
            Purpose::Migrate | Purpose::Left => matches!(self.link, LinkState::Up(_)),
            _ => self.is_paired(),
        };
        if clock::now() >= finish.deadline || !somebody_listens {
            self.complete_finish();
        }
    }

    /// The peer has let go of its state after a power off.
    pub(super) fn finish_peer_outdated(&mut self) {
        tracing::info!(vm = %self.config.vm.name, "the passive replica has let go of its state");
        if self.finish.as_ref().is_some_and(Finish::has_said_goodbye) {
            self.complete_finish();
        }
    }

    fn complete_finish(&mut self) {
        let Some(finish) = self.finish.take() else {
            return;
        };
        let handed_over = finish
            .last
            .filter(|last| self.is_paired() && self.progress.acked >= *last);
        if handed_over.is_some() {
            self.land_shared_changes();
        }
        if handed_over.is_some() && matches!(finish.purpose, Purpose::PowerOff) {
            // Before the last outputs are carried out, which may take longer than the peer waits:
            // it holds them, and nothing is left to run.
            self.say_goodbye(Goodbye::Unprotected);
            let deadline = clock::now() + DISSOLVE;
            self.finish = Some(Finish {
                purpose: Purpose::Dissolve,
                deadline,
                ..finish
            });
            return;
        }
        let committed = finish.last.is_some_and(|last| self.progress.acked >= last);
        let may_leave = committed || matches!(self.licence(), Licence::Solo { .. });
        if may_leave && !self.outputs.drain(DRAIN) {
            tracing::warn!(vm = %self.config.vm.name, "the outside did not take the last outputs");
        }
        match finish.purpose {
            Purpose::Demote(reply) => {
                if let Some(epoch) = handed_over {
                    self.tell_gate(LicenceEvent::HandedOver);
                    self.say_goodbye(Goodbye::HandedOver { epoch });
                }
                let detail = match handed_over {
                    Some(epoch) => format!("handed over at epoch {epoch}; waiting"),
                    None => "demoted without a passive replica in sync; waiting".to_owned(),
                };
                let answer = self.become_waiting(&detail);
                self.publish();
                let _ = reply.send(answer);
            }
            Purpose::Migrate => self.migrated(handed_over),
            Purpose::Left => self.end_after_migration(),
            Purpose::PowerOff | Purpose::Dissolve => self.end = Some(End::PowerOff),
        }
    }
}
