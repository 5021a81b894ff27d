// SPDX-License-Identifier: Apache-2.0
//! The outside world's programs: Debian's psql, redis-cli, curl, ssh, ping, iperf3 and a DHCP server.
//!
//! They run in a supervisor's network behind the switch, at the speed of this machine, so in an emulated bed they are never what
//! is slow. The host needs none of them: they live in a small root of their own in the cache.

use std::ffi::OsStr;
use std::fmt::Debug;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::bed::Finished;
use crate::cache::{self, Key};
use crate::rootfs::SUITE;
use crate::supervisor::Supervisor;

const ENTER: &str = include_str!("clients/enter.sh");

const PACKAGES: &[&str] = &[
    "curl",
    "dnsmasq-base",
    "iperf3",
    "iputils-ping",
    "openssh-client",
    "postgresql-client-15",
    "redis-tools",
];

/// The programs, in the network of a run.
#[derive(Debug)]
pub struct Clients<'run> {
    supervisor: &'run Supervisor,
    root: PathBuf,
    ssh_key: PathBuf,
}

/// One guest's place in the network: its card, and the address it is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Of the guest's card.
    pub mac: String,
    /// In the nodes' network.
    pub address: Ipv4Addr,
}

/// A program that runs until it is dropped.
#[derive(Debug)]
pub struct Running(Child);

impl Running {
    /// Whether it has not ended by itself.
    pub fn is_running(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // The client is a child of `nsenter` in another pid namespace. Its group dies with it: `Supervisor::command` makes one.
        if let Ok(group) = i32::try_from(self.0.id()) {
            let _ = nix::sys::signal::killpg(
                nix::unistd::Pid::from_raw(group),
                nix::sys::signal::Signal::SIGKILL,
            );
        }
        let _ = self.0.wait();
    }
}

impl<'run> Clients<'run> {
    /// The programs for a run, made now when the cache lacks them (half a minute). `ssh_key` is the file that opens guests.
    ///
    /// # Errors
    /// When `mmdebstrap` is missing or fails.
    pub fn of(supervisor: &'run Supervisor, ssh_key: &Path) -> Result<Self> {
        let mut key = Key::new().with(SUITE.as_bytes());
        for package in PACKAGES {
            key = key.with(package.as_bytes());
        }
        let tree = cache::obtain("clients", &key, bootstrap)?;
        Ok(Self {
            supervisor,
            root: tree.join("root"),
            ssh_key: ssh_key.to_owned(),
        })
    }

    /// A command that will run as a client does.
    pub fn command<S: AsRef<OsStr>>(&self, command: &[S]) -> Command {
        let mut entered = self.supervisor.command("unshare");
        entered
            .args(["--mount", "--propagation", "private", "--"])
            .args(["sh", "-c", ENTER, "enter"])
            .args([&self.root, &self.ssh_key])
            .args(command)
            .env("LC_ALL", "C.UTF-8")
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        entered
    }

    /// Runs a client to its end, which `timeout` brings about when the time is up (status 124).
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run<S: AsRef<OsStr> + Debug>(&self, command: &[S], limit: Duration) -> Result<Finished> {
        let seconds = format!("{:.1}", limit.as_secs_f64());
        let mut timed = self.command(&["timeout", "--kill-after=5", &seconds]);
        let output = timed
            .args(command)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("Cannot run {command:?} outside"))?;
        Ok(Finished {
            status: output.status.code().unwrap_or(128),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs a command in a guest as root, by ssh.
    ///
    /// # Errors
    /// When ssh cannot be started. A guest that cannot be reached is status 255.
    pub fn ssh(&self, address: Ipv4Addr, command: &str, limit: Duration) -> Result<Finished> {
        let seconds = limit.as_secs().clamp(1, 60);
        let connect = format!("ConnectTimeout={seconds}");
        let target = format!("root@{address}");
        let arguments = [
            "ssh",
            "-i",
            "/run/key",
            "-o",
            "BatchMode=yes",
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-o",
            "LogLevel=ERROR",
            // A guest that was started anew knows nothing of the connection and says so when it is asked.
            "-o",
            "ServerAliveInterval=10",
            "-o",
            "ServerAliveCountMax=60",
            "-o",
            &connect,
            &target,
            command,
        ];
        self.run(&arguments, limit)
    }

    /// Serves these leases by DHCP on the switch until the result is dropped.
    ///
    /// # Errors
    /// When dnsmasq cannot be started.
    pub fn serve_dhcp(&self, leases: &[Lease]) -> Result<Running> {
        let mut command = vec![
            "dnsmasq".to_owned(),
            "--keep-in-foreground".to_owned(),
            "--conf-file=/dev/null".to_owned(),
            "--user=root".to_owned(),
            "--pid-file=".to_owned(),
            "--port=0".to_owned(),
            "--interface=br0".to_owned(),
            "--leasefile-ro".to_owned(),
            // The address is the guest's own: asking whether somebody has it only takes seconds.
            "--no-ping".to_owned(),
            "--dhcp-authoritative".to_owned(),
            "--log-facility=-".to_owned(),
            "--log-dhcp".to_owned(),
            "--dhcp-range=10.77.0.100,static,255.255.255.0,12h".to_owned(),
        ];
        for lease in leases {
            command.push(format!("--dhcp-host={},{},12h", lease.mac, lease.address));
        }
        self.start_into(&command, &self.dhcp_log_path())
    }

    /// What the DHCP server has written so far.
    pub fn dhcp_log(&self) -> String {
        std::fs::read_to_string(self.dhcp_log_path()).unwrap_or_default()
    }

    fn dhcp_log_path(&self) -> PathBuf {
        self.supervisor.run_directory().join("dnsmasq.log")
    }

    /// Starts a client that runs until the result is dropped.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start<S: AsRef<OsStr> + Debug>(&self, command: &[S]) -> Result<Running> {
        self.start_into(command, Path::new("/dev/null"))
    }

    /// Starts a client that runs until the result is dropped, and writes into a file what it says.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_into<S: AsRef<OsStr> + Debug>(
        &self,
        command: &[S],
        log: &Path,
    ) -> Result<Running> {
        let log = std::fs::File::create(log)
            .with_context(|| format!("Cannot create {}", log.display()))?;
        let child = self
            .command(command)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("Cannot run {command:?} outside"))?;
        Ok(Running(child))
    }
}

fn bootstrap(into: &Path) -> Result<()> {
    eprintln!("clients: building their root with mmdebstrap, once per machine");
    let begin = Instant::now();
    let status = Command::new("unshare")
        .args(["--mount", "--pid", "--fork", "--mount-proc"])
        .args(["--propagation", "private", "--kill-child=SIGKILL", "--"])
        .args(["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase"])
        .arg(format!("--include={}", PACKAGES.join(",")))
        .arg("--aptopt=APT::Install-Recommends \"false\"")
        .arg("--dpkgopt=path-exclude=/usr/share/locale/*")
        .args(["--format=directory", SUITE])
        .arg(into.join("root"))
        .env("TMPDIR", cache::directory())
        .status()
        .context("Cannot run unshare")?;
    ensure!(
        status.success(),
        "mmdebstrap ended with {status}; its own message is above"
    );
    eprintln!("clients: done after {} s", begin.elapsed().as_secs());
    Ok(())
}
