// SPDX-License-Identifier: Apache-2.0
//! Where callers of a passive replica wait until it is clear who they are.
//!
//! Whoever connects has a thread of its own until it has proved itself, where the transport asks
//! for that, and has sent its whole greeting; then it waits for its turn. So a caller that says
//! nothing, or the wrong things, keeps nobody waiting and touches nothing the replica holds. Each
//! has until a deadline, and of too many that have not got so far the oldest must go.

use std::collections::VecDeque;
use std::io;
use std::sync::mpsc::{self, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use kemari_replication::NoPages;
use kemari_replication::passive::{PassiveAction, PassiveConfig, PassiveSession, Replica};
use kemari_replication::wire::Refusal;
use kemari_transport::{Caller, Connection, Hangup, Listener};

use super::arrivals::{Arrivals, CallNumber, Who};
use super::{FrameReader, LinkError};
use crate::sandbox;

/// So many may be in the course of proving themselves.
const STRANGERS_MAX: usize = 32;
/// So many that have may wait for their turn.
const GUESTS_MAX: usize = 8;

/// A caller that may be served.
#[derive(Debug)]
pub struct Guest {
    /// Where it calls from.
    pub name: String,
    /// Which address of this node it has reached.
    pub at: String,
    /// Who it says it is, where its greeting is one.
    pub who: Option<Who>,
    /// Which call it is.
    pub number: CallNumber,
    /// To it.
    pub connection: Connection,
    /// From it; the greeting is there.
    pub reader: FrameReader,
}

/// Starts to accept; guests come out in the order in which they have greeted.
pub fn open(
    listener: Listener,
    patience: Duration,
    config: PassiveConfig,
    arrivals: Arc<Arrivals>,
) -> io::Result<mpsc::Receiver<Guest>> {
    let (inside, guests) = mpsc::sync_channel(GUESTS_MAX);
    let door = Door {
        patience,
        config,
        inside,
        arrivals,
        strangers: Arc::default(),
    };
    thread::Builder::new()
        .name("door".into())
        .spawn(move || door.run(&listener))?;
    Ok(guests)
}

#[derive(Clone)]
struct Door {
    /// From the connection to the end of the greeting.
    patience: Duration,
    /// For the identity that a refused caller is told.
    config: PassiveConfig,
    inside: SyncSender<Guest>,
    arrivals: Arc<Arrivals>,
    strangers: Arc<Mutex<Strangers>>,
}

/// Those who have not yet proved anything, the oldest first.
#[derive(Default)]
struct Strangers {
    waiting: VecDeque<Stranger>,
    /// That there are too many was said, and there were some all the time since.
    crowded: bool,
}

/// Somebody who has not yet proved anything.
struct Stranger {
    number: u64,
    hangup: Hangup,
}

impl Strangers {
    fn add(&mut self, stranger: Stranger) {
        if self.waiting.len() >= STRANGERS_MAX
            && let Some(oldest) = self.waiting.pop_front()
        {
            if !std::mem::replace(&mut self.crowded, true) {
                tracing::warn!(
                    "More than {STRANGERS_MAX} callers of the replication port have said nothing \
                     yet: hanging up on the oldest. Who else reaches this port?"
                );
            }
            oldest.hangup.shut();
        }
        self.waiting.push_back(stranger);
    }

    fn remove(&mut self, number: u64) {
        self.waiting.retain(|stranger| stranger.number != number);
        self.crowded &= !self.waiting.is_empty();
    }
}

impl Door {
    fn run(&self, listener: &Listener) {
        sandbox::enter(sandbox::Kind::Door);
        for number in 0.. {
            let begun = listener
                .accept()
                .and_then(|caller| self.let_wait(number, caller));
            if let Err(error) = begun {
                tracing::warn!(%error, "cannot accept a replication connection");
                thread::sleep(Duration::from_millis(100));
            }
        }
    }

    fn let_wait(&self, number: u64, caller: Caller) -> io::Result<()> {
        let hangup = caller.hangup()?;
        self.strangers().add(Stranger { number, hangup });
        let door = self.clone();
        let started = thread::Builder::new()
            .name("door-caller".into())
            .spawn(move || {
                sandbox::enter(sandbox::Kind::Caller);
                door.receive(number, caller);
            });
        if started.is_err() {
            self.forget(number);
        }
        started.map(drop)
    }

    fn strangers(&self) -> MutexGuard<'_, Strangers> {
        self.strangers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn forget(&self, number: u64) {
        self.strangers().remove(number);
    }

    fn receive(&self, number: u64, caller: Caller) {
        let (name, at) = (caller.name().to_owned(), caller.at().to_owned());
        let greeted = self.hear(caller);
        self.forget(number);
        let (connection, reader) = match greeted {
            Ok(greeted) => greeted,
            // Whether a port answers is often tried.
            Err(LinkError::Closed) => {
                return tracing::debug!(
                    caller = %name, "replication connection ended: closed before a greeting"
                );
            }
            Err(error) => {
                return tracing::warn!(caller = %name, "refused a replication connection: {error}");
            }
        };
        let who = self.who(&reader);
        let number = CallNumber(number);
        let guest = Guest {
            name,
            at,
            who: who.clone(),
            number,
            connection,
            reader,
        };
        match self.inside.try_send(guest) {
            Ok(()) => {
                if let Some(who) = who {
                    self.arrivals.arrived(&who, number);
                }
            }
            // The replica is ending.
            Err(TrySendError::Disconnected(_)) => {}
            Err(TrySendError::Full(guest)) => {
                tracing::warn!(
                    caller = %guest.name,
                    "refused a replication connection: {GUESTS_MAX} others wait for their turn"
                );
            }
        }
    }

    /// Makes sure who it is and reads its greeting.
    fn hear(&self, caller: Caller) -> Result<(Connection, FrameReader), LinkError> {
        let deadline = Instant::now() + self.patience;
        let connection = caller.greet(deadline).map_err(LinkError::Tls)?;
        let mut reader =
            FrameReader::new(connection.clone(), self.patience).map_err(LinkError::Io)?;
        match reader.read_greeting(deadline) {
            Ok(()) => Ok((connection, reader)),
            Err(LinkError::SpeaksTls) => {
                self.answer_tls(&connection);
                Err(LinkError::SpeaksTls)
            }
            Err(error) => Err(error),
        }
    }

    /// Who greets, if it is an active replica of this VM.
    fn who(&self, reader: &FrameReader) -> Option<Who> {
        let (header, payload) = reader.greeting()?;
        let mut session = PassiveSession::new(self.config.clone(), Replica::default());
        match session.on_frame(&header, payload, &NoPages) {
            Ok(PassiveAction::Answer(call)) => Some(Who {
                node: call.node,
                generation: call.generation,
            }),
            _ => None,
        }
    }

    /// A frame where TLS is expected: by it the other side knows what it has met.
    fn answer_tls(&self, connection: &Connection) {
        let mut frames = Vec::new();
        let refusal = Refusal::NotWaiting {
            text: LinkError::SpeaksTls.to_string(),
        };
        PassiveSession::new(self.config.clone(), Replica::default()).refuse(&mut frames, &refusal);
        // Where it does not arrive, the end of the connection does.
        let _ = connection.set_send_patience(self.patience);
        let _ = connection.send(&frames);
        connection.finish();
    }
}
