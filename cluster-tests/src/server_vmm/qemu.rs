// SPDX-License-Identifier: Apache-2.0
//! QEMU's words: what a person would type who wants the fastest ordinary machine. Shell commands for a node.

use std::path::PathBuf;

use super::{MIGRATION_PORT, STATE, ServerHardware, Start};
use crate::debian_guest::DebianGuest;
use crate::machines::BRIDGE;

const KERNEL: &str = "/srv/server/vmlinuz";
const INITRD: &str = "/srv/server/initrd.img";
const TAP: &str = "tap-server";
const MONITOR: &str = "/run/server.monitor";

/// QEMU does not look into the disk for its kernel: the files, and where they go.
pub(super) fn files(guest: &DebianGuest) -> [(PathBuf, &'static str); 2] {
    [(guest.kernel(), KERNEL), (guest.initrd(), INITRD)]
}

/// The guest's port on the bridge.
pub(super) fn tap() -> String {
    format!(
        "ip link show {TAP} >/dev/null 2>&1 || ip tuntap add dev {TAP} mode tap vnet_hdr; \
         ip link set {TAP} master {BRIDGE} up"
    )
}

/// Virtio for everything, the host's page cache left out, and QEMU's own threads.
pub(super) fn command(
    hardware: &ServerHardware,
    command_line: &str,
    console: &str,
    start: &Start,
) -> String {
    let ServerHardware {
        vcpus,
        memory_mib,
        disk,
        lease,
        talk: _,
    } = hardware;
    let incoming = match start {
        Start::Boot => String::new(),
        Start::Restore => format!("-incoming 'exec:cat {STATE}'"),
        Start::Incoming => format!("-incoming tcp:0.0.0.0:{MIGRATION_PORT}"),
    };
    format!(
        "qemu-system-x86_64 -name server -no-user-config -nodefaults -display none -machine pc,vmport=off \
         -accel kvm -cpu host -smp {vcpus} -m {memory_mib} -serial {console} \
         -monitor unix:{MONITOR},server=on,wait=off \
         -kernel {KERNEL} -initrd {INITRD} -append '{command_line}' \
         -drive if=none,id=disk,format=raw,file={disk},cache=none,aio=native,discard=unmap \
         -device virtio-blk-pci,drive=disk \
         -netdev tap,id=lan,ifname={TAP},script=no,downscript=no,vhost=off \
         -device virtio-net-pci,netdev=lan,mac={},romfile= \
         -object rng-random,id=random,filename=/dev/urandom -device virtio-rng-pci,rng=random {incoming}",
        lease.mac
    )
}

/// Saves the guest and ends QEMU. Without `-d`, `migrate` returns when it is done. It also stops the guest; one that was stopped
/// before would be restored as such.
pub(super) fn save() -> String {
    monitor(&[&format!("migrate \\\"exec:cat > {STATE}\\\""), "quit"])
}

/// Sends the guest away and ends QEMU.
pub(super) fn migrate(address: &str) -> String {
    monitor(&[&format!("migrate {address}"), "quit"])
}

fn monitor(lines: &[&str]) -> String {
    format!(
        "printf '%b' \"{}\\n\" | socat -t 300 - UNIX:{MONITOR}",
        lines.join("\\n")
    )
}

#[cfg(test)]
mod tests {
    use super::save;

    #[test]
    fn the_monitor_gets_a_line_for_each_command() {
        let script = save().replace("socat -t 300 - UNIX:/run/server.monitor", "cat");
        let output = std::process::Command::new("sh")
            .args(["-c", &script])
            .output()
            .unwrap();
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "migrate \"exec:cat > /srv/server/state\"\nquit\n"
        );
    }
}
