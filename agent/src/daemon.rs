// SPDX-License-Identifier: Apache-2.0
//! The daemon: one loop that hands events to the state machine and carries out what it says.
//!
//! Everything the agent knows changes in this loop only. What may block runs elsewhere: Corosync
//! and the records in threads, engines and the bus in tasks.

mod durable;
mod first_contact;
mod told;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc as std_mpsc;
use std::time::Duration;

use anyhow::Context;
use kemari_api::agent::ClusterView;
use kemari_api::replica::ReplicaStatus;
use kemari_api::{NodeName, VmName, place};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::{oneshot, watch};
use tracing::{debug, error, info, warn};

use crate::arbitration::message::{Message, Record};
use crate::arbitration::{Action, Arbiter, Event, RequestId};
use crate::bus::shown::{Shown, renew, shown};
use crate::engines::{self, Engines};
use crate::handover;
use crate::journal::mono_us;
use crate::kept::{self, Standings};
use crate::metrics::counters::{Counters, Other};
use crate::metrics::{self, Snapshot, Wanted};
use crate::records::Store;
use crate::score::Unpromotable;
use crate::settings::Settings;
use crate::systemd::shutdown::Guard;
use crate::systemd::{Movable, Running, machines, movable, running_here};
use crate::{bus, corosync, health, score};

use durable::Durable;
use first_contact::{FirstContact, first_contact};
use told::tell;

/// The state machine's clock.
const TICK: Duration = Duration::from_secs(1);

/// Runs until SIGTERM or SIGINT. Metrics are served at `ADDRESS:PORT`, or nowhere if that is `none`.
///
/// # Errors
/// When something the agent cannot do without is missing on this node: its directories, its
/// records, the possibility to make threads.
pub async fn run(metrics_at: &str, settings: Settings) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        result = serve(metrics_at, settings) => result?,
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    info!("Ending; VMs run on without this agent");
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    Ok(())
}

async fn serve(metrics_at: &str, settings: Settings) -> anyhow::Result<()> {
    let state_dir = place::state_dir();
    let store = Store::open(&state_dir)
        .with_context(|| format!("The agent needs {} to write to", state_dir.display()))?;
    let (records, admitted) = store
        .load()
        .context("The agent cannot vote without its records")?;

    let (corosync_inputs, mut from_corosync) = unbounded_channel();
    let (multicast, outbound) = std_mpsc::channel();
    corosync::start(&corosync_inputs, outbound).context("Cannot start the Corosync threads")?;
    let (bus_inputs, mut from_bus) = unbounded_channel();
    let (shown, seen) = watch::channel(Shown::new());
    tokio::spawn(bus::serve(bus_inputs.clone(), seen.clone()));

    let FirstContact {
        node,
        configured,
        earlier,
        on_bus,
    } = first_contact(&mut from_corosync, &mut from_bus).await?;
    let (engine_inputs, from_engines) = unbounded_channel();
    let engines = Engines::start(node.clone(), engine_inputs)
        .with_context(|| format!("Cannot watch {} for engines", place::run_dir().display()))?;
    tokio::spawn(health::attend(settings.health));
    let (durable, from_durable) = durable::start(store)?;
    let (wanted, metrics_wanted) = unbounded_channel();
    if let Err(error) = metrics::server::start(metrics_at, wanted, engines.clone()) {
        let error = anyhow::Error::new(error);
        warn!(error = format!("{error:#}"), "No metrics; all else works");
    }

    let (running, runs) = watch::channel(Running::new());
    tokio::spawn(machines::keep(runs));
    let (unpromotable, to_keep_down) = watch::channel(Unpromotable::new());
    tokio::spawn(score::keep_down(to_keep_down));
    let (standings, to_keep) = watch::channel(Standings::new());
    tokio::spawn(kept::keep(
        node.clone(),
        engines.clone(),
        to_keep,
        bus_inputs.clone(),
    ));
    let (movable, moves) = watch::channel(Movable::new());
    let guard = Guard {
        node: node.clone(),
        movable: moves,
        shown: seen,
        inputs: bus_inputs,
    };
    tokio::spawn(guard.keep());

    let mut daemon = Daemon {
        arbiter: Arbiter::new(node.clone(), records, admitted),
        node,
        engines,
        multicast,
        durable,
        members: BTreeSet::new(),
        told: BTreeMap::new(),
        answers: BTreeMap::new(),
        last_request: 0,
        status_text: String::new(),
        shown,
        running,
        movable,
        unpromotable,
        standings,
        on_bus,
        ready: false,
        counters: Counters::default(),
    };
    daemon.handle(Event::Configured(configured));
    for input in earlier {
        daemon.hear_corosync(input);
    }
    daemon
        .serve(
            from_corosync,
            from_engines,
            from_bus,
            from_durable,
            metrics_wanted,
        )
        .await
}

/// For the `WatchdogSec=` of the unit. Called by the main loop and nobody else.
fn sign_of_life() {
    let _ = sd_notify::notify(&[NotifyState::Watchdog]);
}

struct Daemon {
    arbiter: Arbiter,
    node: NodeName,
    engines: Engines,
    multicast: std_mpsc::Sender<Vec<u8>>,
    durable: std_mpsc::Sender<Durable>,
    members: BTreeSet<NodeName>,
    /// What the log says of each engine here.
    told: BTreeMap<VmName, ReplicaStatus>,
    answers: BTreeMap<RequestId, oneshot::Sender<Result<(), String>>>,
    last_request: u64,
    status_text: String,
    /// What D-Bus shows of the VMs.
    shown: watch::Sender<Shown>,
    /// What systemd-machined shall know.
    running: watch::Sender<Running>,
    /// What shall go on elsewhere before the host goes down.
    movable: watch::Sender<Movable>,
    /// Of what Pacemaker shall not expect a promotion.
    unpromotable: watch::Sender<Unpromotable>,
    /// By what passive replicas of plain primitives are kept.
    standings: watch::Sender<Standings>,
    on_bus: bool,
    ready: bool,
    counters: Counters,
}

impl Daemon {
    async fn serve(
        &mut self,
        mut from_corosync: UnboundedReceiver<corosync::Input>,
        mut from_engines: UnboundedReceiver<engines::Input>,
        mut from_bus: UnboundedReceiver<bus::Input>,
        mut from_durable: UnboundedReceiver<Record>,
        mut metrics_wanted: UnboundedReceiver<Wanted>,
    ) -> anyhow::Result<()> {
        let mut tick = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                biased;
                input = from_corosync.recv() => {
                    self.hear_corosync(input.context("The Corosync threads have ended")?);
                }
                record = from_durable.recv() => {
                    let record = record.context("The record thread has ended")?;
                    self.handle(Event::RecordWritten(record));
                }
                Some(input) = from_engines.recv() => self.hear_engine(input),
                Some(input) = from_bus.recv() => self.hear_bus(input),
                _ = tick.tick() => {
                    self.handle(Event::Tick);
                    sign_of_life();
                }
                Some(Wanted(answer)) = metrics_wanted.recv() => {
                    let _ = answer.send(self.snapshot());
                    continue;
                }
            }
            let view = self.arbiter.view();
            self.tell_systemd(&view);
            self.show(&view);
        }
    }

    /// Passes on what others show or act upon, if it has changed.
    fn show(&self, view: &ClusterView) {
        self.shown
            .send_if_modified(|known| renew(known, shown(view)));
        let running = running_here(view);
        let movable = movable(view, &running);
        pass_on(&self.movable, movable);
        pass_on(&self.running, running);
        pass_on(&self.unpromotable, score::unpromotable(view));
        let standings = kept::standings(view, |vm| self.arbiter.last_holder(vm));
        pass_on(&self.standings, standings);
    }

    fn hear_corosync(&mut self, input: corosync::Input) {
        match input {
            corosync::Input::Nodes { local, configured } => {
                if local != self.node {
                    error!(
                        was = %self.node, is = %local,
                        "Corosync gave this node another name: restart kemari-agent"
                    );
                }
                self.handle(Event::Configured(configured));
            }
            corosync::Input::Quorum { quorate, members } => self.membership(quorate, members),
            corosync::Input::Group { agents, left } => {
                for (node, reason) in left {
                    info!(%node, %reason, "An agent left the group");
                }
                self.handle(Event::Group(agents));
            }
            corosync::Input::Message { from, bytes } => match Message::decode(&bytes) {
                Ok(Message::Fetch { vm }) => self.give(&vm, &from),
                Ok(message) => {
                    if let Message::EngineGone {
                        vm,
                        generation,
                        role,
                    } = &message
                    {
                        let t_mono_us = mono_us();
                        info!(%vm, %generation, %role, %from, t_mono_us, "Node reports its engine ended");
                    }
                    self.handle(Event::Message { from, message });
                }
                Err(error) => warn!(%from, %error, "Message of another agent ignored"),
            },
        }
    }

    fn membership(&mut self, quorate: bool, members: BTreeSet<NodeName>) {
        let t_mono_us = mono_us();
        // Nobody, not even this node: Corosync ended, which is said elsewhere.
        let lost = self.members.difference(&members);
        for node in lost.filter(|_| !members.is_empty()) {
            warn!(%node, quorate, t_mono_us, "Corosync reports node lost");
        }
        for node in members.difference(&self.members) {
            info!(%node, quorate, t_mono_us, "Corosync reports node joined");
        }
        self.members.clone_from(&members);
        self.handle(Event::Quorum { quorate, members });
    }

    /// A line for each change, and none for how far a copy is.
    fn tell_of(&mut self, status: &ReplicaStatus) {
        let now = status.without_progress();
        if self.told.get(&status.vm) == Some(&now) {
            return;
        }
        info!(
            vm = %status.vm, role = %status.role, licence = %status.licence,
            in_sync = status.in_sync, generation = %status.generation, epoch = %status.epoch,
            disks = %status.disks, peer = status.peer, "Replica changed"
        );
        self.told.insert(status.vm.clone(), now);
    }

    fn hear_engine(&mut self, input: engines::Input) {
        match input {
            engines::Input::Status(status) => {
                self.tell_of(&status);
                self.handle(Event::LocalReplica(status));
            }
            engines::Input::Gone(vm) => {
                self.told.remove(&vm);
                warn!(%vm, t_mono_us = mono_us(), "Engine process gone, telling the other agents");
                self.handle(Event::LocalEngineGone(vm));
            }
            engines::Input::Answered {
                vm,
                command,
                result,
            } => {
                if result.is_ok() {
                    debug!(%vm, %command, t_mono_us = mono_us(), "Engine agreed");
                }
                self.handle(Event::EngineAnswered {
                    vm,
                    command,
                    result,
                });
            }
        }
    }

    fn hear_bus(&mut self, input: bus::Input) {
        match input {
            bus::Input::Status(answer) => {
                let _ = answer.send(Ok(self.arbiter.view()));
            }
            bus::Input::Promote { vm, answer, cancel } => {
                info!(%vm, t_mono_us = mono_us(), "Pacemaker asks for promotion");
                let request = self.new_request(answer, cancel);
                self.handle(Event::PromoteRequested { vm, request });
            }
            bus::Input::ForceActive { vm, answer, cancel } => {
                let request = self.new_request(answer, cancel);
                self.handle(Event::ForceRequested { vm, request });
            }
            bus::Input::Votes { vm, answer } => {
                let _ = answer.send(Ok(self.arbiter.votes(&vm)));
            }
            bus::Input::PowerButton { vm, answer } => {
                info!(%vm, "Power button pressed over D-Bus");
                let engines = self.engines.clone();
                tokio::spawn(async move {
                    let _ = answer.send(engines.press_power_button(&vm).await);
                });
            }
            bus::Input::FailOver { vm, answer } => {
                match handover::heir(&self.arbiter.view(), &vm) {
                    Ok(to) => {
                        warn!(%vm, %to, "Ending the engine for the other replica to go on");
                        let engines = self.engines.clone();
                        tokio::spawn(async move {
                            let _ = answer.send(engines.end(&vm).await);
                        });
                    }
                    Err(reason) => drop(answer.send(Err(reason))),
                }
            }
            bus::Input::Fetch { vm, answer } => {
                let giver = handover::giver(&self.arbiter.view(), &vm);
                if let Ok(from) = &giver {
                    info!(%vm, %from, "Pacemaker wants the guest here, asking for it");
                    self.carry_out(Action::Multicast(Message::Fetch { vm }));
                }
                let _ = answer.send(giver.map(drop));
            }
            bus::Input::Cancel(number) => self.handle(Event::Cancelled(RequestId(number))),
            bus::Input::PassiveGone { vm, node } => {
                info!(%vm, %node, "Pacemaker says that the passive replica is gone");
                self.handle(Event::PassiveGoneReported { vm, node });
            }
            bus::Input::Serving(on_bus) => self.on_bus = on_bus,
        }
    }

    /// Has the engine here hand its guest over, if it is the one that runs it and `to` holds the state.
    fn give(&self, vm: &VmName, to: &NodeName) {
        if handover::heir(&self.arbiter.view(), vm).as_ref() != Ok(to) {
            debug!(%vm, %to, "A guest is asked for that is not here, or not to give");
            return;
        }
        info!(%vm, %to, "Handing the guest over: Pacemaker starts the VM there");
        let (engines, vm) = (self.engines.clone(), vm.clone());
        tokio::spawn(async move {
            if let Err(reason) = engines.hand_over(&vm).await {
                warn!(%vm, %reason, "The guest is not handed over");
            }
        });
    }

    fn new_request(
        &mut self,
        answer: oneshot::Sender<Result<(), String>>,
        cancel: oneshot::Sender<u64>,
    ) -> RequestId {
        self.last_request += 1;
        let request = RequestId(self.last_request);
        let _ = cancel.send(self.last_request);
        self.answers.insert(request, answer);
        request
    }

    fn handle(&mut self, event: Event) {
        for action in self.arbiter.handle(event) {
            self.carry_out(action);
        }
    }

    /// What metrics are made of, but for what the engines tell.
    fn snapshot(&self) -> Snapshot {
        Snapshot {
            view: self.arbiter.view(),
            nodes: self.arbiter.configured(),
            counters: self.counters.clone(),
            figures: BTreeMap::new(),
        }
    }

    fn count(&mut self, action: &Action) {
        let (arbiter, node) = (&self.arbiter, &self.node);
        self.counters.count(action, |vm| {
            let there = arbiter.view().replicas.iter().any(|replica| {
                replica.present && replica.status.vm == *vm && replica.status.node != *node
            });
            if there { Other::Present } else { Other::Lost }
        });
    }

    fn carry_out(&mut self, action: Action) {
        tell(&action);
        self.count(&action);
        match action {
            Action::Multicast(message) => match message.encode() {
                Ok(bytes) => drop(self.multicast.send(bytes)),
                Err(error) => error!(%error, "A message to the other agents was not sent"),
            },
            Action::WriteRecord(record) => drop(self.durable.send(Durable::Record(record))),
            Action::Admit => drop(self.durable.send(Durable::Admitted)),
            Action::Answer { request, result } => {
                if let Some(answer) = self.answers.remove(&request) {
                    let _ = answer.send(result);
                }
            }
            Action::Promote { .. }
            | Action::GoSolo { .. }
            | Action::Outdate { .. }
            | Action::Protect { .. } => {
                let asked = self.engines.ask(&action);
                assert!(asked, "these four are for engines");
            }
            Action::Note { .. } => {}
        }
    }

    /// Ready once Corosync and the bus are there; `systemctl status` shows one line.
    fn tell_systemd(&mut self, view: &ClusterView) {
        let text = format!(
            "{} of {} nodes, {}; {} replicas here, {} active{}",
            view.members.len(),
            self.arbiter.configured(),
            if view.quorate { "quorate" } else { "no quorum" },
            view.replicas
                .iter()
                .filter(|replica| replica.status.node == self.node)
                .count(),
            self.arbiter.active_here(),
            if self.on_bus { "" } else { "; no system bus" },
        );
        if text != self.status_text {
            let _ = sd_notify::notify(&[NotifyState::Status(&text)]);
            self.status_text = text;
        }
        if !self.ready && self.on_bus {
            self.ready = true;
            info!("Ready");
            let _ = sd_notify::notify(&[NotifyState::Ready]);
        }
    }
}

/// Wakes who looks only where something is new.
fn pass_on<T: PartialEq>(to: &watch::Sender<T>, now: T) {
    to.send_if_modified(|known| {
        let is_new = *known != now;
        *known = now;
        is_new
    });
}
