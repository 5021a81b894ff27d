// SPDX-License-Identifier: Apache-2.0
//! A Debian server under Pacemaker and Kemari, with a disk on each node or one that all see: its host loses power again and again, and
//! clients outside must not be able to tell.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::bed::Bed as _;
use crate::debian_guest::{self, DebianGuest};
use crate::machines::{BRIDGE, GuestDisk, Machines, NodeNetwork, guest_disk_path};
use crate::package;
use crate::protected::{Guest, Options, ProtectedVm};
use crate::server_guest::scenario::{Narrator, is_sound, keeping_journals};
use crate::server_guest::{History, Server, lease};

/// Numbers that each data base is given around each loss of a host.
const WRITES: u32 = 60;
/// Of them, how many are acknowledged before the power goes.
const WRITES_BEFORE: usize = 8;

/// Where the server's disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// Each node has one of its own, which Kemari keeps equal.
    Replicated,
    /// All nodes see the same one. Then there is fencing, since a failover waits for it.
    Shared,
}

/// The server loses its host so many times.
///
/// # Errors
/// When a client was told of something that is lost, or a connection did not hold, or anything else is not as it should be.
pub fn survives(storage: Storage, losses: u32) -> Result<()> {
    let narrator = Narrator::begin();
    let files = debian_guest::ensure()?;
    let disk = match storage {
        Storage::Replicated => GuestDisk::Own(files.disk()),
        Storage::Shared => GuestDisk::Shared(files.disk()),
    };
    let bed = Machines::builder()
        .nodes(3)
        .memory_mib(1536)
        .network(NodeNetwork::Bridge)
        .guest_disk(disk)
        .stonith(storage == Storage::Shared)
        .cluster_at_boot(true)
        .debs(vec![package::find()?])
        .up()?;
    bed.start_cluster()?;
    narrator.step("three nodes are up, with Corosync and Pacemaker");
    keeping_journals(&bed, || {
        let vm = ProtectedVm::install(&bed, options(storage, &files))?;
        let console = Box::new(vm.observer.text());
        let server = Server::of(&bed, &files, &lease(), console)?;
        match storage {
            Storage::Replicated => vm.configure_with_crm()?,
            Storage::Shared => vm.configure_fenced()?,
        }
        server.wait_login_prompt(0)?;
        server.wait_address()?;
        server.http_get()?;
        server.wait_ssh()?;
        server.clock_monotonic()?;
        narrator.step("the server serves");
        for loss in 1..=losses {
            lose_host((&bed, storage), &vm, &server, loss, &narrator)?;
        }
        is_sound(&server, &narrator)?;
        server.pg_check_files()?;
        narrator.step("PostgreSQL's own check of its files found nothing");
        ends_clean((&bed, storage), &vm, &narrator)
    })
}

/// The guest is shut down, and its file system is whole on every disk.
fn ends_clean(
    (bed, storage): (&Machines, Storage),
    vm: &ProtectedVm<'_>,
    narrator: &Narrator,
) -> Result<()> {
    let (active, passive) = vm.wait_protected(bed.nodes())?;
    vm.run(&active, "crm --wait resource stop vm-pair")?;
    let nodes = match storage {
        Storage::Replicated => vec![&active, &passive],
        Storage::Shared => vec![&active],
    };
    for node in nodes {
        let checked = vm.run(node, &format!("e2fsck -fn {}", guest_disk_path(0)))?;
        ensure!(!checked.contains("Fix"), "{node}: {checked}");
        narrator.step(format!("{node}: {}", checked.trim()));
    }
    Ok(())
}

fn options(storage: Storage, files: &DebianGuest) -> Options {
    let shared = match storage {
        Storage::Replicated => "",
        Storage::Shared => "storage = \"shared\"\ndirect = true\n",
    };
    Options {
        name: "vm".to_owned(),
        guest: Guest::Described(format!(
            "[vm]\nname = \"vm\"\nmemory_mib = 384\n\n\
             [boot]\ndisk = \"system\"\ncmdline = \"{}\"\n\n\
             [[disk]]\nid = \"system\"\npath = \"{}\"\n{shared}\n\
             [[network]]\nid = \"lan\"\nbridge = \"{BRIDGE}\"\nmac = \"{}\"\n\n",
            files.command_line(),
            guest_disk_path(0),
            lease().mac
        )),
        disk_mib: None,
        monitor_s: 20,
        // Emulated machines are ten to thirty times slower than real ones.
        replication: "peer_timeout_ms = 5000\n".to_owned(),
        patience: Duration::from_secs(900),
    }
}

fn lose_host(
    (bed, storage): (&Machines, Storage),
    vm: &ProtectedVm<'_>,
    server: &Server<'_>,
    loss: u32,
    narrator: &Narrator,
) -> Result<()> {
    let (active, passive) = vm.wait_protected(bed.nodes())?;
    narrator.step(format!("{active} is active, {passive} passive and in sync"));
    if storage == Storage::Replicated {
        vm.run(&active, "kemarictl verify vm")?;
        narrator.step("the disks of both are equal, compared while the guest runs");
    }
    let generation = vm
        .replica(&active)?
        .context("the engine answers")?
        .generation;
    let first = loss * 1000;
    let history = History::begin(server, first..=first + WRITES - 1)?;
    history.wait_acknowledged(WRITES_BEFORE)?;
    let begin = Instant::now();
    bed.kill(&active)?;
    narrator.step(format!("{history}; {active} has lost its power"));
    vm.wait_active(&passive, generation)?;
    narrator.step(format!(
        "{passive} is active {:.1?} later; {history}",
        begin.elapsed()
    ));
    history.end(server)?;
    narrator.step("every request was answered on its connection, and every write is there");
    server.http_get()?;
    server.dmesg_clean()?;
    match storage {
        Storage::Replicated => bed.power_on(&active)?,
        // The switch gave the power back after it took it.
        Storage::Shared => bed.wait_booted(&active)?,
    }
    bed.start_cluster_on(&active)?;
    vm.start_agent(&active)
}
