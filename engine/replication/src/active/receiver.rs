// SPDX-License-Identifier: Apache-2.0
//! What the active side makes of the passive side's frames.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kemari_api::{Epoch, Generation};

use super::{ActiveConfig, ActiveEvent};
use crate::protocol::{Inbound, ProtocolError, expect_empty};
use crate::wire::changes::decode_base;
use crate::wire::message::decode_postcard;
use crate::wire::{
    Differing, DiskChanges, FrameHeader, FrameKind, Goodbye, PROTOCOL_OLDEST, PROTOCOL_VERSION,
    Refusal, Welcome,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Greeting,
    Welcomed,
    Over,
}

/// The receiving half of an active session.
#[derive(Debug)]
pub struct ActiveReceiver {
    inbound: Inbound,
    state: State,
    generation: Generation,
    sent: Arc<AtomicU64>,
    acked: Epoch,
}

impl ActiveReceiver {
    pub(super) fn new(config: &ActiveConfig, sent: Arc<AtomicU64>) -> Self {
        Self {
            // A refusal may name another generation, so the session's is checked per kind until
            // the Welcome.
            inbound: Inbound::new(None),
            state: State::Greeting,
            generation: config.generation,
            sent,
            acked: config.acked,
        }
    }

    /// The same receiver, with the number it shares with its sender in another place.
    pub(super) fn copied(&self, sent: Arc<AtomicU64>) -> Self {
        Self {
            inbound: self.inbound.clone(),
            sent,
            ..*self
        }
    }

    /// The highest epoch known to be committed.
    #[must_use]
    pub const fn acked(&self) -> Epoch {
        self.acked
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
        if self.state == State::Over {
            return Err(ProtocolError::Over);
        }
        let event = self
            .inbound
            .check(header, payload)
            .and_then(|()| self.take(header, payload));
        if matches!(
            &event,
            Err(_) | Ok(ActiveEvent::Refused(_) | ActiveEvent::Goodbye(_))
        ) {
            self.state = State::Over;
        }
        event
    }

    fn take(&mut self, header: &FrameHeader, payload: &[u8]) -> Result<ActiveEvent, ProtocolError> {
        let kind = header.kind;
        match (self.state, kind) {
            (State::Greeting, FrameKind::Welcome) => self.welcome(header, payload),
            (State::Greeting | State::Welcomed, FrameKind::Refuse) => {
                let refusal: Refusal = decode_postcard(kind, payload)?;
                Ok(ActiveEvent::Refused(refusal))
            }
            (State::Welcomed, FrameKind::Ack) => {
                expect_empty(kind, payload)?;
                self.ack(header.epoch)
            }
            (State::Welcomed, FrameKind::DiskDiffers) => {
                Ok(ActiveEvent::Compared(Differing::decode(payload)?))
            }
            (State::Welcomed, FrameKind::DiskChanges) => {
                Ok(ActiveEvent::DiskChanges(DiskChanges::decode(payload)?))
            }
            (State::Welcomed, FrameKind::DiskSynced) => {
                Ok(ActiveEvent::DisksDurable(decode_base(kind, payload)?))
            }
            (State::Welcomed, FrameKind::Heartbeat) => {
                expect_empty(kind, payload)?;
                Ok(ActiveEvent::Alive)
            }
            (State::Welcomed, FrameKind::Goodbye) => {
                let goodbye: Goodbye = decode_postcard(kind, payload)?;
                Ok(ActiveEvent::Goodbye(goodbye))
            }
            (state, kind) => Err(ProtocolError::UnexpectedFrame {
                kind,
                state: match state {
                    State::Greeting => "greeting",
                    State::Welcomed => "welcomed",
                    State::Over => "over",
                },
            }),
        }
    }

    fn welcome(
        &mut self,
        header: &FrameHeader,
        payload: &[u8],
    ) -> Result<ActiveEvent, ProtocolError> {
        let kind = header.kind;
        if !(PROTOCOL_OLDEST..=PROTOCOL_VERSION).contains(&header.version) {
            return Err(ProtocolError::Version {
                kind,
                agreed: PROTOCOL_VERSION,
                found: header.version,
            });
        }
        if header.generation != self.generation {
            return Err(ProtocolError::Generation {
                kind,
                session: self.generation,
                found: header.generation,
            });
        }
        let welcome: Welcome = decode_postcard(kind, payload)?;
        let held = welcome
            .held
            .filter(|held| held.generation == self.generation);
        let held = held.map(|held| held.epoch);
        if let Some(epoch) = held {
            self.check_sent(epoch)?;
            // What it holds is committed, whether or not its acknowledgement arrived.
            self.acked = self.acked.max(epoch);
        }
        self.inbound.agree(header.version, self.generation);
        self.state = State::Welcomed;
        Ok(ActiveEvent::Welcomed {
            node: welcome.node,
            held,
        })
    }

    fn ack(&mut self, epoch: Epoch) -> Result<ActiveEvent, ProtocolError> {
        self.check_sent(epoch)?;
        if epoch <= self.acked {
            return Err(ProtocolError::AckNotNewer {
                epoch,
                acked: self.acked,
            });
        }
        self.acked = epoch;
        Ok(ActiveEvent::Acked { epoch })
    }

    fn check_sent(&self, epoch: Epoch) -> Result<(), ProtocolError> {
        // The sender stores the number before it hands out the Commit's bytes, so an honest
        // acknowledgement always finds it.
        let sent = Epoch::new(self.sent.load(Ordering::Acquire));
        if epoch > sent {
            return Err(ProtocolError::AckBeyondSent { epoch, sent });
        }
        Ok(())
    }
}
