// SPDX-License-Identifier: Apache-2.0
//! The active side's connection (`engine/src/link/active.rs`): what its threads do.

use std::collections::VecDeque;

use kemari_replication::Epoch;
use kemari_replication::active::ActiveSender;
use kemari_replication::active::{ActiveConfig, ActiveEvent, ActiveReceiver, ActiveSession};
use kemari_replication::protocol::ProtocolError;
use kemari_replication::wire::{FrameHeader, FrameKind, Goodbye};

use super::reader::{LinkError, Next, Reader};
use super::{Engine, Input};
use crate::env::{Env, Event};
use crate::mutant::Mutant;
use crate::network::{ConnId, Side};
use crate::profile::{COPY_PATIENCE, SILENCE_MAX};
use crate::schedule::US;

/// Which attempt a link event belongs to; events of an older one are ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkId(pub u64);

/// What the link threads tell the conductor.
#[derive(Debug)]
pub enum LinkEvent {
    Up(Box<Link>),
    Acked(Epoch),
    Alive,
    Goodbye(Goodbye),
    Lost(LinkError),
}

/// A connection that was welcomed.
#[derive(Debug)]
pub struct Link {
    pub conn: ConnId,
    pub held: Option<Epoch>,
    pub session: ActiveSender,
}

#[derive(Debug)]
enum Half {
    Greeting(Box<ActiveSession>),
    Receiving(ActiveReceiver),
    Over,
}

/// The thread that connects, greets and then reads acknowledgements.
#[derive(Debug)]
pub struct LinkThread {
    id: LinkId,
    reader: Reader,
    half: Half,
    committed: bool,
}

impl Engine {
    /// Begins an attempt; the outcome reaches the conductor as events with this id.
    pub(super) fn start_link(&mut self, env: &mut Env, id: LinkId, config: ActiveConfig) {
        let Some(conn) = env.connect(self.host) else {
            let delay = env.between(50 * US, 20_000 * US);
            self.inbox
                .push_back(Input::Link(id, LinkEvent::Lost(LinkError::Connect)));
            let at = env.now() + delay;
            return self.wake_conductor_at(env, at);
        };
        let mut session = ActiveSession::new(config);
        let mut hello = Vec::new();
        session.hello(&mut hello);
        env.write(conn, Side::Caller, &hello);
        let patience = SILENCE_MAX * COPY_PATIENCE;
        self.threads.push(LinkThread {
            id,
            reader: Reader::new(env, conn, Side::Caller, patience),
            half: Half::Greeting(Box::new(session)),
            committed: false,
        });
        self.read_soon(env, conn);
    }

    pub(super) fn read_soon(&self, env: &mut Env, conn: ConnId) {
        let event = Event::Reader(self.host, self.life, conn);
        env.queue.put(0, event);
    }

    /// One turn of whoever reads this connection.
    pub fn reader(&mut self, env: &mut Env, conn: ConnId) {
        let own = |thread: &LinkThread| thread.reader.conn == conn;
        match self.threads.iter().position(own) {
            None => self.serve(env, conn),
            Some(at) => {
                let mut thread = self.threads.swap_remove(at);
                match self.read_link(env, &mut thread) {
                    Ok(()) => self.threads.push(thread),
                    Err(error) => {
                        env.tell(self.host, || format!("link {}: {error:?}", thread.id.0));
                        if matches!(error, LinkError::Protocol(_)) {
                            env.counts.broken += 1;
                        }
                        env.close(conn, Side::Caller);
                        self.hear(env, Input::Link(thread.id, LinkEvent::Lost(error)));
                    }
                }
            }
        }
    }

    fn read_link(&mut self, env: &mut Env, thread: &mut LinkThread) -> Result<(), LinkError> {
        let (header, payload) = match thread.reader.next(env, self.host, self.life) {
            Next::Nothing => return Ok(()),
            Next::Lost(error) => return Err(error),
            Next::Frame(header, payload) => (header, payload),
        };
        let event = match std::mem::replace(&mut thread.half, Half::Over) {
            Half::Greeting(mut session) => {
                let event = session
                    .on_frame(&header, &payload)
                    .map_err(|error| broken(&error))?;
                let ActiveEvent::Welcomed { held, .. } = event else {
                    return Err(end_of(event));
                };
                let (session, receiver) = session.split();
                thread.half = Half::Receiving(receiver);
                let conn = thread.reader.conn;
                let link = Link {
                    conn,
                    held,
                    session,
                };
                self.hear(env, Input::Link(thread.id, LinkEvent::Up(Box::new(link))));
                return Ok(());
            }
            Half::Receiving(mut receiver) => {
                let event = receiver.on_frame(&header, &payload);
                thread.half = Half::Receiving(receiver);
                event.or_else(|error| any_ack(env, &header, &error))?
            }
            Half::Over => return Err(LinkError::Closed),
        };
        let event = match event {
            ActiveEvent::Acked { epoch } => {
                if !std::mem::replace(&mut thread.committed, true) {
                    thread.reader.silence_max = SILENCE_MAX;
                }
                LinkEvent::Acked(epoch)
            }
            ActiveEvent::Alive => LinkEvent::Alive,
            ActiveEvent::Goodbye(goodbye) => {
                self.hear(env, Input::Link(thread.id, LinkEvent::Goodbye(goodbye)));
                return Err(LinkError::Closed);
            }
            event => return Err(end_of(event)),
        };
        self.hear(env, Input::Link(thread.id, event));
        Ok(())
    }

    /// Hands frames to the writer.
    pub(super) fn send(&mut self, env: &mut Env, conn: ConnId, frames: Vec<u8>) {
        self.to_write.entry(conn).or_default().push_back(frames);
        let delay = env.delay(20 * US, 5_000 * US);
        env.queue
            .put(delay, Event::Writer(self.host, self.life, conn));
    }

    /// The writer hands its oldest buffer to the kernel.
    pub fn writer(&mut self, env: &mut Env, conn: ConnId) {
        let waiting = self.to_write.get_mut(&conn);
        if let Some(frames) = waiting.and_then(VecDeque::pop_front) {
            env.write(conn, Side::Caller, &frames);
        }
    }

    /// How much waits to be written.
    pub(super) fn waiting_bytes(&self, conn: ConnId) -> usize {
        let waiting = self.to_write.get(&conn);
        waiting.map_or(0, |buffers| buffers.iter().map(Vec::len).sum())
    }

    /// What dropping a link does. What was not written yet may still get through, or not.
    pub(super) fn drop_link(&mut self, env: &mut Env, conn: ConnId) {
        let unwritten = self.to_write.remove(&conn).unwrap_or_default();
        if env.rng.bool() {
            for frames in unwritten {
                env.write(conn, Side::Caller, &frames);
            }
        }
        env.close(conn, Side::Caller);
        self.read_soon(env, conn);
    }
}

fn broken(error: &ProtocolError) -> LinkError {
    LinkError::Protocol(error.to_string())
}

fn end_of(event: ActiveEvent) -> LinkError {
    match event {
        ActiveEvent::Refused(refusal) => LinkError::Refused(refusal),
        other => LinkError::Protocol(format!("{other:?} may not come now")),
    }
}

/// A faulty engine takes every acknowledgement for one of its own.
fn any_ack(
    env: &Env,
    header: &FrameHeader,
    error: &ProtocolError,
) -> Result<ActiveEvent, LinkError> {
    if header.kind == FrameKind::Ack && env.is(Mutant::AnyAckCounts) {
        let epoch = header.epoch;
        return Ok(ActiveEvent::Acked { epoch });
    }
    Err(broken(error))
}
