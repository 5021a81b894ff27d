// SPDX-License-Identifier: Apache-2.0
//! The agent as Pacemaker calls it, where no engine runs: meta-data, wrong parameters, a stopped
//! resource. No cluster, no systemd, no /dev/kvm.

mod common;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{Node, fails};

/// Where resource-agents puts the DTD, and ocf-tester has its meta-data checked.
const DTD_DIRECTORY: &str = "/usr/share/resource-agents";

#[test]
fn meta_data_is_valid_under_the_clusterlabs_dtd() {
    let output = Node::new().agent("meta-data").output().expect("it runs");
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stderr.is_empty(), "meta-data says nothing else");
    let Some(mut lint) = xmllint() else { return };
    lint.stdin
        .take()
        .expect("stdin was asked for")
        .write_all(&output.stdout)
        .expect("xmllint reads");
    assert!(lint.wait().expect("xmllint ends").success());
}

fn xmllint() -> Option<std::process::Child> {
    let dtd = Path::new(DTD_DIRECTORY).join("ra-api-1.dtd");
    if !dtd.exists() {
        println!(
            "SKIPPED: {} is missing: apt-get install resource-agents",
            dtd.display()
        );
        return None;
    }
    let lint = Command::new("xmllint")
        .args(["--noout", "--valid", "-"])
        .current_dir(DTD_DIRECTORY)
        .stdin(Stdio::piped())
        .spawn();
    if let Err(error) = &lint {
        println!("SKIPPED: xmllint: {error}: apt-get install libxml2-utils");
    }
    lint.ok()
}

#[test]
fn an_unknown_action_is_unimplemented() {
    let node = Node::new();
    fails(&mut node.agent("recover"), 3, "recover");
    fails(&mut node.agent(""), 3, "no action");
    assert_eq!(node.exit("usage"), 0);
}

#[test]
fn a_missing_parameter_is_a_configuration_error_for_every_action() {
    let node = Node::new();
    for action in [
        "validate-all",
        "start",
        "stop",
        "monitor",
        "promote",
        "demote",
        "notify",
    ] {
        let mut agent = node.agent(action);
        agent.env_remove("OCF_RESKEY_config");
        fails(&mut agent, 6, "'config' is not set");
    }
}

#[test]
fn a_missing_description_stops_a_start_here_and_a_probe_finds_nothing() {
    let node = Node::new();
    fails(&mut deeply(&node, "validate-all"), 5, "vm.toml");
    fails(&mut node.agent("start"), 5, "create it");
    assert_eq!(node.exit("validate-all"), 0, "it may be a witness");
    assert_eq!(node.exit("monitor"), 7);
    assert_eq!(node.exit("stop"), 0);
    assert_eq!(node.exit("notify"), 0);
}

#[test]
fn a_wrong_description_is_a_configuration_error_with_file_line_and_key() {
    let node = Node::new();
    node.describe("memory = 64");
    fails(&mut node.agent("validate-all"), 6, "vm.toml:3: vm.memory");
    assert_eq!(node.exit("monitor"), 7);
}

#[test]
fn a_missing_kernel_is_a_missing_installation() {
    let node = Node::new();
    node.describe("memory_mib = 64");
    fs::remove_file(node.path("kernel")).expect("it was written");
    fails(&mut deeply(&node, "validate-all"), 5, "kernel");
    fails(&mut node.agent("start"), 5, "kernel");
    assert_eq!(node.exit("validate-all"), 0, "the parameters are right");
}

fn deeply(node: &Node, action: &str) -> Command {
    let mut agent = node.agent(action);
    agent.env("OCF_CHECK_LEVEL", "10");
    agent
}

/// A pipe nobody writes to stands for a file on storage that hangs: opening it does not end.
#[test]
fn a_file_that_cannot_be_opened_in_time_is_named_in_time() {
    let node = Node::new();
    node.describe("memory_mib = 64");
    pipe(&node, "kernel");
    for mut agent in [deeply(&node, "validate-all"), node.agent("start")] {
        agent.env("OCF_RESKEY_CRM_meta_timeout", "1000");
        fails(&mut agent, 1, "look at the storage");
    }
    assert_eq!(node.exit("stop"), 0, "nothing of it is needed to stop");
    pipe(&node, "vm.toml");
    for action in [
        "validate-all",
        "start",
        "stop",
        "monitor",
        "promote",
        "demote",
        "notify",
    ] {
        let mut agent = node.agent(action);
        agent.env("OCF_RESKEY_CRM_meta_timeout", "1000");
        fails(&mut agent, 1, "look at the storage");
    }
}

fn pipe(node: &Node, name: &str) {
    let path = node.path(name);
    fs::remove_file(&path).expect("it was written");
    let made = Command::new("mkfifo").arg(&path).status();
    assert!(made.expect("mkfifo runs").success());
}

#[test]
fn a_wrong_shutdown_timeout_refuses_a_start_and_never_fails_what_runs() {
    let node = Node::new();
    node.describe("memory_mib = 64");
    let with = |action, value| {
        let mut agent = node.agent(action);
        agent.env("OCF_RESKEY_shutdown_timeout", value);
        agent
    };
    for action in ["validate-all", "start"] {
        fails(&mut with(action, "30s"), 6, "shutdown_timeout=30s");
    }
    for (value, said) in [
        ("45", "INFO: A guest that is stopped for good has 45 s"),
        (
            "30s",
            "WARNING: shutdown_timeout=30s is no number of seconds",
        ),
    ] {
        let output = with("reload-agent", value).output().expect("it runs");
        assert_eq!(output.status.code(), Some(0));
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains(said), "{text}");
    }
    assert_eq!(
        with("stop", "30s").status().expect("it runs").code(),
        Some(0)
    );
}
#[test]
fn a_stopped_replica_is_cleanly_stopped_and_stopping_it_again_succeeds() {
    let node = Node::new();
    node.describe("memory_mib = 64");
    assert_eq!(node.exit("monitor"), 7);
    assert_eq!(node.exit("stop"), 0);
    assert_eq!(node.exit("monitor"), 7);
    fails(&mut node.agent("demote"), 7, "not running");
    fails(&mut node.agent("promote"), 7, "not running");
}

#[test]
fn an_engine_that_vanished_is_failed_until_it_is_stopped() {
    let node = Node::new();
    node.describe("memory_mib = 64");
    for (role, code) in [("Unpromoted", 1), ("Promoted", 9)] {
        fs::write(node.path("vm.role"), role).expect("writable");
        fails(&mut node.agent("monitor"), code, "without being asked");
        assert_eq!(node.exit("stop"), 0);
        assert_eq!(node.exit("monitor"), 7);
    }
}

/// Pacemaker demotes what failed before it stops it. A demote that failed, too, would make two
/// failures out of one, and `migration-threshold=2` would keep the replica from its node.
#[test]
fn an_engine_that_vanished_is_demoted_without_a_second_failure() {
    let node = Node::new();
    node.describe("memory_mib = 64");
    fs::write(node.path("vm.role"), "Promoted").expect("writable");
    fails(&mut node.agent("monitor"), 9, "without being asked");
    assert_eq!(node.exit("demote"), 0);
    fails(&mut node.agent("monitor"), 1, "without being asked");
    assert_eq!(node.exit("stop"), 0);
    fails(&mut node.agent("demote"), 7, "not running");
}
