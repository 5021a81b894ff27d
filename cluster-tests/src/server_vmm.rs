// SPDX-License-Identifier: Apache-2.0
//! Who runs the server guest in a node: Debian's QEMU on the node's KVM, or Kemari's engine. The same guest either way.
//!
//! Both are started by systemd as the unit [`UNIT`], use a block device of the node, and a TAP on its bridge. The console goes to a
//! listener outside.

use anyhow::{Context, Result, ensure};

use crate::bed::Bed as _;
use crate::clients::Lease;
use crate::console::{ConsoleText, Listening};
use crate::debian_guest::DebianGuest;
use crate::machines::{BRIDGE, Machines};
use crate::observer::Observer;

/// The systemd unit of the VMM in its node.
pub const UNIT: &str = "server-guest";

const KERNEL: &str = "/srv/server/vmlinuz";
const INITRD: &str = "/srv/server/initrd.img";
const CONFIG: &str = "/etc/kemari/server.toml";
const TAP: &str = "tap-server";
/// A script in the node that starts QEMU; what it is given goes to QEMU too.
const COMMAND: &str = "/srv/server/command";
const MONITOR: &str = "/run/server.monitor";
/// A saved guest.
const STATE: &str = "/srv/server/state";

/// The program that is the guest's machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerVmm {
    /// `qemu-system-x86_64 -accel kvm`: what Kemari is measured against.
    Qemu,
    /// `kemari-engine run`, without a second replica.
    Kemari,
}

/// The guest's machine, the same for both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerHardware {
    /// Processors.
    pub vcpus: u8,
    /// RAM.
    pub memory_mib: u32,
    /// The block device in the node.
    pub disk: String,
    /// The network card, and the address it will get.
    pub lease: Lease,
    /// Whether the kernel says everything it does on the console, which takes its time.
    pub talk: Talk,
}

/// How much the guest's kernel says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Talk {
    /// As Debian's boot loader has it.
    #[default]
    Quiet,
    /// Everything: for finding out where a boot stands.
    Everything,
}

impl ServerVmm {
    /// Puts the guest's files on a node and starts it there. The console's bytes come to the result.
    ///
    /// # Errors
    /// When a file cannot be written or the VMM does not start.
    pub fn start(
        self,
        bed: &Machines,
        node: &str,
        guest: &DebianGuest,
        hardware: &ServerHardware,
    ) -> Result<Box<dyn ConsoleText>> {
        let listener = bed.listen_outside(0)?;
        let port = listener.local_addr()?.port();
        let console = format!("tcp:{}:{port}", bed.outside());
        let command_line = match hardware.talk {
            Talk::Quiet => guest.command_line(),
            Talk::Everything => guest.command_line().replace(" quiet", ""),
        };
        match self {
            Self::Qemu => {
                put(bed, node, guest)?;
                run(bed, node, &tap_script())?;
                let command = qemu(hardware, &command_line, &console);
                let script = format!("exec {command} \"$@\"\n");
                bed.write(node, COMMAND, script.as_bytes(), 0o644)?;
                run(bed, node, &unit(&format!("sh {COMMAND}")))?;
                Ok(Box::new(Listening::on(listener)))
            }
            Self::Kemari => {
                let config = description(hardware, &command_line, &console);
                bed.write(node, CONFIG, config.as_bytes(), 0o644)?;
                let command = format!("kemari-engine run --config {CONFIG} --node {node}");
                run(bed, node, &unit(&command))?;
                Ok(Box::new(Observer::over(listener)?))
            }
        }
    }

    /// What the VMM wrote into the node's journal.
    ///
    /// # Errors
    /// When the node does not answer.
    pub fn journal(self, bed: &Machines, node: &str) -> Result<String> {
        run(bed, node, &format!("journalctl -b -o cat -u {UNIT} -n 40"))
    }

    /// Saves the whole guest to a file, ends the VMM, and starts a new one from the file.
    ///
    /// # Errors
    /// When the VMM cannot. Kemari's engine hands a guest over to another one and knows no file.
    pub fn save_and_restore(self, bed: &Machines, node: &str) -> Result<()> {
        ensure!(
            self == Self::Qemu,
            "Kemari's engine does not save a guest to a file"
        );
        let script = format!(
            "set -e; printf 'stop\\nmigrate \"exec:cat > {STATE}\"\\nquit\\n' | socat -t 300 - UNIX:{MONITOR}; \
             while systemctl -q is-active {UNIT}; do sleep 0.2; done; \
             {}",
            unit(&format!("sh {COMMAND} -incoming 'exec:cat {STATE}'"))
        );
        run(bed, node, &script).map(drop)
    }

    /// Ends the VMM at once, as `kill -9` does. The guest's disk is as it was at that moment.
    ///
    /// # Errors
    /// When the node does not answer.
    pub fn kill(self, bed: &Machines, node: &str) -> Result<()> {
        run(
            bed,
            node,
            &format!(
                "systemctl kill --signal=KILL {UNIT} || true; ip link del {TAP} 2>/dev/null || true; \
                 while systemctl -q is-active {UNIT}; do sleep 0.2; done; systemctl reset-failed {UNIT} || true"
            ),
        )
        .map(drop)
    }
}

fn run(bed: &Machines, node: &str, script: &str) -> Result<String> {
    bed.exec(node, &["sh", "-c", script])?
        .success()
        .with_context(|| format!("{node}: {script}"))
}

/// Kernel and initial RAM disk, for a VMM that does not look into the disk.
fn put(bed: &Machines, node: &str, guest: &DebianGuest) -> Result<()> {
    for (from, to) in [(guest.kernel(), KERNEL), (guest.initrd(), INITRD)] {
        let bytes =
            std::fs::read(&from).with_context(|| format!("Cannot read {}", from.display()))?;
        bed.write(node, to, &bytes, 0o644)?;
    }
    Ok(())
}

fn tap_script() -> String {
    format!(
        "ip link show {TAP} >/dev/null 2>&1 || ip tuntap add dev {TAP} mode tap vnet_hdr; \
         ip link set {TAP} master {BRIDGE} up"
    )
}

fn unit(command: &str) -> String {
    format!("systemd-run --quiet --collect --unit={UNIT} -p OOMScoreAdjust=-900 {command}")
}

/// What a person would start who wants the fastest ordinary machine: virtio, and no cache between the guest's and the disk.
fn qemu(hardware: &ServerHardware, command_line: &str, console: &str) -> String {
    let ServerHardware {
        vcpus,
        memory_mib,
        disk,
        lease,
        talk: _,
    } = hardware;
    format!(
        "qemu-system-x86_64 -name server -no-user-config -nodefaults -display none -machine pc,vmport=off \
         -accel kvm -cpu host -smp {vcpus} -m {memory_mib} -serial {console} -monitor unix:{MONITOR},server=on,wait=off \
         -kernel {KERNEL} -initrd {INITRD} -append '{command_line}' \
         -drive if=none,id=disk,format=raw,file={disk},cache=none,aio=native,discard=unmap \
         -device virtio-blk-pci,drive=disk,romfile= \
         -netdev tap,id=lan,ifname={TAP},script=no,downscript=no,vhost=off \
         -device virtio-net-pci,netdev=lan,mac={},romfile= \
         -object rng-random,id=random,filename=/dev/urandom -device virtio-rng-pci,rng=random",
        lease.mac
    )
}

fn description(hardware: &ServerHardware, command_line: &str, console: &str) -> String {
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
         [[disk]]\nid = \"system\"\npath = \"{disk}\"\ndirect = true\n\n\
         [[network]]\nid = \"lan\"\nbridge = \"{BRIDGE}\"\nmac = \"{}\"\n\n\
         [console]\noutput = \"{console}\"\n",
        lease.mac
    )
}
