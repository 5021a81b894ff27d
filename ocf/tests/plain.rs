// SPDX-License-Identifier: Apache-2.0
//! The plain primitive, as Pacemaker calls it without a clone: on a real bus with a stand-in for
//! kemari-agent, against a stand-in for an engine, with a stand-in for Pacemaker's scheduler.

mod common;

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
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
fn a_start_runs_the_guest_by_the_agents_leave_or_finds_that_it_does() {
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
        // A replica that the agents promoted is not Pacemaker's before it was started.
        assert_eq!(exit(&mut run("monitor")), Some(7), "{before}");
        for action in ["start", "start", "migrate_from"] {
            assert_eq!(exit(&mut run(action)), Some(0), "{before} {action}");
            assert_eq!(*role.lock().expect("not poisoned"), Role::Active);
            assert_eq!(exit(&mut run("monitor")), Some(0));
        }
        *role.lock().expect("not poisoned") = Role::Waiting;
        fails(&mut run("monitor"), 7, "waiting: it stands in");
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

/// A scheduler whose plan has the resource on these nodes, and then on those.
fn scheduler(node: &Node, before: &[&str], after: &[&str]) {
    let section = |name: &str, nodes: &[&str]| {
        let nodes: String = nodes
            .iter()
            .map(|node| format!("<node name='{node}' id='1'/>"))
            .collect();
        format!("<{name}><resources><resource id='vm'>{nodes}</resource></resources></{name}>")
    };
    let script = format!(
        "#!/bin/sh\ncat <<'XML'\n<pacemaker-result>{}{}</pacemaker-result>\nXML\n",
        section("cluster_status", before),
        section("revised_cluster_status", after)
    );
    let path = node.path("crm_simulate");
    fs::write(&path, script).expect("writable");
    fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("its own file");
}

/// A stop as Pacemaker asks for it, with that scheduler.
fn stop(node: &Node) -> Command {
    let mut stop = plain(node, "stop");
    let path = node.path("");
    stop.env("OCF_RESOURCE_INSTANCE", "vm")
        .env("OCF_RESKEY_CRM_meta_on_node", "node1")
        .env("PATH", format!("{}:/usr/bin:/bin", path.display()));
    stop
}

#[test]
fn a_stop_shuts_the_guest_down_where_the_vm_is_stopped_or_restarted() {
    for (what, after) in [("stopped", &[][..]), ("restarted", &["node1"])] {
        let node = node();
        scheduler(&node, &["node1"], after);
        let guest = Guest {
            off: Some(Arc::default()),
            paired: true,
            ..Guest::default()
        };
        let engine = serve_guest(&node, Role::Active, guest.clone());
        fs::write(node.path("vm.role"), "Started\n").expect("writable");
        fs::write(node.path("vm.kept"), "").expect("writable");
        assert_eq!(exit(&mut stop(&node)), Some(0), "{what}");
        assert_eq!(guest.pressed.load(Ordering::SeqCst), 1, "{what}");
        assert_eq!(exit(&mut plain(&node, "monitor")), Some(7));
        assert!(!node.path("vm.kept").exists(), "nothing is kept");
        drop(engine);
        fs::write(node.path("vm.role"), "Started\n").expect("writable");
        fs::write(node.path("vm.kept"), "").expect("writable");
        fails(&mut plain(&node, "monitor"), 7, "without being asked");
    }
}

#[test]
fn a_stop_that_is_half_of_a_move_hands_the_guest_over() {
    for (before, after, left) in [
        (&["node1"][..], &["node2"][..], Role::Waiting),
        // A node that was silent is back: Pacemaker stops both, and the guest goes on.
        (&["node1", "node2"], &["node1"], Role::Active),
        (&["node1", "node2"], &["node2"], Role::Active),
    ] {
        let node = node();
        scheduler(&node, before, after);
        let guest = Guest {
            paired: true,
            ..Guest::default()
        };
        let (_engine, role) = serve_guest(&node, Role::Active, guest.clone());
        fs::write(node.path("vm.role"), "Started\n").expect("writable");
        assert_eq!(exit(&mut stop(&node)), Some(0));
        assert_eq!(*role.lock().expect("not poisoned"), left);
        assert_eq!(guest.pressed.load(Ordering::SeqCst), 0);
        assert_eq!(exit(&mut plain(&node, "monitor")), Some(7));
        assert!(node.path("vm.kept").exists(), "it is the agent's now");
        // Again, as Pacemaker does after migrate_to.
        assert_eq!(exit(&mut stop(&node)), Some(0));
        assert_eq!(*role.lock().expect("not poisoned"), left);
    }
}

#[test]
fn a_replica_that_the_agent_keeps_is_nothing_that_runs() {
    for role in [Role::Waiting, Role::Passive, Role::Outdated, Role::Active] {
        let node = node();
        let _engine = serve(&node, role);
        fs::write(node.path("vm.kept"), "").expect("writable");
        assert_eq!(exit(&mut plain(&node, "monitor")), Some(7), "{role}");
    }
}

#[test]
fn a_migration_goes_to_the_node_that_holds_the_state_and_no_other() {
    let node = node();
    let migrate = |target: Option<&str>| {
        let mut migrate = plain(&node, "migrate_to");
        if let Some(target) = target {
            migrate.env("OCF_RESKEY_CRM_meta_migrate_target", target);
        }
        migrate
    };
    let guest = Guest {
        paired: true,
        ..Guest::default()
    };
    let (_engine, role) = serve_guest(&node, Role::Active, guest);
    fails(&mut migrate(None), 2, "no node");
    fails(&mut migrate(Some("node3")), 1, "(in sync with: node2)");
    assert_eq!(*role.lock().expect("not poisoned"), Role::Active);
    for _ in 0..2 {
        assert_eq!(exit(&mut migrate(Some("node2"))), Some(0));
        assert_eq!(*role.lock().expect("not poisoned"), Role::Waiting);
    }
}

#[test]
fn a_guest_without_a_passive_replica_is_not_migrated() {
    let node = node();
    let (_engine, role) = serve(&node, Role::Active);
    let mut migrate = plain(&node, "migrate_to");
    migrate.env("OCF_RESKEY_CRM_meta_migrate_target", "node2");
    fails(&mut migrate, 1, "(in sync with: none)");
    assert_eq!(*role.lock().expect("not poisoned"), Role::Active);
}

#[test]
fn a_clone_that_is_not_promotable_is_a_configuration_error() {
    let node = node();
    let _engine = serve(&node, Role::Waiting);
    let mut start = plain(&node, "start");
    start.env("OCF_RESKEY_CRM_meta_clone_max", "2");
    fails(&mut start, 6, "promotable=true");
}
