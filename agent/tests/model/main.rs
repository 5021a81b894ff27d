// SPDX-License-Identifier: Apache-2.0
//! An exhaustive model of who may run, made of what is shipped.
//!
//! Agents are [`kemari_agent::arbitration::Arbiter`]; engines hold outputs with
//! `kemari_replication`'s gate, event-tap and licence and speak with its sessions, frame by frame.
//! What lies between them (Corosync's order, sockets, disks, Pacemaker) is modelled, and whatever
//! may strike it does, in every state, within bounds that are printed. `docs/testing.md` says what
//! is checked and what is not.

mod active;
mod bad_rules;
mod checker;
mod engine;
mod long;
mod membership;
mod moves;
mod network;
mod outside;
mod passive;
mod recovery;
mod setup;
mod shared;
mod variants;
mod world;

use checker::Cluster;
use moves::Bounds;
use setup::Setup;
use world::World;

/// Few moves, one of them between any two steps.
const RACES: Bounds = Bounds {
    moves: 2,
    failures: 2,
    midst: 1,
    delays: 1,
};

/// More moves, each when what the last one caused has happened.
const CHAINS: Bounds = Bounds {
    moves: 3,
    failures: 2,
    midst: 0,
    delays: 0,
};

/// Explores a cluster from the moment the guest is booted, and from a pair in sync.
fn check(title: &str, setup: Setup, bounds: Bounds) {
    let report = Cluster {
        from: vec![World::starting(setup), World::paired(setup)],
        bounds,
        only: None,
    }
    .explore(title);
    for (name, story) in &report.broken {
        println!("NOT SO: {name}\n{story}");
    }
    let broken: Vec<_> = report.broken.iter().map(|(name, _)| name).collect();
    assert!(broken.is_empty(), "{title}: not so: {broken:?}");
    let missing = &report.missing;
    assert!(missing.is_empty(), "{title}: never seen: {missing:?}");
}

#[test]
fn two_nodes_with_fencing() {
    check("two nodes, races", Setup::TWO, RACES);
    check("two nodes, chains", Setup::TWO, CHAINS);
}

#[test]
fn two_hosts_and_a_witness() {
    check("two hosts and a witness, races", Setup::WITNESS, RACES);
    check("two hosts and a witness, chains", Setup::WITNESS, CHAINS);
}

#[test]
fn three_hosts() {
    check("three hosts, races", Setup::THREE, RACES);
    check("three hosts, chains", Setup::THREE, CHAINS);
}
