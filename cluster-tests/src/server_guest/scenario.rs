// SPDX-License-Identifier: Apache-2.0
//! Scenarios with one server guest in a bed of two nodes: what a test does with it, whoever the VMM is.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::{Load, Server, ServerGuest, Whence, lease};
use crate::baseline::{Effort, Figures};
use crate::debian_guest::{self, DebianGuest};
use crate::machines::{GuestDisk, Machines, NodeNetwork, guest_disk_path};
use crate::package;
use crate::server_vmm::{ServerHardware, ServerVmm, Talk};

/// Says what is being done, with the time since the scenario began.
#[derive(Debug)]
pub struct Narrator(Instant);

impl Narrator {
    /// Begins now.
    pub fn begin() -> Self {
        Self(Instant::now())
    }

    /// Says something.
    pub fn step(&self, what: impl std::fmt::Display) {
        eprintln!("[{:4} s] {what}", self.0.elapsed().as_secs());
    }
}

/// Two nodes that share the server's disk, with a bridge each. `node_vcpus` are each node's own processors.
///
/// # Errors
/// As [`crate::machines::Builder::up`], and without the package where Kemari is the VMM.
pub fn bed(vmm: ServerVmm, node_vcpus: u8) -> Result<(Machines, DebianGuest)> {
    let guest = debian_guest::ensure()?;
    let debs = match vmm {
        ServerVmm::Qemu => Vec::new(),
        ServerVmm::Kemari => vec![package::find()?],
    };
    let bed = Machines::builder()
        .nodes(2)
        .memory_mib(1536)
        .vcpus(node_vcpus)
        .network(NodeNetwork::Bridge)
        .guest_disk(GuestDisk::Shared(guest.disk()))
        .debs(debs)
        .up()?;
    Ok((bed, guest))
}

/// The server's machine.
pub fn hardware(vcpus: u8) -> ServerHardware {
    ServerHardware {
        vcpus,
        memory_mib: 768,
        disk: guest_disk_path(0),
        lease: lease(),
        talk: Talk::Quiet,
    }
}

/// The guest boots and every service of it works, seen from outside and from `peer`. Gives how long the boot took.
///
/// # Errors
/// When anything does not.
pub fn serves(guest: &Server<'_>, peer: &str, narrator: &Narrator) -> Result<Duration> {
    let login = guest.wait_login_prompt(0)?;
    narrator.step(format!("login prompt {login:.1?} after the VMM's start"));
    guest.wait_address()?;
    narrator.step("the guest has its address");
    let ping = guest.ping(10, Duration::from_millis(200))?;
    narrator.step(format!("ping from outside: {ping}"));
    let ping = guest.ping_from(peer, 10)?;
    narrator.step(format!("ping from {peer}: {ping}"));
    guest.http_get()?;
    guest.http_get_from(peer)?;
    narrator.step(format!("HTTP from outside and from {peer}"));
    guest.wait_ssh()?;
    guest.clock_monotonic()?;
    narrator.step("ssh; a program in the guest watches its clocks");
    Ok(login)
}

/// Writes numbers into both data bases, from outside and from the node `peer`, and checks that they hold them and all earlier ones.
///
/// # Errors
/// When a number that was acknowledged is missing, or one was not acknowledged.
pub fn remembers(
    guest: &Server<'_>,
    peer: &str,
    held: &mut Vec<u32>,
    narrator: &Narrator,
) -> Result<()> {
    for whence in [Whence::Outside, Whence::Node(peer)] {
        let first = held.last().map_or(1, |last| last + 1);
        let numbers = first..=first + 19;
        let rows = guest.pg_write(whence, numbers.clone())?;
        let keys = guest.redis_write(whence, numbers.clone())?;
        held.extend(numbers);
        ensure!(
            rows.len() == 20 && keys.len() == 20,
            "Of 20 writes ({whence:?}) PostgreSQL acknowledged {}, Redis {}",
            rows.len(),
            keys.len()
        );
    }
    guest.pg_check(held)?;
    guest.redis_check(held)?;
    narrator.step(format!(
        "PostgreSQL and Redis hold {} numbers, half of them written from {peer}",
        held.len()
    ));
    Ok(())
}

/// The disk keeps what it is given, time goes forward, and the kernel complains of nothing.
///
/// # Errors
/// When that is not so.
pub fn is_sound(guest: &Server<'_>, narrator: &Narrator) -> Result<()> {
    guest.fio_verify(4)?;
    narrator.step("fio verified 4 MiB of random blocks");
    narrator.step(format!("{:?}", guest.clock_report()?));
    let standstills = guest.dmesg_clean()?;
    narrator.step(format!(
        "nothing wrong in the kernel log ({standstills} lines of standstills of the emulated node), no failed unit"
    ));
    Ok(())
}

/// The guest serves and is under load ([`Load`]) all the time, while `step` is done to it again and again, each with its number from 1 on.
/// It notices nothing but that time has passed.
///
/// # Errors
/// When anything was lost, doubled, changed or reset, or the guest complains.
pub fn busy(
    bed: &Machines,
    mut guest: ServerGuest<'_>,
    times: u32,
    mut step: impl FnMut(&mut ServerGuest<'_>, u32) -> Result<String>,
) -> Result<()> {
    let narrator = Narrator::begin();
    keeping_journals(bed, || {
        let outcome = through(&mut guest, times, &mut step, &narrator);
        outcome.with_context(|| guest.last_words())
    })
}

fn through(
    guest: &mut ServerGuest<'_>,
    times: u32,
    step: &mut impl FnMut(&mut ServerGuest<'_>, u32) -> Result<String>,
    narrator: &Narrator,
) -> Result<()> {
    serves(guest, "node2", narrator)?;
    let mut held = Vec::new();
    let mut load = Load::begin(guest, "node2")?;
    for number in 1..=times {
        let done = load.goes_on(guest)?;
        narrator.step(format!("under load: {done}"));
        let said = step(guest, number)?;
        narrator.step(format!("{number} of {times}: {said}"));
        guest.wait_address()?;
        narrator.step(format!("{:?}", guest.clock_report()?));
        if number % 3 == 0 {
            remembers(guest, "node2", &mut held, narrator)?;
        }
    }
    let done = load.end(guest)?;
    narrator.step(format!("the load has ended: {done}"));
    remembers(guest, "node2", &mut held, narrator)?;
    is_sound(guest, narrator)
}

/// All of it once with a fresh bed, and the figures where an effort is given.
///
/// # Errors
/// When anything fails; the nodes' journals are kept then.
pub fn whole(
    vmm: ServerVmm,
    vcpus: u8,
    node_vcpus: u8,
    effort: Option<Effort>,
) -> Result<Option<Figures>> {
    let narrator = Narrator::begin();
    let (bed, files) = bed(vmm, node_vcpus)?;
    narrator.step("the nodes have booted");
    keeping_journals(&bed, || {
        let guest = ServerGuest::start(&bed, "node1", vmm, &files, hardware(vcpus))?;
        narrator.step(format!("{vmm:?} started with {vcpus} vCPUs"));
        let figures = once(&guest, effort, &narrator);
        figures.with_context(|| guest.last_words())
    })
}

fn once(
    guest: &ServerGuest<'_>,
    effort: Option<Effort>,
    narrator: &Narrator,
) -> Result<Option<Figures>> {
    let (vmm, vcpus) = (guest.vm.vmm(), guest.vm.hardware().vcpus);
    let login = serves(guest, "node2", narrator)?;
    remembers(guest, "node2", &mut Vec::new(), narrator)?;
    is_sound(guest, narrator)?;
    let Some(effort) = effort else {
        return Ok(None);
    };
    let figures = Figures::measure(guest, login, effort)?;
    narrator.step(format!("{vmm:?}, {vcpus} vCPUs:\n{figures}"));
    Ok(Some(figures))
}

/// Keeps the nodes' journals when something fails, before the bed is gone, and says so where a node itself stood still.
///
/// # Errors
/// What `act` gives.
pub fn keeping_journals<T>(bed: &Machines, act: impl FnOnce() -> Result<T>) -> Result<T> {
    act().map_err(|error| {
        bed.keep_journals();
        let stalls = bed.stalls();
        if stalls.is_empty() {
            return error;
        }
        error.context(format!(
            "The emulated nodes' own kernels stood still; what follows need not be Kemari's doing:\n{}",
            stalls.join("\n")
        ))
    })
}
