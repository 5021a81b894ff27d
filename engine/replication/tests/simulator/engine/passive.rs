// SPDX-License-Identifier: Apache-2.0
//! The passive side (`engine/src/link/passive.rs`): a listener that either receives checkpoints or
//! says why it does not, one connection at a time.

use std::collections::VecDeque;
use std::time::Duration;

use kemari_replication::Generation;
use kemari_replication::passive::{
    Call, Checkpoint, PassiveAction, PassiveConfig, PassiveSession, Replica,
};
use kemari_replication::wire::{Goodbye, Refusal, VmIdentity};

use super::reader::{LinkError, Next, Reader};
use super::{Engine, Input};
use crate::env::Env;
use crate::guest::{Registers, layout};
use crate::mutant::Mutant;
use crate::network::{ConnId, Side};
use crate::profile::{COPY_PATIENCE, QUEUE_BYTES, SILENCE_MAX};

/// The VM of all histories.
pub fn identity() -> VmIdentity {
    VmIdentity {
        vm: "vm".parse().expect("a valid name"),
        fingerprint: vec![1, 2, 3],
    }
}

/// What the listener tells the conductor.
#[derive(Debug)]
pub enum PassiveEvent {
    Joined {
        generation: Generation,
        in_sync: bool,
    },
    Copying,
    Committed,
    Goodbye(Goodbye),
    Lost,
}

/// What a replica holds between connections.
#[derive(Debug)]
pub struct Held {
    pub replica: Replica,
    pub state: Option<Registers>,
}

#[derive(Debug, Clone, Copy)]
enum Mode {
    Receiving,
    Refusing(Generation),
}

/// The listener.
#[derive(Debug)]
pub struct Endpoint {
    mode: Mode,
    /// `None` while a connection is being served.
    held: Option<Held>,
    serving: Option<Box<Reception>>,
    backlog: VecDeque<ConnId>,
}

/// One connection.
#[derive(Debug)]
struct Reception {
    reader: Reader,
    session: PassiveSession,
    state: Option<Registers>,
    /// Callers are refused, since this replica is of this generation.
    refuses: Option<Generation>,
    frames: Vec<u8>,
    welcomed: bool,
    committed: bool,
    sign_of_life: Duration,
}

impl Reception {
    fn into_held(self) -> Held {
        let mut replica = self.session.into_replica();
        if self.state.is_none() {
            // Protocol and process must agree that there is nothing to run from.
            replica.outdate(replica.generation());
        }
        let state = self.state;
        Held { replica, state }
    }
}

impl Endpoint {
    pub const fn new(held: Held) -> Self {
        Self {
            mode: Mode::Receiving,
            held: Some(held),
            serving: None,
            backlog: VecDeque::new(),
        }
    }

    /// From now on callers are welcomed; `held` is what the replica starts from.
    pub fn receive(&mut self, held: Held) {
        self.held = Some(held);
        self.mode = Mode::Receiving;
    }

    pub fn check_bounds(&self) {
        let serving = self.serving.as_ref().map(|one| one.session.replica());
        let replica = serving.or_else(|| self.held.as_ref().map(|held| &held.replica));
        if let Some(replica) = replica {
            let cost = Engine::cost_of(replica.retained().replay());
            assert!(cost < 4 * QUEUE_BYTES, "{cost} bytes of outputs retained");
        }
    }
}

impl Engine {
    /// Ends what is being received, refuses callers from now on, and returns what is held.
    pub(super) fn seize(&mut self, env: &mut Env, generation: Generation) -> Option<Held> {
        self.endpoint.mode = Mode::Refusing(generation);
        if let Some(reception) = self.endpoint.serving.take() {
            self.end_reception(env, *reception);
        }
        self.endpoint.held.take()
    }

    fn end_reception(&mut self, env: &mut Env, reception: Reception) {
        env.close(reception.reader.conn, Side::Callee);
        if reception.refuses.is_none() {
            // After a refusal nothing has changed.
            if reception.welcomed {
                self.hear(env, Input::Passive(PassiveEvent::Lost));
            }
            self.endpoint.held = Some(reception.into_held());
        }
        self.accept(env);
    }

    /// The kernel has a caller for the listener.
    pub fn called(&mut self, env: &mut Env, conn: ConnId) {
        self.endpoint.backlog.push_back(conn);
        self.accept(env);
    }

    /// Serves the next caller, if nobody is being served.
    fn accept(&mut self, env: &mut Env) {
        if self.endpoint.serving.is_some() {
            return;
        }
        if let Some(conn) = self.endpoint.backlog.front() {
            self.read_soon(env, *conn);
        }
    }

    fn begin(&mut self, env: &Env, conn: ConnId) -> Reception {
        let config = PassiveConfig {
            identity: identity(),
            node: ["a", "b"][self.host].parse().expect("a valid name"),
            ram: layout(),
            disks: Vec::new(),
            difference: |_, _| Some("the fingerprint differs".to_owned()),
        };
        let (held, refuses) = match (self.endpoint.mode, self.endpoint.held.take()) {
            (Mode::Receiving, Some(held)) => (held, None),
            (Mode::Refusing(generation), held) => {
                self.endpoint.held = held;
                (empty(), Some(generation))
            }
            (Mode::Receiving, None) => (empty(), Some(Generation::default())),
        };
        Reception {
            reader: Reader::new(env, conn, Side::Callee, SILENCE_MAX),
            session: PassiveSession::new(config, held.replica),
            state: held.state,
            refuses,
            frames: Vec::new(),
            welcomed: false,
            committed: false,
            sign_of_life: env.local(self.host),
        }
    }

    /// One turn of the listener's thread.
    pub(super) fn serve(&mut self, env: &mut Env, conn: ConnId) {
        let mut reception = match self.endpoint.serving.take() {
            None if self.endpoint.backlog.front() == Some(&conn) => {
                self.endpoint.backlog.pop_front();
                self.begin(env, conn)
            }
            None => return,
            Some(other) if other.reader.conn != conn => {
                self.endpoint.serving = Some(other);
                return;
            }
            Some(reception) => *reception,
        };
        match self.receive_one(env, &mut reception) {
            Ok(()) => self.endpoint.serving = Some(Box::new(reception)),
            Err(error) => {
                env.tell(self.host, || format!("reception ends: {error:?}"));
                if matches!(error, LinkError::Protocol(_)) {
                    env.counts.broken += 1;
                }
                self.end_reception(env, reception);
            }
        }
    }

    /// Takes one frame, if there is one. An error ends the connection.
    fn receive_one(&mut self, env: &mut Env, to: &mut Reception) -> Result<(), LinkError> {
        let (header, payload) = match to.reader.next(env, self.host, self.life) {
            Next::Nothing => return Ok(()),
            Next::Lost(error) => return Err(error),
            Next::Frame(header, payload) => (header, payload),
        };
        let action = to.session.on_frame(&header, &payload, &self.machine);
        match action.map_err(|error| LinkError::Protocol(error.to_string()))? {
            PassiveAction::Continue => {}
            PassiveAction::Answer(call) => self.answer(env, to, &call)?,
            PassiveAction::Refuse(refusal) => return Err(refuse(env, to, refusal)),
            PassiveAction::Copy(pages) => {
                if to.state.take().is_some() {
                    self.hear(env, Input::Passive(PassiveEvent::Copying));
                }
                let copied: Result<(), std::convert::Infallible> = pages.apply(|index, content| {
                    self.machine.merge(index, content);
                    Ok(())
                });
                let Ok(()) = copied;
            }
            PassiveAction::CopyDisk(_)
            | PassiveAction::Compare(_)
            | PassiveAction::TellChanges(_)
            | PassiveAction::MakeDurable(_) => {
                unreachable!("the simulated VM has no disk, so its sessions refuse them")
            }
            PassiveAction::Complete(checkpoint) => {
                self.commit(env, to, checkpoint)?;
                if !std::mem::replace(&mut to.committed, true) {
                    to.reader.silence_max = SILENCE_MAX;
                }
            }
            PassiveAction::Alive => {
                to.session.heartbeat(&mut to.frames);
                flush(env, to);
            }
            PassiveAction::Goodbye(goodbye) => return Err(self.goodbye(env, to, goodbye)),
        }
        let now = env.local(self.host);
        if to.welcomed && now >= to.sign_of_life + SILENCE_MAX / 4 {
            to.session.heartbeat(&mut to.frames);
            flush(env, to);
            to.sign_of_life = now;
        }
        Ok(())
    }

    fn answer(&mut self, env: &mut Env, to: &mut Reception, call: &Call) -> Result<(), LinkError> {
        if let Some(generation) = to.refuses {
            let refusal = if call.generation < generation {
                Refusal::Outdated { generation }
            } else {
                Refusal::NotWaiting {
                    text: "it is active itself".into(),
                }
            };
            return Err(refuse(env, to, refusal));
        }
        to.session.welcome(&mut to.frames);
        to.welcomed = true;
        if to.session.replica().held().is_none() {
            to.state = None;
        }
        flush(env, to);
        let joined = PassiveEvent::Joined {
            generation: call.generation,
            in_sync: to.state.is_some(),
        };
        self.hear(env, Input::Passive(joined));
        to.reader.silence_max = SILENCE_MAX * COPY_PATIENCE;
        Ok(())
    }

    /// "I can run from this": everything is here, verified, and the state decodes.
    fn commit(
        &mut self,
        env: &mut Env,
        to: &mut Reception,
        mut checkpoint: Checkpoint,
    ) -> Result<(), LinkError> {
        if env.is(Mutant::AckBeforeDecode) {
            to.session.accept(&mut checkpoint, &mut to.frames);
            flush(env, to);
            to.state = Some(Registers::decode(&checkpoint.state).ok_or(LinkError::State)?);
        } else {
            let state = Registers::decode(&checkpoint.state).ok_or(LinkError::State)?;
            to.session.accept(&mut checkpoint, &mut to.frames);
            to.state = Some(state);
            flush(env, to);
        }
        for (index, content) in checkpoint.pages.iter() {
            self.machine.merge(index, content);
        }
        self.judge(env, to);
        self.hear(env, Input::Passive(PassiveEvent::Committed));
        to.session.recycle(checkpoint);
        Ok(())
    }

    /// The state is the one the active side had at the cut.
    fn judge(&mut self, env: &mut Env, to: &Reception) {
        let held = to.session.replica().held().expect("just accepted");
        let state = to.state.expect("just decoded");
        env.counts.commits += 1;
        env.tell(self.host, || format!("holds {held:?}"));
        let hash = self.machine.hash(&state);
        let newest = env.newest;
        env.outside.holds(held.generation, held.epoch, hash, newest);
    }

    fn goodbye(&mut self, env: &mut Env, to: &mut Reception, goodbye: Goodbye) -> LinkError {
        if goodbye == Goodbye::Unprotected {
            to.state = None;
            to.session.goodbye(&mut to.frames, Goodbye::Outdated);
            flush(env, to);
        }
        self.hear(env, Input::Passive(PassiveEvent::Goodbye(goodbye)));
        LinkError::Closed
    }
}

fn empty() -> Held {
    Held {
        replica: Replica::default(),
        state: None,
    }
}

fn refuse(env: &mut Env, to: &mut Reception, refusal: Refusal) -> LinkError {
    to.session.refuse(&mut to.frames, &refusal);
    flush(env, to);
    LinkError::Refused(refusal)
}

fn flush(env: &mut Env, to: &mut Reception) {
    if !to.frames.is_empty() {
        env.write(to.reader.conn, Side::Callee, &to.frames);
        to.frames.clear();
    }
}
