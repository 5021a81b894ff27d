// SPDX-License-Identifier: Apache-2.0
//! `make campaign-guest`: the server guest for hours, with 1, 2 and 4 processors, under QEMU and under Kemari.
//!
//! The figures of both stand side by side at the end of each comparison: same guest, kernel, disk and processors on the same KVM.

use anyhow::Result;
use kemari_cluster_tests::baseline::{Effort, TrackingFigures};
use kemari_cluster_tests::protected_server::{Storage, survives};
use kemari_cluster_tests::server_guest::{ServerGuest, scenario};
use kemari_cluster_tests::server_vmm::{ServerHardware, ServerVmm};
use kemari_cluster_tests::supervisor;

/// How often a guest is saved and restored.
const CYCLES: u32 = 30;

/// How often it is moved to the other node.
const MOVES: u32 = 6;

/// Each node's own processors.
const NODE_VCPUS: u8 = 1;

/// The guest that is saved and moved under load: of one processor, as its node, and small. The longer a save and a restore take, the
/// longer TCP of the other ends waits before it tries again.
fn busy_hardware() -> ServerHardware {
    ServerHardware {
        memory_mib: 384,
        ..scenario::hardware(1)
    }
}

const EFFORT: Effort = Effort {
    seconds: 10,
    pings: 100,
};

fn compare(vcpus: u8) -> Result<()> {
    let _turn = supervisor::turn()?;
    let mut both = Vec::new();
    for vmm in [ServerVmm::Qemu, ServerVmm::Kemari] {
        let figures = scenario::whole(vmm, vcpus, NODE_VCPUS, Some(EFFORT))?;
        both.extend(figures.map(|figures| (vmm, figures)));
    }
    for (vmm, figures) in both {
        println!("{vcpus} vCPUs, {vmm:?}:\n{figures}\n");
    }
    Ok(())
}

/// A protected server loses its host once: a first look, some ten minutes.
#[test]
#[ignore = "takes long: make campaign-guest"]
fn one_host_lost() {
    let _turn = supervisor::turn().unwrap();
    survives(Storage::Replicated, 1).unwrap();
}

/// A protected server loses its host ten times.
#[test]
#[ignore = "takes long: make campaign-guest"]
fn ten_hosts_lost() {
    let _turn = supervisor::turn().unwrap();
    survives(Storage::Replicated, 10).unwrap();
}

/// The same with one disk that all nodes see.
#[test]
#[ignore = "takes long: make campaign-guest"]
fn ten_hosts_lost_with_a_shared_disk() {
    let _turn = supervisor::turn().unwrap();
    survives(Storage::Shared, 10).unwrap();
}

#[test]
#[ignore = "takes long: make campaign-guest"]
fn one_processor() {
    compare(1).unwrap();
}

#[test]
#[ignore = "takes long: make campaign-guest"]
fn two_processors() {
    compare(2).unwrap();
}

#[test]
#[ignore = "takes long: make campaign-guest"]
fn four_processors() {
    compare(4).unwrap();
}

/// Does something to a busy guest again and again.
fn busy(
    vmm: ServerVmm,
    times: u32,
    step: impl FnMut(&mut ServerGuest<'_>, u32) -> Result<String>,
) -> Result<()> {
    let _turn = supervisor::turn()?;
    let (bed, files) = scenario::bed(vmm, NODE_VCPUS)?;
    let guest = ServerGuest::start(&bed, "node1", vmm, &files, busy_hardware())?;
    scenario::busy(&bed, guest, times, step)
}

/// The guest is saved, its VMM ends, and it is restored: in turns where it was and on the other node.
fn cycles(vmm: ServerVmm) -> Result<()> {
    busy(vmm, CYCLES, |guest, number| {
        let here = guest.vm().node().to_owned();
        let to = if number % 2 == 0 { other(&here) } else { &here };
        let said = guest.vm().save_and_restore(to)?;
        Ok(format!("saved on {here}, restored on {to}; {said}"))
    })
}

/// The guest is moved to and fro between the nodes while it runs.
fn moves(vmm: ServerVmm) -> Result<()> {
    busy(vmm, MOVES, |guest, _| {
        let here = guest.vm().node().to_owned();
        let said = guest.vm().migrate(other(&here))?;
        Ok(format!("moved from {here}\n{said}"))
    })
}

fn other(node: &str) -> &'static str {
    if node == "node1" { "node2" } else { "node1" }
}

#[test]
#[ignore = "takes long: make campaign-guest"]
fn qemu_moves() {
    moves(ServerVmm::Qemu).unwrap();
}

#[test]
#[ignore = "takes long: make campaign-guest"]
fn kemari_moves() {
    moves(ServerVmm::Kemari).unwrap();
}

#[test]
#[ignore = "takes long: make campaign-guest"]
fn qemu_saves_and_restores() {
    cycles(ServerVmm::Qemu).unwrap();
}

#[test]
#[ignore = "takes long: make campaign-guest"]
fn kemari_saves_and_restores() {
    cycles(ServerVmm::Kemari).unwrap();
}

/// What tracking changed pages costs the guest, beside the same work without it.
#[test]
#[ignore = "takes long: make campaign-guest"]
fn kemari_tracks() {
    tracks().unwrap();
}

fn tracks() -> Result<()> {
    let _turn = supervisor::turn()?;
    let narrator = scenario::Narrator::begin();
    let (bed, files) = scenario::bed(ServerVmm::Kemari, NODE_VCPUS)?;
    scenario::keeping_journals(&bed, || {
        let hardware = scenario::hardware(1);
        let mut guest = ServerGuest::start(&bed, "node1", ServerVmm::Kemari, &files, hardware)?;
        scenario::serves(&guest, "node2", &narrator)?;
        let figures = TrackingFigures::measure(&mut guest, "node2", EFFORT.seconds)?;
        narrator.step(format!("Kemari, 1 vCPU:\n{figures}"));
        scenario::remembers(&guest, "node2", &mut Vec::new(), &narrator)?;
        scenario::is_sound(&guest, &narrator)
    })
}
