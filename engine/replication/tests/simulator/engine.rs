// SPDX-License-Identifier: Apache-2.0
//! One engine process: the shipped state machines, put together as `engine/src/conductor` and
//! `engine/src/link` do it, without threads.
//!
//! What are threads there are events here: the conductor with its queue of inputs, the carrier, the
//! writer and the reader of each link. Between any two of them everything else can happen, so a
//! step of one of them is what a crash, a freeze or a change of role falls between. What a step
//! does to the world (a record, bytes handed to a writer) lies at its end.

mod active;
mod carrier;
mod checkpoint;
mod finish;
mod link;
mod passive;
mod reader;
mod roles;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use kemari_replication::Generation;
use kemari_replication::event_tap::{EventTap, TapConfig};
use kemari_replication::gate::OutputGate;
use kemari_replication::licence::{Licence, LicenceEvent};
use kemari_replication::passive::Replica;
use kemari_replication::trigger::TriggerConfig;

use super::env::{Env, Event, HostId, Life};
use super::guest::Machine;
use super::network::ConnId;
use super::profile::QUEUE_BYTES;
use super::schedule::{Nanos, US};
pub use active::LinkState;
use active::Progress;
use carrier::Job;
use checkpoint::Cut;
use finish::Finish;
use link::{LinkEvent, LinkId, LinkThread};
use passive::{Endpoint, Held, PassiveEvent};

/// What a replica is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Waiting,
    Passive,
    Active,
    Outdated,
}

/// What an engine is asked.
#[derive(Debug, Clone, Copy)]
pub enum Request {
    TakeOver(Generation),
    /// Boot number so and so of the VM.
    ColdStart(Generation, u64),
    GoSolo(Generation),
    Outdate(Generation),
    Protect,
    Demote,
}

/// Everything the conductor hears.
#[derive(Debug)]
pub enum Input {
    Request(Request),
    /// The first output of an epoch waits for a checkpoint.
    OutputQueued,
    PowerOff,
    Link(LinkId, LinkEvent),
    Passive(PassiveEvent),
}

/// One engine process.
#[derive(Debug)]
pub struct Engine {
    pub host: HostId,
    pub life: Life,
    pub machine: Machine,
    pub role: Role,
    pub generation: Generation,
    pub in_sync: bool,
    /// It has ended, and why.
    pub end: Option<String>,
    gate: OutputGate,
    output_since: Option<Duration>,
    writing: Option<Job>,
    /// Bytes in the queue, as the simulator counts them.
    queued_bytes: usize,
    trigger: TriggerConfig,
    inbox: VecDeque<Input>,
    wake_at: Nanos,
    link: LinkState,
    threads: Vec<LinkThread>,
    to_write: BTreeMap<ConnId, VecDeque<Vec<u8>>>,
    next_link: u64,
    progress: Progress,
    finish: Option<Finish>,
    endpoint: Endpoint,
    /// Only a faulty engine has this: a first checkpoint captured before outputs are held.
    captured_early: Option<Cut>,
}

impl Engine {
    /// A waiting replica that starts from what its disk remembers.
    pub fn start(env: &mut Env, host: HostId, life: Life) -> Self {
        let generation = env.disks[host].generation;
        env.tell(host, || {
            format!("engine {life} starts, remembers {generation}")
        });
        let mut engine = Self {
            host,
            life,
            machine: Machine::new(),
            role: Role::Waiting,
            generation,
            in_sync: false,
            end: None,
            gate: OutputGate::new(new_tap()),
            output_since: None,
            writing: None,
            queued_bytes: 0,
            trigger: TriggerConfig {
                epoch_max: Duration::from_millis(8),
                ..TriggerConfig::default()
            },
            inbox: VecDeque::new(),
            wake_at: 0,
            link: LinkState::None,
            threads: Vec::new(),
            to_write: BTreeMap::new(),
            next_link: 0,
            progress: Progress::default(),
            finish: None,
            endpoint: Endpoint::new(Held {
                replica: Replica::new(generation),
                state: None,
            }),
            captured_early: None,
        };
        engine.guest_soon(env);
        engine.conductor_soon(env);
        engine
    }

    pub const fn licence(&self) -> Licence {
        self.gate.licence()
    }

    pub const fn link(&self) -> &LinkState {
        &self.link
    }

    /// Whether something that it was asked is not answered yet.
    pub fn owes_answer(&self) -> bool {
        let asked = |input: &Input| matches!(input, Input::Request(_));
        self.inbox.iter().any(asked)
    }

    /// The conductor will hear this.
    pub fn hear(&mut self, env: &mut Env, input: Input) {
        self.inbox.push_back(input);
        self.conductor_soon(env);
    }

    fn conductor_soon(&mut self, env: &mut Env) {
        let delay = env.delay(20 * US, 5_000 * US);
        self.wake_conductor_at(env, env.now() + delay);
    }

    fn wake_conductor_at(&mut self, env: &mut Env, at: Nanos) {
        if self.wake_at > env.now() && self.wake_at <= at {
            return;
        }
        self.wake_at = at;
        env.queue.put_at(at, Event::Conductor(self.host, self.life));
    }

    /// One turn of the conductor's loop.
    pub fn conductor(&mut self, env: &mut Env) {
        if env.now() < self.wake_at {
            return;
        }
        self.wake_at = 0;
        while let Some(input) = self.inbox.pop_front() {
            self.handle(env, input);
        }
        if self.end.is_none() {
            self.work(env);
        }
        if self.end.is_some() {
            return;
        }
        self.check_bounds();
        let late = env.delay(20 * US, 8_000 * US);
        let deadline = env.clocks[self.host].when(self.next_deadline(env));
        self.wake_conductor_at(env, deadline.max(env.now()) + late);
    }

    fn handle(&mut self, env: &mut Env, input: Input) {
        if self.end.is_some() {
            return;
        }
        match input {
            Input::Request(request) => self.request(env, request),
            Input::OutputQueued => {}
            Input::PowerOff => {
                env.counts.power_offs += 1;
                env.tell(self.host, || "the guest powered itself off");
                self.begin_finish(env, Finish::power_off());
            }
            Input::Link(id, event) => self.link_event(env, id, event),
            Input::Passive(event) => self.passive_event(env, &event),
        }
    }

    /// Tells the gate; an event that does not fit is a fault of this process and a finding.
    fn tell_gate(&mut self, env: &mut Env, event: LicenceEvent) {
        let licence = self.gate.handle(event).expect("a licence event that fits");
        env.tell(self.host, || format!("{event:?}: {licence:?}"));
        self.gate_changed(env);
    }

    fn gate_changed(&mut self, env: &mut Env) {
        if !self.gate.tap().has_pending() {
            self.output_since = None;
        }
        self.carrier_soon(env);
    }

    /// Writes the licence record; a replica that cannot keep it ends.
    fn write_record(&mut self, env: &mut Env) -> bool {
        if env.fault(env.profile.disk) {
            env.counts.disk_errors += 1;
            self.end = Some("the licence record cannot be written".into());
            return false;
        }
        let disk = &mut env.disks[self.host];
        assert!(disk.generation <= self.generation, "a record went back");
        disk.generation = self.generation;
        true
    }

    fn resume_guest(&mut self) {
        if self.role == Role::Active && self.finish.is_none() {
            self.machine.executes = true;
        }
    }

    fn check_bounds(&self) {
        // One output may be pushed while there is hardly any room left; replays come on top.
        assert!(
            self.queued_bytes < 2 * QUEUE_BYTES,
            "{} bytes queued",
            self.queued_bytes
        );
        self.progress.check_bounds();
        self.endpoint.check_bounds();
    }
}

fn new_tap() -> EventTap {
    EventTap::new(&TapConfig {
        bytes_max: QUEUE_BYTES,
        ..TapConfig::default()
    })
}
