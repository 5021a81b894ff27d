// SPDX-License-Identifier: Apache-2.0
//! The active side of a pair: copy, checkpoints, acknowledgements.
//!
//! A page is dirty while it differs from the last epoch that was *acknowledged*. The sets of
//! epochs in flight are kept until then; when the link is lost and comes back they are folded
//! back, except for those the other side turns out to hold.

use std::collections::VecDeque;
use std::time::Duration;

use kemari_api::{Epoch, Licence as Shown, Role};
use kemari_replication::active::{Base, BeginTransaction};
use kemari_replication::compression::Spent;
use kemari_replication::event_tap::Carry;
use kemari_replication::licence::{Licence, LicenceEvent};
use kemari_replication::page::PAGE_BYTES;
use kemari_replication::trigger::{Decision, DiskLogLength, TriggerInput};
use kemari_replication::wire::Goodbye;
use kemari_vmm::DirtyPages;

use super::capture::{Cut, DiskRequests};
use super::compression::Compression;
use super::copy::Copy;
use super::finish::Finish;
use super::links::Look;
use super::{Conductor, End};
use crate::clock;
use crate::epoch_hash::EpochHash;
use crate::link::LinkError;
use crate::link::active::{Link, LinkEvent, LinkId};
use crate::record::{Kind, Record};
use crate::storage::TakenLog;

/// Epochs that may be in flight; the next cut waits for an acknowledgement.
const IN_FLIGHT_MAX: usize = 4;

/// What the status says of a pair.
pub const PAIRED: &str = "paired: outputs leave when the passive replica has committed them";

/// Where the replication stands on the active side.
#[derive(Debug)]
pub enum LinkState {
    /// There is none.
    None,
    /// An attempt is under way.
    Connecting {
        id: LinkId,
        /// What is given up for it, once the other side has answered.
        _leaving: Option<Box<Link>>,
    },
    /// It was lost and is tried again.
    Retry { at: Duration },
    /// Welcomed.
    Up(Box<Pair>),
}

impl LinkState {
    /// Nobody is replicated to, and nobody is to be.
    pub const fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }
}

/// A connection to the passive replica and what is under way on it.
#[derive(Debug)]
pub struct Pair {
    pub id: LinkId,
    pub link: Link,
    /// At a better link, while there is one.
    pub look: Option<Look>,
    pub compression: Compression,
    pub phase: Phase,
    last_start: Duration,
    last_pause: Duration,
    pub last_sent: Duration,
}

/// What is under way on a connection.
#[derive(Debug)]
pub enum Phase {
    /// The copy that the first checkpoint builds on.
    Copying(Copy),
    /// The next checkpoint builds on this.
    Checkpoints { base: Base },
}

/// An epoch that was sent and is not acknowledged.
#[derive(Debug)]
pub struct InFlight {
    epoch: Epoch,
    /// The pages it carried.
    dirty: DirtyPages,
    /// What it carried for disks.
    log: TakenLog,
    cut_at: Duration,
}

/// What the active side remembers between connections.
#[derive(Debug, Default)]
pub struct Progress {
    /// Highest epoch ever sent, and highest acknowledged, in this generation.
    pub sent: Epoch,
    pub acked: Epoch,
    /// Epochs sent and not acknowledged, oldest first.
    pub in_flight: VecDeque<InFlight>,
    /// Dirty tracking covers everything since `acked`.
    tracked: bool,
    /// A transaction was sent in the session there is now.
    pub session_sent: bool,
}

impl Conductor {
    pub(super) fn link_event(&mut self, id: LinkId, event: LinkEvent) {
        let Err(event) = self.looked(id, event) else {
            return;
        };
        let current = match &self.link {
            LinkState::Connecting { id, .. } => Some(*id),
            LinkState::Up(pair) => Some(pair.id),
            LinkState::None | LinkState::Retry { .. } => None,
        };
        if current != Some(id) {
            return;
        }
        match event {
            LinkEvent::Up(link) => self.link_up(id, *link),
            LinkEvent::Acked(epoch) => self.acked(epoch),
            LinkEvent::Compared(differing) => self.compared(differing),
            LinkEvent::DiskChanges(changes) => self.changes_told(changes),
            LinkEvent::DisksDurable(base) => self.synced_there(base),
            LinkEvent::Alive | LinkEvent::Drained | LinkEvent::Reached(_) => {}
            LinkEvent::Goodbye(Goodbye::Outdated) => self.finish_peer_outdated(),
            LinkEvent::Goodbye(goodbye) => {
                tracing::info!(vm = %self.config.vm.name, ?goodbye, "the passive replica said goodbye");
            }
            LinkEvent::Lost(error) => self.link_lost(&error),
        }
    }

    fn link_up(&mut self, id: LinkId, mut link: Link) {
        if !matches!(self.link, LinkState::Connecting { .. }) {
            return;
        }
        let rejoining = self.licence().shown() == Shown::Cut;
        if rejoining && self.peer.as_ref().is_some_and(|peer| *peer != link.node) {
            // Two replicas would hold a state of this generation, one of them too old.
            let other = "another replica answers than the one of this pair";
            return self.link_lost(&LinkError::Ended(other));
        }
        if self.attachments.storage().is_replicated() && !link.session.carries_disks() {
            let told = "the other engine is too old for replicated disks: upgrade it";
            return self.link_lost(&LinkError::Ended(told));
        }
        self.peer = Some(link.node.clone());
        let acked = self.progress.acked;
        let held = link
            .held
            .filter(|held| self.progress.tracked && *held >= acked);
        if rejoining && !self.tell_gate(LicenceEvent::Rejoin) {
            return;
        }
        let phase = match held {
            Some(epoch) => self.continue_from(epoch),
            None => self.copy_everything(&mut link),
        };
        let Some(phase) = phase else { return };
        tracing::info!(
            vm = %self.config.vm.name, generation = %self.generation, peer = %link.node,
            link = self.link_name(),
            from = %held.map_or_else(|| "a full copy".to_owned(), |epoch| format!("epoch {epoch}")),
            "the passive replica takes part"
        );
        if let Some(links) = &mut self.links {
            links.carries();
        }
        let now = clock::now();
        let pair = Pair {
            id,
            look: None,
            compression: Compression::new(&self.config.replication, &mut link.session),
            link,
            phase,
            last_start: now,
            last_pause: Duration::ZERO,
            last_sent: now,
        };
        self.link = LinkState::Up(Box::new(pair));
    }

    /// The other side holds this epoch: only what was written since must be sent.
    fn continue_from(&mut self, epoch: Epoch) -> Option<Phase> {
        if epoch > self.progress.acked {
            self.acked(epoch);
        }
        let lost: Vec<_> = self.progress.in_flight.drain(..).collect();
        for sent in &lost {
            self.machine.mark_dirty(&sent.dirty);
        }
        let logs = lost.into_iter().map(|sent| sent.log);
        self.attachments.storage().log().put_back(logs);
        Some(Phase::Checkpoints {
            base: Base::Epoch(epoch),
        })
    }

    /// Everything that is due: copy, checkpoint, sign of life, another attempt.
    pub(super) fn work(&mut self) {
        match &self.link {
            LinkState::None | LinkState::Connecting { .. } => {}
            LinkState::Retry { at } => {
                if clock::now() >= *at {
                    self.connect();
                }
            }
            LinkState::Up(pair) => match pair.phase {
                Phase::Copying(_) => self.copy_some(),
                Phase::Checkpoints { .. } => self.checkpoint_if_due(),
            },
        }
        self.sign_of_life();
        self.look_after_changes();
        self.look_at_better_link();
        self.finish_if_possible();
    }

    /// When [`Self::work`] has something to do again, if nothing happens before.
    pub(super) fn next_deadline(&self) -> Duration {
        let now = clock::now();
        let idle = now + Duration::from_secs(1);
        let link = match &self.link {
            LinkState::None | LinkState::Connecting { .. } => idle,
            LinkState::Retry { at } => *at,
            LinkState::Up(pair) => {
                let due = match pair.phase {
                    Phase::Copying(ref copy) => {
                        copy.due(now, pair.link.waiting_bytes()).unwrap_or(idle)
                    }
                    Phase::Checkpoints { .. } if !self.may_cut() => idle,
                    Phase::Checkpoints { .. } => {
                        match self.trigger.decide(&self.trigger_input(pair)) {
                            Decision::Now(_) => now,
                            Decision::Wait(until) => until,
                        }
                    }
                };
                match &self.finish {
                    Some(finish) if finish.has_said_goodbye() => due,
                    _ => due.min(pair.last_sent + self.silence_max() / 4),
                }
            }
        };
        let finish = self.finish.as_ref().map(Finish::deadline);
        [finish, self.look_due()]
            .into_iter()
            .flatten()
            .fold(link, Duration::min)
    }

    fn trigger_input(&self, pair: &Pair) -> TriggerInput {
        TriggerInput {
            now: clock::now(),
            last_pause: pair.last_pause,
            last_start: pair.last_start,
            output_since: self.outputs.output_since(),
            dirty_pages: None,
            disk_log: if self.attachments.storage().log().is_long() {
                DiskLogLength::Long
            } else {
                DiskLogLength::Short
            },
        }
    }

    /// Whether the next epoch may be cut at all.
    fn may_cut(&self) -> bool {
        let window = if self.config.replication.synchronous {
            1
        } else {
            IN_FLIGHT_MAX
        };
        let stopped_before_the_cut = !self.running || self.finish.is_some();
        self.progress.in_flight.len() < window && !stopped_before_the_cut
    }

    /// Outputs are held before the first state of a new pair is captured, and the record says
    /// `paired` before the passive replica can run from it.
    pub(super) fn first_checkpoint(&mut self) {
        if matches!(self.licence(), Licence::Solo { .. }) {
            if !self.tell_gate(LicenceEvent::Hold) || !self.write_record(Kind::Paired) {
                return;
            }
            self.tell_gate(LicenceEvent::PairedRecorded);
        }
        if !self.finish_disks() {
            return;
        }
        self.progress.tracked = true;
        if let LinkState::Up(pair) = &mut self.link {
            pair.phase = Phase::Checkpoints { base: Base::Copy };
        }
        if self.migration.is_some() {
            // The first checkpoint is the last: the guest stands still until it runs elsewhere.
            return self.begin_finish(Finish::migrate());
        }
        // All that a guest wrote faster than the link carries.
        let _long = self.pulse.long_work();
        self.cut_and_send(Carry::Undelivered);
    }

    fn checkpoint_if_due(&mut self) {
        let LinkState::Up(pair) = &self.link else {
            return;
        };
        if !self.may_cut() {
            return;
        }
        if let Decision::Now(_) = self.trigger.decide(&self.trigger_input(pair)) {
            self.cut_and_send(self.carry());
        }
    }

    /// The first transaction of a session carries everything the outside has not taken.
    pub(super) fn carry(&self) -> Carry {
        if self.progress.session_sent {
            Carry::Epoch
        } else {
            Carry::Undelivered
        }
    }

    /// Cuts, lets the guest go on, and sends the checkpoint. Returns its epoch.
    pub(super) fn cut_and_send(&mut self, carry: Carry) -> Option<Epoch> {
        let requests = self.disk_requests_at_cut();
        let _long = matches!(requests, DiskRequests::Drained).then(|| self.pulse.long_work());
        let cut = match self.capture.cut(
            &mut self.machine,
            &self.outputs,
            self.attachments.storage().log(),
            requests,
            carry,
        ) {
            Ok(cut) => cut,
            Err(text) => {
                self.end = Some(End::Failed(format!(
                    "A checkpoint could not be taken: {text}"
                )));
                return None;
            }
        };
        self.verify_at_cut();
        self.begin_disk_round();
        if self.config.replication.hash_epochs {
            let hash = EpochHash::of(&self.machine.memory(), &cut.state.encode());
            hash.log(&self.config.vm.name, self.generation, cut.closed.epoch);
        }
        if !self.config.replication.synchronous {
            self.resume_guest();
        }
        let pause = clock::now().saturating_sub(cut.at);
        self.statistics.paused(pause, self.capture.len());
        if let LinkState::Up(pair) = &mut self.link {
            pair.last_pause = pause;
        }
        // Whatever the licence was, from here on it must hold outputs until the commit.
        if !self.tell_gate(LicenceEvent::CommitSent) {
            return None;
        }
        self.send_checkpoint(cut)
    }

    fn send_checkpoint(&mut self, cut: Cut) -> Option<Epoch> {
        let LinkState::Up(pair) = &mut self.link else {
            return None;
        };
        let Phase::Checkpoints { base } = pair.phase else {
            return None;
        };
        let epoch = cut.closed.epoch;
        let mut frames = pair.link.buffer();
        let session = &mut pair.link.session;
        session.set_effort(pair.compression.effort());
        session.begin(
            &mut frames,
            BeginTransaction {
                epoch,
                base,
                pages: self.capture.len(),
                delivered_up_to: cut.closed.delivered_up_to,
                console_position: cut.closed.console_position,
            },
        );
        let encoding_since = clock::now();
        let mut pages = self.capture.pages();
        while session.pages(&mut frames, &mut pages) > 0 {}
        drop(pages);
        let spent = Spent {
            tally: *session.page_tally(),
            encode: clock::now().saturating_sub(encoding_since),
        };
        session.state(&mut frames, &cut.state.encode());
        session.disk_log(&mut frames, cut.log.changes().iter());
        session.outputs(&mut frames, &cut.closed.outputs);
        session.commit(&mut frames);
        self.statistics.sent(frames.len());
        pair.compression
            .sent(epoch, frames.len(), clock::now(), &spent);
        self.statistics.encoded(&spent, pair.compression.effort());
        pair.link.send(frames);
        pair.phase = Phase::Checkpoints {
            base: Base::Epoch(epoch),
        };
        pair.last_start = cut.at;
        pair.last_sent = clock::now();
        self.progress.sent = epoch;
        self.progress.session_sent = true;
        self.progress.in_flight.push_back(InFlight {
            epoch,
            dirty: cut.dirty,
            log: cut.log,
            cut_at: cut.at,
        });
        Some(epoch)
    }

    /// The passive side holds everything up to this epoch.
    fn acked(&mut self, epoch: Epoch) {
        let committed = self.outputs.with_gate(|gate| gate.committed(epoch));
        if let Err(error) = committed {
            self.end = Some(End::Failed(error.to_string()));
            return;
        }
        self.progress.acked = epoch;
        self.epoch = epoch;
        let now = clock::now();
        if let LinkState::Up(pair) = &mut self.link {
            pair.compression.acked(epoch, now);
        }
        while let Some(sent) = self
            .progress
            .in_flight
            .pop_front_if(|sent| sent.epoch <= epoch)
        {
            self.attachments.storage().log().committed(&sent.log);
            self.statistics.committed(sent.cut_at, now);
        }
        if self.config.replication.synchronous {
            // The next epoch begins when the guest goes on, or a link slower than the longest epoch
            // would leave it no time to run.
            if let LinkState::Up(pair) = &mut self.link {
                pair.last_start = now;
            }
            self.resume_guest();
        }
        if !self.in_sync {
            self.in_sync = true;
            self.detail = self.paired_detail();
            tracing::info!(
                vm = %self.config.vm.name, role = %self.role, generation = %self.generation,
                %epoch, peer = %self.peer_name(), link = self.link_name(), "the pair is in sync"
            );
        }
        self.finish_acked(epoch);
    }

    fn sign_of_life(&mut self) {
        let quiet = self.silence_max() / 4;
        if self.finish.as_ref().is_some_and(Finish::has_said_goodbye) {
            return;
        }
        let LinkState::Up(pair) = &mut self.link else {
            return;
        };
        if clock::now() >= pair.last_sent + quiet {
            let mut frames = pair.link.buffer();
            pair.link.session.heartbeat(&mut frames);
            pair.link.send(frames);
            pair.last_sent = clock::now();
        }
    }

    /// Ends replication and forgets how far it had come.
    pub(super) fn stop_tracking(&mut self) {
        self.link = LinkState::None;
        self.verify_ended();
        self.in_sync = false;
        self.progress = Progress {
            sent: self.progress.sent,
            acked: self.progress.acked,
            ..Progress::default()
        };
        self.attachments.storage().log().stop();
        self.attachments.storage().changes().abort_round();
        if let Err(error) = self.machine.stop_dirty_tracking() {
            tracing::warn!(vm = %self.config.vm.name, "dirty tracking stays on: {}", crate::exit::chain(&error));
        }
    }

    /// Ends the session on the current link. What the outside has taken need not be replayed.
    pub(super) fn say_goodbye(&mut self, goodbye: Goodbye) {
        if let LinkState::Up(pair) = &mut self.link {
            let delivered = self.outputs.with_gate(|gate| gate.tap().delivered_up_to());
            let mut frames = pair.link.buffer();
            pair.link
                .session
                .delivered(&mut frames, delivered.min(self.progress.sent));
            pair.link.session.goodbye(&mut frames, goodbye);
            pair.link.send(frames);
        }
    }

    pub(super) fn licence(&self) -> Licence {
        self.outputs.with_gate(|gate| gate.licence())
    }

    /// Tells the gate; an event that does not fit is a fault of this process and ends it.
    pub(super) fn tell_gate(&mut self, event: LicenceEvent) -> bool {
        match self.outputs.with_gate(|gate| gate.handle(event)) {
            Ok(_) => true,
            Err(error) => {
                self.end = Some(End::Failed(error.to_string()));
                false
            }
        }
    }

    /// Writes the licence record; a replica that cannot keep its record must not use the right.
    pub(super) fn write_record(&mut self, kind: Kind) -> bool {
        let _long = self.pulse.long_work();
        match self.record.write(Record {
            generation: self.generation,
            kind,
        }) {
            Ok(()) => {
                let changes = self.attachments.storage().changes();
                changes.knows(self.generation);
                true
            }
            Err(error) => {
                self.end = Some(End::Failed(error.to_string()));
                false
            }
        }
    }

    /// Whether the pair is complete: a handover can lose nothing.
    pub(super) fn is_paired(&self) -> bool {
        self.role == Role::Active
            && self.in_sync
            && matches!(self.licence(), Licence::Paired { .. })
            && matches!(self.link, LinkState::Up(_))
    }
}

const _: () = assert!(PAGE_BYTES == kemari_vmm::PAGE_SIZE);
