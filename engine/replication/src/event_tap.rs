// SPDX-License-Identifier: Apache-2.0
//! The event-tap: where outputs wait until they may leave.
//!
//! One queue in the order the guest made them. Each output belongs to the epoch that was open when
//! it was made. It is *handed out* to whoever writes it once its epoch is committed, or at once
//! while the tap is open (solo), and leaves the queue when the outside has *taken* it.
//!
//! Invariants: nothing is dropped and nothing overtakes; while the tap holds, an output of an
//! epoch that is not committed is never handed out; an epoch is committed only after it was closed.
//! The queue is bounded by its users: they ask [`EventTap::has_room`] and stop the guest's device
//! until there is some. What is pushed nevertheless is kept.
//!
//! The tap does not decide when it may be open; [`crate::gate::OutputGate`] does.

use std::collections::VecDeque;
use std::sync::Arc;

use kemari_api::Epoch;

use crate::output::{OUTPUT_BYTES_MAX, Output, OutputKind};
use crate::passive::Retained;

/// What each queued output is counted with besides its bytes.
const OVERHEAD_BYTES: usize = 64;

/// How a tap starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TapConfig {
    /// The queue has room while it is shorter than this, in bytes. Well below
    /// `RETAINED_BYTES_MAX` (64 MiB), which is what the passive side keeps.
    pub bytes_max: usize,
    /// The epoch that is open at the start.
    pub open_epoch: Epoch,
    /// Bytes the console has put out since the VM's first boot.
    pub console_position: u64,
}

impl Default for TapConfig {
    /// A VM's first boot.
    fn default() -> Self {
        Self {
            bytes_max: 4 * 1024 * 1024,
            open_epoch: Epoch::new(1),
            console_position: 0,
        }
    }
}

/// Which outputs a transaction carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Carry {
    /// Those of its epoch: the peer has the earlier ones.
    Epoch,
    /// All that the outside has not taken: the first transaction of a session. The peer may be a
    /// new one, and transactions in flight may be lost.
    Undelivered,
}

/// What a transaction needs to know of an epoch's outputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClosedEpoch {
    /// The epoch that was open until now.
    pub epoch: Epoch,
    /// The outputs to send with it, in order.
    pub outputs: Vec<Arc<Output>>,
    /// Every output up to and including this epoch was taken by the outside.
    pub delivered_up_to: Epoch,
    /// Position of the console's stream at the end of the epoch.
    pub console_position: u64,
}

/// An output that may leave now.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Release {
    /// The epoch it belongs to.
    pub epoch: Epoch,
    /// The output.
    pub output: Arc<Output>,
}

/// What waits for a commit and is kept elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// The epoch whose commit it waits for.
    pub epoch: Epoch,
    /// Whether nothing else has waited for that epoch's checkpoint.
    pub first: bool,
}

/// The queue of outputs of one VM.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EventTap {
    bytes_max: usize,
    bytes: usize,
    /// Everything the outside has not taken, oldest first; epochs never decrease.
    queue: VecDeque<Release>,
    /// How many at the front of the queue were handed out.
    handed_out: usize,
    open_epoch: Epoch,
    /// Whether something was pushed since the last epoch was closed.
    pending: bool,
    committed: Epoch,
    holds: bool,
    console_position: u64,
    /// Packets queued so far, of all interfaces.
    packets: u64,
}

impl EventTap {
    /// A tap that holds everything until it is told otherwise.
    #[must_use]
    pub fn new(config: &TapConfig) -> Self {
        Self {
            bytes_max: config.bytes_max,
            bytes: 0,
            queue: VecDeque::new(),
            handed_out: 0,
            open_epoch: config.open_epoch,
            pending: false,
            committed: before(config.open_epoch),
            holds: true,
            console_position: config.console_position,
            packets: 0,
        }
    }

    /// A tap for a replica that takes over from `held`, with the outputs it must replay first.
    #[must_use]
    pub fn take_over(
        bytes_max: usize,
        held: Epoch,
        console_position: u64,
        retained: &Retained,
    ) -> Self {
        let mut tap = Self::new(&TapConfig {
            bytes_max,
            open_epoch: held.next(),
            console_position,
        });
        for output in retained.replay() {
            if matches!(output.kind, OutputKind::Network(_)) {
                tap.packets = tap.packets.max(output.position.saturating_add(1));
            }
            tap.enqueue(held, output.clone());
        }
        tap
    }

    /// Queues an output of the open epoch. Returns whether it is the epoch's first, which is what
    /// the checkpoint trigger wants to know.
    ///
    /// # Panics
    /// When a packet is longer than [`OUTPUT_BYTES_MAX`], which no device makes.
    pub fn push(&mut self, kind: OutputKind, bytes: &[u8]) -> bool {
        match kind {
            OutputKind::Console => self.push_console(bytes),
            OutputKind::Network(_) => self.push_packet(kind, bytes),
        }
        let first = !self.pending && !bytes.is_empty();
        self.pending |= first;
        first
    }

    /// Something that is kept elsewhere leaves with the open epoch, like an output: a change of a disk
    /// that both hosts see. Says whether it is the first that waits for that epoch's checkpoint.
    pub fn wait_for_commit(&mut self) -> Waiting {
        let first = !std::mem::replace(&mut self.pending, true);
        Waiting {
            epoch: self.open_epoch,
            first,
        }
    }

    fn push_packet(&mut self, kind: OutputKind, bytes: &[u8]) {
        assert!(bytes.len() <= OUTPUT_BYTES_MAX, "a packet cannot be split");
        let position = self.packets;
        self.packets += 1;
        let bytes = bytes.to_vec();
        let output = Output {
            kind,
            position,
            bytes,
        };
        self.enqueue(self.open_epoch, output);
    }

    fn push_console(&mut self, bytes: &[u8]) {
        let kind = OutputKind::Console;
        let mut rest = bytes;
        while !rest.is_empty() {
            let taken = self.append_to_last(kind, rest);
            rest = rest.get(taken..).unwrap_or(&[]);
            if rest.is_empty() {
                break;
            }
            let chunk = rest.get(..OUTPUT_BYTES_MAX).unwrap_or(rest);
            let position = self.console_position;
            self.console_position += chunk.len() as u64;
            self.enqueue(
                self.open_epoch,
                Output {
                    kind,
                    position,
                    bytes: chunk.to_vec(),
                },
            );
            rest = rest.get(chunk.len()..).unwrap_or(&[]);
        }
    }

    /// Adds to the last output what still fits, if that is of the open epoch and nobody has seen
    /// it: a serial port puts out one byte at a time.
    fn append_to_last(&mut self, kind: OutputKind, bytes: &[u8]) -> usize {
        if self.handed_out == self.queue.len() {
            return 0;
        }
        let Some(last) = self
            .queue
            .back_mut()
            .filter(|last| last.epoch == self.open_epoch)
        else {
            return 0;
        };
        let Some(output) = Arc::get_mut(&mut last.output).filter(|output| output.kind == kind)
        else {
            return 0;
        };
        let room = OUTPUT_BYTES_MAX.saturating_sub(output.bytes.len());
        let chunk = bytes.get(..room).unwrap_or(bytes);
        output.bytes.extend_from_slice(chunk);
        self.bytes += chunk.len();
        self.console_position += chunk.len() as u64;
        chunk.len()
    }

    fn enqueue(&mut self, epoch: Epoch, output: Output) {
        self.bytes += cost(&output);
        self.queue.push_back(Release {
            epoch,
            output: Arc::new(output),
        });
    }

    /// Whether more should be pushed. While there is no room the device that makes outputs waits.
    #[must_use]
    pub const fn has_room(&self) -> bool {
        self.bytes < self.bytes_max
    }

    /// Whether the open epoch has output that waits for its checkpoint.
    #[must_use]
    pub const fn has_pending(&self) -> bool {
        self.pending && self.holds
    }

    /// The epoch that is open.
    #[must_use]
    pub const fn open_epoch(&self) -> Epoch {
        self.open_epoch
    }

    /// The newest committed epoch.
    #[must_use]
    pub const fn committed(&self) -> Epoch {
        self.committed
    }

    /// Position of the console's stream: bytes put out since first boot, queued ones included.
    #[must_use]
    pub const fn console_position(&self) -> u64 {
        self.console_position
    }

    /// Ends the open epoch, while the guest is paused. What is pushed from now on belongs to the
    /// next one.
    pub fn close_epoch(&mut self, carry: Carry) -> ClosedEpoch {
        let epoch = self.open_epoch;
        let outputs = self
            .queue
            .iter()
            .filter(|entry| carry == Carry::Undelivered || entry.epoch == epoch)
            .map(|entry| Arc::clone(&entry.output))
            .collect();
        self.open_epoch = epoch.next();
        self.pending = false;
        ClosedEpoch {
            epoch,
            outputs,
            delivered_up_to: self.delivered_up_to(),
            console_position: self.console_position,
        }
    }

    /// Everything up to and including this epoch is committed.
    ///
    /// # Panics
    /// When the epoch was not closed yet.
    pub fn commit(&mut self, epoch: Epoch) {
        assert!(
            epoch < self.open_epoch,
            "epoch {epoch} committed while {} is open",
            self.open_epoch
        );
        self.committed = self.committed.max(epoch);
    }

    /// From now on outputs wait for their epoch's commit. Called before the first checkpoint of a
    /// new pair is captured.
    pub fn hold(&mut self) {
        if !self.holds {
            // Every epoch closed before was under a solo licence.
            self.committed = self.committed.max(before(self.open_epoch));
            self.holds = true;
        }
    }

    /// From now on outputs leave at once, those that waited first: a solo licence.
    pub const fn release_all_solo(&mut self) {
        self.holds = false;
    }

    /// The next output that may leave, in order. It stays in the queue until [`Self::taken`].
    pub fn next_release(&mut self) -> Option<Release> {
        let next = self.queue.get(self.handed_out)?;
        if self.holds && next.epoch > self.committed {
            return None;
        }
        self.handed_out += 1;
        Some(next.clone())
    }

    /// The outside has taken the oldest output that was handed out.
    ///
    /// # Panics
    /// When none was handed out.
    pub fn taken(&mut self) {
        assert!(self.handed_out > 0, "taken, but never handed out");
        if let Some(entry) = self.queue.pop_front() {
            self.handed_out -= 1;
            self.bytes -= cost(&entry.output);
        }
    }

    /// Hands out again whatever was handed out and not taken: the sink was opened anew.
    pub const fn hand_out_again(&mut self) {
        self.handed_out = 0;
    }

    /// The newest epoch all of whose outputs, and those before it, the outside has taken.
    #[must_use]
    pub fn delivered_up_to(&self) -> Epoch {
        let allowed = if self.holds {
            self.committed
        } else {
            before(self.open_epoch)
        };
        match self.queue.front() {
            Some(oldest) => allowed.min(before(oldest.epoch)),
            None => allowed,
        }
    }

    /// How many outputs the outside has not taken.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// The memory that they take, in bytes.
    #[must_use]
    pub const fn queued_bytes(&self) -> usize {
        self.bytes
    }

    /// Whether the outside has taken everything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

const fn before(epoch: Epoch) -> Epoch {
    Epoch::new(epoch.get().saturating_sub(1))
}

fn cost(output: &Output) -> usize {
    output.bytes.len() + OVERHEAD_BYTES
}
