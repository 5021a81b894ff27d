// SPDX-License-Identifier: Apache-2.0
//! Who runs the server guest in a node: Debian's QEMU on the node's KVM, or Kemari's engine. The same guest either way.
//!
//! Both are started by systemd as the unit [`UNIT`], use a block device of the node, and a TAP on its bridge. The console goes to a
//! listener outside, also that of a guest that was restored or came from another node.

mod kemari;
mod qemu;

use anyhow::{Context, Result, ensure};

use crate::bed::Bed as _;
use crate::clients::Lease;
use crate::console::{ConsoleText, Listening};
use crate::debian_guest::DebianGuest;
use crate::machines::Machines;
use crate::observer::Observer;

/// The systemd unit of the VMM in its node.
pub const UNIT: &str = "server-guest";

/// A saved guest in a node.
const STATE: &str = "/srv/server/state";
/// Where a node waits for a guest that comes from another one.
const MIGRATION_PORT: u16 = 4460;
/// A link on which a copy of the guest takes some minutes (tc-tbf(8)): 1 MB a second.
const SLOW_LINK: &str = "rate 8mbit burst 64kb latency 500ms";
/// Where a node takes the file of a saved guest.
const STATE_PORT: u16 = 4461;

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

/// A guest's VMM in a bed.
#[derive(Debug)]
pub struct ServerVm<'bed> {
    bed: &'bed Machines,
    vmm: ServerVmm,
    files: DebianGuest,
    hardware: ServerHardware,
    /// `tcp:HOST:PORT` of the listener outside.
    console: String,
    /// Where the guest is now.
    node: String,
}

impl<'bed> ServerVm<'bed> {
    /// Puts the guest's files on a node and starts it there. The console's bytes come to the second result.
    ///
    /// # Errors
    /// When a file cannot be written or the VMM does not start.
    pub fn start(
        bed: &'bed Machines,
        node: &str,
        vmm: ServerVmm,
        files: &DebianGuest,
        hardware: ServerHardware,
    ) -> Result<(Self, Box<dyn ConsoleText>)> {
        let listener = bed.listen_outside(0)?;
        let port = listener.local_addr()?.port();
        let vm = Self {
            bed,
            vmm,
            files: files.clone(),
            hardware,
            console: format!("tcp:{}:{port}", bed.outside()),
            node: node.to_owned(),
        };
        let console: Box<dyn ConsoleText> = match vmm {
            ServerVmm::Qemu => Box::new(Listening::on(listener)),
            ServerVmm::Kemari => Box::new(Observer::over(listener)?),
        };
        vm.prepare(node)?;
        vm.run(node, &unit(&vm.command(node, &Start::Boot)))?;
        Ok((vm, console))
    }

    /// Who it is.
    pub fn vmm(&self) -> ServerVmm {
        self.vmm
    }

    /// Where the guest is now.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// What it is made of.
    pub fn hardware(&self) -> &ServerHardware {
        &self.hardware
    }

    /// What the VMM wrote into its node's journal.
    ///
    /// # Errors
    /// When the node does not answer.
    pub fn journal(&self) -> Result<String> {
        let script = format!("journalctl -b -o cat -u {UNIT} -n 40 --no-pager");
        self.run(&self.node, &script)
    }

    /// Saves the whole guest to a file, ends the VMM, and starts a new one that goes on from the file: here, or on another node,
    /// which has the same disk. Gives what the VMM said of the save.
    ///
    /// # Errors
    /// When the VMM cannot.
    pub fn save_and_restore(&mut self, to: &str) -> Result<String> {
        let save = match self.vmm {
            ServerVmm::Qemu => qemu::save(),
            ServerVmm::Kemari => kemari::save(),
        };
        let script = format!("set -e; rm -f {STATE}; {save}; {}", gone());
        let said = self.run(&self.node, &script)?;
        if self.node != to {
            self.prepare(to)?;
            self.bring_state(to)?;
            to.clone_into(&mut self.node);
        }
        self.run(to, &unit(&self.command(to, &Start::Restore)))?;
        Ok(said.trim().to_owned())
    }

    /// Moves the running guest to another node, which has the same disk. Gives what the VMM said of it.
    ///
    /// # Errors
    /// When the VMM cannot.
    pub fn migrate(&mut self, to: &str) -> Result<String> {
        let address = self.receive(to)?;
        let migrate = match self.vmm {
            ServerVmm::Qemu => qemu::migrate(&address),
            ServerVmm::Kemari => kemari::migrate(&address),
        };
        let said = self.run(&self.node, &format!("set -e; {migrate}; {}", gone()))?;
        to.clone_into(&mut self.node);
        Ok(said.trim().to_owned())
    }

    /// Starts a VMM on another node that waits for the guest. Gives its address.
    fn receive(&self, to: &str) -> Result<String> {
        self.prepare(to)?;
        self.run(to, &unit(&self.command(to, &Start::Incoming)))?;
        let address = format!("tcp:{}:{MIGRATION_PORT}", self.bed.address(to)?);
        // The other side may not listen yet.
        self.run(to, &listens(MIGRATION_PORT))?;
        Ok(address)
    }

    /// Begins to move the guest of a Kemari engine to another node over a link so slow that the copy does not end soon. Until
    /// [`Self::give_up_copy`].
    ///
    /// # Errors
    /// When the engine there does not start, or this one does not begin.
    pub fn copy_slowly(&self, to: &str) -> Result<()> {
        ensure!(
            self.vmm == ServerVmm::Kemari,
            "Only Kemari's copies are slowed down"
        );
        self.run(
            &self.node,
            &format!("tc qdisc add dev eth0 root tbf {SLOW_LINK}"),
        )?;
        let address = self.receive(to)?;
        let script = format!(
            "systemd-run --quiet --collect --unit=slow-copy {}; \
             timeout 120 sh -c 'until {{ {}; }} | grep -q copying; do sleep 0.2; done'",
            kemari::send(&address),
            kemari::progress()
        );
        self.run(&self.node, &script).map(drop)
    }

    /// Gives the copy up: the guest goes on where it is. Gives how far the copy was.
    ///
    /// # Errors
    /// When a node does not answer.
    pub fn give_up_copy(&self, to: &str) -> Result<String> {
        let said = self.run(&self.node, &kemari::progress())?;
        self.run(
            to,
            &format!("systemctl kill --signal=KILL {UNIT}; {}", gone()),
        )?;
        let over = "while systemctl -q is-active slow-copy; do sleep 0.2; done; tc qdisc del dev eth0 root";
        self.run(&self.node, over)?;
        Ok(said)
    }

    /// Copies the saved guest from where it was to another node.
    fn bring_state(&self, to: &str) -> Result<()> {
        let take = format!(
            "set -e; mkdir -p $(dirname {STATE}); rm -f {STATE}; \
             systemd-run --quiet --collect --unit=state-copy socat -u TCP-LISTEN:{STATE_PORT},reuseaddr CREATE:{STATE}; {}",
            listens(STATE_PORT)
        );
        self.run(to, &take)?;
        let address = self.bed.address(to)?;
        let give = format!("socat -u OPEN:{STATE} TCP:{address}:{STATE_PORT}; stat -c %s {STATE}");
        let given = self.run(&self.node, &give)?;
        let taken = format!(
            "while systemctl -q is-active state-copy; do sleep 0.1; done; stat -c %s {STATE}"
        );
        let taken = self.run(to, &taken)?;
        ensure!(
            given == taken,
            "{to} has {taken} bytes of the state's {given}"
        );
        Ok(())
    }

    /// Ends the VMM at once, as `kill -9` does. The guest's disk is as it was at that moment.
    ///
    /// # Errors
    /// When the node does not answer.
    pub fn kill(&self) -> Result<()> {
        let script = format!("systemctl kill --signal=KILL {UNIT} || true; {}", gone());
        self.run(&self.node, &script).map(drop)
    }

    /// What the VMM needs on a node before it starts there.
    fn prepare(&self, node: &str) -> Result<()> {
        match self.vmm {
            ServerVmm::Qemu => {
                for (from, to) in qemu::files(&self.files) {
                    let bytes = std::fs::read(&from)
                        .with_context(|| format!("Cannot read {}", from.display()))?;
                    self.bed.write(node, to, &bytes, 0o644)?;
                }
                self.run(node, &qemu::tap()).map(drop)
            }
            ServerVmm::Kemari => {
                let text = kemari::description(&self.hardware, &self.command_line(), &self.console);
                self.bed.write(node, kemari::CONFIG, text.as_bytes(), 0o644)
            }
        }
    }

    fn command(&self, node: &str, start: &Start) -> String {
        match self.vmm {
            ServerVmm::Qemu => {
                qemu::command(&self.hardware, &self.command_line(), &self.console, start)
            }
            ServerVmm::Kemari => kemari::command(node, start),
        }
    }

    fn command_line(&self) -> String {
        match self.hardware.talk {
            Talk::Quiet => self.files.command_line(),
            Talk::Everything => self.files.command_line().replace(" quiet", ""),
        }
    }

    fn run(&self, node: &str, script: &str) -> Result<String> {
        self.bed
            .exec(node, &["sh", "-c", script])?
            .success()
            .with_context(|| format!("{node}: {script}"))
    }
}

/// Where a guest comes from when its VMM starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    Boot,
    /// From [`STATE`].
    Restore,
    /// From another node, at [`MIGRATION_PORT`].
    Incoming,
}

/// A command as a transient unit. `exec`: it has started, or the error is known, when this returns.
fn unit(command: &str) -> String {
    format!(
        "systemd-run --quiet --collect --unit={UNIT} --service-type=exec -p OOMScoreAdjust=-900 {command}"
    )
}

/// Waits until something listens on a port.
fn listens(port: u16) -> String {
    format!(
        "timeout 120 sh -c \"until ss -Hltn 'sport = :{port}' | grep -q .; do sleep 0.2; done\""
    )
}

/// Waits until the unit has ended and its name is free again.
fn gone() -> String {
    format!(
        "while systemctl -q is-active {UNIT}; do sleep 0.2; done; systemctl reset-failed {UNIT} 2>/dev/null || true"
    )
}
