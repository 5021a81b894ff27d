// SPDX-License-Identifier: Apache-2.0
//! The passive side: a replica that either receives checkpoints or says why it does not.
//!
//! Callers come through the [`super::door`], one after the other, with their greeting. The thread
//! serves one at a time. While it does, it owns what the replica holds; the
//! conductor takes it back with [`Endpoint::seize`], which ends the connection first, so nothing
//! can be received after a take-over was decided. Pages of a checkpoint are merged into RAM right
//! after its acknowledgement and before the next frame is read: a seized replica is always whole.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use kemari_api::replica::DiskState;
use kemari_api::{Epoch, Generation, NodeName, VmName};
use kemari_replication::page::{GuestPages, NoPages, PAGE_BYTES, PageContent, PageIndex};
use kemari_replication::passive::{
    Call, Checkpoint, PassiveAction, PassiveConfig, PassiveSession, Replica,
};
use kemari_replication::storage::BaseId;
use kemari_replication::wire::{DiskChanges, Goodbye, Purpose, Refusal};
use kemari_transport::{Connection, Listener};
use kemari_vmm::{GuestRam, MachineState};

use super::arrivals::{Arrivals, Ending, Turn};
use super::door::{self, Guest};
use super::{COPY_PATIENCE, FrameReader, LinkError};
use crate::clock;
use crate::conductor::Input;
use crate::epoch_hash::EpochHash;
use crate::record::DiskRecordState;
use crate::sandbox;
use crate::storage::{PassiveDiskError, PassiveDisks};

/// What the listener tells the conductor.
#[derive(Debug)]
pub enum PassiveEvent {
    /// An active replica was welcomed.
    Joined {
        /// Its node.
        node: NodeName,
        /// Which address of this node it has reached.
        at: String,
        /// Its generation.
        generation: Generation,
        /// The checkpoint held so far counts in this generation; otherwise there is nothing to
        /// run from until the next commit.
        in_sync: bool,
    },
    /// What this node's disks are now.
    Disks(DiskState),
    /// RAM is being overwritten: there is nothing to run from until the next commit.
    Copying,
    /// A checkpoint was committed.
    Committed(Epoch),
    /// The active replica said goodbye.
    Goodbye(Goodbye),
    /// The connection ended.
    Lost(LinkError),
}

/// What a replica holds between connections.
#[derive(Debug)]
pub struct Held {
    /// The protocol's knowledge.
    pub replica: Replica,
    /// Machine state of the checkpoint that RAM holds.
    pub state: Option<MachineState>,
}

/// What the listener needs to receive.
#[derive(Debug, Clone)]
pub struct Receiving {
    /// Identity and RAM layout.
    pub config: PassiveConfig,
    /// Shadow RAM.
    pub ram: GuestRam,
    /// This node's disks.
    pub disks: PassiveDisks,
    /// Silence after which the other replica counts as out of reach.
    pub silence_max: Duration,
    /// What callers may want.
    pub purpose: Purpose,
    /// Hash what is held after each epoch, and log it under this name.
    pub hash_epochs: Option<VmName>,
}

/// What a caller meets.
#[derive(Debug)]
enum Mode {
    Receiving(Box<Receiving>),
    Refusing {
        generation: Generation,
        text: &'static str,
    },
}

#[derive(Debug)]
struct Shared {
    mode: Mode,
    /// `None` while a connection is being served.
    held: Option<Held>,
    connection: Option<Connection>,
}

/// The conductor's side of the listener.
#[derive(Debug, Clone)]
pub struct Endpoint {
    shared: Arc<(Mutex<Shared>, Condvar)>,
}

impl Endpoint {
    /// Starts to listen in threads of its own. It refuses every caller until [`Self::receive`].
    pub fn start(
        listener: Listener,
        receiving: Receiving,
        inputs: mpsc::Sender<Input>,
    ) -> io::Result<Self> {
        let mode = Mode::Refusing {
            generation: Generation::default(),
            text: "it is starting",
        };
        let shared = Shared {
            mode,
            held: None,
            connection: None,
        };
        let endpoint = Self {
            shared: Arc::new((Mutex::new(shared), Condvar::new())),
        };
        let patience = receiving.silence_max * COPY_PATIENCE;
        let arrivals = Arc::new(Arrivals::default());
        let config = receiving.config.clone();
        let guests = door::open(listener, patience, config, Arc::clone(&arrivals))?;
        let server = Server {
            endpoint: endpoint.clone(),
            config: receiving.config,
            silence_max: receiving.silence_max,
            arrivals,
            inputs,
        };
        thread::Builder::new()
            .name("passive".into())
            .spawn(move || server.run(&guests))?;
        Ok(endpoint)
    }

    /// From now on callers are welcomed; `held` is what the replica starts from.
    pub fn receive(&self, receiving: Receiving, held: Held) {
        let mut shared = self.lock();
        shared.held = Some(held);
        shared.mode = Mode::Receiving(Box::new(receiving));
    }

    /// Ends what is being received, refuses callers from now on, and returns what is held.
    /// `None` if it was seized before.
    pub fn seize(&self, generation: Generation, text: &'static str) -> Option<Held> {
        let mut shared = self.lock();
        shared.mode = Mode::Refusing { generation, text };
        while let Some(connection) = shared.connection.take() {
            connection.shut();
            shared = self
                .shared
                .1
                .wait_while(shared, |shared| {
                    shared.held.is_none() && shared.connection.is_none()
                })
                .unwrap_or_else(PoisonError::into_inner);
        }
        shared.held.take()
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what is held for the length of a connection, or says why not.
    fn begin(&self, connection: &Connection) -> Result<(Receiving, Held), Refusal> {
        let mut shared = self.lock();
        match &shared.mode {
            Mode::Refusing { generation, text } => Err(refusal(*generation, text)),
            Mode::Receiving(receiving) => {
                let receiving = Receiving::clone(receiving);
                match shared.held.take() {
                    Some(held) => {
                        shared.connection = Some(connection.clone());
                        Ok((receiving, held))
                    }
                    None => Err(Refusal::Busy),
                }
            }
        }
    }

    fn end(&self, held: Held) {
        let mut shared = self.lock();
        shared.connection = None;
        shared.held = Some(held);
        self.shared.1.notify_all();
    }
}

/// A caller of an older generation is outdated; one of any other meets a replica that does not
/// wait.
fn refusal(generation: Generation, text: &str) -> Refusal {
    if generation > Generation::default() {
        Refusal::Outdated { generation }
    } else {
        Refusal::NotWaiting {
            text: text.to_owned(),
        }
    }
}

struct Server {
    endpoint: Endpoint,
    /// For the identity that a refused caller is told.
    config: PassiveConfig,
    silence_max: Duration,
    arrivals: Arc<Arrivals>,
    inputs: mpsc::Sender<Input>,
}

impl Server {
    fn run(&self, guests: &mpsc::Receiver<Guest>) {
        sandbox::enter(sandbox::Kind::Passive);
        while let Ok(guest) = guests.recv() {
            let caller = guest.name.clone();
            let turn = guest.who.as_ref().map_or(Turn::Serve, |who| {
                self.arrivals.begin(who, guest.number, &guest.connection)
            });
            if turn == Turn::Outdone {
                tracing::debug!(%caller, "replication connection ended: {}", LinkError::CalledAnew);
                continue;
            }
            let served = self.serve(guest);
            let ending = self.arrivals.end();
            if let Err(lost) = served {
                let lost = match ending {
                    Ending::Own => lost,
                    Ending::Outdone => LinkError::CalledAnew,
                };
                tracing::debug!(%caller, "replication connection ended: {lost}");
                self.tell(PassiveEvent::Lost(lost));
            }
        }
    }

    fn tell(&self, event: PassiveEvent) {
        // A conductor that has ended needs no news.
        let _ = self.inputs.send(Input::Passive(event));
    }

    fn serve(&self, guest: Guest) -> Result<(), LinkError> {
        let Guest {
            at,
            connection,
            mut reader,
            ..
        } = guest;
        connection
            .set_send_patience(self.silence_max)
            .map_err(LinkError::Io)?;
        reader.set_silence_max(self.silence_max)?;
        match self.endpoint.begin(&connection) {
            Err(refusal) => self.refuse(&connection, &mut reader, &refusal),
            Ok((receiving, held)) => {
                let mut reception = Reception::new(self, receiving, held, (&connection, at));
                let outcome = reception.run(&mut reader);
                self.endpoint.end(reception.into_held());
                outcome
            }
        }
    }

    /// Looks at the greeting, so that a caller of another version or VM hears that first, then
    /// refuses.
    fn refuse(
        &self,
        connection: &Connection,
        reader: &mut FrameReader,
        refusal: &Refusal,
    ) -> Result<(), LinkError> {
        let config = self.config.clone();
        let mut session = PassiveSession::new(config, Replica::default());
        let (header, payload) = reader.next()?;
        let mut frames = Vec::new();
        match session.on_frame(&header, payload, &NoPages)? {
            PassiveAction::Refuse(ours) => session.refuse(&mut frames, &ours),
            PassiveAction::Answer(call) => {
                let outdated = matches!(refusal, Refusal::Outdated { generation }
                    if call.generation < *generation);
                let other = Refusal::NotWaiting {
                    text: "it is active itself".into(),
                };
                session.refuse(&mut frames, if outdated { refusal } else { &other });
            }
            _ => return Ok(()),
        }
        connection.send(&frames).map_err(LinkError::of)
    }
}

/// One connection that may be welcomed.
struct Reception<'a> {
    server: &'a Server,
    ram: GuestRam,
    disks: PassiveDisks,
    silence_max: Duration,
    purpose: Purpose,
    hash_epochs: Option<VmName>,
    /// What the active side copies, its record of changes or ours names.
    recorded_since: Option<BaseId>,
    has_forgotten: bool,
    session: PassiveSession,
    state: Option<MachineState>,
    connection: &'a Connection,
    /// Which address of this node the other side has reached.
    at: String,
    frames: Vec<u8>,
    welcomed: bool,
}

impl<'a> Reception<'a> {
    fn new(
        server: &'a Server,
        receiving: Receiving,
        held: Held,
        (connection, at): (&'a Connection, String),
    ) -> Self {
        receiving.disks.new_session();
        Self {
            server,
            ram: receiving.ram,
            disks: receiving.disks,
            silence_max: receiving.silence_max,
            purpose: receiving.purpose,
            hash_epochs: receiving.hash_epochs,
            recorded_since: None,
            has_forgotten: false,
            session: PassiveSession::new(receiving.config, held.replica),
            state: held.state,
            connection,
            at,
            frames: Vec::new(),
            welcomed: false,
        }
    }

    fn into_held(self) -> Held {
        let mut replica = self.session.into_replica();
        if self.state.is_none() {
            // Protocol and process must agree that there is nothing to run from.
            replica.outdate(replica.generation());
        }
        Held {
            replica,
            state: self.state,
        }
    }

    /// Until the connection ends. `Ok` after a refusal: nothing has changed then.
    fn run(&mut self, reader: &mut FrameReader) -> Result<(), LinkError> {
        let mut committed = false;
        let mut sign_of_life = clock::now();
        loop {
            let (header, payload) = reader.next()?;
            match self
                .session
                .on_frame(&header, payload, &Shadow(&self.ram))?
            {
                PassiveAction::Continue => {}
                PassiveAction::Answer(call) if call.purpose != self.purpose => {
                    self.session
                        .refuse(&mut self.frames, &other_purpose(self.purpose));
                    return self.flush();
                }
                PassiveAction::Answer(call) => {
                    self.welcome(call)?;
                    reader.set_silence_max(self.silence_max * COPY_PATIENCE)?;
                }
                PassiveAction::Refuse(refusal) => {
                    self.session.refuse(&mut self.frames, &refusal);
                    tracing::warn!("refused a replication connection: {refusal}");
                    return self.flush();
                }
                PassiveAction::Copy(pages) => {
                    self.copies()?;
                    if self.state.take().is_some() {
                        self.server.tell(PassiveEvent::Copying);
                    }
                    pages.apply(|index, content| merge_page(&self.ram, index, content))?;
                }
                PassiveAction::CopyDisk(changes) => {
                    self.copies()?;
                    if self.state.take().is_some() {
                        self.server.tell(PassiveEvent::Copying);
                    }
                    self.note(DiskRecordState::Incomplete)?;
                    self.disks
                        .apply(changes)
                        .map_err(|error| disk_failed(&error))?;
                }
                PassiveAction::Compare(probe) => {
                    let differing = self
                        .disks
                        .compare(&probe)
                        .map_err(|error| disk_failed(&error))?;
                    self.session.compared(differing, &mut self.frames);
                    self.flush()?;
                }
                PassiveAction::TellChanges(base) => {
                    let changes = self.disks.changes_since(base);
                    let fits = matches!(changes, DiskChanges::Since(_));
                    self.recorded_since = Some(base).filter(|_| fits);
                    self.session.disk_changes(&changes, &mut self.frames);
                    self.flush()?;
                }
                PassiveAction::MakeDurable(base) => {
                    let generation = self.session.replica().generation();
                    self.disks.make_durable(base, generation);
                }
                PassiveAction::Complete(checkpoint) => {
                    self.commit(checkpoint)?;
                    if !std::mem::replace(&mut committed, true) {
                        reader.set_silence_max(self.silence_max)?;
                    }
                }
                PassiveAction::Alive => {
                    self.session.heartbeat(&mut self.frames);
                    self.flush()?;
                }
                PassiveAction::Goodbye(goodbye) => return self.goodbye(goodbye),
            }
            if let Some(base) = self.disks.made_durable() {
                self.session.disks_durable(base, &mut self.frames);
                self.flush()?;
            }
            // A long copy or a large checkpoint has no other answer for a long time.
            if self.welcomed && clock::now() >= sign_of_life + self.silence_max / 4 {
                self.session.heartbeat(&mut self.frames);
                self.flush()?;
                sign_of_life = clock::now();
            }
        }
    }

    /// Memory or disks are copied here: what is written to disks from now on, in this session and
    /// those that continue it, the active side has recorded since our base, or our record is void.
    fn copies(&mut self) -> Result<(), LinkError> {
        if self.recorded_since.is_some() || self.has_forgotten {
            return Ok(());
        }
        self.has_forgotten = true;
        self.disks
            .forget_changes()
            .map_err(|error| disk_failed(&error))
    }

    fn flush(&mut self) -> Result<(), LinkError> {
        let result = self.connection.send(&self.frames).map_err(LinkError::of);
        self.frames.clear();
        result
    }

    fn welcome(&mut self, call: Call) -> Result<(), LinkError> {
        self.session.welcome(&mut self.frames);
        self.welcomed = true;
        if self.session.replica().held().is_none() {
            self.state = None;
        }
        self.flush()?;
        self.server.tell(PassiveEvent::Joined {
            node: call.node,
            at: self.at.clone(),
            generation: call.generation,
            in_sync: self.state.is_some(),
        });
        Ok(())
    }

    /// "I can run from this": everything is here, verified, and the state decodes.
    fn commit(&mut self, mut checkpoint: Checkpoint) -> Result<(), LinkError> {
        let state = MachineState::decode(&checkpoint.state)
            .map_err(|error| LinkError::State(error.to_string()))?;
        self.session.accept(&mut checkpoint, &mut self.frames);
        // From here on this is the replica's state, whether or not the answer gets through.
        self.state = Some(state);
        let answered = self.flush();
        if let Err(error) = self.merge(&checkpoint) {
            // Half merged RAM is nothing to run from.
            self.state = None;
            self.server.tell(PassiveEvent::Copying);
            return Err(error);
        }
        if let Some(vm) = &self.hash_epochs {
            let hash = EpochHash::of(&self.ram, &checkpoint.state);
            hash.log(vm, checkpoint.generation, checkpoint.epoch);
        }
        self.server.tell(PassiveEvent::Committed(checkpoint.epoch));
        self.session.recycle(checkpoint);
        answered
    }

    /// Brings RAM and disks to the state of a committed checkpoint.
    fn merge(&mut self, checkpoint: &Checkpoint) -> Result<(), LinkError> {
        merge(&self.ram, checkpoint.pages.iter())?;
        self.disks
            .apply(checkpoint.changes.iter())
            .map_err(|error| disk_failed(&error))?;
        self.note(DiskRecordState::Copy)
    }

    /// Records what this node's disks are.
    fn note(&mut self, state: DiskRecordState) -> Result<(), LinkError> {
        let generation = self.session.replica().generation();
        let news = self
            .disks
            .note(generation, state)
            .map_err(|error| disk_failed(&error))?;
        if news {
            self.server.tell(PassiveEvent::Disks(state.shown()));
        }
        Ok(())
    }

    fn goodbye(&mut self, goodbye: Goodbye) -> Result<(), LinkError> {
        if goodbye == Goodbye::Unprotected {
            // The state lies in memory only: letting it go is as durable as it can be.
            self.state = None;
            self.session.goodbye(&mut self.frames, Goodbye::Outdated);
            self.flush()?;
        }
        self.server.tell(PassiveEvent::Goodbye(goodbye));
        Err(LinkError::Closed)
    }
}

fn disk_failed(error: &PassiveDiskError) -> LinkError {
    LinkError::Disk(crate::exit::chain(error))
}

/// What a caller with another wish is told.
fn other_purpose(ours: Purpose) -> Refusal {
    let text = match ours {
        Purpose::Migration => {
            "it waits for a migration: use migrate tcp:HOST:PORT, or start it with --incoming \
             kemari:tcp:ADDR:PORT for replication"
        }
        Purpose::Replication | Purpose::Snapshot => {
            "it waits for replication: use migrate -d kemari:tcp:HOST:PORT, or start it with \
             --incoming tcp:ADDR:PORT for a migration"
        }
    };
    Refusal::NotWaiting {
        text: text.to_owned(),
    }
}

/// RAM as of the checkpoint accepted last: it is merged before the next frame is read.
pub(super) struct Shadow<'a>(pub(super) &'a GuestRam);

impl GuestPages for Shadow<'_> {
    fn read(&self, index: PageIndex, page: &mut [u8; PAGE_BYTES]) -> bool {
        self.0
            .read_page(kemari_vmm::PageIndex(index.0), page)
            .is_ok()
    }
}

/// Writes pages to RAM.
pub(super) fn merge<'p>(
    ram: &GuestRam,
    mut pages: impl Iterator<Item = (PageIndex, PageContent<'p>)>,
) -> Result<(), LinkError> {
    pages.try_for_each(|(index, content)| merge_page(ram, index, content))
}

/// Writes a page to RAM. One that is zero already is left alone, so that memory never touched
/// stays unallocated.
pub(super) fn merge_page(
    ram: &GuestRam,
    index: PageIndex,
    content: PageContent<'_>,
) -> Result<(), LinkError> {
    let failed = |error: kemari_vmm::PageAccessError| LinkError::State(error.to_string());
    let page = kemari_vmm::PageIndex(index.0);
    if content == PageContent::Zero {
        let mut present = [0; PAGE_BYTES];
        ram.read_page(page, &mut present).map_err(failed)?;
        if present == [0; PAGE_BYTES] {
            return Ok(());
        }
    }
    ram.write_page(page, content.bytes()).map_err(failed)
}
