// SPDX-License-Identifier: Apache-2.0
//! Where things lie on a node.
//!
//! `KEMARI_RUN_DIR` and `KEMARI_STATE_DIR` move both directories, for a run by hand and for tests.

use std::env;
use std::path::PathBuf;

use crate::VmName;

/// Sockets and what else is gone after a reboot; `/run/kemari`.
#[must_use]
pub fn run_dir() -> PathBuf {
    env::var_os("KEMARI_RUN_DIR").map_or_else(|| PathBuf::from("/run/kemari"), PathBuf::from)
}

/// What must survive a reboot; `/var/lib/kemari`.
#[must_use]
pub fn state_dir() -> PathBuf {
    env::var_os("KEMARI_STATE_DIR").map_or_else(|| PathBuf::from("/var/lib/kemari"), PathBuf::from)
}

/// The control socket of a VM's engine on this node. It appears when the engine can answer.
#[must_use]
pub fn control_socket(vm: &VmName) -> PathBuf {
    run_dir().join(format!("{vm}.sock"))
}

/// The name of the VM whose control socket this file is.
#[must_use]
pub fn vm_of_control_socket(file_name: &str) -> Option<VmName> {
    file_name.strip_suffix(".sock")?.parse().ok()
}

/// The systemd unit that runs a VM's engine.
#[must_use]
pub fn unit(vm: &VmName) -> String {
    format!("kemari-vm@{vm}.service")
}

/// The environment file by which the resource agent tells the unit which description to use
/// (`KEMARI_CONFIG=/path`).
#[must_use]
pub fn unit_environment(vm: &VmName) -> PathBuf {
    run_dir().join(format!("{vm}.env"))
}

/// Where the resource agent notes what Pacemaker calls the VM's resource, so that the agent can lower its
/// promotion score. Missing where Pacemaker has no promotable resource for the VM.
#[must_use]
pub fn resource(vm: &VmName) -> PathBuf {
    run_dir().join(format!("{vm}.resource"))
}

/// Where the resource agent remembers the role Pacemaker assigned.
#[must_use]
pub fn assigned_role(vm: &VmName) -> PathBuf {
    run_dir().join(format!("{vm}.role"))
}

/// Where is noted that the engine of this VM is the agent's: a replica of a plain primitive that Pacemaker has not started, or
/// has stopped.
#[must_use]
pub fn kept(vm: &VmName) -> PathBuf {
    run_dir().join(format!("{vm}.kept"))
}

/// The name of the VM whose note this file is.
#[must_use]
pub fn vm_of_kept(file_name: &str) -> Option<VmName> {
    file_name.strip_suffix(".kept")?.parse().ok()
}
