// SPDX-License-Identifier: Apache-2.0
//! One QEMU process: a machine with its power on. Killing it is a power cut.
//!
//! QEMU runs in the supervisor's namespaces, as a child of `nsenter`, which lives as long as QEMU does. Its pid is
//! what the kernel says about the process at the other end of the command port.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::Pid;

use super::channel::{self, Channel};
use super::{BRIDGE, NodeNetwork, disks};
use crate::supervisor::Supervisor;

/// Everything QEMU can emulate, but for:
/// * five levels of page tables, which only make every translation longer;
/// * XSAVE. QEMU 7.2 emulates XSETBV without telling the hypervisor (seen with the tracepoint kvm_exit): KVM then believes that the
///   guest's XCR0 is 1, and what the guest's kernel saves of its processes' registers is not what they use. Without XSAVE
///   there is no XCR0;
/// * what must not be used without XSAVE, and is by drivers that do not ask (Linux 6.1, aesni_intel).
const TCG_CPU: &str = "max,la57=off,xsave=off,xsaveopt=off,xgetbv1=off,avx=off,avx2=off,f16c=off,fma=off,vaes=off,\
    vpclmulqdq=off,mpx=off,pku=off";

/// How QEMU executes the machine's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acceleration {
    /// Translation in software, with AMD's SVM emulated: works everywhere, 10 to 30 times slower.
    Tcg,
    /// The host's KVM with nested virtualisation.
    Kvm,
}

impl Acceleration {
    /// KVM where the host has hardware virtualisation and lets machines nest it, unless `KEMARI_TEST_ACCEL` is
    /// `tcg` or `kvm`.
    pub fn of_this_host() -> Self {
        match std::env::var("KEMARI_TEST_ACCEL").as_deref() {
            Ok("tcg") => return Self::Tcg,
            Ok("kvm") => return Self::Kvm,
            _ => {}
        }
        let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let hardware = flags
            .split_whitespace()
            .any(|flag| flag == "vmx" || flag == "svm");
        let nests = ["kvm_intel", "kvm_amd"].iter().any(|module| {
            fs::read_to_string(format!("/sys/module/{module}/parameters/nested"))
                .is_ok_and(|nested| matches!(nested.trim(), "Y" | "1"))
        });
        if hardware
            && nests
            && File::options()
                .read(true)
                .write(true)
                .open("/dev/kvm")
                .is_ok()
        {
            Self::Kvm
        } else {
            Self::Tcg
        }
    }

    fn arguments(self) -> [&'static str; 4] {
        match self {
            Self::Tcg => ["-accel", "tcg,thread=multi", "-cpu", TCG_CPU],
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
        }
    }
}

/// What a machine is made of; the same at every power-on.
#[derive(Debug)]
pub(crate) struct Hardware {
    pub(crate) node: String,
    pub(crate) acceleration: Acceleration,
    pub(crate) memory_mib: u32,
    pub(crate) vcpus: u8,
    pub(crate) network: NodeNetwork,
    /// Disks for guests, in the order of their names in the node.
    pub(crate) guest_disks: Vec<PathBuf>,
    /// The rate of the machine's time stamp counter, where its kernel shall not measure it.
    pub(crate) tsc_khz: Option<u64>,
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: PathBuf,
    /// In the order that `init.sh` knows.
    pub(crate) shared_images: [PathBuf; 3],
    /// The node's own disk, as a path inside the supervisor.
    pub(crate) disk: PathBuf,
    /// The interface in the supervisor's network.
    pub(crate) tap: String,
    pub(crate) mac: String,
    /// With the prefix's length.
    pub(crate) address: String,
    /// Where sockets and logs go: the same path inside and outside.
    pub(crate) directory: PathBuf,
}

impl Hardware {
    /// The kernel's and systemd's words on the serial line, over all boots.
    pub(crate) fn serial_log(&self) -> PathBuf {
        self.log("serial")
    }

    /// The node's journal, as far as it was written when the power went, over all boots.
    pub(crate) fn journal_log(&self) -> PathBuf {
        self.log("journal")
    }

    /// What QEMU itself complained of.
    pub(crate) fn emulator_log(&self) -> PathBuf {
        self.log("qemu")
    }

    fn log(&self, kind: &str) -> PathBuf {
        self.directory.join(format!("{}.{kind}", self.node))
    }

    fn command_line(&self, command: &mut Command, socket: &Path) {
        let text = |path: &Path| path.display().to_string();
        command
            .args(["-name", &self.node, "-no-user-config", "-nodefaults"])
            .args(["-display", "none", "-machine", "pc,vmport=off"])
            .args(self.acceleration.arguments())
            .args(["-smp", &self.vcpus.to_string()])
            .args(["-m", &self.memory_mib.to_string()])
            .args(["-kernel", &text(&self.kernel)])
            .args(["-initrd", &text(&self.initramfs)])
            .args(["-append", &self.kernel_command_line()])
            .args([
                "-chardev",
                &format!("file,id=serial,append=on,path={}", text(&self.serial_log())),
            ])
            .args(["-serial", "chardev:serial"])
            .args(["-object", "rng-random,id=random,filename=/dev/urandom"])
            .args(["-device", "virtio-rng-pci,rng=random,addr=0x3"])
            .args(["-device", "virtio-serial-pci,addr=0x4"])
            .args([
                "-chardev",
                &format!(
                    "file,id=journal,append=on,path={}",
                    text(&self.journal_log())
                ),
            ])
            .args(["-device", "virtconsole,chardev=journal"])
            .args([
                "-chardev",
                &format!("socket,id=commands,path={}", text(socket)),
            ])
            .args([
                "-device",
                &format!("virtserialport,chardev=commands,name={}", channel::PORT),
            ])
            .args([
                "-netdev",
                &format!("tap,id=network,ifname={},script=no,downscript=no", self.tap),
            ])
            .args([
                "-device",
                &format!(
                    "virtio-net-pci,netdev=network,mac={},romfile=,addr=0x5",
                    self.mac
                ),
            ]);
        for (number, image) in self.shared_images.iter().enumerate() {
            let options = "readonly=on,file.locking=off";
            disk(command, number, image, options);
        }
        // What QEMU was told to write is in the host's page cache, which outlives QEMU: flushing would only cost.
        disk(
            command,
            self.shared_images.len(),
            &self.disk,
            "cache=unsafe,discard=unmap",
        );
        for (number, image) in self.guest_disks.iter().enumerate() {
            // Two nodes may hold the same file: both go through the host's page cache, so each sees what the other wrote.
            let options = "cache=unsafe,discard=unmap,file.locking=off";
            disk(command, disks::FIRST + number, image, options);
        }
    }

    fn kernel_command_line(&self) -> String {
        // With the counter as clock, a look at the time does not leave the translated code for the HPET.
        let clock = self.tsc_khz.map_or_else(String::new, |khz| {
            format!("tsc=reliable tsc_early_khz={khz}")
        });
        let bridge = match self.network {
            NodeNetwork::Card => String::new(),
            NodeNetwork::Bridge => format!("bed.bridge={BRIDGE}"),
        };
        format!(
            "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off nokaslr audit=0 cryptomgr.notests net.ifnames=0 \
             systemd.show_status=no bed.address={} {bridge} {clock}",
            self.address
        )
    }
}

fn disk(command: &mut Command, number: usize, image: &Path, options: &str) {
    command
        .arg("-drive")
        .arg(format!(
            "if=none,id=disk{number},format=raw,{options},file={}",
            image.display()
        ))
        .arg("-device")
        .arg(format!(
            "virtio-blk-pci,drive=disk{number},addr={:#x}",
            0x10 + number
        ));
}

/// A running QEMU.
#[derive(Debug)]
pub(crate) struct Machine {
    nsenter: Mutex<Child>,
    emulator: Pid,
    pub(crate) channel: Channel,
}

impl Machine {
    /// Switches the power on; the machine has only begun to boot when this returns.
    ///
    /// # Errors
    /// When QEMU cannot be started; its own words are in the error.
    pub(crate) fn start(hardware: &Hardware, supervisor: &Supervisor) -> Result<Self> {
        let socket = hardware
            .directory
            .join(format!("{}.commands", hardware.node));
        let _ = fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket)
            .with_context(|| format!("Cannot listen on {}", socket.display()))?;
        let log = File::options()
            .create(true)
            .append(true)
            .open(hardware.emulator_log())
            .context("Cannot open QEMU's log")?;
        let mut command = supervisor.command("qemu-system-x86_64");
        hardware.command_line(&mut command, &socket);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("Cannot run setpriv")?;
        wait_for_connection(&listener, &mut child).with_context(|| {
            let words = fs::read_to_string(hardware.emulator_log()).unwrap_or_default();
            format!("QEMU of {} did not start: {}", hardware.node, words.trim())
        })?;
        let (stream, _) = listener.accept()?;
        let peer = getsockopt(&stream, sockopt::PeerCredentials)
            .context("The kernel does not name QEMU's pid")?;
        Ok(Self {
            nsenter: Mutex::new(child),
            emulator: Pid::from_raw(peer.pid()),
            channel: Channel::new(stream, &hardware.node)?,
        })
    }

    /// Whether QEMU still runs. It ends by itself when the guest powers off.
    pub(crate) fn is_on(&self) -> bool {
        matches!(self.nsenter().try_wait(), Ok(None))
    }

    /// Cuts the power and waits until QEMU is gone. Already off is fine.
    pub(crate) fn kill(&self) -> Result<()> {
        let mut nsenter = self.nsenter();
        if nsenter.try_wait()?.is_none() {
            // Not gone: so `nsenter` has not reaped QEMU, whose pid is still its own.
            self.signal(Signal::SIGKILL)?;
            wake(&nsenter)?;
        }
        nsenter.wait()?;
        Ok(())
    }

    /// Stops the whole machine where it is, and waits until every thread of it stands.
    pub(crate) fn freeze(&self) -> Result<()> {
        let nsenter = self.nsenter();
        self.signal(Signal::SIGSTOP)?;
        let deadline = Instant::now() + Duration::from_secs(20);
        while !stands(self.emulator) {
            ensure!(Instant::now() < deadline, "QEMU did not stop within 20 s");
            std::thread::sleep(Duration::from_millis(1));
        }
        drop(nsenter);
        Ok(())
    }

    /// Whether the machine was frozen and not thawed since.
    pub(crate) fn is_frozen(&self) -> bool {
        stands(self.emulator)
    }

    /// Lets a frozen machine go on.
    pub(crate) fn thaw(&self) -> Result<()> {
        let nsenter = self.nsenter();
        self.signal(Signal::SIGCONT)?;
        wake(&nsenter)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        kill(self.emulator, signal).with_context(|| format!("Cannot send {signal} to QEMU"))
    }

    fn nsenter(&self) -> std::sync::MutexGuard<'_, Child> {
        self.nsenter.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `nsenter` stops itself when its child stops, and would then not see the child's end.
fn wake(nsenter: &Child) -> Result<()> {
    let pid = i32::try_from(nsenter.id()).context("No pid")?;
    kill(Pid::from_raw(pid), Signal::SIGCONT).context("Cannot continue nsenter")
}

/// Whether every thread of a process is stopped (proc(5): state `T`).
fn stands(pid: Pid) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return false;
    };
    threads.flatten().all(|thread| {
        fs::read_to_string(thread.path().join("stat")).is_ok_and(|stat| {
            stat.rsplit(") ")
                .next()
                .is_some_and(|rest| rest.starts_with('T'))
        })
    })
}

fn wait_for_connection(listener: &UnixListener, child: &mut Child) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::from(100u8))? > 0 {
            return Ok(());
        }
        if let Some(status) = child.try_wait()? {
            bail!("It ended with {status}");
        }
        ensure!(
            Instant::now() < deadline,
            "It did not open its ports within 60 s"
        );
    }
}
