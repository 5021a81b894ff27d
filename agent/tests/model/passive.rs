// SPDX-License-Identifier: Apache-2.0
//! The passive side: a listener that receives checkpoints or says why it does not, one connection
//! at a time (`engine/src/link/passive.rs`).

use std::hash::{Hash, Hasher};

use kemari_api::{Generation, Role};
use kemari_replication::passive::{PassiveAction, PassiveConfig, PassiveSession, Replica};
use kemari_replication::wire::{FrameDecoder, Goodbye, Refusal, VmIdentity};
use kemari_replication::{NoPages, RamLayout};

use super::engine::{Around, Engine};
use super::outside::Guest;
use super::setup::Variant;
use super::world::{name, vm};

pub fn identity() -> VmIdentity {
    VmIdentity {
        vm: vm(),
        fingerprint: vec![1],
    }
}

fn config(host: usize) -> PassiveConfig {
    PassiveConfig {
        identity: identity(),
        node: name(host),
        ram: RamLayout::new(std::iter::once(0..1).collect()).expect("one page"),
        disks: Vec::new(),
        difference: |_, _| Some("the fingerprint differs".to_owned()),
    }
}

/// What a replica holds between connections.
#[derive(Debug, Clone, Hash)]
pub struct Held {
    pub replica: Replica,
    pub guest: Option<Guest>,
}

impl Held {
    pub fn nothing(generation: Generation) -> Self {
        Self {
            replica: Replica::new(generation),
            guest: None,
        }
    }
}

/// One connection that may be welcomed.
#[derive(Debug, Clone)]
pub struct Reception {
    pub from: usize,
    session: Box<PassiveSession>,
    guest: Option<Guest>,
}

impl Hash for Reception {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // All that a session shows of itself.
        format!("{:?}", self.session).hash(state);
        (self.from, &self.guest).hash(state);
    }
}

impl Reception {
    fn into_held(self) -> Held {
        let mut replica = self.session.into_replica();
        if self.guest.is_none() {
            // Protocol and process must agree that there is nothing to run from.
            replica.outdate(replica.generation());
        }
        Held {
            replica,
            guest: self.guest,
        }
    }
}

/// The listener.
#[derive(Debug, Clone, Hash)]
pub struct Endpoint {
    /// Callers are refused, since this replica is of this generation.
    refuses: Option<Generation>,
    /// `None` while a connection is being served.
    held: Option<Held>,
    pub serving: Option<Reception>,
}

/// How a reception ends.
enum End {
    /// After a refusal nothing has changed.
    Refused,
    Lost,
}

impl Endpoint {
    pub const fn new(held: Held) -> Self {
        Self {
            refuses: None,
            held: Some(held),
            serving: None,
        }
    }

    /// From now on callers are welcomed.
    pub fn receive(&mut self, held: Held) {
        self.held = Some(held);
        self.refuses = None;
    }

    /// Whether a caller is read from now.
    pub fn serves(&self, caller: usize) -> bool {
        self.serving
            .as_ref()
            .is_none_or(|reception| reception.from == caller)
    }
}

impl Engine {
    /// What a promotion would run from, for the checker.
    pub fn runnable(&self) -> Option<&Guest> {
        let serving = self.endpoint.serving.as_ref();
        let held = self.endpoint.held.as_ref();
        serving.map_or_else(
            || held.and_then(|held| held.guest.as_ref()),
            |reception| reception.guest.as_ref(),
        )
    }

    /// Ends what is being received, refuses callers from now on, and returns what is held.
    pub(super) fn seize(
        &mut self,
        around: &mut Around<'_>,
        generation: Generation,
    ) -> Option<Held> {
        self.endpoint.refuses = Some(generation);
        if let Some(reception) = self.endpoint.serving.take() {
            around
                .network
                .close((reception.from, around.host), around.host);
            return Some(reception.into_held());
        }
        self.endpoint.held.take()
    }

    /// A piece came from an active side.
    pub fn hear_caller(&mut self, around: &mut Around<'_>, from: usize, piece: &[u8]) {
        let mut reception = match self.endpoint.serving.take() {
            Some(reception) => reception,
            None => match (self.endpoint.refuses, self.endpoint.held.take()) {
                (None, Some(held)) => Reception {
                    from,
                    session: Box::new(PassiveSession::new(config(around.host), held.replica)),
                    guest: held.guest,
                },
                (refuses, held) => {
                    self.endpoint.held = held;
                    return refuse(around, from, piece, refuses.unwrap_or_default());
                }
            },
        };
        let mut answers = Vec::new();
        let end = self.receive(around, &mut reception, piece, &mut answers);
        around
            .network
            .send((from, around.host), around.host, answers);
        match end {
            Ok(()) => self.endpoint.serving = Some(reception),
            Err(end) => self.end_reception(around, reception, &end),
        }
    }

    fn end_reception(&mut self, around: &mut Around<'_>, reception: Reception, end: &End) {
        around
            .network
            .close((reception.from, around.host), around.host);
        self.endpoint.held = Some(reception.into_held());
        let receives = self.role == Role::Passive;
        if receives && !self.in_sync && matches!(end, End::Lost) {
            self.lose_state();
        }
    }

    /// The connection is dead.
    pub fn caller_lost(&mut self, around: &mut Around<'_>, from: usize) {
        match self.endpoint.serving.take() {
            Some(reception) if reception.from == from => {
                self.end_reception(around, reception, &End::Lost);
            }
            other => {
                self.endpoint.serving = other;
                around.network.close((from, around.host), around.host);
            }
        }
    }

    fn receive(
        &mut self,
        around: &mut Around<'_>,
        reception: &mut Reception,
        piece: &[u8],
        answers: &mut Vec<u8>,
    ) -> Result<(), End> {
        let mut decoder = FrameDecoder::new();
        decoder.push(piece);
        while let Some((header, payload)) = decoder.next_frame().expect("whole frames") {
            let session = &mut reception.session;
            match session.on_frame(&header, payload, &NoPages) {
                Err(_) => return Err(End::Lost),
                Ok(PassiveAction::Refuse(refusal)) => {
                    session.refuse(answers, &refusal);
                    return Err(End::Refused);
                }
                Ok(PassiveAction::Answer(call)) => {
                    session.welcome(answers);
                    if session.replica().held().is_none() {
                        reception.guest = None;
                    }
                    self.role = Role::Passive;
                    self.in_sync = reception.guest.is_some();
                    self.generation = self.generation.max(call.generation);
                    self.peer = Some(reception.from);
                }
                Ok(PassiveAction::Copy(_)) => {
                    if reception.guest.take().is_some() {
                        self.in_sync = false;
                    }
                }
                Ok(PassiveAction::Complete(mut checkpoint)) => {
                    let decoded = Guest::decode(&checkpoint.state);
                    if decoded.is_none() && !around.setup.is(Variant::AckBeforeDecode) {
                        return Err(End::Lost);
                    }
                    session.accept(&mut checkpoint, answers);
                    session.recycle(checkpoint);
                    if let Some(guest) = decoded {
                        around.outside.holds(&guest);
                        reception.guest = Some(guest);
                        self.role = Role::Passive;
                        self.in_sync = true;
                    }
                }
                Ok(PassiveAction::Goodbye(Goodbye::Unprotected)) => {
                    reception.guest = None;
                    self.lose_state();
                    return Err(End::Lost);
                }
                Ok(PassiveAction::Goodbye(_)) => return Err(End::Lost),
                Ok(_) => {}
            }
        }
        Ok(())
    }
}

/// Reads the greeting, then refuses.
fn refuse(around: &mut Around<'_>, from: usize, piece: &[u8], generation: Generation) {
    let mut session = PassiveSession::new(config(around.host), Replica::default());
    let mut decoder = FrameDecoder::new();
    decoder.push(piece);
    let (header, payload) = decoder
        .next_frame()
        .expect("a whole frame")
        .expect("a greeting");
    let mut answer = Vec::new();
    if let Ok(PassiveAction::Answer(call)) = session.on_frame(&header, payload, &NoPages) {
        let refusal = if call.generation < generation {
            Refusal::Outdated { generation }
        } else {
            Refusal::NotWaiting {
                text: "it is active itself".to_owned(),
            }
        };
        session.refuse(&mut answer, &refusal);
    }
    let key = (from, around.host);
    around.network.send(key, around.host, answer);
    around.network.close(key, around.host);
}
