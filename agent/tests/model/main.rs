// SPDX-License-Identifier: Apache-2.0
//! An exhaustive model of who may run, made of what is shipped.
//!
//! Agents are [`kemari_agent::arbitration::Arbiter`]; engines hold outputs with
//! `kemari_replication`'s gate, event-tap and licence and speak with its sessions, frame by frame.
//! What lies between them (Corosync's order, sockets, disks, Pacemaker) is modelled, and whatever
//! may strike it does, in every state, within bounds that are printed. `docs/testing.md` says what
//! is checked and what is not.

mod active;
mod checker;
mod engine;
mod moves;
mod network;
mod outside;
mod passive;
mod recovery;
mod setup;
mod shared;
mod world;

use checker::Cluster;
use moves::Bounds;
use setup::Setup;
use world::World;

fn check(title: &str, setup: Setup, bounds: Bounds) {
    let cluster = Cluster {
        from: vec![World::paired(setup)],
        bounds,
        only: None,
    };
    let report = cluster.explore(title);
    for (name, story) in &report.broken {
        println!("NOT SO: {name}\n{story}");
    }
    assert!(report.broken.is_empty(), "{title}: see above");
    assert!(report.missing.is_empty(), "{title}: never seen: {:?}", report.missing);
}

#[test]
fn two_nodes_with_fencing() {
    check("two nodes", Setup::TWO, Bounds { moves: 3, failures: 2, midst: 1, delays: 0 });
}

#[test]
fn two_hosts_and_a_witness() {
    check("witness", Setup::WITNESS, Bounds { moves: 3, failures: 2, midst: 1, delays: 0 });
}

#[test]
fn three_hosts() {
    check("three", Setup::THREE, Bounds { moves: 3, failures: 2, midst: 1, delays: 0 });
}
