// SPDX-License-Identifier: Apache-2.0
//! What the active side sends: greeting, initial copy, transactions.
//!
//! Every call appends whole frames to a buffer the caller owns and reuses; pages are encoded
//! straight into it. Calls in an order the protocol does not allow are faults of this process and
//! panic: stopping here leaves the passive side on the last committed checkpoint.

use std::borrow::Borrow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kemari_api::Epoch;

use super::ActiveConfig;
use super::encoder::PageEncoder;
use crate::compression::{Effort, PageTally};
use crate::output::Output;
use crate::page::{PAGE_BYTES, PageIndex};
use crate::storage::{BaseId, DiskChange};
use crate::wire::disks::{encode_change, has_room_for_change};
use crate::wire::message::encode_postcard;
use crate::wire::outputs::{encode_output, has_room_for_output};
use crate::wire::pages::has_room_for_page;
use crate::wire::{
    Begin, Commit, FrameKind, FrameWriter, Goodbye, Hello, HelloBody, PAYLOAD_BYTES_MAX,
    PROTOCOL_OLDEST, Probe, TransactionDigest, VERSION_OF_CHANGE_RECORDS, VERSION_OF_ENCODINGS,
};

/// What a checkpoint is a difference to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// The initial copy made in this session: the checkpoint holds every page written since that
    /// page was copied.
    Copy,
    /// A committed or sent epoch: the checkpoint holds every page written since it.
    Epoch(Epoch),
}

/// How a transaction starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BeginTransaction {
    /// The epoch: one more than the last of this session, or any unused one for the first.
    pub epoch: Epoch,
    /// What it builds on.
    pub base: Base,
    /// How many pages it will carry.
    pub pages: u64,
    /// Every output up to and including this epoch was taken by the outside.
    pub delivered_up_to: Epoch,
    /// Position of the console's stream at the end of the epoch.
    pub console_position: u64,
}

/// The protocol version that brought replicated disks.
const DISKS_SINCE: u16 = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Greeting,
    /// Welcomed; no transaction yet.
    Copying,
    InTransaction {
        epoch: Epoch,
        expected: u64,
    },
    Between {
        last: Epoch,
    },
    Over,
}

#[derive(Debug, Clone, Copy, Default)]
struct Totals {
    pages: u64,
    state_bytes: u64,
    outputs: u64,
}

/// The sending half of an active session.
#[derive(Debug)]
pub struct ActiveSender {
    config: ActiveConfig,
    writer: FrameWriter,
    state: State,
    held: Option<Epoch>,
    copied: bool,
    sent: Arc<AtomicU64>,
    digest: TransactionDigest,
    totals: Totals,
    version: u16,
    encoder: PageEncoder,
}

impl ActiveSender {
    pub(super) fn new(config: ActiveConfig, sent: Arc<AtomicU64>) -> Self {
        let writer = FrameWriter::new(config.generation);
        Self {
            config,
            writer,
            state: State::Greeting,
            held: None,
            copied: false,
            sent,
            digest: TransactionDigest::default(),
            totals: Totals::default(),
            version: PROTOCOL_OLDEST,
            encoder: PageEncoder::new(),
        }
    }

    /// The same sender, with the number it shares with its receiver in another place.
    pub(super) fn copied(&self, sent: Arc<AtomicU64>) -> Self {
        Self {
            config: self.config.clone(),
            writer: self.writer.clone(),
            encoder: self.encoder.clone(),
            digest: self.digest.clone(),
            sent,
            ..*self
        }
    }

    pub(super) fn hello(&mut self, out: &mut Vec<u8>) {
        assert_eq!(self.state, State::Greeting, "the greeting comes first");
        let body = HelloBody {
            identity: self.config.identity.clone(),
            node: self.config.node.clone(),
            purpose: self.config.purpose,
        };
        self.writer
            .frame(out, FrameKind::Hello, Epoch::default(), |payload| {
                Hello::encode(payload, &body);
            });
    }

    pub(super) fn welcomed(&mut self, version: u16, held: Option<Epoch>) {
        self.writer.set_version(version);
        self.version = version;
        self.held = held;
        self.state = State::Copying;
    }

    /// How much work is put into making pages short, from the next one on; at first the least. A
    /// peer that speaks an older version of the protocol gets pages as they are all the same.
    ///
    /// # Panics
    /// Before the Welcome, which says what the peer understands.
    pub fn set_effort(&mut self, effort: Effort) {
        self.assert_welcomed();
        let understood = self.version >= VERSION_OF_ENCODINGS;
        let effort = if understood { effort } else { Effort::Raw };
        self.encoder.set_effort(effort);
    }

    /// Keeps copies of the pages sent last in at most so many bytes, to send differences to them;
    /// [`super::SENT_BYTES_DEFAULT`] otherwise. Those kept so far are forgotten.
    pub fn set_sent_bytes_max(&mut self, bytes: usize) {
        self.encoder.set_sent_bytes_max(bytes);
    }

    /// How the pages of the last transaction, or of the open one so far, were encoded.
    #[must_use]
    pub const fn page_tally(&self) -> &PageTally {
        self.encoder.tally()
    }

    /// The highest epoch whose Commit was handed out, of this generation.
    #[must_use]
    pub fn sent(&self) -> Epoch {
        Epoch::new(self.sent.load(Ordering::Acquire))
    }

    /// Appends one frame of the initial copy, with as many of `pages` as fit. Returns how many;
    /// 0 when there were none left, and then nothing is appended.
    ///
    /// Every page of RAM must be sent at least once before the first [`Self::begin`] on
    /// [`Base::Copy`], also those that are zero (12 bytes each). The passive side is not in sync
    /// from the first of them to the first commit.
    ///
    /// # Panics
    /// When not called between the Welcome and the first transaction.
    pub fn copy_pages<'a>(
        &mut self,
        out: &mut Vec<u8>,
        pages: &mut impl Iterator<Item = (PageIndex, &'a [u8; PAGE_BYTES])>,
    ) -> usize {
        assert_eq!(
            self.state,
            State::Copying,
            "the copy comes before the first transaction"
        );
        let (count, _) = self.pages_frame(out, FrameKind::CopyPages, Epoch::default(), pages);
        self.copied |= count > 0;
        count
    }

    /// Whether the peer knows of replicated disks: it is not older than protocol version 3.
    #[must_use]
    pub const fn carries_disks(&self) -> bool {
        self.version >= DISKS_SINCE
    }

    /// Whether the peer may have a record of what was changed on disks: it is not older than
    /// protocol version 4.
    #[must_use]
    pub const fn knows_change_records(&self) -> bool {
        self.version >= VERSION_OF_CHANGE_RECORDS
    }

    /// Appends a frame that asks the passive side where its disks may differ from this base.
    ///
    /// # Panics
    /// When not called between the Welcome and the first transaction, or when the peer is too old.
    pub fn disk_base(&mut self, out: &mut Vec<u8>, base: BaseId) {
        assert!(
            self.state == State::Copying && self.knows_change_records(),
            "no base is named while the session is {:?}",
            self.state
        );
        self.base_frame(out, FrameKind::DiskBase, base);
    }

    /// Appends a frame that asks the passive side to make its disks durable, as of the last epoch
    /// sent or a later one, and to record this base.
    ///
    /// # Panics
    /// When not called between transactions, or when the peer is too old.
    pub fn disk_sync(&mut self, out: &mut Vec<u8>, base: BaseId) {
        assert!(
            matches!(self.state, State::Between { .. }) && self.knows_change_records(),
            "no base is given while the session is {:?}",
            self.state
        );
        self.base_frame(out, FrameKind::DiskSync, base);
    }

    fn base_frame(&mut self, out: &mut Vec<u8>, kind: FrameKind, base: BaseId) {
        self.writer.frame(out, kind, Epoch::default(), |payload| {
            payload.extend_from_slice(&base.0);
        });
    }

    /// Appends a frame that asks the passive side to compare blocks of a disk; the answers come in
    /// the order of the probes. Between transactions its disks are those of the last epoch sent.
    ///
    /// # Panics
    /// Inside a transaction, before the Welcome and after the Goodbye, or when the peer is too old.
    pub fn disk_probe(&mut self, out: &mut Vec<u8>, probe: &Probe) {
        let fits = matches!(self.state, State::Copying | State::Between { .. });
        assert!(
            fits && self.carries_disks(),
            "no probe while the session is {:?}",
            self.state
        );
        self.writer
            .frame(out, FrameKind::DiskProbe, Epoch::default(), |payload| {
                probe.encode(payload);
            });
    }

    /// Appends content of disks, in as many frames as needed. From here on the passive side is not
    /// in sync until the first commit, and that must be on [`Base::Copy`].
    ///
    /// # Panics
    /// When not called between the Welcome and the first transaction, or when the peer is too old.
    pub fn disk_copy<D: AsRef<[u8]>>(
        &mut self,
        out: &mut Vec<u8>,
        changes: impl Iterator<Item = DiskChange<D>>,
    ) {
        assert!(
            self.state == State::Copying && self.carries_disks(),
            "no disk is copied while the session is {:?}",
            self.state
        );
        let mut changes = changes.peekable();
        while changes.peek().is_some() {
            self.held = None;
            self.writer
                .frame(out, FrameKind::DiskCopy, Epoch::default(), |payload| {
                    append_changes(payload, &mut changes);
                });
        }
    }

    /// Appends what the guest changed on disks to the open transaction, in as many frames as
    /// needed.
    ///
    /// # Panics
    /// When no transaction is open or the peer is too old.
    pub fn disk_log<'a>(
        &mut self,
        out: &mut Vec<u8>,
        changes: impl Iterator<Item = &'a DiskChange>,
    ) {
        let mut changes = changes.peekable();
        while changes.peek().is_some() {
            assert!(self.carries_disks(), "the peer is too old for disks");
            self.transaction_frame(out, FrameKind::DiskLog, |payload| {
                append_changes(payload, &mut changes);
            });
        }
    }

    /// Starts a transaction.
    ///
    /// # Panics
    /// When one is open, the epoch does not follow, or the base is not what the peer will hold.
    pub fn begin(&mut self, out: &mut Vec<u8>, begin: BeginTransaction) {
        match self.state {
            State::Copying => {
                assert!(
                    begin.epoch > self.sent(),
                    "epoch {} was used before",
                    begin.epoch
                );
                let fits = match begin.base {
                    Base::Copy => self.copied,
                    Base::Epoch(base) => !self.copied && self.held == Some(base),
                };
                assert!(fits, "the peer does not hold {:?}", begin.base);
            }
            State::Between { last } => {
                assert_eq!(begin.epoch, last.next(), "epochs of a session grow by one");
                assert_eq!(
                    begin.base,
                    Base::Epoch(last),
                    "a transaction builds on the last one"
                );
            }
            state => panic!("no transaction can begin while the session is {state:?}"),
        }
        assert!(
            begin.delivered_up_to < begin.epoch,
            "outputs of an open epoch cannot have left"
        );
        self.state = State::InTransaction {
            epoch: begin.epoch,
            expected: begin.pages,
        };
        self.digest.reset();
        self.totals = Totals::default();
        self.encoder.begin();
        let begin_payload = Begin {
            delivered_up_to: begin.delivered_up_to,
            base: match begin.base {
                Base::Copy => Epoch::default(),
                Base::Epoch(epoch) => epoch,
            },
            pages: begin.pages,
            console_position: begin.console_position,
        };
        self.transaction_frame(out, FrameKind::Begin, |payload| {
            begin_payload.encode(payload);
        });
    }

    /// Appends one frame of the open transaction with as many of `pages` as fit. Returns how many;
    /// 0 when there were none left, and then nothing is appended.
    ///
    /// # Panics
    /// When no transaction is open or more pages come than were announced.
    pub fn pages<'a>(
        &mut self,
        out: &mut Vec<u8>,
        pages: &mut impl Iterator<Item = (PageIndex, &'a [u8; PAGE_BYTES])>,
    ) -> usize {
        let (epoch, expected) = self.open_transaction();
        let (count, payload) = self.pages_frame(out, FrameKind::Pages, epoch, pages);
        if count > 0 {
            self.digest.add(FrameKind::Pages, &out[payload]);
        }
        self.totals.pages += count as u64;
        assert!(
            self.totals.pages <= expected,
            "more than the {expected} pages announced"
        );
        count
    }

    /// Appends machine state to the open transaction, in as many frames as needed.
    ///
    /// # Panics
    /// When no transaction is open.
    pub fn state(&mut self, out: &mut Vec<u8>, bytes: &[u8]) {
        for chunk in bytes.chunks(PAYLOAD_BYTES_MAX) {
            self.totals.state_bytes += chunk.len() as u64;
            self.transaction_frame(out, FrameKind::State, |payload| {
                payload.extend_from_slice(chunk);
            });
        }
    }

    /// Appends outputs to the open transaction, in as many frames as needed.
    ///
    /// # Panics
    /// When no transaction is open.
    pub fn outputs<O: Borrow<Output>>(&mut self, out: &mut Vec<u8>, outputs: &[O]) {
        let mut rest = outputs.iter().map(Borrow::borrow).peekable();
        while rest.peek().is_some() {
            let mut count = 0;
            self.transaction_frame(out, FrameKind::Outputs, |payload| {
                let start = payload.len();
                while has_room_for_output(payload.len() - start)
                    && let Some(output) = rest.next()
                {
                    encode_output(payload, output);
                    count += 1;
                }
            });
            self.totals.outputs += count;
        }
    }

    /// Ends the open transaction. Returns its epoch.
    ///
    /// # Panics
    /// When no transaction is open or fewer pages came than were announced.
    pub fn commit(&mut self, out: &mut Vec<u8>) -> Epoch {
        let (epoch, expected) = self.open_transaction();
        assert_eq!(
            self.totals.pages, expected,
            "pages announced and sent differ"
        );
        let commit = Commit {
            pages: self.totals.pages,
            state_bytes: self.totals.state_bytes,
            outputs: self.totals.outputs,
            payload_bytes: self.digest.payload_bytes(),
            digest: self.digest.value(),
        };
        // Before the bytes exist, so that no acknowledgement can overtake it.
        self.sent.store(epoch.get(), Ordering::Release);
        self.writer.frame(out, FrameKind::Commit, epoch, |payload| {
            commit.encode(payload);
        });
        self.state = State::Between { last: epoch };
        epoch
    }

    /// Appends a sign of life. Allowed anywhere after the Welcome, also inside a transaction.
    ///
    /// # Panics
    /// Before the Welcome and after the Goodbye.
    pub fn heartbeat(&mut self, out: &mut Vec<u8>) {
        self.assert_welcomed();
        self.writer
            .frame(out, FrameKind::Heartbeat, Epoch::default(), |_| ());
    }

    /// Tells the passive side that it need not keep outputs up to this epoch any longer.
    ///
    /// # Panics
    /// When the epoch was never sent, or before the Welcome or after the Goodbye.
    pub fn delivered(&mut self, out: &mut Vec<u8>, epoch: Epoch) {
        self.assert_welcomed();
        assert!(
            epoch <= self.sent(),
            "outputs of an epoch never sent cannot have left"
        );
        self.writer.frame(out, FrameKind::Delivered, epoch, |_| ());
    }

    /// Ends the session; nothing may follow.
    ///
    /// # Panics
    /// Before the Welcome, after another Goodbye, and for a handover inside a transaction.
    pub fn goodbye(&mut self, out: &mut Vec<u8>, goodbye: Goodbye) {
        self.assert_welcomed();
        if let Goodbye::HandedOver { epoch } | Goodbye::Migrated { epoch, .. } = goodbye {
            assert_eq!(
                self.state,
                State::Between { last: epoch },
                "handover of the last epoch"
            );
        }
        self.writer
            .frame(out, FrameKind::Goodbye, Epoch::default(), |payload| {
                encode_postcard(payload, &goodbye);
            });
        self.state = State::Over;
    }

    fn assert_welcomed(&self) {
        let welcomed = !matches!(self.state, State::Greeting | State::Over);
        assert!(
            welcomed,
            "nothing can be sent while the session is {:?}",
            self.state
        );
    }

    fn open_transaction(&self) -> (Epoch, u64) {
        match self.state {
            State::InTransaction { epoch, expected } => (epoch, expected),
            state => panic!("no transaction is open, the session is {state:?}"),
        }
    }

    fn transaction_frame(
        &mut self,
        out: &mut Vec<u8>,
        kind: FrameKind,
        payload: impl FnOnce(&mut Vec<u8>),
    ) {
        let (epoch, _) = self.open_transaction();
        let payload = self.writer.frame(out, kind, epoch, payload);
        self.digest.add(kind, &out[payload]);
    }

    fn pages_frame<'a>(
        &mut self,
        out: &mut Vec<u8>,
        kind: FrameKind,
        epoch: Epoch,
        pages: &mut impl Iterator<Item = (PageIndex, &'a [u8; PAGE_BYTES])>,
    ) -> (usize, std::ops::Range<usize>) {
        let Some(first) = pages.next() else {
            return (0, 0..0);
        };
        let Self {
            writer, encoder, ..
        } = self;
        let mut encode = |payload: &mut Vec<u8>, index, bytes: &[u8; PAGE_BYTES]| match kind {
            FrameKind::CopyPages => encoder.copy_page(payload, index, bytes),
            _ => encoder.page(payload, index, bytes),
        };
        let mut count = 1;
        let range = writer.frame(out, kind, epoch, |payload| {
            let start = payload.len();
            encode(payload, first.0, first.1);
            while has_room_for_page(payload.len() - start)
                && let Some((index, bytes)) = pages.next()
            {
                encode(payload, index, bytes);
                count += 1;
            }
        });
        (count, range)
    }
}

/// Appends to a payload as many changes as fit, at least one.
fn append_changes<D: AsRef<[u8]>, C: Borrow<DiskChange<D>>>(
    payload: &mut Vec<u8>,
    changes: &mut impl Iterator<Item = C>,
) {
    let start = payload.len();
    while has_room_for_change(payload.len() - start)
        && let Some(change) = changes.next()
    {
        encode_change(payload, change.borrow());
    }
}
