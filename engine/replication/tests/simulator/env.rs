// SPDX-License-Identifier: Apache-2.0
//! What every part of the simulator shares: time, chance, network, outside, disks and the trace.

use std::fmt::Display;
use std::time::Duration;

use kemari_replication::Generation;

use super::agents::{Order, View, Word};
use super::mutant::Mutant;
use super::network::{ConnId, Network, Side};
use super::outside::Outside;
use super::profile::Profile;
use super::schedule::{Clock, Nanos, Queue};

/// 0 or 1: the two hosts. A replica's peer is always on the other one.
pub type HostId = usize;

/// Which life of an engine process an event is for.
pub type Life = u32;

/// What happens next.
#[derive(Debug, Clone)]
pub enum Event {
    /// The conductor has something to hear or to do.
    Conductor(HostId, Life),
    /// The guest executes a step.
    Guest(HostId, Life),
    /// The carrier begins or ends to let an output out.
    Carrier(HostId, Life),
    /// A link's writer hands its oldest buffer to the kernel.
    Writer(HostId, Life, ConnId),
    /// Whoever reads this connection looks at it.
    Reader(HostId, Life, ConnId),
    /// Bytes written by this side arrive.
    Arrive(ConnId, Side),
    /// An agent looks at what it knows.
    Agent(HostId),
    /// Corosync's word reaches an agent.
    View(HostId, View),
    /// Another agent's word reaches it.
    Word(HostId, Word),
    /// An agent's order reaches the engine of this life.
    Order(HostId, Life, Order),
    /// Somebody asks for an engine process.
    StartEngine(HostId),
    Boot(HostId),
    Thaw(HostId),
    Heal,
    Unstall(ConnId, Side),
    /// No more faults from now on.
    Quiet,
    End,
}

impl Event {
    /// The host whose processes it concerns; nothing happens to them while it is frozen.
    pub const fn host(&self) -> Option<HostId> {
        match self {
            Self::Conductor(host, _)
            | Self::Guest(host, _)
            | Self::Carrier(host, _)
            | Self::Writer(host, ..)
            | Self::Reader(host, ..)
            | Self::Agent(host)
            | Self::View(host, _)
            | Self::Word(host, _)
            | Self::Order(host, ..)
            | Self::StartEngine(host) => Some(*host),
            _ => None,
        }
    }
}

/// How often things happened, to see that a history was about something.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    pub events: u64,
    pub outputs: u64,
    pub repeats: u64,
    pub sessions: u64,
    pub copies: u64,
    pub resumed: u64,
    pub commits: u64,
    pub failovers: u64,
    pub handovers: u64,
    pub solos: u64,
    pub reverts: u64,
    pub cold_starts: u64,
    pub outdated: u64,
    pub refusals: u64,
    pub broken: u64,
    pub undecodable: u64,
    pub crashes: u64,
    pub kills: u64,
    pub freezes: u64,
    pub cuts: u64,
    pub frames_hit: u64,
    pub power_offs: u64,
    pub disk_errors: u64,
    pub full_queues: u64,
}

impl Counts {
    /// Adds those of another history.
    pub const fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.outputs += other.outputs;
        self.repeats += other.repeats;
        self.sessions += other.sessions;
        self.copies += other.copies;
        self.resumed += other.resumed;
        self.commits += other.commits;
        self.failovers += other.failovers;
        self.handovers += other.handovers;
        self.solos += other.solos;
        self.reverts += other.reverts;
        self.cold_starts += other.cold_starts;
        self.outdated += other.outdated;
        self.refusals += other.refusals;
        self.broken += other.broken;
        self.undecodable += other.undecodable;
        self.crashes += other.crashes;
        self.kills += other.kills;
        self.freezes += other.freezes;
        self.cuts += other.cuts;
        self.frames_hit += other.frames_hit;
        self.power_offs += other.power_offs;
        self.disk_errors += other.disk_errors;
        self.full_queues += other.full_queues;
    }
}

/// The licence record of an engine on a host's disk: only the newest generation is ever read.
#[derive(Debug, Clone, Copy, Default)]
pub struct Disk {
    pub generation: Generation,
}

/// Where the story of a history goes.
#[derive(Debug)]
pub enum Trace {
    Off,
    Print,
    Keep(Vec<String>),
}

/// Everything shared.
#[derive(Debug)]
pub struct Env {
    pub queue: Queue<Event>,
    pub rng: fastrand::Rng,
    pub profile: Profile,
    pub network: Network,
    pub outside: Outside,
    pub clocks: [Clock; 2],
    pub disks: [Disk; 2],
    /// The newest generation a majority of agents granted.
    pub newest: Generation,
    /// Faults still happen.
    pub faults: bool,
    pub mutant: Option<Mutant>,
    pub counts: Counts,
    pub trace: Trace,
}

impl Env {
    pub fn local(&self, host: HostId) -> Duration {
        self.clocks[host].reads(self.queue.now())
    }

    pub const fn now(&self) -> Nanos {
        self.queue.now()
    }

    /// One chance in so many; never once faults have ended.
    pub fn fault(&mut self, one_in: u32) -> bool {
        one_in > 0 && self.faults && self.rng.u32(0..one_in) == 0
    }

    /// A time between these.
    pub fn between(&mut self, least: Nanos, most: Nanos) -> Nanos {
        self.rng.u64(least..=most)
    }

    /// Mostly short; now and then long.
    pub fn delay(&mut self, usual: Nanos, long: Nanos) -> Nanos {
        if self.fault(self.profile.long_delay) {
            self.between(usual, long)
        } else {
            self.between(usual / 8, usual)
        }
    }

    /// Whether this history's engines have this fault.
    pub fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    /// A line of the story.
    pub fn tell<D: Display>(&mut self, host: HostId, text: impl FnOnce() -> D) {
        self.line(|| format!("{} {}", ["a", "b"][host], text()));
    }

    pub fn line(&mut self, text: impl FnOnce() -> String) {
        let at = self.queue.now();
        let stamped = |text: String| format!("{:>9.3} ms  {text}", at as f64 / 1e6);
        match &mut self.trace {
            Trace::Off => {}
            Trace::Print => println!("{}", stamped(text())),
            Trace::Keep(lines) => lines.push(stamped(text())),
        }
    }
}
