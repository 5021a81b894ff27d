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

/// What the link threads tell the conductor.
#[derive(Debug)]
pub enum LinkEvent {
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

/// Begins an attempt, with TLS by `tls` where the address asks for it; the outcome reaches the conductor as [`LinkEvent`]s with this id.
pub fn start(
    id: LinkId,
    address: ReplicationAddress,
    config: ActiveConfig,
    silence_max: Duration,
    tls: Option<Tls>,
    inputs: mpsc::Sender<Input>,
) -> std::io::Result<()> {
    let attempt = Attempt {
        id,
        address,
        silence_max,
        tls,
        inputs,
    };
    thread::Builder::new()
        .name("link".into())
        .spawn(move || attempt.run(config))
        .map(drop)
}

struct Attempt {
    id: LinkId,
    address: ReplicationAddress,
    silence_max: Duration,
    tls: Option<Tls>,
    inputs: mpsc::Sender<Input>,
}

impl Attempt {
    fn run(&self, config: ActiveConfig) {
        sandbox::enter(sandbox::Kind::Link);
        let Err(error) = self.try_run(config);
        self.tell(LinkEvent::Lost(error));
    }

    fn tell(&self, event: LinkEvent) {
        // A conductor that has ended needs no news.
        let _ = self.inputs.send(Input::Link(self.id, event));
    }

    fn try_run(&self, config: ActiveConfig) -> Result<std::convert::Infallible, LinkError> {
        let patience = Patience {
            reach: self.silence_max,
            answer: self.silence_max * COPY_PATIENCE,
        };
        let connection = connect(&self.address, self.tls.as_ref(), patience)?;
        let mut reader =
            FrameReader::new(connection.clone(), patience.answer).map_err(LinkError::Io)?;
        let (link, mut receiver) = self.greet(connection, &mut reader, config)?;
        tracing::debug!(address = %self.address, peer = %link.node, "welcomed");
        self.tell(LinkEvent::Up(Box::new(link)));
        let mut committed = false;
        loop {
            let (header, payload) = reader.next()?;
            match receiver.on_frame(&header, payload)? {
                ActiveEvent::Acked { epoch } => {
                    if !std::mem::replace(&mut committed, true) {
                        reader.set_silence_max(self.silence_max)?;
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
