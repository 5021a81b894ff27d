// SPDX-License-Identifier: Apache-2.0
//! The agent against a control socket: one that answers as an engine does, and one that is silent.
//!
//! The engine here is a stand-in with a role and no guest: what is tested is what the agent makes
//! of each answer. Real engines run in the cluster tests.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener as SilentListener;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use common::stand_in::{Conductor, Guest, serve, serve_guest};
use common::{Node, fails};
use kemari_api::Role;

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

/// What is wrong with it was counted when `monitor` said so; the recovery that follows must not count
/// it again.
#[test]
fn an_outdated_replica_is_demoted_and_failed_until_its_restart() {
    let node = node();
    let _engine = serve(&node, Role::Outdated);
    fs::write(node.path("vm.role"), "Promoted\n").expect("writable");
    assert_eq!(node.exit("demote"), 0);
    assert_eq!(assigned(&node), "Unpromoted\n");
    fails(&mut node.agent("monitor"), 1, "outdated: it stands in");
}

/// A busy node's attribute manager takes many seconds. A score that is not told leaves the passive replica's the
/// highest, and Pacemaker moves the guest for nothing.
#[test]
fn a_slow_attribute_manager_is_waited_for() {
    let node = node();
    let _engine = serve(&node, Role::Active);
    fs::write(node.path("vm.role"), "Promoted\n").expect("writable");
    let (tool, told) = (node.path("crm_attribute"), node.path("told"));
    let script = format!("#!/bin/sh\nsleep 6\necho \"$*\" > {}\n", told.display());
    fs::write(&tool, script).expect("writable");
    fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).expect("it is ours");
    let path = format!(
        "{}:/usr/bin:/bin",
        tool.parent().expect("a directory").display()
    );
    let mut monitor = node.agent("monitor");
    monitor
        .env("PATH", path)
        .env("OCF_RESKEY_crm_feature_set", "3.16.2")
        .env("OCF_RESKEY_CRM_meta_promoted_max", "1")
        .env("OCF_RESKEY_CRM_meta_timeout", "20000");
    let output = monitor.output().expect("it runs");
    assert_eq!(output.status.code(), Some(8), "{output:?}");
    let told = fs::read_to_string(told).expect("it was told");
    assert_eq!(told, "--promotion -v 10000\n");
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

/// What Pacemaker's scheduler says of the instance on node1.
fn scheduler(node: &Node, role: &str, planned: &str) {
    let tool = node.path("crm_simulate");
    let xml = format!(
        "<pacemaker-result><transition>{planned}</transition><revised_cluster_status>\
         <resource id=\"vm\" role=\"{role}\"><node name=\"node1\"/></resource>\
         <resource id=\"vm\" role=\"Unpromoted\"><node name=\"node2\"/></resource>\
         </revised_cluster_status></pacemaker-result>"
    );
    let script = format!("#!/bin/sh\ncat <<'EOF'\n{xml}\nEOF\n");
    fs::write(&tool, script).expect("writable");
    fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).expect("it is ours");
}

/// A silent node is back; Pacemaker finds two promoted instances, or lacks scores for a moment.
#[test]
fn the_guest_is_not_given_up_where_pacemaker_takes_the_demotion_back() {
    let demote = "<rsc_action resource=\"vm\" op=\"demote\" node=\"node1\"/>";
    for (promoted, stopped, role, planned, kept) in [
        // Two were found promoted: kept, unless nobody shall be.
        ("node1 node2", " ", "Promoted", "", true),
        ("node1 node2", "node2", "Promoted", "", true),
        ("node1 node2", "node1", "Promoted", "", false),
        ("node1 node2", " ", "Unpromoted", "", false),
        // One was: kept if the plan is another one by now, which has no demotion.
        ("node1", " ", "Promoted", "", true),
        ("node1", " ", "Promoted", demote, false),
        ("node1", " ", "Unpromoted", demote, false),
    ] {
        let node = node();
        scheduler(&node, role, planned);
        let (_runtime, active) = serve(&node, Role::Active);
        fs::write(node.path("vm.role"), "Promoted\n").expect("writable");
        let mut demote = demote_of(&node, stopped);
        let path = node.path("");
        demote
            .env("OCF_RESKEY_CRM_meta_notify_promoted_uname", promoted)
            .env("OCF_RESKEY_CRM_meta_timeout", "3000")
            .env("OCF_RESOURCE_INSTANCE", "vm")
            .env("PATH", format!("{}:/usr/bin:/bin", path.display()));
        let words = "it waits for Pacemaker to promote it again";
        let what = format!("{promoted:?} {stopped:?} {role} {planned}");
        assert_eq!(says(&mut demote, words), (Some(0), kept), "{what}");
        let left = if kept { Role::Active } else { Role::Waiting };
        assert_eq!(*active.lock().expect("not poisoned"), left, "{what}");
        assert_eq!(assigned(&node), "Unpromoted\n");
        assert_eq!(node.exit("monitor"), 0);
    }
}

/// The agent needs the name to lower the promotion score of a replica that is outdated.
#[test]
fn the_resources_name_is_noted_for_the_agent_until_it_is_stopped() {
    let node = node();
    let engine = serve(&node, Role::Passive);
    let mut monitor = node.agent("monitor");
    monitor
        .env("OCF_RESOURCE_INSTANCE", "mail:0")
        .env("OCF_RESKEY_crm_feature_set", "3.16.2")
        .env("OCF_RESKEY_CRM_meta_promoted_max", "1");
    assert_eq!(monitor.output().expect("it runs").status.code(), Some(0));
    let noted = fs::read_to_string(node.path("vm.resource")).expect("it was noted");
    assert_eq!(noted, "mail:0\n");
    drop(engine);
    assert_eq!(node.exit("stop"), 0);
    assert!(!node.path("vm.resource").exists());
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

/// A system bus that accepts connections and says nothing, as one of a systemd that hangs.
#[test]
fn a_silent_bus_lets_no_action_outlive_its_timeout() {
    let agent = |node: &Node, action: &str| {
        let address = format!("unix:path={}", node.path("bus").display());
        let mut agent = node.agent(action);
        agent.env("DBUS_SYSTEM_BUS_ADDRESS", address);
        agent.env("OCF_RESKEY_CRM_meta_timeout", "1500");
        agent.env("OCF_RESKEY_crm_feature_set", "3.16.1");
        agent.env("OCF_RESKEY_CRM_meta_promoted_max", "1");
        agent
    };
    let node = node();
    let _bus = SilentListener::bind(node.path("bus")).expect("it binds");
    fails(
        &mut agent(&node, "monitor"),
        1,
        "whether kemari-vm@vm.service has ended",
    );
    fails(
        &mut agent(&node, "stop"),
        1,
        "waiting for kemari-vm@vm.service to end",
    );
    fails(&mut agent(&node, "promote"), 1, "systemd does not say");
    fails(&mut agent(&node, "demote"), 1, "systemd does not say");
    assert_eq!(
        agent(&node, "notify").status().expect("it runs").code(),
        Some(0)
    );
    let _engine = serve(&node, Role::Waiting);
    assert_eq!(
        agent(&node, "monitor").status().expect("it runs").code(),
        Some(0)
    );
    fails(&mut agent(&node, "promote"), 1, "waiting for kemari-agent");
}

/// The agent promoted the replica, and hangs since: `promote` finds the work done, and a
/// notification is lost without a failure.
#[test]
fn a_kemari_agent_that_hangs_undoes_nothing() {
    let node = node();
    let _bus = SilentListener::bind(node.path("bus")).expect("it binds");
    let _engine = serve(&node, Role::Active);
    for (action, code) in [("promote", 0), ("notify", 0), ("monitor", 8)] {
        let mut agent = node.agent(action);
        let address = format!("unix:path={}", node.path("bus").display());
        agent.env("DBUS_SYSTEM_BUS_ADDRESS", address);
        agent.env("OCF_RESKEY_CRM_meta_timeout", "2000");
        for (key, value) in [
            ("type", "post"),
            ("operation", "stop"),
            ("stop_uname", "node2"),
        ] {
            agent.env(format!("OCF_RESKEY_CRM_meta_notify_{key}"), value);
        }
        let warned = action != "monitor";
        assert_eq!(
            says(&mut agent, "systemctl start kemari-agent"),
            (Some(code), warned)
        );
    }
}

#[test]
fn a_silent_engine_lets_no_action_outlive_its_timeout() {
    let node = node();
    let _silent = SilentListener::bind(node.path("vm.sock")).expect("it binds");
    for (action, code, word) in [
        ("promote", 1, "did not answer"),
        ("demote", 1, "did not answer"),
        (
            "stop",
            1,
            "waiting for the engine's control socket to close",
        ),
    ] {
        for level in ["0", "10"] {
            let mut agent = node.agent(action);
            agent.env("OCF_RESKEY_CRM_meta_timeout", "1000");
            agent.env("OCF_CHECK_LEVEL", level);
            fails(&mut agent, code, word);
        }
    }
    assert_eq!(
        node.agent("notify")
            .env("OCF_RESKEY_CRM_meta_timeout", "1000")
            .status()
            .expect("it runs")
            .code(),
        Some(0)
    );
    assert_eq!(node.exit("reload-agent"), 0);
}

/// A deep monitor with two seconds, of a replica like this.
fn deep_monitor(role: Role, guest: Guest) -> (Option<i32>, String) {
    let node = node();
    let _engine = serve_guest(&node, role, guest);
    let mut monitor = node.agent("monitor");
    monitor.env("OCF_CHECK_LEVEL", "10");
    monitor.env("OCF_RESKEY_CRM_meta_timeout", "2000");
    let output = monitor.output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), said)
}

#[test]
fn a_deep_monitor_fails_a_replica_that_answers_and_does_not_work() {
    for (role, sound, failed) in [
        (Role::Active, 8, 9),
        (Role::Passive, 0, 1),
        (Role::Waiting, 0, 1),
    ] {
        for (conductor, code, word) in [
            (Conductor::Idle, sound, ""),
            (Conductor::Busy, sound, "is busy, and gets on"),
            (
                Conductor::Hangs,
                failed,
                "ocf-exit-reason:The engine of VM vm answers, but took no",
            ),
        ] {
            let guest = Guest {
                conductor,
                ..Guest::default()
            };
            let (exit, said) = deep_monitor(role, guest.clone());
            assert_eq!(exit, Some(code), "{role}: {said}");
            assert!(said.contains(word), "{role}: {said}");
        }
    }
}

#[test]
fn commits_that_do_not_come_are_told_and_are_no_failure_of_the_active_replica() {
    let node = node();
    let text = fs::read_to_string(node.path("vm.toml")).expect("it was written");
    let quick = "[replication]\npeer_timeout_ms = 50\nepoch_ms_max = 1\n";
    fs::write(node.path("vm.toml"), format!("{text}{quick}")).expect("writable");
    let guest = Guest {
        paired: true,
        ..Guest::default()
    };
    let _engine = serve_guest(&node, Role::Active, guest);
    for (timeout, word) in [
        ("4000", "which has committed nothing"),
        ("1000", "the time-out of this monitor is too short"),
    ] {
        let mut monitor = node.agent("monitor");
        monitor.env("OCF_CHECK_LEVEL", "10");
        monitor.env("OCF_RESKEY_CRM_meta_timeout", timeout);
        assert_eq!(says(&mut monitor, word), (Some(8), true));
    }
}

/// A demotion, told by Pacemaker that these replicas are stopped next.
fn demote_of(node: &Node, stopped: &str) -> Command {
    let mut demote = node.agent("demote");
    for (key, nodes) in [
        ("active", "node1 node2"),
        ("promoted", "node1"),
        ("stop", stopped),
        ("start", " "),
        ("promote", " "),
    ] {
        demote.env(format!("OCF_RESKEY_CRM_meta_notify_{key}_uname"), nodes);
    }
    demote
}

/// Its exit code, and whether it said this.
fn says(agent: &mut Command, words: &str) -> (Option<i32>, bool) {
    let output = agent.output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    println!("{said}");
    (output.status.code(), said.contains(words))
}

#[test]
fn a_guest_that_is_stopped_for_good_shuts_down_and_its_stop_finds_nothing_to_do() {
    let node = node();
    let guest = Guest {
        off: Some(Arc::default()),
        ..Guest::default()
    };
    let _engine = serve_guest(&node, Role::Active, guest.clone());
    let mut demote = demote_of(&node, "node1 node2");
    assert_eq!(says(&mut demote, "shut down after"), (Some(0), true));
    assert_eq!(guest.pressed.load(Ordering::SeqCst), 1);
    assert_eq!(assigned(&node), "Unpromoted\n");
    assert_eq!(node.exit("stop"), 0);
    assert_eq!(assigned(&node), "");
    assert_eq!(node.exit("monitor"), 7);
}

#[test]
fn a_guest_that_ignores_its_power_button_is_demoted_all_the_same() {
    let node = node();
    let guest = Guest::default();
    let (_runtime, role) = serve_guest(&node, Role::Active, guest.clone());
    let mut demote = demote_of(&node, "node1");
    demote.env("OCF_RESKEY_shutdown_timeout", "1");
    let words = "did not shut down within 1 s";
    assert_eq!(says(&mut demote, words), (Some(0), true));
    assert_eq!(guest.pressed.load(Ordering::SeqCst), 1);
    assert_eq!(*role.lock().expect("not poisoned"), Role::Waiting);
}

#[test]
fn a_guest_that_goes_on_or_has_no_time_is_not_powered_off() {
    for (stopped, shutdown_timeout) in [("node2", "30"), (" ", "30"), ("node1 node2", "0")] {
        let node = node();
        let guest = Guest {
            off: Some(Arc::default()),
            ..Guest::default()
        };
        let (_runtime, role) = serve_guest(&node, Role::Active, guest.clone());
        let mut demote = demote_of(&node, stopped);
        demote.env("OCF_RESKEY_shutdown_timeout", shutdown_timeout);
        assert_eq!(says(&mut demote, "power button"), (Some(0), false));
        assert_eq!(guest.pressed.load(Ordering::SeqCst), 0, "{stopped}");
        assert_eq!(*role.lock().expect("not poisoned"), Role::Waiting);
    }
}
