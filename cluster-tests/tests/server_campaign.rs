// SPDX-License-Identifier: Apache-2.0
//! `make campaign-guest`: the server guest for hours, with 1, 2 and 4 processors, under QEMU and under Kemari.
//!
//! The figures of both stand side by side at the end of each comparison: same guest, kernel, disk and processors on the same KVM.

use anyhow::Result;
use kemari_cluster_tests::baseline::Effort;
use kemari_cluster_tests::server_guest::{ServerGuest, scenario};
use kemari_cluster_tests::server_vmm::ServerVmm;
use kemari_cluster_tests::supervisor;

/// How often a guest is saved and restored.
const CYCLES: u32 = 30;

/// How often it is moved to the other node.
const MOVES: usize = 6;

const EFFORT: Effort = Effort {
    seconds: 20,
    pings: 200,
};

fn compare(vcpus: u8) -> Result<()> {
    let _turn = supervisor::turn()?;
    let mut both = Vec::new();
    for vmm in [ServerVmm::Qemu, ServerVmm::Kemari] {
        let figures = scenario::whole(vmm, vcpus, 2, Some(EFFORT))?;
        both.extend(figures.map(|figures| (vmm, figures)));
    }
    for (vmm, figures) in both {
        println!("{vcpus} vCPUs, {vmm:?}:\n{figures}\n");
    }
    Ok(())
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

/// The guest serves, is saved and restored [`CYCLES`] times, and notices nothing but that time has passed.
fn cycles(vmm: ServerVmm) -> Result<()> {
    let _turn = supervisor::turn()?;
    let narrator = scenario::Narrator::begin();
    let (bed, files) = scenario::bed(vmm, 2)?;
    scenario::keeping_journals(&bed, || {
        let mut guest = ServerGuest::start(&bed, "node1", vmm, &files, scenario::hardware(2))?;
        scenario::serves(&guest, "node2", &narrator)?;
        let mut held = Vec::new();
        for cycle in 1..=CYCLES {
            scenario::remembers(&guest, &mut held, &narrator)?;
            guest.vm().save_and_restore()?;
            narrator.step(format!("saved and restored {cycle} of {CYCLES} times"));
        }
        scenario::remembers(&guest, &mut held, &narrator)?;
        scenario::is_sound(&guest, &narrator)
    })
}

/// The guest serves and is moved to and fro between the nodes.
fn moves(vmm: ServerVmm) -> Result<()> {
    let _turn = supervisor::turn()?;
    let narrator = scenario::Narrator::begin();
    let (bed, files) = scenario::bed(vmm, 2)?;
    scenario::keeping_journals(&bed, || {
        let mut guest = ServerGuest::start(&bed, "node1", vmm, &files, scenario::hardware(2))?;
        scenario::serves(&guest, "node2", &narrator)?;
        let mut held = Vec::new();
        for to in ["node2", "node1"].repeat(MOVES / 2) {
            scenario::remembers(&guest, &mut held, &narrator)?;
            guest.vm().migrate(to)?;
            narrator.step(format!("moved to {to}"));
        }
        scenario::remembers(&guest, &mut held, &narrator)?;
        scenario::is_sound(&guest, &narrator)
    })
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
