// SPDX-License-Identifier: Apache-2.0
//! Kemari's words: the description of the VM, and what a person would type without a cluster. Shell commands for a node.

use super::{MIGRATION_PORT, STATE, ServerHardware, Start};
use crate::machines::BRIDGE;

/// The description in a node.
pub(super) const CONFIG: &str = "/etc/kemari/server.toml";

/// The guest boots from its disk. `direct`: another node may have written to it.
pub(super) fn description(hardware: &ServerHardware, command_line: &str, console: &str) -> String {
    let ServerHardware {
        vcpus,
        memory_mib,
        disk,
        lease,
        talk: _,
    } = hardware;
    format!(
        "[vm]\nname = \"server\"\nmemory_mib = {memory_mib}\nvcpus = {vcpus}\n\n\
         [boot]\ndisk = \"system\"\ncmdline = \"{command_line}\"\n\n\
         [[disk]]\nid = \"system\"\npath = \"{disk}\"\ndirect = true\nstorage = \"shared\"\n\n\
         [[network]]\nid = \"lan\"\nbridge = \"{BRIDGE}\"\nmac = \"{}\"\n\n\
         [console]\noutput = \"{console}\"\n",
        lease.mac
    )
}

pub(super) fn command(node: &str, start: &Start) -> String {
    let what = match start {
        Start::Boot => format!("run --config {CONFIG} --node {node}"),
        Start::Restore => format!("snapshot restore --config {CONFIG} --node {node} {STATE}"),
        Start::Incoming => {
            format!("run --config {CONFIG} --node {node} --incoming tcp:0.0.0.0:{MIGRATION_PORT}")
        }
    };
    format!("kemari-engine {what}")
}

/// Saves the guest; the engine then ends.
pub(super) fn save() -> String {
    format!("mkdir -p /srv/server; kemari-engine snapshot save server {STATE}")
}

/// What the engine is at.
pub(super) fn progress() -> String {
    "kemarictl monitor server info status; kemarictl monitor server info migrate".to_owned()
}

/// Sends the guest away; the engine then ends.
pub(super) fn send(address: &str) -> String {
    format!("kemarictl monitor server migrate {address}")
}

/// The same on a terminal, where it shows how far it is; each of its words on a line of its own.
pub(super) fn migrate(address: &str) -> String {
    format!(
        "script -qefc '{}' /dev/null </dev/null >/tmp/migrate 2>&1 || {{ cat /tmp/migrate; exit 1; }}; \
         sed 's/\\x1b\\[K//g' /tmp/migrate | tr '\\r' '\\n' | sed '/^$/d'",
        send(address)
    )
}
