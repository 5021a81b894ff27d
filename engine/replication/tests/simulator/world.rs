// SPDX-License-Identifier: Apache-2.0
//! One history: two hosts, a witness, a network and an outside, from a seed to its end.

use super::agents::{Agent, Order, View, Votes};
use super::engine::{Engine, Input, Role};
use super::env::{Counts, Disk, Env, Event, HostId, Life, Trace};
use super::mutant::Mutant;
use super::network::{ConnId, Network, Side};
use super::outside::Outside;
use super::profile::{Profile, RECOVERY_MAX};
use super::schedule::{Clock, MS, Queue};
use kemari_replication::Generation;
use kemari_replication::licence::Licence;

/// One host. What survives a crash is its disk.
#[derive(Debug, Default)]
pub struct Host {
    pub frozen: bool,
    /// What would have happened while it was frozen.
    deferred: Vec<Event>,
    pub engine: Option<Engine>,
    pub agent: Agent,
    lives: Life,
}

impl Host {
    /// Its agent has asked something of the engine and has no answer yet.
    pub fn order_is_open(&self) -> bool {
        self.agent.ordered || self.engine.as_ref().is_some_and(Engine::owes_answer)
    }
}

/// The whole.
#[derive(Debug)]
pub struct World {
    pub env: Env,
    pub hosts: [Host; 2],
    pub votes: Votes,
    /// The witness can be reached.
    pub witness: bool,
    /// How often the VM booted from nothing.
    pub boots: u64,
    /// Outputs seen when faults ended.
    fresh_at_quiet: Option<u64>,
}

impl World {
    pub fn new(seed: u64, mutant: Option<Mutant>, trace: Trace) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut profile = Profile::draw(&mut rng);
        if mutant == Some(Mutant::EpochFromCut) {
            // It shows where a commit takes longer than the longest epoch.
            (profile.synchronous, profile.network) = (true, 12 * MS);
        }
        let mut clock = || Clock {
            permille: rng.u64(500..=2000),
        };
        let clocks = [clock(), clock()];
        let env = Env {
            queue: Queue::new(),
            rng,
            profile,
            network: Network::new(),
            outside: Outside::default(),
            clocks,
            disks: [Disk::default(); 2],
            newest: Generation::default(),
            faults: true,
            mutant,
            counts: Counts::default(),
            trace,
        };
        Self {
            env,
            hosts: Default::default(),
            votes: Votes::default(),
            witness: true,
            boots: 0,
            fresh_at_quiet: None,
        }
    }

    /// Lives through it. Whatever must not be is a panic.
    pub fn run(mut self) -> (Counts, Trace) {
        let profile = self.env.profile;
        self.env.line(|| format!("- {profile:?}"));
        for host in [0, 1] {
            self.env.queue.put(0, Event::StartEngine(host));
            self.env.queue.put(0, Event::Agent(host));
        }
        self.membership_changed();
        self.env.queue.put(profile.faults_for, Event::Quiet);
        while let Some(event) = self.env.queue.next() {
            self.env.counts.events += 1;
            if self.env.fault(profile.upset) {
                self.upset();
            }
            if matches!(event, Event::End) {
                panic!("the VM did not get well: {}", self.describe());
            }
            self.happen(event);
            if self.is_well() {
                break;
            }
        }
        self.env.counts.repeats = self.env.outside.repeats;
        (self.env.counts, self.env.trace)
    }

    fn happen(&mut self, event: Event) {
        if let Some(host) = event.host() {
            if !self.env.network.up[host] {
                return;
            }
            if self.hosts[host].frozen {
                return self.hosts[host].deferred.push(event);
            }
        }
        match event {
            Event::Conductor(host, life) => self.with(host, life, |e, env| e.conductor(env)),
            Event::Guest(host, life) => self.with(host, life, Engine::guest),
            Event::Carrier(host, life) => self.with(host, life, Engine::carrier),
            Event::Writer(host, life, conn) => self.with(host, life, |e, env| e.writer(env, conn)),
            Event::Reader(host, life, conn) => self.with(host, life, |e, env| e.reader(env, conn)),
            Event::Arrive(conn, side) => self.arrive(conn, side),
            Event::Agent(host) => self.agent(host),
            Event::View(host, view) => self.hosts[host].agent.view = view,
            Event::Word(host, word) => self.hosts[host].agent.peer = Some(word),
            Event::Order(host, life, order) => self.obey(host, life, order),
            Event::StartEngine(host) => self.start_engine(host),
            Event::Boot(host) => self.boot(host),
            Event::Thaw(host) => self.thaw(host),
            Event::Heal => self.heal(),
            Event::Unstall(conn, side) => self.env.unstall(conn, side),
            Event::Quiet => self.quiet(),
            Event::End => {}
        }
    }

    /// The engine of this life, if it is still there, does something; perhaps it ends with that.
    fn with(&mut self, host: HostId, life: Life, act: impl FnOnce(&mut Engine, &mut Env)) {
        let engine = self.hosts[host].engine.as_mut();
        let Some(engine) = engine.filter(|engine| engine.life == life) else {
            return;
        };
        act(engine, &mut self.env);
        if let Some(why) = engine.end.take() {
            self.stop_engine(host, &why);
        }
        self.one_licence();
    }

    /// At most one replica lets everything out.
    fn one_licence(&self) {
        let solo = |host: &Host| {
            let licence = host.engine.as_ref().map(Engine::licence);
            matches!(licence, Some(Licence::Solo { .. }))
        };
        assert!(
            !(solo(&self.hosts[0]) && solo(&self.hosts[1])),
            "two replicas are solo"
        );
    }

    fn arrive(&mut self, conn: ConnId, side: Side) {
        let called = self.env.arrive(conn, side);
        let host = self.env.network.host(conn, side.other());
        match &mut self.hosts[host].engine {
            Some(engine) if called => engine.called(&mut self.env, conn),
            None if called => self.env.reset(conn, side),
            Some(engine) => {
                let event = Event::Reader(host, engine.life, conn);
                self.env.queue.put(0, event);
            }
            None => {}
        }
    }

    fn obey(&mut self, host: HostId, life: Life, order: Order) {
        self.hosts[host].agent.ordered = false;
        self.with(host, life, |engine, env| {
            engine.hear(env, Input::Request(order));
        });
    }

    pub fn start_engine(&mut self, host: HostId) {
        if self.hosts[host].engine.is_none() {
            self.hosts[host].lives += 1;
            let life = self.hosts[host].lives;
            self.hosts[host].engine = Some(Engine::start(&mut self.env, host, life));
        }
    }

    /// The process ends; its kernel closes its connections. Somebody starts another one.
    pub fn stop_engine(&mut self, host: HostId, why: &str) {
        if self.hosts[host].engine.take().is_some() {
            self.env.tell(host, || format!("engine ends: {why}"));
            self.env.abandon_connections(host, true);
            self.hosts[host].agent.ordered = false;
            let delay = self.env.between(MS, 30 * MS);
            self.env.queue.put(delay, Event::StartEngine(host));
        }
    }

    pub fn crash(&mut self, host: HostId) {
        self.env.counts.crashes += 1;
        self.env.tell(host, || "the host dies");
        let lives = self.hosts[host].lives;
        self.hosts[host] = Host {
            lives,
            agent: self.hosts[host].agent.reborn(),
            ..Host::default()
        };
        self.env.network.up[host] = false;
        self.env.abandon_connections(host, false);
        self.membership_changed();
    }

    fn boot(&mut self, host: HostId) {
        if self.env.network.up[host] {
            return;
        }
        self.env.tell(host, || "the host boots");
        self.env.network.up[host] = true;
        let delay = self.env.between(MS / 2, 10 * MS);
        self.env.queue.put(delay, Event::StartEngine(host));
        self.env.queue.put(delay, Event::Agent(host));
        self.env.path_changed();
        self.membership_changed();
    }

    fn thaw(&mut self, host: HostId) {
        if !std::mem::take(&mut self.hosts[host].frozen) {
            return;
        }
        self.env.tell(host, || "the host thaws");
        for event in std::mem::take(&mut self.hosts[host].deferred) {
            self.env.queue.put(0, event);
        }
        self.membership_changed();
    }

    /// Whether its agent reaches the others and is alive.
    pub fn reaches(&self, host: HostId) -> bool {
        let network = &self.env.network;
        network.up[host] && !self.hosts[host].frozen && !network.isolated[host]
    }

    /// Corosync finds out, sooner or later.
    pub fn membership_changed(&mut self) {
        for host in [0, 1] {
            let reaches = self.reaches(host);
            let peer_in = reaches && self.reaches(1 - host);
            let view = View {
                peer_in,
                quorate: peer_in || reaches && self.witness,
            };
            let at = self.hosts[host].agent.arrival(&mut self.env, 25 * MS);
            self.env.queue.put_at(at, Event::View(host, view));
        }
    }

    fn heal(&mut self) {
        self.env.line(|| "- every path is whole".to_owned());
        self.witness = true;
        self.env.network.link_cut = false;
        self.env.network.isolated = [false; 2];
        self.env.path_changed();
        self.membership_changed();
    }

    /// Faults end, and everything gets well but what only engines can mend.
    fn quiet(&mut self) {
        self.env.line(|| "- no more faults".to_owned());
        self.env.faults = false;
        self.env.heal_network();
        for host in [0, 1] {
            self.thaw(host);
            self.boot(host);
        }
        self.heal();
        self.fresh_at_quiet = Some(self.env.outside.fresh);
        self.env.queue.put(RECOVERY_MAX, Event::End);
    }

    /// A pair is in sync again, and outputs flow.
    fn is_well(&self) -> bool {
        let Some(before) = self.fresh_at_quiet else {
            return false;
        };
        let paired = self.hosts.iter().any(|host| {
            let engine = host.engine.as_ref();
            engine.is_some_and(|engine| {
                engine.role == Role::Active
                    && engine.in_sync
                    && matches!(engine.licence(), Licence::Paired { .. })
            })
        });
        paired && self.env.outside.fresh >= before + 10
    }

    fn describe(&self) -> String {
        let of = |host: &Host| match &host.engine {
            None => "no engine".to_owned(),
            Some(engine) => format!(
                "{:?} of generation {}, in sync: {}, {:?}, {:?}",
                engine.role,
                engine.generation,
                engine.in_sync,
                engine.licence(),
                engine.link()
            ),
        };
        format!("a is {}; b is {}", of(&self.hosts[0]), of(&self.hosts[1]))
    }
}
