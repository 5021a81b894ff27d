// SPDX-License-Identifier: Apache-2.0
//! The agent against a control socket: one that answers as an engine does, and one that is silent.
//!
//! The engine here is a stand-in with a role and no guest: what is tested is what the agent makes
//! of each answer. Real engines run in the cluster tests.

mod common;

use std::fs;
use std::os::unix::net::UnixListener as SilentListener;
use std::sync::{Arc, Mutex};

use common::{Node, fails};
use kemari_api::replica::{self, DiskState, Promotion, ReplicaStatus};
use kemari_api::{Epoch, Generation, Licence, Role};
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use zbus::fdo;

/// A replica with a role only.
struct StandIn {
    role: Arc<Mutex<Role>>,
}

#[zbus::interface(name = "org.kemari.Replica1")]
impl StandIn {
    fn status(&self) -> ReplicaStatus {
        ReplicaStatus {
            vm: "vm".parse().expect("a name"),
            node: "node1".parse().expect("a name"),
            pid: 1,
            role: *self.role.lock().expect("not poisoned"),
            licence: Licence::None,
            in_sync: false,
            running: false,
            generation: Generation::new(1),
            epoch: Epoch::new(0),
            disks: DiskState::None,
            peer: String::new(),
            listen: String::new(),
            detail: "it stands in".to_owned(),
        }
    }

    fn promote(&self, _how: Promotion, _generation: Generation) -> fdo::Result<()> {
        Err(fdo::Error::Failed("only the agent promotes".to_owned()))
    }

    fn demote(&self) -> fdo::Result<()> {
        *self.role.lock().expect("not poisoned") = Role::Waiting;
        Ok(())
    }
}

/// Serves a replica of this role on the node until the runtime is dropped.
fn serve(node: &Node, role: Role) -> (Runtime, Arc<Mutex<Role>>) {
    let runtime = Runtime::new().expect("a runtime");
    let role = Arc::new(Mutex::new(role));
    let served = Arc::clone(&role);
    let socket = node.path("vm.sock");
    let listener = runtime
        .block_on(async { UnixListener::bind(socket) })
        .expect("it binds");
    runtime.spawn(async move {
        let mut connections = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            let stream = stream.into_std().expect("a socket");
            let role = Arc::clone(&served);
            let connection = zbus::connection::Builder::unix_stream(stream)
                .server(zbus::Guid::generate())
                .p2p()
                .serve_at(replica::PATH, StandIn { role })
                .build()
                .await;
            connections.push(connection);
        }
    });
    (runtime, role)
}

fn node() -> Node {
    let node = Node::new();
    node.describe("memory_mib = 64");
    node
}

fn assigned(node: &Node) -> String {
    fs::read_to_string(node.path("vm.role")).unwrap_or_default()
}

#[test]
fn a_probe_adopts_what_runs() {
    for (role, code, adopted) in [
        (Role::Waiting, 0, "Unpromoted\n"),
        (Role::Passive, 0, "Unpromoted\n"),
        (Role::Active, 8, "Promoted\n"),
    ] {
        let node = node();
        let _engine = serve(&node, role);
        assert_eq!(node.exit("monitor"), code, "{role}");
        assert_eq!(assigned(&node), adopted);
        assert_eq!(node.exit("monitor"), code, "{role} again");
    }
}

#[test]
fn a_provisional_promotion_is_not_reported_before_pacemaker_asked_for_it() {
    let node = node();
    let (_runtime, role) = serve(&node, Role::Passive);
    assert_eq!(node.exit("monitor"), 0);
    *role.lock().expect("not poisoned") = Role::Active;
    assert_eq!(node.exit("monitor"), 0, "still as assigned");
    // The agent is away; the work is done all the same.
    assert_eq!(node.exit("promote"), 0);
    assert_eq!(node.exit("monitor"), 8);
}

#[test]
fn an_outdated_replica_is_reported_for_a_restart() {
    let node = node();
    let _engine = serve(&node, Role::Outdated);
    fails(&mut node.agent("monitor"), 1, "outdated: it stands in");
    fs::write(node.path("vm.role"), "Promoted\n").expect("writable");
    fails(&mut node.agent("monitor"), 9, "outdated: it stands in");
}

#[test]
fn nobody_is_promoted_without_the_agent() {
    let node = node();
    let _engine = serve(&node, Role::Waiting);
    fails(
        &mut node.agent("promote"),
        1,
        "systemctl start kemari-agent",
    );
    assert_eq!(assigned(&node), "");
}

#[test]
fn a_demoted_replica_is_unpromoted_and_demoting_it_again_succeeds() {
    let node = node();
    let _engine = serve(&node, Role::Active);
    for _ in 0..2 {
        assert_eq!(node.exit("demote"), 0);
        assert_eq!(assigned(&node), "Unpromoted\n");
        assert_eq!(node.exit("monitor"), 0);
    }
}

#[test]
fn a_vm_is_known_by_what_started_it_when_its_description_is_gone() {
    let node = node();
    let _engine = serve(&node, Role::Passive);
    let description = node.path("vm.toml");
    let note = format!("KEMARI_CONFIG={}\n", description.display());
    fs::write(node.path("vm.env"), note).expect("writable");
    fs::remove_file(description).expect("it was written");
    assert_eq!(node.exit("monitor"), 0);
}

#[test]
fn a_silent_engine_is_failed_before_the_timeout() {
    let node = node();
    let _silent = SilentListener::bind(node.path("vm.sock")).expect("it binds");
    let mut monitor = node.agent("monitor");
    monitor.env("OCF_RESKEY_CRM_meta_timeout", "1000");
    fails(&mut monitor, 1, "did not answer");
    fs::write(node.path("vm.role"), "Promoted\n").expect("writable");
    fails(&mut monitor, 9, "did not answer");
    let mut stop = node.agent("stop");
    stop.env("OCF_RESKEY_CRM_meta_timeout", "1000");
    fails(
        &mut stop,
        1,
        "waiting for the engine's control socket to close",
    );
}
