// SPDX-License-Identifier: Apache-2.0
//! The receiver's protocol state, from the greeting to the end of the connection.
//!
//! ```text
//! Expecting Hello ─▶ called ──welcome──▶ copying ──Begin──▶ staging n ──Commit──▶ complete n
//!        └──▶ over ◀──refuse───┘                               ▲                     │ accept
//!                                                              └──Begin── between ◀──┘
//! ```
//! Every error and every refusal leads to `over`, and the staging area is dropped.

use kemari_api::{Epoch, Generation};

use super::action::{Call, PassiveAction, PassiveConfig};
use super::changes::ChangeBatch;
use super::checkpoint::{Checkpoint, PageBatch};
use super::coverage::PageSet;
use super::replica::Replica;
use super::staging::{PageRules, Staging, in_ram};
use crate::page::GuestPages;
use crate::protocol::{Inbound, ProtocolError, expect_empty};
use crate::storage::{BLOCK_BYTES, BaseId, DiskLayout};
use crate::wire::changes::decode_base;
use crate::wire::message::{decode_postcard, encode_postcard};
use crate::wire::pages::PageReader;
use crate::wire::{
    Begin, Commit, Differing, DiskChanges, FrameHeader, FrameKind, FrameWriter, Goodbye, Hello,
    PROTOCOL_OLDEST, PROTOCOL_VERSION, Probe, Refusal, Welcome,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    ExpectingHello,
    Called {
        version: u16,
        generation: Generation,
    },
    Copying,
    Staging {
        epoch: Epoch,
    },
    Complete {
        epoch: Epoch,
    },
    Between {
        last: Epoch,
    },
    Over,
}

impl State {
    const fn name(self) -> &'static str {
        match self {
            Self::ExpectingHello => "expecting a Hello",
            Self::Called { .. } => "about to answer",
            Self::Copying => "copying",
            Self::Staging { .. } => "staging a transaction",
            Self::Complete { .. } => "verifying a transaction",
            Self::Between { .. } => "between transactions",
            Self::Over => "over",
        }
    }
}

/// A session of the passive side.
#[derive(Debug, Clone)]
pub struct PassiveSession {
    config: PassiveConfig,
    replica: Replica,
    inbound: Inbound,
    writer: FrameWriter,
    state: State,
    copied: PageSet,
    staging: Staging,
    spare: Vec<Checkpoint>,
}

impl PassiveSession {
    /// A session on a connection that was just accepted.
    #[must_use]
    pub fn new(config: PassiveConfig, replica: Replica) -> Self {
        let writer = FrameWriter::new(replica.generation());
        Self {
            config,
            replica,
            inbound: Inbound::new(None),
            writer,
            state: State::ExpectingHello,
            copied: PageSet::default(),
            staging: Staging::default(),
            spare: Vec::new(),
        }
    }

    /// What the replica knows and holds.
    #[must_use]
    pub const fn replica(&self) -> &Replica {
        &self.replica
    }

    /// Ends the session and keeps what the replica knows. An incomplete transaction is dropped.
    #[must_use]
    pub fn into_replica(self) -> Replica {
        self.replica
    }

    /// Takes a frame from the active side. `ram` is what pages of a transaction may be differences
    /// to: every checkpoint accepted so far must have been merged into it.
    ///
    /// # Errors
    /// When the frame breaks the protocol. The session is then over; what the replica held before
    /// the open transaction, it still holds.
    pub fn on_frame<'a>(
        &mut self,
        header: &FrameHeader,
        payload: &'a [u8],
        ram: &dyn GuestPages,
    ) -> Result<PassiveAction<'a>, ProtocolError> {
        if self.state == State::Over {
            return Err(ProtocolError::Over);
        }
        let action = self
            .inbound
            .check(header, payload)
            .and_then(|()| self.take(header, payload, ram));
        if matches!(&action, Err(_) | Ok(PassiveAction::Goodbye(_))) {
            self.state = State::Over;
        }
        action
    }

    /// Welcomes the caller.
    ///
    /// # Panics
    /// When nobody called.
    pub fn welcome(&mut self, out: &mut Vec<u8>) {
        let State::Called {
            version,
            generation,
        } = self.state
        else {
            panic!(
                "nobody to welcome while the session is {}",
                self.state.name()
            );
        };
        self.replica.follow(generation);
        self.inbound.agree(version, generation);
        self.writer.set_version(version);
        self.writer.set_generation(generation);
        let welcome = Welcome {
            node: self.config.node.clone(),
            held: self.replica.held(),
        };
        self.writer
            .frame(out, FrameKind::Welcome, Epoch::default(), |payload| {
                encode_postcard(payload, &welcome);
            });
        self.state = State::Copying;
    }

    /// Refuses the caller; the session is over.
    pub fn refuse(&mut self, out: &mut Vec<u8>, refusal: &Refusal) {
        self.writer
            .frame(out, FrameKind::Refuse, Epoch::default(), |payload| {
                encode_postcard(payload, refusal);
            });
        self.state = State::Over;
    }

    /// Makes this checkpoint the one the replica would run from and appends its acknowledgement.
    /// Call it when the state has been decoded, and not before.
    ///
    /// # Panics
    /// When this is not the checkpoint the session has just completed.
    pub fn accept(&mut self, checkpoint: &mut Checkpoint, out: &mut Vec<u8>) {
        let pending = State::Complete {
            epoch: checkpoint.epoch,
        };
        assert_eq!(
            self.state, pending,
            "only the completed checkpoint can be accepted"
        );
        assert_eq!(checkpoint.generation, self.replica.generation());
        self.replica.commit(checkpoint);
        self.writer
            .frame(out, FrameKind::Ack, checkpoint.epoch, |_| ());
        self.state = State::Between {
            last: checkpoint.epoch,
        };
    }

    /// Takes the buffers of a checkpoint that was merged, for later ones.
    pub fn recycle(&mut self, mut checkpoint: Checkpoint) {
        checkpoint.clear();
        if self.spare.len() < 2 {
            self.spare.push(checkpoint);
        }
    }

    /// Appends the answer to a probe.
    ///
    /// # Panics
    /// Before the Welcome and after the end.
    pub fn compared(&mut self, differing: Differing, out: &mut Vec<u8>) {
        self.assert_welcomed();
        self.writer
            .frame(out, FrameKind::DiskDiffers, Epoch::default(), |payload| {
                differing.encode(payload);
            });
    }

    /// Appends where the disks may differ from the base that was named.
    ///
    /// # Panics
    /// Before the Welcome and after the end.
    pub fn disk_changes(&mut self, changes: &DiskChanges, out: &mut Vec<u8>) {
        self.assert_welcomed();
        self.writer
            .frame(out, FrameKind::DiskChanges, Epoch::default(), |payload| {
                changes.encode(payload);
            });
    }

    /// Appends that the disks are durable, as of when this base was given or later, and that the
    /// base is recorded.
    ///
    /// # Panics
    /// Before the Welcome and after the end.
    pub fn disks_durable(&mut self, base: BaseId, out: &mut Vec<u8>) {
        self.assert_welcomed();
        self.writer
            .frame(out, FrameKind::DiskSynced, Epoch::default(), |payload| {
                payload.extend_from_slice(&base.0);
            });
    }

    /// Appends a sign of life.
    ///
    /// # Panics
    /// Before the Welcome and after the end.
    pub fn heartbeat(&mut self, out: &mut Vec<u8>) {
        self.assert_welcomed();
        self.writer
            .frame(out, FrameKind::Heartbeat, Epoch::default(), |_| ());
    }

    /// Appends the end of the session. [`Goodbye::Outdated`] voids what the replica holds; the
    /// process records that durably first.
    pub fn goodbye(&mut self, out: &mut Vec<u8>, goodbye: Goodbye) {
        if goodbye == Goodbye::Outdated {
            self.replica.outdate(self.replica.generation());
        }
        self.writer
            .frame(out, FrameKind::Goodbye, Epoch::default(), |payload| {
                encode_postcard(payload, &goodbye);
            });
        self.state = State::Over;
    }

    fn assert_welcomed(&self) {
        let welcomed = !matches!(
            self.state,
            State::ExpectingHello | State::Called { .. } | State::Over
        );
        assert!(
            welcomed,
            "nothing can be sent while the session is {}",
            self.state.name()
        );
    }

    fn take<'a>(
        &mut self,
        header: &FrameHeader,
        payload: &'a [u8],
        ram: &dyn GuestPages,
    ) -> Result<PassiveAction<'a>, ProtocolError> {
        let kind = header.kind;
        match (self.state, kind) {
            (State::ExpectingHello, FrameKind::Hello) => self.hello(header, payload),
            (State::Copying, FrameKind::CopyPages) => self.copy(header.version, payload),
            (State::Copying, FrameKind::DiskCopy) => self.copy_disk(payload),
            (State::Copying | State::Between { .. }, FrameKind::DiskProbe) => self.probe(payload),
            (State::Copying, FrameKind::DiskBase) if self.has_disks() => {
                Ok(PassiveAction::TellChanges(decode_base(kind, payload)?))
            }
            (State::Between { .. }, FrameKind::DiskSync) if self.has_disks() => {
                Ok(PassiveAction::MakeDurable(decode_base(kind, payload)?))
            }
            (State::Copying | State::Between { .. }, FrameKind::Begin) => {
                self.begin(header.epoch, payload)
            }
            (
                State::Staging { epoch },
                FrameKind::Pages
                | FrameKind::State
                | FrameKind::DiskLog
                | FrameKind::Outputs
                | FrameKind::Commit,
            ) => {
                if header.epoch != epoch {
                    return Err(epoch_order(kind, epoch, header.epoch));
                }
                self.part(header, payload, ram)
            }
            (state, _) if !is_welcomed(state) => Err(ProtocolError::UnexpectedFrame {
                kind,
                state: state.name(),
            }),
            (_, FrameKind::Heartbeat) => {
                expect_empty(kind, payload)?;
                Ok(PassiveAction::Alive)
            }
            (_, FrameKind::Delivered) => {
                expect_empty(kind, payload)?;
                self.check_delivered(header.epoch)?;
                self.replica.delivered(header.epoch);
                Ok(PassiveAction::Continue)
            }
            (state, FrameKind::Goodbye) => self.end(state, payload),
            (state, _) => Err(ProtocolError::UnexpectedFrame {
                kind,
                state: state.name(),
            }),
        }
    }

    fn hello<'a>(
        &mut self,
        header: &FrameHeader,
        payload: &[u8],
    ) -> Result<PassiveAction<'a>, ProtocolError> {
        let hello = Hello::decode(payload)?;
        let Some(body) = hello.body else {
            return Ok(PassiveAction::Refuse(Refusal::ProtocolVersion {
                ours: (PROTOCOL_OLDEST, PROTOCOL_VERSION),
                theirs: (hello.oldest, hello.newest),
            }));
        };
        let ours = &self.config.identity;
        let refusal = if body.identity.vm != ours.vm {
            Refusal::OtherVm {
                ours: ours.vm.clone(),
                theirs: body.identity.vm,
            }
        } else if let Some(text) = self.fingerprint_difference(&body.identity.fingerprint) {
            Refusal::FingerprintDiffers { text }
        } else if header.generation < self.replica.generation() {
            Refusal::Outdated {
                generation: self.replica.generation(),
            }
        } else {
            let version = hello.newest.min(PROTOCOL_VERSION);
            self.state = State::Called {
                version,
                generation: header.generation,
            };
            return Ok(PassiveAction::Answer(Call {
                node: body.node,
                purpose: body.purpose,
                generation: header.generation,
            }));
        };
        Ok(PassiveAction::Refuse(refusal))
    }

    fn fingerprint_difference(&self, theirs: &[u8]) -> Option<String> {
        let ours = self.config.identity.fingerprint.as_slice();
        (ours != theirs)
            .then(|| (self.config.difference)(ours, theirs))
            .flatten()
    }

    fn copy<'a>(
        &mut self,
        version: u16,
        payload: &'a [u8],
    ) -> Result<PassiveAction<'a>, ProtocolError> {
        let kind = FrameKind::CopyPages;
        let reader = PageReader::new(kind, version, payload);
        let layout = &self.config.ram;
        // Checked as a whole before any page is given out or the checkpoint is let go.
        let batch = PageBatch::checked(kind, reader, |index| in_ram(layout, kind, index))?;
        for index in batch.indices() {
            self.copied.mark(layout, index);
        }
        self.replica.forget();
        Ok(PassiveAction::Copy(batch))
    }

    fn copy_disk<'a>(&mut self, payload: &'a [u8]) -> Result<PassiveAction<'a>, ProtocolError> {
        let batch = ChangeBatch::check(&self.config.disks, FrameKind::DiskCopy, payload)?;
        self.replica.forget();
        Ok(PassiveAction::CopyDisk(batch))
    }

    fn has_disks(&self) -> bool {
        let mut disks = self.config.disks.iter();
        disks.any(|disk| matches!(disk, DiskLayout::Replicated { .. }))
    }

    fn probe<'a>(&self, payload: &[u8]) -> Result<PassiveAction<'a>, ProtocolError> {
        let probe = Probe::decode(payload)?;
        let length = probe.digests.len() as u64 * BLOCK_BYTES;
        let end = probe.offset.checked_add(length);
        let fits = match (self.config.disks.get(probe.disk.index()), end) {
            (Some(DiskLayout::Replicated { capacity_bytes }), Some(end)) => {
                end <= capacity_bytes.next_multiple_of(BLOCK_BYTES)
            }
            _ => false,
        };
        if fits {
            return Ok(PassiveAction::Compare(probe));
        }
        Err(ProtocolError::OutsideDisk {
            kind: FrameKind::DiskProbe,
            disk: probe.disk,
            offset: probe.offset,
            length,
        })
    }

    fn begin<'a>(
        &mut self,
        epoch: Epoch,
        payload: &[u8],
    ) -> Result<PassiveAction<'a>, ProtocolError> {
        let begin = Begin::decode(payload)?;
        self.check_epoch(epoch)?;
        self.check_base(epoch, begin.base)?;
        if begin.delivered_up_to >= epoch {
            return Err(epoch_order(
                FrameKind::Begin,
                begin.delivered_up_to.next(),
                epoch,
            ));
        }
        let limit = self.config.ram.pages();
        if begin.pages > limit {
            return Err(ProtocolError::TooMuch {
                epoch,
                what: "number of pages",
                limit,
            });
        }
        self.staging.start(epoch, &begin, payload);
        self.state = State::Staging { epoch };
        Ok(PassiveAction::Continue)
    }

    /// Outputs leave only after their epoch was committed here, if this replica holds anything.
    fn check_delivered(&self, delivered: Epoch) -> Result<(), ProtocolError> {
        match self.replica.held() {
            Some(held) if delivered > held.epoch => Err(ProtocolError::DeliveredBeyondCommitted {
                delivered,
                committed: held.epoch,
            }),
            _ => Ok(()),
        }
    }

    /// Epochs of a session grow by one; the first is newer than all of its generation.
    fn check_epoch(&self, epoch: Epoch) -> Result<(), ProtocolError> {
        let (expected, fits) = match self.state {
            State::Between { last } => (last.next(), epoch == last.next()),
            _ => {
                let lowest = self.replica.newest().next();
                (lowest, epoch >= lowest)
            }
        };
        if fits {
            Ok(())
        } else {
            Err(epoch_order(FrameKind::Begin, expected, epoch))
        }
    }

    fn check_base(&self, epoch: Epoch, base: Epoch) -> Result<(), ProtocolError> {
        if base == Epoch::default() {
            let missing = self.copied.missing(&self.config.ram);
            return match self.state {
                State::Copying if missing == 0 => Ok(()),
                State::Copying => Err(ProtocolError::CopyIncomplete { missing }),
                _ => Err(ProtocolError::BaseNotHeld { epoch, base }),
            };
        }
        match self.replica.held() {
            Some(held) if held.epoch == base => Ok(()),
            _ => Err(ProtocolError::BaseNotHeld { epoch, base }),
        }
    }

    fn part<'a>(
        &mut self,
        header: &FrameHeader,
        payload: &[u8],
        ram: &dyn GuestPages,
    ) -> Result<PassiveAction<'a>, ProtocolError> {
        match header.kind {
            FrameKind::Pages => {
                let rules = PageRules {
                    version: header.version,
                    layout: &self.config.ram,
                    ram,
                };
                self.staging.pages(rules, payload)?;
            }
            FrameKind::State => self.staging.state(payload)?,
            FrameKind::DiskLog => self.staging.disk_log(&self.config.disks, payload)?,
            FrameKind::Outputs => self.staging.outputs(self.replica.retained(), payload)?,
            _ => return self.commit(payload),
        }
        Ok(PassiveAction::Continue)
    }

    fn commit<'a>(&mut self, payload: &[u8]) -> Result<PassiveAction<'a>, ProtocolError> {
        self.staging.verify(&Commit::decode(payload)?)?;
        let spare = self.spare.pop().unwrap_or_default();
        let checkpoint = self.staging.complete(self.replica.generation(), spare);
        self.state = State::Complete {
            epoch: checkpoint.epoch,
        };
        Ok(PassiveAction::Complete(checkpoint))
    }

    fn end<'a>(
        &mut self,
        state: State,
        payload: &[u8],
    ) -> Result<PassiveAction<'a>, ProtocolError> {
        let goodbye: Goodbye = decode_postcard(FrameKind::Goodbye, payload)?;
        if let Goodbye::HandedOver { epoch } | Goodbye::Migrated { epoch, .. } = goodbye
            && state != (State::Between { last: epoch })
        {
            return Err(ProtocolError::UnexpectedFrame {
                kind: FrameKind::Goodbye,
                state: state.name(),
            });
        }
        Ok(PassiveAction::Goodbye(goodbye))
    }
}

const fn is_welcomed(state: State) -> bool {
    !matches!(
        state,
        State::ExpectingHello | State::Called { .. } | State::Complete { .. } | State::Over
    )
}

const fn epoch_order(kind: FrameKind, expected: Epoch, found: Epoch) -> ProtocolError {
    ProtocolError::EpochOrder {
        kind,
        expected,
        found,
    }
}
