// SPDX-License-Identifier: Apache-2.0
//! The active side of a pair: connecting, copying, checkpoints, acknowledgements, loss and return
//! of the link (`conductor/pair.rs`, `conductor/copy.rs`).

use std::hash::{Hash, Hasher};

use kemari_api::{Epoch, Generation, Licence as Shown, Role};
use kemari_replication::active::{
    ActiveConfig, ActiveEvent, ActiveSession, Base, BeginTransaction,
};
use kemari_replication::event_tap::Carry;
use kemari_replication::licence::{Licence, LicenceEvent};
use kemari_replication::page::{PAGE_BYTES, PageIndex};
use kemari_replication::wire::{FrameDecoder, Purpose, Refusal};

use super::engine::{Around, Engine};
use super::passive::identity;
use super::setup::Variant;
use super::world::{index, name};

/// Epochs in flight; the next cut waits.
const IN_FLIGHT_MAX: usize = 2;

static PAGE: [u8; PAGE_BYTES] = [0; PAGE_BYTES];

/// A session, told apart by all it shows of itself.
#[derive(Debug, Clone)]
pub struct Session(Box<ActiveSession>);

impl Hash for Session {
    fn hash<H: Hasher>(&self, state: &mut H) {
        format!("{:?}", self.0).hash(state);
    }
}

/// What is under way on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Memory is to be sent.
    Copying,
    /// Memory was sent, and no checkpoint.
    Copied,
    /// The next checkpoint builds on this epoch.
    Checkpoints(Epoch),
}

/// Where the replication stands.
#[derive(Debug, Clone, Hash)]
pub enum Link {
    None,
    /// To be tried.
    Calling {
        to: usize,
    },
    Connecting {
        to: usize,
        session: Session,
    },
    /// It was lost and is tried again when that may help.
    Retry {
        to: usize,
        armed: bool,
    },
    Up {
        to: usize,
        session: Session,
        phase: Phase,
    },
}

impl Link {
    pub const fn to(&self) -> Option<usize> {
        match self {
            Self::None => None,
            Self::Calling { to }
            | Self::Connecting { to, .. }
            | Self::Retry { to, .. }
            | Self::Up { to, .. } => Some(*to),
        }
    }
}

/// What the active side remembers between connections.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Progress {
    sent: Epoch,
    acked: Epoch,
    in_flight: Vec<Epoch>,
    tracked: bool,
    session_sent: bool,
}

/// Something the engine does by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    Output,
    GiveUp,
    Connect,
    Copy,
    FirstCheckpoint,
    Checkpoint,
}

impl Engine {
    pub(super) fn protect(&mut self, around: &mut Around<'_>, to: usize) -> bool {
        if self.role != Role::Active {
            return false;
        }
        match self.link {
            Link::None => self.link = Link::Calling { to },
            Link::Retry { to: current, .. } if current == to => self.link = Link::Calling { to },
            _ => return self.link.to() == Some(to),
        }
        let _ = around;
        true
    }

    /// Another attempt may succeed now.
    pub fn rearm(&mut self) {
        if let Link::Retry { armed, .. } = &mut self.link {
            *armed = true;
        }
    }

    fn due(&self, around: &Around<'_>) -> Option<Work> {
        if self.role != Role::Active {
            return None;
        }
        if self.owes_output() {
            return Some(Work::Output);
        }
        // The kernel of the other host may still have the last connection.
        let free = |to| !around.network.pipes.contains_key(&(around.host, to));
        let answers = |to| around.network.answers(around.host, to);
        match self.link {
            Link::Calling { to } if !answers(to) => Some(Work::GiveUp),
            Link::Calling { to } | Link::Retry { to, armed: true } if answers(to) && free(to) => {
                Some(Work::Connect)
            }
            Link::Up { phase, .. } => match phase {
                Phase::Copying => Some(Work::Copy),
                Phase::Copied => Some(Work::FirstCheckpoint),
                Phase::Checkpoints(_) if self.progress.in_flight.len() >= IN_FLIGHT_MAX => None,
                Phase::Checkpoints(_) => {
                    let wanted = !self.progress.session_sent || self.gate.tap().has_pending();
                    wanted.then_some(Work::Checkpoint)
                }
            },
            _ => None,
        }
    }

    pub fn has_work(&self, around: &Around<'_>) -> bool {
        self.due(around).is_some()
    }

    /// Does the next thing that is due.
    pub fn work(&mut self, around: &mut Around<'_>) {
        match self.due(around) {
            None => {}
            Some(Work::Output) => self.run_guest(around),
            Some(Work::GiveUp) => self.link_lost(around, None),
            Some(Work::Connect) => self.connect(around),
            Some(Work::Copy) => self.copy(around),
            Some(Work::FirstCheckpoint) => self.first_checkpoint(around),
            Some(Work::Checkpoint) => {
                let carry = if self.progress.session_sent {
                    Carry::Epoch
                } else {
                    Carry::Undelivered
                };
                self.cut_and_send(around, carry);
            }
        }
    }

    fn connect(&mut self, around: &mut Around<'_>) {
        let Some(to) = self.link.to() else { return };
        let mut session = ActiveSession::new(ActiveConfig {
            identity: identity(),
            node: name(around.host),
            purpose: Purpose::Replication,
            generation: self.generation,
            sent: self.progress.sent,
            acked: self.progress.acked,
        });
        let mut hello = Vec::new();
        session.hello(&mut hello);
        let key = (around.host, to);
        let pipe = around.network.pipes.entry(key).or_default();
        (pipe.caller_open, pipe.callee_open) = (true, true);
        around.network.send(key, around.host, hello);
        let session = Session(Box::new(session));
        self.link = Link::Connecting { to, session };
    }

    fn send(
        &mut self,
        around: &mut Around<'_>,
        make: impl FnOnce(&mut ActiveSession, &mut Vec<u8>),
    ) {
        if let Link::Up { to, session, .. } = &mut self.link {
            let mut piece = Vec::new();
            make(&mut session.0, &mut piece);
            around.network.send((around.host, *to), around.host, piece);
        }
    }

    fn set_phase(&mut self, next: Phase) {
        if let Link::Up { phase, .. } = &mut self.link {
            *phase = next;
        }
    }

    fn copy(&mut self, around: &mut Around<'_>) {
        self.send(around, |session, piece| {
            let mut pages = [(PageIndex(0), &PAGE)].into_iter();
            session.sender().copy_pages(piece, &mut pages);
        });
        self.set_phase(Phase::Copied);
    }

    fn first_checkpoint(&mut self, around: &mut Around<'_>) {
        let late = around.setup.is(Variant::JoinBeforeHold);
        if matches!(self.gate.licence(), Licence::Solo { .. }) && !late {
            self.hold();
        }
        self.progress.tracked = true;
        self.cut_and_send(around, Carry::Undelivered);
    }

    fn hold(&mut self) {
        self.tell_gate(LicenceEvent::Hold);
        self.tell_gate(LicenceEvent::PairedRecorded);
    }

    fn cut_and_send(&mut self, around: &mut Around<'_>, carry: Carry) {
        let Link::Up { phase, .. } = self.link else {
            return;
        };
        let late = around.setup.is(Variant::JoinBeforeHold)
            && matches!(self.gate.licence(), Licence::Solo { .. });
        let closed = self.gate.close_epoch(carry);
        if !late && !self.tell_gate(LicenceEvent::CommitSent) {
            return;
        }
        let state = self.guest.encode(!std::mem::take(&mut self.undecodable));
        let base = match phase {
            Phase::Checkpoints(epoch) => Base::Epoch(epoch),
            _ => Base::Copy,
        };
        let epoch = closed.epoch;
        // An assertion of the sender would find the known-bad rule before the outside does.
        let before = Epoch::new(epoch.get() - 1);
        let delivered_up_to = if late {
            closed.delivered_up_to.min(before)
        } else {
            closed.delivered_up_to
        };
        self.send(around, |session, piece| {
            let sender = session.sender();
            sender.begin(
                piece,
                BeginTransaction {
                    epoch,
                    base,
                    pages: 0,
                    delivered_up_to,
                    console_position: closed.console_position,
                },
            );
            sender.state(piece, &state);
            sender.outputs(piece, &closed.outputs);
            sender.commit(piece);
        });
        self.set_phase(Phase::Checkpoints(epoch));
        self.progress.sent = epoch;
        self.progress.session_sent = true;
        self.progress.in_flight.push(epoch);
    }

    /// A piece came from the passive side.
    pub fn hear_callee(&mut self, around: &mut Around<'_>, from: usize, piece: &[u8]) {
        let mut decoder = FrameDecoder::new();
        decoder.push(piece);
        while let Some((header, payload)) = decoder.next_frame().expect("whole frames") {
            let session = match &mut self.link {
                Link::Connecting { to, session } | Link::Up { to, session, .. } if *to == from => {
                    session
                }
                _ => return,
            };
            match session.0.on_frame(&header, payload) {
                Ok(ActiveEvent::Welcomed { node, held }) => {
                    self.link_up(around, index(node.as_str()), held);
                }
                Ok(ActiveEvent::Refused(refusal)) => self.link_lost(around, Some(&refusal)),
                Ok(ActiveEvent::Acked { epoch }) => self.acked(around, epoch),
                // The model's VM has no disks, and no words are spoken at its end.
                Ok(
                    ActiveEvent::Compared(_)
                    | ActiveEvent::DiskChanges(_)
                    | ActiveEvent::DisksDurable(_)
                    | ActiveEvent::Alive
                    | ActiveEvent::Goodbye(_),
                ) => {}
                Err(_) => self.link_lost(around, None),
            }
        }
    }

    fn link_up(&mut self, around: &mut Around<'_>, node: usize, held: Option<Epoch>) {
        let rejoining = self.gate.licence().shown() == Shown::Cut;
        if rejoining && self.peer.is_some_and(|peer| peer != node) {
            // Two replicas would hold a state of this generation, one of them too old.
            return self.link_lost(around, None);
        }
        self.peer = Some(node);
        let acked = self.progress.acked;
        let held = held.filter(|held| self.progress.tracked && *held >= acked);
        if rejoining && !self.tell_gate(LicenceEvent::Rejoin) {
            return;
        }
        around.outside.happened.rejoined |= rejoining;
        let phase = match held {
            Some(epoch) => {
                if epoch > acked {
                    self.acked(around, epoch);
                }
                Phase::Checkpoints(epoch)
            }
            None => {
                self.in_sync = false;
                Phase::Copying
            }
        };
        self.progress.in_flight.clear();
        if let Link::Connecting { to, session } = std::mem::replace(&mut self.link, Link::None) {
            self.link = Link::Up { to, session, phase };
        }
    }

    fn acked(&mut self, around: &mut Around<'_>, epoch: Epoch) {
        if around.setup.is(Variant::JoinBeforeHold)
            && matches!(self.gate.licence(), Licence::Solo { .. })
        {
            self.hold();
            self.tell_gate(LicenceEvent::CommitSent);
        }
        if self.gate.committed(epoch).is_err() {
            self.failed = true;
            return;
        }
        self.progress.acked = epoch;
        self.progress.in_flight.retain(|sent| *sent > epoch);
        self.in_sync = true;
        self.release(around);
    }

    /// This side closes what there is.
    pub(super) fn drop_link(&mut self, around: &mut Around<'_>) {
        if let Link::Connecting { to, .. } | Link::Up { to, .. } = self.link {
            around.network.close((around.host, to), around.host);
        }
        self.link = Link::None;
    }

    pub(super) fn stop_tracking(&mut self, around: &mut Around<'_>) {
        self.drop_link(around);
        self.in_sync = false;
        self.progress = Progress {
            sent: self.progress.sent,
            acked: self.progress.acked,
            ..Progress::default()
        };
    }

    /// The passive replica is out of reach, or refused.
    pub fn link_lost(&mut self, around: &mut Around<'_>, refusal: Option<&Refusal>) {
        let Some(to) = self.link.to() else { return };
        self.drop_link(around);
        self.progress.session_sent = false;
        if let Some(Refusal::Outdated { generation }) = refusal {
            return self.become_outdated(around, *generation);
        }
        if around.setup.is(Variant::SoloOnLinkLoss)
            && matches!(self.gate.licence(), Licence::Paired { .. })
        {
            let next: Generation = self.generation.next();
            self.go_solo(around, next);
            return;
        }
        self.tell_gate(LicenceEvent::SessionLost);
        self.in_sync = false;
        match self.gate.licence() {
            Licence::Cut { .. } => self.link = Link::Retry { to, armed: false },
            Licence::Reverting { generation } => {
                *around.record = generation;
                self.tell_gate(LicenceEvent::SoloGranted { generation });
                self.stop_tracking(around);
                self.release(around);
            }
            _ => self.stop_tracking(around),
        }
    }
}
