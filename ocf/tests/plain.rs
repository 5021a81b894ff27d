// SPDX-License-Identifier: Apache-2.0
//! The plain primitive, as Pacemaker calls it without a clone: on a real bus with a stand-in for
//! kemari-agent, against a stand-in for an engine.

mod common;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use common::stand_in::{Guest, serve, serve_guest};
use common::{Node, fails};
use kemari_api::{Role, VmName, agent};
use tokio::runtime::Runtime;
use zbus::fdo;

/// A bus of its own; it ends with this.
struct Bus {
    daemon: Child,
    address: String,
}

impl Bus {
    fn start() -> Option<Self> {
        let daemon = Command::new("dbus-daemon")
            .args(["--session", "--nofork", "--print-address"])
            .stdout(Stdio::piped())
            .spawn();
        let mut daemon = match daemon {
            Ok(daemon) => daemon,
            Err(error) => {
                println!("SKIPPED: dbus-daemon: {error}: apt-get install dbus");
                return None;
            }
        };
        let mut address = String::new();
        BufReader::new(daemon.stdout.take().expect("it was asked for"))
            .read_line(&mut address)
            .expect("it tells its address");
        let address = address.trim().to_owned();
        Some(Self { daemon, address })
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// An agent that grants or refuses every promotion.
struct AgentStandIn {
    role: Arc<Mutex<Role>>,
    grants: bool,
}

#[zbus::interface(name = "org.kemari.Agent1")]
impl AgentStandIn {
    #[expect(clippy::needless_pass_by_value, reason = "as the interface has it")]
    fn promote(&self, vm: VmName) -> fdo::Result<()> {
        if !self.grants {
            let text = format!("Node node2 ran VM {vm} last");
            return Err(fdo::Error::Failed(text));
        }
        *self.role.lock().expect("not poisoned") = Role::Active;
        Ok(())
    }
}

/// Serves the agent of a node whose engine has this role, until the connection is dropped.
fn serve_agent(
    runtime: &Runtime,
    bus: &Bus,
    role: &Arc<Mutex<Role>>,
    grants: bool,
) -> zbus::Connection {
    let stand_in = AgentStandIn {
        role: Arc::clone(role),
        grants,
    };
    runtime
        .block_on(async {
            zbus::connection::Builder::address(bus.address.as_str())
                .serve_at(agent::PATH, stand_in)
                .name(agent::BUS_NAME)
                .build()
                .await
        })
        .expect("a connection to the bus")
}

fn node() -> Node {
    let node = Node::new();
    node.describe("memory_mib = 64");
    node
}

/// The action of a resource that is no clone.
fn plain(node: &Node, action: &str) -> Command {
    let mut agent = node.agent(action);
    agent.env("OCF_RESKEY_crm_feature_set", "3.16.1");
    agent
}

fn exit(agent: &mut Command) -> Option<i32> {
    agent.status().expect("it runs").code()
}

#[test]
fn a_start_runs_the_guest_by_the_agents_leave_and_says_what_is_missing() {
    let Some(bus) = Bus::start() else { return };
    for before in [Role::Waiting, Role::Passive, Role::Active] {
        let node = node();
        let (runtime, role) = serve(&node, before);
        let _agent = serve_agent(&runtime, &bus, &role, true);
        let run = |action| {
            let mut agent = plain(&node, action);
            agent.env("DBUS_SYSTEM_BUS_ADDRESS", &bus.address);
            agent
        };
        let probed = if before == Role::Active { 0 } else { 7 };
        assert_eq!(exit(&mut run("monitor")), Some(probed), "{before}");
        for _ in 0..2 {
            let output = run("start").output().expect("it runs");
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(0), "{said}");
            assert!(said.contains("without protection"), "{said}");
            assert!(said.contains("promotable=true"), "{said}");
            assert_eq!(*role.lock().expect("not poisoned"), Role::Active);
            assert_eq!(exit(&mut run("monitor")), Some(0));
        }
        *role.lock().expect("not poisoned") = Role::Waiting;
        fails(&mut run("monitor"), 1, "waiting: it stands in");
    }
}

#[test]
fn a_start_that_the_agent_refuses_or_does_not_hear_runs_nothing() {
    let Some(bus) = Bus::start() else { return };
    let node = node();
    let (runtime, role) = serve(&node, Role::Waiting);
    let start = || {
        let mut agent = plain(&node, "start");
        agent.env("DBUS_SYSTEM_BUS_ADDRESS", &bus.address);
        agent
    };
    fails(&mut start(), 1, "systemctl start kemari-agent");
    let _agent = serve_agent(&runtime, &bus, &role, false);
    fails(&mut start(), 1, "Node node2 ran VM vm last");
    assert_eq!(*role.lock().expect("not poisoned"), Role::Waiting);
    assert_eq!(exit(&mut plain(&node, "monitor")), Some(7));
}

#[test]
fn a_stop_shuts_the_guest_down_and_a_guest_that_went_away_is_told() {
    let node = node();
    let guest = Guest {
        off: Some(Arc::default()),
        // Even if somebody keeps a passive replica by hand: Pacemaker stops the VM.
        paired: true,
        ..Guest::default()
    };
    let engine = serve_guest(&node, Role::Active, guest.clone());
    assert_eq!(exit(&mut plain(&node, "monitor")), Some(0), "it is adopted");
    assert_eq!(exit(&mut plain(&node, "stop")), Some(0));
    assert_eq!(guest.pressed.load(Ordering::SeqCst), 1);
    assert_eq!(exit(&mut plain(&node, "monitor")), Some(7));
    drop(engine);
    std::fs::write(node.path("vm.role"), "Started\n").expect("writable");
    fails(&mut plain(&node, "monitor"), 7, "without being asked");
}

#[test]
fn a_clone_that_is_not_promotable_is_a_configuration_error() {
    let node = node();
    let _engine = serve(&node, Role::Waiting);
    let mut start = plain(&node, "start");
    start.env("OCF_RESKEY_CRM_meta_clone_max", "2");
    fails(&mut start, 6, "promotable=true");
}
