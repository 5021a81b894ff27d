// SPDX-License-Identifier: Apache-2.0
//! The sender's half of `ft-transaction`.
//!
//! ```text
//! Greeting ──Welcome──▶ Copying ──begin──▶ in transaction n ──commit──▶ between transactions
//!     │                 (or straight to begin, on                ▲               │
//!     └─Refuse─▶ over    the checkpoint the peer holds)          └────begin──────┘
//! ```
//!
//! [`ActiveSession`] greets. Then it can be split into an [`ActiveSender`], which makes frames, and
//! an [`ActiveReceiver`], which takes the peer's: acknowledgements are read while the next
//! checkpoint is being encoded. They share one number, the highest epoch sent.
//!
//! Asserted: epochs of a session grow by one; an acknowledgement names an epoch that was sent, and
//! a newer one each time. A lost connection says nothing about the last epoch sent: the Welcome of
//! the next session does.

mod encoder;
mod receiver;
mod sender;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use kemari_api::{Epoch, Generation, NodeName};

use crate::protocol::ProtocolError;
use crate::storage::BaseId;
use crate::wire::{
    Differing, DiskChanges, FrameHeader, Goodbye, PROTOCOL_VERSION, Purpose, Refusal, VmIdentity,
};

pub use encoder::SENT_BYTES_DEFAULT;
pub use receiver::ActiveReceiver;
pub use sender::{ActiveSender, Base, BeginTransaction};

/// What a session of the active side starts from.
#[derive(Debug, Clone)]
pub struct ActiveConfig {
    /// The VM.
    pub identity: VmIdentity,
    /// This node.
    pub node: NodeName,
    /// What the session is for.
    pub purpose: Purpose,
    /// The generation this replica holds the licence of.
    pub generation: Generation,
    /// The highest epoch for which a Commit was ever sent in this generation; 0 for none.
    pub sent: Epoch,
    /// The highest epoch known to be committed in this generation; 0 for none.
    pub acked: Epoch,
}

/// What a frame from the passive side means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ActiveEvent {
    /// The passive side is there and takes part.
    Welcomed {
        /// Its node.
        node: NodeName,
        /// The epoch of this generation it could run from now. Everything up to it is committed:
        /// its acknowledgement may have been lost with the connection before.
        held: Option<Epoch>,
    },
    /// It does not take part. The session is over.
    Refused(Refusal),
    /// Every epoch up to this one is committed.
    Acked {
        /// The epoch.
        epoch: Epoch,
    },
    /// It has compared the blocks of a probe.
    Compared(Differing),
    /// Where its disks may differ from the base that was named.
    DiskChanges(DiskChanges),
    /// Its disks are durable, and it has recorded this base.
    DisksDurable(BaseId),
    /// It is alive.
    Alive,
    /// It ends the session.
    Goodbye(Goodbye),
}

/// A session from its greeting on.
#[derive(Debug)]
pub struct ActiveSession {
    sender: ActiveSender,
    receiver: ActiveReceiver,
}

impl Clone for ActiveSession {
    /// A session of its own: what one sends, the other does not know of.
    fn clone(&self) -> Self {
        let sent = Arc::new(AtomicU64::new(self.sender.sent().get()));
        Self {
            receiver: self.receiver.copied(Arc::clone(&sent)),
            sender: self.sender.copied(sent),
        }
    }
}

impl ActiveSession {
    /// A session on a connection that was just made.
    ///
    /// # Panics
    /// When more is said to be acknowledged than sent.
    #[must_use]
    pub fn new(config: ActiveConfig) -> Self {
        assert!(
            config.acked <= config.sent,
            "acked {} > sent {}",
            config.acked,
            config.sent
        );
        let sent = Arc::new(AtomicU64::new(config.sent.get()));
        let receiver = ActiveReceiver::new(&config, Arc::clone(&sent));
        Self {
            sender: ActiveSender::new(config, sent),
            receiver,
        }
    }

    /// Begins a session that is written to a file: nobody answers, so it welcomes itself with this
    /// program's version. Appends the first frame to `out`.
    #[must_use]
    pub fn record(mut self, out: &mut Vec<u8>) -> ActiveSender {
        self.sender.hello(out);
        self.sender.welcomed(PROTOCOL_VERSION, None);
        self.sender
    }

    /// Appends the first frame to `out`.
    pub fn hello(&mut self, out: &mut Vec<u8>) {
        self.sender.hello(out);
    }

    /// Takes a frame from the passive side.
    ///
    /// # Errors
    /// When the frame breaks the protocol; the session is then over.
    pub fn on_frame(
        &mut self,
        header: &FrameHeader,
        payload: &[u8],
    ) -> Result<ActiveEvent, ProtocolError> {
        let event = self.receiver.on_frame(header, payload)?;
        if let ActiveEvent::Welcomed { held, .. } = &event {
            self.sender.welcomed(header.version, *held);
        }
        Ok(event)
    }

    /// What makes frames.
    pub const fn sender(&mut self) -> &mut ActiveSender {
        &mut self.sender
    }

    /// The highest epoch known to be committed.
    #[must_use]
    pub const fn acked(&self) -> Epoch {
        self.receiver.acked()
    }

    /// Both halves, for a thread each. Call it after [`ActiveEvent::Welcomed`].
    #[must_use]
    pub fn split(self) -> (ActiveSender, ActiveReceiver) {
        (self.sender, self.receiver)
    }
}
