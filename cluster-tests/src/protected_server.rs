// SPDX-License-Identifier: Apache-2.0
//! A Debian server under Pacemaker and Kemari, each node with a disk of its own: its host loses power again and again, and clients
//! outside must not be able to tell.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

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

/// The server loses its host so many times.
///
/// # Errors
/// When a client was told of something that is lost, or a connection did not hold, or anything else is not as it should be.
pub fn survives(losses: u32) -> Result<()> {
    let narrator = Narrator::begin();
    let files = debian_guest::ensure()?;
    let bed = Machines::builder()
        .nodes(3)
        .memory_mib(1536)
        .network(NodeNetwork::Bridge)
        .guest_disk(GuestDisk::Own(files.disk()))
        .cluster_at_boot(true)
        .debs(vec![package::find()?])
        .up()?;
    bed.start_cluster()?;
    narrator.step("three nodes are up, with Corosync and Pacemaker");
    keeping_journals(&bed, || {
        let vm = ProtectedVm::install(&bed, options(&files))?;
        let console = Box::new(vm.observer.text());
        let server = Server::of(&bed, &files, &lease(), console)?;
        vm.configure_with_crm()?;
        server.wait_login_prompt(0)?;
        server.wait_address()?;
        server.http_get()?;
        server.wait_ssh()?;
        server.clock_monotonic()?;
        narrator.step("the server serves");
        for loss in 1..=losses {
            lose_host(&bed, &vm, &server, loss, &narrator)?;
        }
        is_sound(&server, &narrator)
    })
}

fn options(files: &DebianGuest) -> Options {
    Options {
        name: "vm".to_owned(),
        guest: Guest::Described(format!(
            "[vm]\nname = \"vm\"\nmemory_mib = 384\n\n\
             [boot]\ndisk = \"system\"\ncmdline = \"{}\"\n\n\
             [[disk]]\nid = \"system\"\npath = \"{}\"\n\n\
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
    bed: &Machines,
    vm: &ProtectedVm<'_>,
    server: &Server<'_>,
    loss: u32,
    narrator: &Narrator,
) -> Result<()> {
    let (active, passive) = vm.wait_protected(bed.nodes())?;
    narrator.step(format!("{active} is active, {passive} passive and in sync"));
    vm.run(&active, "kemarictl verify vm")?;
    narrator.step("the disks of both are equal, compared while the guest runs");
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
    narrator.step("every write was acknowledged on its connection and is there");
    server.http_get()?;
    server.dmesg_clean()?;
    bed.power_on(&active)?;
    bed.start_cluster_on(&active)?;
    vm.start_agent(&active)
}
