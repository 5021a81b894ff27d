// SPDX-License-Identifier: Apache-2.0
//! The conductor: one thread that owns the machine and makes every decision about this replica.
//!
//! Everything reaches it through one queue of [`Input`]s, so two decisions can never overlap. It
//! blocks for nothing but the machine's pause and the licence record on disk.
//!
//! ```mermaid
//! stateDiagram-v2
//!     [*] --> Waiting: --incoming
//!     [*] --> Active: without --incoming
//!     Waiting --> Passive: an active replica joins
//!     Passive --> Waiting: it is lost before the first commit
//!     Passive --> Active: promote take-over
//!     Waiting --> Active: promote cold-start
//!     Active --> Waiting: demote
//!     Active --> Outdated: a newer generation is known
//!     Passive --> Waiting: a newer generation is known
//! ```

mod capture;
mod command;
mod compression;
mod copy;
mod finish;
mod memory_error;
mod migration;
mod pair;
pub mod pulse;
mod roles;
mod snapshot;
pub mod statistics;
mod verify;

use std::sync::{Arc, mpsc};
use std::time::Duration;

use kemari_api::config::{DiskStorage, ReplicationPolicy, VmConfig};
use kemari_api::replica::{DiskState, ReplicaStatus};
use kemari_api::{Epoch, Generation, Licence, NodeName, Role};
use kemari_replication::page::RamLayout;
use kemari_replication::passive::{PassiveConfig, Replica};
use kemari_replication::trigger::{Policy, TriggerConfig};
use kemari_replication::wire::{Purpose, VmIdentity};
use kemari_vmm::{
    CreateMachineError, GuestEvent, Machine, MachineConfig, MachineFingerprint, MemoryError,
};
use serde::{Deserialize, Serialize};
use tokio::sync::{oneshot, watch};

use crate::attachments::Attachments;
use crate::clock;
use crate::exit::{Failure, FailureKind};
use crate::link::active::{LinkEvent, LinkId};
use crate::link::passive::{Endpoint, Held, PassiveEvent, Receiving};
use crate::link::security::Security;
use crate::machine_config::boot_source;
use crate::outputs::{InputSlot, Outputs};
use crate::record::{DiskRecord, DiskRecordFile, LicenceFile, Record};
use crate::sandbox;
use crate::storage::{DiskEvent, DiskJobs, PassiveDisks};
use capture::Capture;
use finish::Finish;
use migration::Migration;
use pair::{LinkState, Progress};
use pulse::Pulse;
use statistics::Statistics;
use verify::Verify;

pub use command::{Answer, ConductorHandle, Refusal, Request};

/// Longest time without a pass of the loop while there is nothing to do.
const BEAT: Duration = Duration::from_secs(1);

/// Everything the conductor hears.
#[derive(Debug)]
pub enum Input {
    /// A request of the control socket.
    Request(Request, oneshot::Sender<Answer>),
    /// The guest's run ended. The number tells which machine; there may have been others.
    Guest(u64, GuestEvent),
    /// The first output of an epoch waits for a checkpoint.
    OutputQueued,
    /// From the connection to a passive replica.
    Link(LinkId, LinkEvent),
    /// From the thread that reads disks, for this link.
    Disk(LinkId, DiskEvent),
    /// From the connection of an active replica.
    Passive(PassiveEvent),
    /// The host lost a page of the guest that nobody has touched, and nobody can continue.
    MemoryError(MemoryError),
}

/// How the replica ended.
#[derive(Debug)]
pub enum End {
    /// The guest powered itself off.
    PowerOff,
    /// It was told to.
    Quit,
    /// The machine failed; the sentence says how.
    Failed(String),
    /// The host's memory failed under the guest.
    Memory(Failure),
}

/// One replica.
pub struct Conductor {
    config: VmConfig,
    machine_config: MachineConfig,
    node: NodeName,
    machine: Machine,
    machine_number: u64,
    /// A page of the machine's memory that the host has lost.
    lost_page: Option<MemoryError>,
    /// What callers of this replica may want.
    waits_for: Purpose,
    migration: Option<Migration>,
    attachments: Attachments,
    disk_jobs: DiskJobs,
    passive_disks: PassiveDisks,
    disks: DiskState,
    outputs: Arc<Outputs>,
    input_slot: InputSlot,
    endpoint: Option<Endpoint>,
    listen: String,
    record: LicenceFile,
    inputs: mpsc::Receiver<Input>,
    sender: mpsc::Sender<Input>,
    status: watch::Sender<ReplicaStatus>,
    statistics: Statistics,
    trigger: TriggerConfig,
    pulse: Pulse,

    role: Role,
    generation: Generation,
    /// A person has not stopped the guest.
    running: bool,
    peer: Option<NodeName>,
    in_sync: bool,
    /// Passive: the epoch held. Active: the epoch committed by the peer.
    epoch: Epoch,
    detail: String,

    security: Security,
    link: LinkState,
    progress: Progress,
    next_link: u64,
    capture: Capture,
    verify: Option<Verify>,
    finish: Option<Finish>,
    end: Option<End>,
}

/// What [`Conductor::new`] is given.
pub struct Setup {
    /// The description.
    pub config: VmConfig,
    /// The machine it describes.
    pub machine: MachineConfig,
    /// This node.
    pub node: NodeName,
    /// The queue's two ends.
    pub queue: (mpsc::Sender<Input>, mpsc::Receiver<Input>),
    /// What the guest is connected to.
    pub attachments: Attachments,
    /// What callers of this replica may want.
    pub waits_for: Purpose,
    /// Where the right to run is written down; open.
    pub record: LicenceFile,
    /// By what the other replica is known.
    pub security: Security,
}

impl Conductor {
    /// A waiting replica with a machine that holds nothing.
    ///
    /// # Errors
    /// The machine cannot be made, or a thread not started.
    pub fn new(setup: Setup) -> Result<(Self, ConductorHandle), CreateMachineError> {
        let Setup {
            config,
            machine: machine_config,
            node,
            queue: (sender, inputs),
            attachments,
            waits_for,
            record,
            security,
        } = setup;
        let storage = attachments.storage();
        storage.log().tell(sender.clone());
        let disk_jobs = storage
            .start_thread(sender.clone())
            .map_err(CreateMachineError::Devices)?;
        let disk_record = DiskRecordFile::beside(&record).map_err(CreateMachineError::Devices)?;
        let passive_disks = storage.passive(disk_jobs.clone(), disk_record);
        let disks = if storage.is_replicated() {
            DiskState::Own
        } else if attachments.writes_shared_disks() {
            DiskState::Shared
        } else {
            DiskState::None
        };
        let queue_bytes = config.replication.queue_kib_max.get() as usize * 1024;
        let outputs = Outputs::new(queue_bytes, attachments.interfaces(), sender.clone());
        let machine = new_machine(&machine_config, &attachments, &outputs, &sender, 0)?;
        let input_slot = InputSlot::new(machine.console_input(), attachments.console().cloned());
        let statistics = Statistics::default();
        let (status, status_watch) = watch::channel(ReplicaStatus {
            vm: config.vm.name.clone(),
            node: node.clone(),
            pid: std::process::id(),
            role: Role::Waiting,
            licence: Licence::None,
            in_sync: false,
            running: false,
            generation: Generation::default(),
            epoch: Epoch::default(),
            disks,
            peer: String::new(),
            listen: String::new(),
            detail: String::new(),
        });
        let handle = ConductorHandle::new(
            sender.clone(),
            status_watch,
            statistics.clone(),
            Arc::clone(&outputs),
        );
        let replication = &config.replication;
        let trigger = TriggerConfig {
            policy: match replication.policy {
                ReplicationPolicy::Latency => Policy::Latency,
                ReplicationPolicy::Auto => Policy::Auto,
                ReplicationPolicy::Throughput => Policy::Throughput,
            },
            gather: Duration::from_micros(replication.gather_us.get().into()),
            epoch_max: Duration::from_millis(replication.epoch_ms_max.get().into()),
            ..TriggerConfig::default()
        };
        let conductor = Self {
            record,
            config,
            machine_config,
            node,
            machine,
            machine_number: 0,
            lost_page: None,
            waits_for,
            migration: None,
            attachments,
            disk_jobs,
            passive_disks,
            disks,
            outputs,
            input_slot,
            endpoint: None,
            listen: String::new(),
            inputs,
            sender,
            status,
            statistics,
            trigger,
            pulse: Pulse::default(),
            role: Role::Waiting,
            generation: Generation::default(),
            running: true,
            peer: None,
            in_sync: false,
            epoch: Epoch::default(),
            detail: "waiting to receive or to be promoted".into(),
            security,
            link: LinkState::None,
            progress: Progress::default(),
            next_link: 0,
            capture: Capture::default(),
            verify: None,
            finish: None,
            end: None,
        };
        Ok((conductor, handle))
    }

    /// The outputs, for the carrier.
    pub fn outputs(&self) -> Arc<Outputs> {
        Arc::clone(&self.outputs)
    }

    /// Whether it makes progress, for the watchdog.
    pub fn pulse(&self) -> Pulse {
        self.pulse.clone()
    }

    /// What is typed at the console goes here.
    pub fn console_input(&self) -> InputSlot {
        self.input_slot.clone()
    }

    /// What a listener needs to receive for this replica.
    pub fn receiving(&self) -> Receiving {
        Receiving {
            config: PassiveConfig {
                identity: self.identity(),
                node: self.node.clone(),
                ram: RamLayout::new(
                    std::iter::once(0..self.machine.memory().page_count()).collect(),
                )
                .expect("one stretch of RAM that is not empty"),
                disks: self.attachments.storage().layouts().to_vec(),
                difference: fingerprint_difference,
            },
            ram: self.machine.memory(),
            disks: self.passive_disks.clone(),
            silence_max: self.silence_max(),
            purpose: self.waits_for,
            hash_epochs: self
                .config
                .replication
                .hash_epochs
                .then(|| self.config.vm.name.clone()),
        }
    }

    /// Lets callers in, at the address that other replicas are told.
    pub fn open(&mut self, endpoint: Endpoint, listen: String) {
        let held = Held {
            replica: Replica::new(self.generation),
            state: None,
        };
        endpoint.receive(self.receiving(), held);
        self.endpoint = Some(endpoint);
        self.listen = listen;
        // Whoever asks first, before the conductor runs, is told the address too.
        self.publish();
    }

    /// Starts from what this node's records know.
    pub fn remember(&mut self, licence: Option<Record>, disks: Option<DiskRecord>) {
        let ran = licence.map_or_else(Generation::default, |record| record.generation);
        self.generation = ran;
        if let Some(received) = disks.filter(|_| self.attachments.storage().is_replicated())
            && received.generation >= ran
        {
            self.generation = received.generation;
            self.disks = received.state.shown();
        }
        // Nobody shall see less than this.
        self.publish();
    }

    /// Works until the replica ends.
    pub fn run(mut self) -> End {
        sandbox::enter(sandbox::Kind::Conductor);
        loop {
            self.publish();
            self.pulse.beat();
            let wait = self.next_deadline().saturating_sub(clock::now());
            if let Ok(input) = self.inputs.recv_timeout(wait.min(BEAT)) {
                self.handle(input);
                while let Ok(input) = self.inputs.try_recv() {
                    self.handle(input);
                }
            }
            self.work();
            if let Some(end) = self.end.take() {
                self.publish();
                return end;
            }
        }
    }

    fn handle(&mut self, input: Input) {
        self.pulse.beat();
        match input {
            Input::Request(request, reply) => self.request(request, reply),
            Input::Guest(machine, event) if machine == self.machine_number => self.guest(event),
            Input::Guest(..) | Input::OutputQueued => {}
            Input::Link(id, event) => self.link_event(id, event),
            Input::Disk(id, event) => self.disk_event(id, event),
            Input::Passive(event) => self.passive_event(event),
            Input::MemoryError(error) => self.memory_error(error),
        }
    }

    fn guest(&mut self, event: GuestEvent) {
        // Waits for the disks; boots.
        let _long = self.pulse.long_work();
        match event {
            GuestEvent::PowerOff => {
                tracing::info!(vm = %self.config.vm.name, generation = %self.generation, "the guest powered itself off");
                self.begin_finish(Finish::power_off());
            }
            GuestEvent::Reset => self.reset("the guest asked for a reset"),
            // As a PC does it. An operator should know: nothing in the guest has said so before.
            GuestEvent::TripleFault => {
                self.reset("a virtual CPU met a triple fault: the guest starts anew");
            }
            GuestEvent::MemoryFailed { reason } => {
                let text = format!(
                    "The host's memory failed under the guest: {reason}; the passive replica continues, if \
                     there is one. Have the memory module replaced"
                );
                self.end = Some(End::Memory(Failure::told(FailureKind::Memory, text)));
            }
            GuestEvent::Crashed { reason } => {
                // Ending here is what makes the passive replica continue from the last commit.
                self.end = Some(End::Failed(format!("The virtual CPU failed: {reason}")));
            }
        }
    }

    fn reset(&mut self, why: &str) {
        tracing::info!(vm = %self.config.vm.name, generation = %self.generation, "{why}");
        let booted = self
            .machine
            .pause()
            .map_err(|error| crate::exit::chain(&error))
            .and_then(|()| self.boot_machine());
        match booted {
            Ok(()) => self.resume_guest(),
            Err(text) => self.end = Some(End::Failed(format!("Reset failed: {text}"))),
        }
    }

    /// Loads what the guest starts from, which its disk may have changed since the last time.
    fn boot_machine(&mut self) -> Result<(), String> {
        let disk = self.attachments.boot_disk();
        let source = boot_source(&self.config, disk).map_err(|error| crate::exit::chain(&error))?;
        self.machine.set_boot_source(source);
        self.machine
            .boot()
            .map_err(|error| crate::exit::chain(&error))
    }

    /// Lets the guest run, unless a person stopped it or it is being finished.
    fn resume_guest(&mut self) {
        if self.role == Role::Active && self.running && self.finish.is_none() {
            self.machine.resume();
        }
    }

    /// What the status is now, published if it differs. An epoch alone wakes nobody.
    fn publish(&self) {
        let now = self.current_status();
        self.status.send_if_modified(|published| {
            published.epoch = now.epoch;
            let changed = *published != now;
            if changed {
                *published = now;
            }
            changed
        });
    }

    fn current_status(&self) -> ReplicaStatus {
        let licence = self.outputs.with_gate(|gate| gate.licence()).shown();
        ReplicaStatus {
            vm: self.config.vm.name.clone(),
            node: self.node.clone(),
            pid: std::process::id(),
            role: self.role,
            licence,
            in_sync: self.in_sync,
            running: self.role == Role::Active && self.running,
            generation: self.generation,
            epoch: self.epoch,
            disks: self.disks,
            peer: self
                .peer
                .as_ref()
                .map_or_else(String::new, ToString::to_string),
            listen: self.listen.clone(),
            detail: self.detail.clone(),
        }
    }

    /// The node of the other replica, empty if there is none.
    fn peer_name(&self) -> &str {
        self.peer.as_ref().map_or("", NodeName::as_str)
    }

    fn identity(&self) -> VmIdentity {
        let fingerprint = ReplicaFingerprint {
            machine: self.machine.fingerprint(),
            disks: self.config.disk.iter().map(|disk| disk.storage).collect(),
        };
        let fingerprint = postcard::to_stdvec(&fingerprint).expect("a fingerprint is plain data");
        VmIdentity {
            vm: self.config.vm.name.clone(),
            fingerprint,
        }
    }

    fn silence_max(&self) -> Duration {
        Duration::from_millis(self.config.replication.peer_timeout_ms.get().into())
    }

    /// A machine as new, whose guest events carry a new number.
    fn renew_machine(&mut self) -> Result<(), CreateMachineError> {
        // Half a terabyte of memory goes and comes.
        let _long = self.pulse.long_work();
        self.machine_number += 1;
        self.lost_page = None;
        self.machine = new_machine(
            &self.machine_config,
            &self.attachments,
            &self.outputs,
            &self.sender,
            self.machine_number,
        )?;
        self.input_slot.put(self.machine.console_input());
        Ok(())
    }
}

fn new_machine(
    config: &MachineConfig,
    attachments: &Attachments,
    outputs: &Arc<Outputs>,
    inputs: &mpsc::Sender<Input>,
    number: u64,
) -> Result<Machine, CreateMachineError> {
    let (events, from_guest) = mpsc::channel();
    let inputs = inputs.clone();
    std::thread::spawn(move || {
        sandbox::enter(sandbox::Kind::Relay);
        while let Ok(event) = from_guest.recv() {
            if inputs.send(Input::Guest(number, event)).is_err() {
                return;
            }
        }
    });
    let mut backends = attachments
        .backends(outputs)
        .map_err(CreateMachineError::Devices)?;
    backends.thread_hook = sandbox::thread_hook();
    let machine = Machine::new(config.clone(), backends, events)?;
    outputs.wake_through(machine.run_gate());
    Ok(machine)
}

/// What two replicas of a VM must agree on.
#[derive(Debug, Serialize, Deserialize)]
struct ReplicaFingerprint {
    machine: MachineFingerprint,
    /// Where each disk's other copy is. Engines before protocol version 3 do not say; they have no
    /// replicated disks.
    disks: Vec<DiskStorage>,
}

/// What keeps two machines from being replicas of one VM. Small differences (a TSC calibrated anew
/// at each boot) do not.
fn fingerprint_difference(ours: &[u8], theirs: &[u8]) -> Option<String> {
    let machine = |bytes| postcard::from_bytes::<MachineFingerprint>(bytes).ok();
    let (Some(our_machine), Some(their_machine)) = (machine(ours), machine(theirs)) else {
        return Some(
            "the other engine describes its machine in a form this one does not know".into(),
        );
    };
    let disks = |bytes| {
        postcard::from_bytes::<ReplicaFingerprint>(bytes)
            .map_or_else(|_| Vec::new(), |fingerprint| fingerprint.disks)
    };
    our_machine
        .difference(&their_machine)
        .or_else(|| storage_difference(&disks(ours), &disks(theirs)))
}

fn storage_difference(ours: &[DiskStorage], theirs: &[DiskStorage]) -> Option<String> {
    let differs = ours
        .iter()
        .zip(theirs)
        .position(|(ours, theirs)| ours != theirs);
    let number = differs?;
    let (ours, theirs) = (ours.get(number)?, theirs.get(number)?);
    Some(format!(
        "disk {number} is {ours} here and {theirs} there (storage in [[disk]])"
    ))
}
