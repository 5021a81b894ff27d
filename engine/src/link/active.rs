// SPDX-License-Identifier: Apache-2.0
//! The active side's connection.
//!
//! One thread connects, greets and then reads acknowledgements; a second one writes what the
//! conductor hands it. Neither blocks the conductor: the amount that waits to be written is
//! counted, and the conductor makes no new checkpoint while too much waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use kemari_api::config::ReplicationAddress;
use kemari_api::{Epoch, NodeName};
use kemari_replication::active::{
    ActiveConfig, ActiveEvent, ActiveReceiver, ActiveSender, ActiveSession,
};
use kemari_replication::storage::BaseId;
use kemari_replication::wire::{Differing, DiskChanges, Goodbye, Refusal};
use kemari_transport::{Connection, Patience, Tls, connect};

use super::{COPY_PATIENCE, FrameReader, LinkError};
use crate::conductor::Input;
use crate::sandbox;

/// Which attempt a link event belongs to; events of an older one are ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkId(pub u64);

/// Where an attempt begins.
#[derive(Debug)]
pub enum Way {
    /// With a connection to be made.
    Connect(ReplicationAddress),
    /// With one that was made to see whether that is possible.
    Made(ReplicationAddress, Connection),
}

/// Whether it is worth to wait for a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Others {
    /// There is no other.
    None,
    /// There are others, which can be tried instead.
    There,
}

/// How long this side waits for the other one.
#[derive(Debug, Clone, Copy)]
pub struct Waits {
    /// Silence after which it counts as out of reach.
    pub silence_max: Duration,
    /// Other links.
    pub others: Others,
}

impl Waits {
    /// Until the other side has answered the greeting.
    fn before_welcome(self) -> Patience {
        match self.others {
            Others::None => Patience {
                reach: self.silence_max,
                answer: self.after_welcome(),
            },
            // A passive replica that is busy longer takes the newest call when it is done.
            Others::There => Patience {
                reach: self.silence_max / 2,
                answer: self.silence_max,
            },
        }
    }

    /// Until the first commit.
    fn after_welcome(self) -> Duration {
        self.silence_max * COPY_PATIENCE
    }
}

/// What the link threads tell the conductor.
#[derive(Debug)]
pub enum LinkEvent {
    /// A connection can be made; nothing was said over it yet.
    Reached(Connection),
    /// Greeted and welcomed.
    Up(Box<Link>),
    /// Every epoch up to this one is committed.
    Acked(Epoch),
    /// It has compared blocks of a disk.
    Compared(Differing),
    /// Where its disks may differ from the base that was named.
    DiskChanges(DiskChanges),
    /// Its disks are durable, and it has recorded this base.
    DisksDurable(BaseId),
    /// The other side is alive.
    Alive,
    /// The other side ends the session in good order.
    Goodbye(Goodbye),
    /// Some of what waited was written.
    Drained,
    /// It is over.
    Lost(LinkError),
}

/// A connection that was welcomed. Dropping it closes it.
#[derive(Debug)]
pub struct Link {
    /// The other replica's node.
    pub node: NodeName,
    /// The epoch of this generation the other side could run from.
    pub held: Option<Epoch>,
    /// Makes the frames.
    pub session: ActiveSender,
    connection: Connection,
    buffers: mpsc::Sender<Vec<u8>>,
    empties: mpsc::Receiver<Vec<u8>>,
    waiting_bytes: Arc<AtomicUsize>,
}

impl Link {
    /// An empty buffer, if possible one that was used before.
    pub fn buffer(&self) -> Vec<u8> {
        self.empties.try_recv().unwrap_or_default()
    }

    /// Hands frames to the writer.
    pub fn send(&self, frames: Vec<u8>) {
        self.waiting_bytes
            .fetch_add(frames.len(), Ordering::Relaxed);
        // A writer that has ended has reported why.
        let _ = self.buffers.send(frames);
    }

    /// How much waits to be written.
    pub fn waiting_bytes(&self) -> usize {
        self.waiting_bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.connection.shut();
    }
}

/// Begins an attempt; the outcome reaches the conductor as [`LinkEvent`]s with its id.
pub fn start(attempt: Attempt, way: Way, config: ActiveConfig) -> std::io::Result<()> {
    thread::Builder::new()
        .name("link".into())
        .spawn(move || {
            sandbox::enter(sandbox::Kind::Link);
            let Err(error) = attempt.try_run(way, config);
            attempt.tell(LinkEvent::Lost(error));
        })
        .map(drop)
}

/// Looks whether a connection can be made, and tells the conductor either [`LinkEvent::Reached`] or
/// [`LinkEvent::Lost`].
pub fn look(attempt: Attempt, address: ReplicationAddress) -> std::io::Result<()> {
    thread::Builder::new()
        .name("link".into())
        .spawn(move || {
            sandbox::enter(sandbox::Kind::Link);
            let patience = attempt.waits.before_welcome();
            attempt.tell(match connect(&address, attempt.tls.as_ref(), patience) {
                Ok(connection) => LinkEvent::Reached(connection),
                Err(error) => LinkEvent::Lost(error.into()),
            });
        })
        .map(drop)
}

/// What the threads of an attempt need.
pub struct Attempt {
    /// Which one it is.
    pub id: LinkId,
    /// How long it waits.
    pub waits: Waits,
    /// TLS, where the address asks for it.
    pub tls: Option<Tls>,
    /// Of the conductor.
    pub inputs: mpsc::Sender<Input>,
}

impl Attempt {
    fn tell(&self, event: LinkEvent) {
        // A conductor that has ended needs no news.
        let _ = self.inputs.send(Input::Link(self.id, event));
    }

    fn try_run(
        &self,
        way: Way,
        config: ActiveConfig,
    ) -> Result<std::convert::Infallible, LinkError> {
        let patience = self.waits.before_welcome();
        let (address, connection) = match way {
            Way::Made(address, connection) => (address, connection),
            Way::Connect(address) => {
                let connection = connect(&address, self.tls.as_ref(), patience)?;
                (address, connection)
            }
        };
        let mut reader =
            FrameReader::new(connection.clone(), patience.answer).map_err(LinkError::Io)?;
        let (link, mut receiver) = self.greet(connection, &mut reader, config)?;
        tracing::debug!(%address, peer = %link.node, "welcomed");
        let silence_max = self.waits.after_welcome();
        reader.set_silence_max(silence_max)?;
        link.connection
            .set_send_patience(silence_max)
            .map_err(LinkError::Io)?;
        self.tell(LinkEvent::Up(Box::new(link)));
        let mut committed = false;
        loop {
            let (header, payload) = reader.next()?;
            match receiver.on_frame(&header, payload)? {
                ActiveEvent::Acked { epoch } => {
                    if !std::mem::replace(&mut committed, true) {
                        reader.set_silence_max(self.waits.silence_max)?;
                    }
                    self.tell(LinkEvent::Acked(epoch));
                }
                ActiveEvent::Compared(differing) => self.tell(LinkEvent::Compared(differing)),
                ActiveEvent::DiskChanges(changes) => self.tell(LinkEvent::DiskChanges(changes)),
                ActiveEvent::DisksDurable(base) => self.tell(LinkEvent::DisksDurable(base)),
                ActiveEvent::Alive => self.tell(LinkEvent::Alive),
                ActiveEvent::Goodbye(goodbye) => {
                    self.tell(LinkEvent::Goodbye(goodbye));
                    return Err(LinkError::Closed);
                }
                ActiveEvent::Refused(refusal) => return Err(LinkError::Refused(refusal)),
                ActiveEvent::Welcomed { .. } => {
                    return Err(LinkError::Ended("a second welcome"));
                }
            }
        }
    }

    fn greet(
        &self,
        connection: Connection,
        reader: &mut FrameReader,
        config: ActiveConfig,
    ) -> Result<(Link, ActiveReceiver), LinkError> {
        let mut session = ActiveSession::new(config);
        let mut hello = Vec::new();
        session.hello(&mut hello);
        let greeted = connection.send(&hello);
        // Where it could not be sent, the other side may have said why.
        let (header, payload) = match (reader.next(), greeted) {
            (Ok(answer), Ok(())) => answer,
            (Err(LinkError::Closed), Err(error)) | (Ok(_), Err(error)) => {
                return Err(LinkError::of(error));
            }
            (Err(error), _) => return Err(error),
        };
        let (node, held) = match session.on_frame(&header, payload)? {
            ActiveEvent::Welcomed { node, held } => (node, held),
            ActiveEvent::Refused(refusal) => return Err(LinkError::Refused(refusal)),
            _ => return Err(LinkError::Ended("no welcome came")),
        };
        let (session, receiver) = session.split();
        let (buffers, to_write) = mpsc::channel();
        let (written, empties) = mpsc::channel();
        let waiting_bytes = Arc::new(AtomicUsize::new(0));
        let writer = Writer {
            id: self.id,
            connection: connection.clone(),
            to_write,
            written,
            waiting_bytes: Arc::clone(&waiting_bytes),
            inputs: self.inputs.clone(),
        };
        thread::Builder::new()
            .name("link-writer".into())
            .spawn(move || writer.run())
            .map_err(LinkError::Io)?;
        Ok((
            Link {
                node,
                held,
                session,
                connection,
                buffers,
                empties,
                waiting_bytes,
            },
            receiver,
        ))
    }
}

struct Writer {
    id: LinkId,
    connection: Connection,
    to_write: mpsc::Receiver<Vec<u8>>,
    written: mpsc::Sender<Vec<u8>>,
    waiting_bytes: Arc<AtomicUsize>,
    inputs: mpsc::Sender<Input>,
}

impl Writer {
    /// Writes until the link is dropped or fails.
    fn run(self) {
        sandbox::enter(sandbox::Kind::LinkWriter);
        while let Ok(mut frames) = self.to_write.recv() {
            let length = frames.len();
            if let Err(error) = self.connection.send(&frames) {
                let lost = LinkEvent::Lost(LinkError::of(error));
                let _ = self.inputs.send(Input::Link(self.id, lost));
                return;
            }
            self.waiting_bytes.fetch_sub(length, Ordering::Relaxed);
            frames.clear();
            let _ = self.written.send(frames);
            let _ = self.inputs.send(Input::Link(self.id, LinkEvent::Drained));
        }
        // What was written last, a goodbye perhaps, still reaches the other side.
        self.connection.finish();
    }
}

/// Whether a refusal will stay one however often it is tried again.
pub fn is_final(refusal: &Refusal) -> bool {
    !matches!(refusal, Refusal::Busy | Refusal::NotWaiting { .. })
}
