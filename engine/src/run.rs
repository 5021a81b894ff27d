// SPDX-License-Identifier: Apache-2.0
//! `kemari-engine run`: from the description to a running replica, and its end.

use std::fs::File;
use std::io;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use kemari_api::config::{
    AddressError, ConfigError, HostPort, LinkAddresses, LinkTransport, NamedFile,
    ReplicationAddress, VmConfig, shown,
};
use kemari_api::replica::Promotion;
use kemari_api::{Generation, NodeName, VmName, place};
use kemari_replication::storage::ChangeRecordError;
use kemari_replication::wire::Purpose;
use kemari_transport::{Listener, Owner, TlsFileError};
use kemari_vmm::{CreateMachineError, MachineConfig, MemoryErrors};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::RunArguments;
use crate::attachments::Attachments;
use crate::conductor::pulse::{Lookout, Pulse};
use crate::conductor::{Conductor, ConductorHandle, End, Request, Setup};
use crate::control::{Consoles, ControlError, ControlSocket};
use crate::exit::{Failure, FailureKind, chain};
use crate::link::passive::{Endpoint, Held};
use crate::link::recorded::receive_recorded;
use crate::link::security::{Security, failure_kind};
use crate::machine_config::{BootDisk, MachineConfigError, machine_config, nothing_to_boot};
use crate::memory_errors;
use crate::outputs::{self, Origin, Sink, Typist};
use crate::record::{ChangeRecordFile, DiskRecordFile, FoundChanges, Kind, LicenceFile, Record};
use crate::sandbox::{self, Paths, Plan};
use crate::storage::Trust;

/// What the address of a migration begins with, as in QEMU.
const MIGRATIONS: [&str; 3] = ["tcp:", "tls:", "unix:"];

/// How long an engine that ends stays for the answer to whoever asked.
const ANSWER_GRACE: Duration = Duration::from_millis(50);
/// How long an engine whose guest powered itself off stays for terminals that have not taken its
/// last words.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Runs a replica until it ends.
pub fn run(arguments: &RunArguments) -> Result<(), Failure> {
    let mut config = VmConfig::load(&arguments.config).map_err(|error| configuration(&error))?;
    config.sandbox.enabled &= !arguments.no_sandbox;
    check_files(&config)?;
    let role = if arguments.incoming.is_some() {
        BootDisk::MayBeEmpty
    } else {
        BootDisk::MustBoot
    };
    let machine = machine_config(&config, role).map_err(|error| {
        let kind = match error {
            MachineConfigError::Unsupported(_) => FailureKind::Configuration,
            MachineConfigError::BootDisk { .. } => FailureKind::NotInstalled,
        };
        Failure::new(kind, &error)
    })?;
    // A replica that waits would otherwise find out only when it is promoted.
    if machine.boot != nothing_to_boot() {
        kemari_vmm::check_boot(&machine)
            .map_err(|error| Failure::new(FailureKind::NotInstalled, &error))?;
    }
    let plan = Plan::of(&config.sandbox)
        .map_err(|error| Failure::new(FailureKind::NotInstalled, &error))?;
    let node = match &arguments.node {
        Some(node) => node.clone(),
        None => host_name()?,
    };
    // Now, since the sandbox hides keys.
    let security = Security::read(&config.replication);
    let incoming = match &arguments.incoming {
        Some(text) => Some(listen_address(text, (&config, &node), &security)?),
        None => None,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(FailureKind::Other, &error))?;
    let start = match (incoming, &arguments.restore) {
        (Some(address), _) => Start::Incoming(address),
        (None, Some(path)) => Start::Restore {
            snapshot: path.clone(),
            force: arguments.force,
        },
        (None, None) => {
            if !arguments.force {
                check_last_right(&config.vm.name)?;
            }
            Start::Boot {
                force: arguments.force,
            }
        }
    };
    let purpose = arguments
        .incoming
        .as_deref()
        .map_or(Purpose::Replication, waits_for);
    let beginning = Beginning {
        node,
        start,
        purpose,
        security,
    };
    runtime.block_on(supervise(config, machine, beginning, plan))
}

/// Who a replica is and what it begins with.
#[derive(Debug)]
struct Beginning {
    node: NodeName,
    start: Start,
    /// What its callers may want.
    purpose: Purpose,
    security: Security,
}

/// How a replica begins.
#[derive(Debug)]
enum Start {
    /// Without a guest, waiting for one at this address.
    Incoming(ReplicationAddress),
    /// From nothing; by force also from disks that are only a copy of another node's.
    Boot { force: bool },
    /// From a snapshot; by force also from one that the guest has left behind.
    Restore { snapshot: PathBuf, force: bool },
}

/// Booting by hand is allowed where this replica was the only one when it last had the right to
/// run, or never had it.
fn check_last_right(vm: &VmName) -> Result<(), Failure> {
    let record = LicenceFile::of(vm)
        .read()
        .map_err(|error| Failure::new(FailureKind::Other, &error))?;
    match record {
        None
        | Some(Record {
            kind: Kind::Solo, ..
        }) => Ok(()),
        Some(Record {
            kind: Kind::Saved, ..
        }) => Err(Failure::told(
            FailureKind::Other,
            format!(
                "VM {vm} was saved to a snapshot: go on with kemari-engine snapshot restore, or boot \
                 it with --force, after which that snapshot no longer fits its disks"
            ),
        )),
        Some(Record { generation, kind }) => Err(Failure::told(
            FailureKind::Other,
            format!(
                "The last right of this replica of VM {vm} to run was {kind}, generation \
                 {generation}: the other replica may have gone on. Start it with --incoming, or \
                 with --force if no other replica holds the guest"
            ),
        )),
    }
}

fn configuration(error: &ConfigError) -> Failure {
    Failure::new(FailureKind::Configuration, error)
}

/// Files named in the description that this node must have.
fn check_files(config: &VmConfig) -> Result<(), Failure> {
    for file in config.boot_files().chain(config.disk_files()) {
        std::fs::File::open(file.path).map_err(|error| missing(&file, &error))?;
    }
    Ok(())
}

fn missing(file: &NamedFile<'_>, error: &io::Error) -> Failure {
    let kind = match error.kind() {
        io::ErrorKind::PermissionDenied => FailureKind::Permission,
        _ => FailureKind::NotInstalled,
    };
    let text = format!(
        "Cannot open {} {}: {error}; put the file on this node or correct the description",
        shown(&file.key),
        file.path.display()
    );
    Failure::told(kind, text)
}

fn host_name() -> Result<NodeName, Failure> {
    let name = nix::unistd::gethostname()
        .map_err(|error| Failure::new(FailureKind::Other, &error))?
        .to_string_lossy()
        .into_owned();
    name.parse().map_err(|error| {
        Failure::told(
            FailureKind::Other,
            format!("{error}; give --node or set a host name"),
        )
    })
}

/// `tcp:` is a migration that comes once, as in QEMU; `kemari:tcp:` is replication.
fn waits_for(incoming: &str) -> Purpose {
    if MIGRATIONS.iter().any(|start| incoming.starts_with(start)) {
        Purpose::Migration
    } else {
        Purpose::Replication
    }
}

/// What stands for every address of this node: of IPv4, and of IPv6 too where it has one of those.
fn every_address(config: &VmConfig, node: &NodeName) -> &'static str {
    let places = config.replication_places(node);
    let has_ipv6 = places
        .iter()
        .any(|place| place.host.parse::<Ipv6Addr>().is_ok());
    if has_ipv6 { "::" } else { "0.0.0.0" }
}

fn listen_address(
    text: &str,
    (config, node): (&VmConfig, &NodeName),
    security: &Security,
) -> Result<ReplicationAddress, Failure> {
    if text == "auto" {
        let place = HostPort {
            host: every_address(config, node).into(),
            port: config.replication.port.number(),
        };
        let address = security.address(place).map_err(|error| no_tls(&error))?;
        if let Some(warning) = security.warning() {
            tracing::warn!(vm = %config.vm.name, "{warning}");
        }
        return Ok(address);
    }
    let full = match waits_for(text) {
        Purpose::Migration => format!("kemari:{text}"),
        Purpose::Replication | Purpose::Snapshot => text.to_owned(),
    };
    let wrong = |text: String| Failure::told(FailureKind::Configuration, text);
    let address = full.parse().map_err(|error| {
        wrong(format!(
            "--incoming: {error}; without kemari: for a migration; or auto"
        ))
    })?;
    let is_open = matches!(address, ReplicationAddress::Tcp(_));
    // What a person asks for by name is right with a key or without.
    if !is_open || config.replication.transport == LinkTransport::Tls {
        security
            .check(&address)
            .map_err(|why| wrong(format!("--incoming: {why}")))?;
    }
    Ok(address)
}

/// The files of TLS cannot be used.
fn no_tls(error: &TlsFileError) -> Failure {
    Failure::told(
        failure_kind(error),
        format!("The replication link cannot be secured: {error}"),
    )
}

/// For the log: by what callers are known.
fn known_by(address: &ReplicationAddress, security: &Security) -> String {
    match (address, security.tls()) {
        (ReplicationAddress::Tls(_), Some(tls)) => format!(" with {tls}"),
        _ => String::new(),
    }
}

/// What other replicas are told: the transport that is listened with, and this node's places.
fn told_addresses(
    listening: &ReplicationAddress,
    places: Vec<HostPort>,
) -> Result<LinkAddresses, AddressError> {
    let with: fn(HostPort) -> ReplicationAddress = match listening {
        ReplicationAddress::Tcp(_) => ReplicationAddress::Tcp,
        ReplicationAddress::Tls(_) => ReplicationAddress::Tls,
        ReplicationAddress::Unix(_) => return Ok(listening.clone().into()),
    };
    LinkAddresses::new(places.into_iter().map(with).collect())
}

fn creation(error: &CreateMachineError) -> Failure {
    let kind = match error {
        CreateMachineError::NoKvm => FailureKind::NotInstalled,
        CreateMachineError::KvmPermission => FailureKind::Permission,
        _ => FailureKind::Other,
    };
    Failure::new(kind, error)
}

fn control(error: &ControlError) -> Failure {
    Failure::new(FailureKind::Other, error)
}

async fn supervise(
    config: VmConfig,
    machine: MachineConfig,
    beginning: Beginning,
    plan: Plan,
) -> Result<(), Failure> {
    let Beginning {
        node,
        start,
        purpose,
        security,
    } = beginning;
    let vm = config.vm.name.clone();
    let listener = match &start {
        Start::Incoming(address) => {
            let owner = plan.owner().map(|(user, group)| Owner(user, group));
            let listener = Listener::bind(address, security.tls().cloned(), owner)
                .map_err(|error| Failure::told(FailureKind::Other, error.to_string()))?;
            tracing::info!(%vm, "listening at {address}{}", known_by(address, &security));
            let listen = told_addresses(address, config.replication_places(&node))
                .map_err(|error| Failure::new(FailureKind::Configuration, &error))?;
            Some((listener, listen.to_string()))
        }
        Start::Boot { .. } | Start::Restore { .. } => None,
    };
    let licence = LicenceFile::of(&vm)
        .open(plan.owner())
        .map_err(|error| Failure::new(FailureKind::Other, &error))?;
    let record = licence
        .read()
        .map_err(|error| Failure::new(FailureKind::Other, &error))?;
    let disk_record = DiskRecordFile::beside(&licence)
        .map_err(|error| Failure::new(FailureKind::Other, &error))?
        .read()
        .map_err(|error| Failure::new(FailureKind::Other, &error))?;
    let changes = ChangeRecordFile::beside(&licence)
        .map_err(|error| Failure::new(FailureKind::Other, &error))?
        .read()
        .unwrap_or_else(|error| {
            tracing::warn!(%vm, "{error}. All of the disks will be compared");
            FoundChanges::Unusable(ChangeRecordError::Damaged)
        });
    let sink = Sink::prepare(config.console.output.clone());
    let snapshot = open_snapshot(&start)?;
    let attachments = Attachments::open(&config)
        .map_err(|error| Failure::new(FailureKind::NotInstalled, &error))?;
    let socket = ControlSocket::bind(&vm).map_err(|error| control(&error))?;
    kemari_vmm::hold_kvm().map_err(|error| creation(&error))?;
    // Threads inherit part of it.
    let memory_errors =
        MemoryErrors::watch().map_err(|error| Failure::new(FailureKind::Other, &error))?;
    // Everything that needs root is open; no thread is started yet.
    plan.carry_out(&paths(&config, &licence))
        .map_err(|error| Failure::new(FailureKind::Permission, &error))?;
    let queue = mpsc::channel();
    let inputs = queue.0.clone();
    tracing::info!(vm = %vm, node = %node, "{config}");
    let (mut conductor, handle) = Conductor::new(Setup {
        config,
        machine,
        node: node.clone(),
        queue,
        attachments,
        waits_for: purpose,
        record: licence,
        security,
    })
    .map_err(|error| creation(&error))?;
    memory_errors::start(memory_errors, handle.watch(), inputs.clone())
        .map_err(|error| Failure::new(FailureKind::Other, &error))?;
    let forced = matches!(start, Start::Boot { force: true });
    conductor.remember(record, disk_record.filter(|_| !forced));
    let trust = match start {
        Start::Incoming(_) => Trust::Full,
        Start::Boot { .. } | Start::Restore { .. } => Trust::StartedByHand,
    };
    conductor
        .remember_changes(changes, record, disk_record, trust)
        .map_err(|error| Failure::new(FailureKind::Other, &error))?;
    if let Some((listener, listen)) = listener {
        let endpoint = Endpoint::start(listener, conductor.receiving(), inputs)
            .map_err(|error| Failure::new(FailureKind::Other, &error))?;
        conductor.open(endpoint, listen);
    }
    outputs::start_carrier(
        conductor.outputs(),
        sink,
        Origin {
            vm: vm.clone(),
            node,
        },
        conductor.console_input(),
    )
    .map_err(|error| Failure::new(FailureKind::Other, &error))?;
    let typist = Typist::start(conductor.console_input())
        .map_err(|error| Failure::new(FailureKind::Other, &error))?;
    let consoles = Consoles::new(Arc::clone(conductor.outputs().history()), typist);
    let received = disk_record.map_or_else(Generation::default, |record| record.generation);
    let request = first_request(&start, snapshot, &conductor, record, received)?;
    let pulse = conductor.pulse();
    let (ended, end) = oneshot::channel();
    thread::Builder::new()
        .name("conductor".into())
        .spawn(move || {
            let _ = ended.send(conductor.run());
        })
        .map_err(|error| Failure::new(FailureKind::Other, &error))?;
    sandbox::enter(sandbox::Kind::Control);
    tokio::spawn(announce(vm.clone(), handle.clone()));
    tokio::spawn(give_signs_of_life(pulse));
    if let Some(request) = request {
        handle
            .ask(request)
            .await
            .map_err(|refusal| Failure::told(FailureKind::Other, refusal.to_string()))?;
    }
    tokio::select! {
        () = socket.serve(handle.clone(), consoles.clone()) => Ok(()),
        end = end => {
            if let Ok(End::PowerOff) = end {
                consoles.finish(LAST_WORDS).await;
            }
            // Whoever asked for the end still gets the answer.
            tokio::time::sleep(ANSWER_GRACE).await;
            outcome(&vm, end.unwrap_or_else(|_| End::Failed("The conductor ended".into())))
        }
        name = told_to_end() => {
            tracing::info!(%vm, signal = name, "ending");
            Ok(())
        }
    }
}

/// What makes the guest run, unless this replica waits for one.
fn first_request(
    start: &Start,
    opened: Option<File>,
    conductor: &Conductor,
    record: Option<Record>,
    received: Generation,
) -> Result<Option<Request>, Failure> {
    let known = record.map_or(received, |record| record.generation.max(received));
    match start {
        Start::Incoming(_) => Ok(None),
        Start::Boot { .. } => Ok(Some(Request::Promote {
            how: Promotion::ColdStart,
            generation: known.next(),
        })),
        Start::Restore { snapshot, force } => {
            let held = read_snapshot(snapshot, opened, conductor)?;
            let saved = held.replica.generation();
            let left_behind = record.is_some_and(|record| {
                record.generation > saved
                    || record.generation == saved && record.kind != Kind::Saved
            });
            if left_behind && !force {
                return Err(Failure::told(
                    FailureKind::Other,
                    format!(
                        "The guest has run on this node after the snapshot {} was made: its disks \
                         may no longer fit it. Restore it with --force if they do",
                        snapshot.display()
                    ),
                ));
            }
            Ok(Some(Request::RunSnapshot(
                Box::new(held),
                known.max(saved).next(),
            )))
        }
    }
}

/// The snapshot to start from, opened while the engine may still open it.
fn open_snapshot(start: &Start) -> Result<Option<File>, Failure> {
    match start {
        Start::Incoming(_) | Start::Boot { .. } => Ok(None),
        Start::Restore { snapshot, .. } => File::open(snapshot)
            .map(Some)
            .map_err(|error| no_snapshot(snapshot, &error)),
    }
}

fn read_snapshot(
    path: &Path,
    opened: Option<File>,
    conductor: &Conductor,
) -> Result<Held, Failure> {
    let file = match opened {
        Some(file) => file,
        None => File::open(path).map_err(|error| no_snapshot(path, &error))?,
    };
    receive_recorded(file, conductor.receiving()).map_err(|error| no_snapshot(path, &error))
}

fn no_snapshot(path: &Path, error: &dyn std::error::Error) -> Failure {
    Failure::told(
        FailureKind::Other,
        format!(
            "Cannot restore the snapshot {}: {}; name a whole snapshot of this VM, made on a host \
             of the same kind",
            path.display(),
            chain(error)
        ),
    )
}

/// What the engine still opens by name once it is sandboxed.
fn paths(config: &VmConfig, licence: &LicenceFile) -> Paths {
    Paths {
        boot: config
            .boot_files()
            .map(|file| file.path.to_owned())
            .collect(),
        written: vec![licence.directory().to_owned()],
        cleaned: vec![place::run_dir()],
    }
}

/// Tells systemd that the engine can be used, and what it is.
async fn announce(vm: VmName, handle: ConductorHandle) {
    let mut changes = handle.watch();
    let _ = sd_notify::notify(&[NotifyState::Ready]);
    loop {
        let text = {
            let status = changes.borrow_and_update();
            format!(
                "{vm}: {}, licence {}, generation {}: {}",
                status.role, status.licence, status.generation, status.detail
            )
        };
        let _ = sd_notify::notify(&[NotifyState::Status(&text)]);
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// To systemd's watchdog, if the unit has one: as long as this thread and the conductor do their work.
async fn give_signs_of_life(pulse: Pulse) {
    let Some(patience) = sd_notify::watchdog_enabled().filter(|patience| !patience.is_zero())
    else {
        return;
    };
    let mut lookout = Lookout::new(pulse);
    let mut tick = tokio::time::interval(patience / 4);
    loop {
        tick.tick().await;
        if lookout.sees_progress() {
            let _ = sd_notify::notify(&[NotifyState::Watchdog]);
        }
    }
}

async fn told_to_end() -> &'static str {
    let (Ok(mut terminate), Ok(mut interrupt)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) else {
        // Without handlers the signals end the process by themselves.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}

fn outcome(vm: &VmName, end: End) -> Result<(), Failure> {
    match end {
        End::PowerOff => {
            tracing::info!(%vm, "the guest is off");
            Ok(())
        }
        End::Quit => Ok(()),
        End::Failed(text) => Err(Failure::told(FailureKind::Other, text)),
        End::Memory(failure) => Err(failure),
    }
}
