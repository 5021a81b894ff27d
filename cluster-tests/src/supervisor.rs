// SPDX-License-Identifier: Apache-2.0
//! The namespaces of one run of a test bed: its processes, mounts and network, and their certain end.
//!
//! A supervisor is a mount, a pid and a network namespace of its own. The pid namespace's first process waits on a
//! pipe whose other end only the owner holds. When the owner drops the supervisor, panics, is interrupted or
//! killed, the pipe closes, that process ends, and the kernel ends everything else in there. A process that waits
//! outside then removes the run's directory and cgroups. What even that process could not remove (because it was
//! killed too) is swept by the next run.
//!
//! Inside, the host's `/` is read-only except for the run's directory, and the capabilities to set the clock, load
//! modules and do raw i/o are gone. `br0` with the address [`crate::switch::OUTSIDE`] is the run's network.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{Flock, FlockArg};
use nix::sched::{CloneFlags, setns};

use crate::cache;

/// Where the directories of running test beds are.
pub const RUNS: &str = "/run/kemari-tests";

const INIT: &str = include_str!("supervisor/init.sh");
const WATCH: &str = include_str!("supervisor/watch.sh");
/// How everything that enters a run begins, after `env`: with default signal dispositions, whatever the owner
/// inherited (under `nohup` a node's restart would go unnoticed), and without the capabilities that reach the host.
pub(crate) const CONFINED: &[&str] = &[
    "--default-signal",
    "setpriv",
    "--bounding-set=-sys_time,-sys_module,-sys_rawio",
    "--",
];

/// One run's namespaces. Dropping it ends everything in them.
#[derive(Debug)]
pub struct Supervisor {
    name: String,
    run: PathBuf,
    pid: u32,
    running: Mutex<Option<Running>>,
    /// Held as long as the owner lives: tells the sweep of other runs that this one is not stale.
    _lock: Flock<File>,
}

#[derive(Debug)]
struct Running {
    lifeline: ChildStdin,
    watch: Child,
}

impl Supervisor {
    /// Makes the namespaces and the empty switch. Leftovers of dead runs are removed first.
    ///
    /// # Errors
    /// When this is not root, or a program of util-linux or iproute2 is missing or refused.
    pub fn start() -> Result<Self> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "A test bed makes namespaces and must run as root; this is uid {}",
            nix::unistd::geteuid()
        );
        let (name, run, lock) = new_run()?;
        let mut watch = spawn_watch(&name, &run, INIT)?;
        let lifeline = watch.stdin.take().context("The watch has no stdin")?;
        let stdout = watch.stdout.take().context("The watch has no stdout")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let Ok(pid) = line.trim().parse() else {
            // The log goes away with the run's directory, so it is read before the lifeline is let go.
            let log = fs::read_to_string(run.join("supervisor.log")).unwrap_or_default();
            drop(lifeline);
            let _ = watch.wait();
            bail!(
                "The supervisor's namespaces could not be made: {}",
                log.trim()
            );
        };
        Ok(Self {
            name,
            run,
            pid,
            running: Mutex::new(Some(Running { lifeline, watch })),
            _lock: lock,
        })
    }

    /// The run's name, unique on this machine: also its directory's and its cgroup's.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The pid of the namespaces' first process, as the owner sees it.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The run's directory: the same files under the same path inside and outside.
    pub fn run_directory(&self) -> &Path {
        &self.run
    }

    /// A directory that every node sees as `/harness`.
    pub fn share(&self) -> PathBuf {
        self.run.join("share")
    }

    /// A tmpfs for disks. It exists only inside; from outside go through [`Self::from_outside`].
    pub fn disks(&self) -> PathBuf {
        self.run.join("disks")
    }

    /// The run's cgroup (version 2), as a path inside.
    pub fn cgroup(&self) -> PathBuf {
        self.disks().join(".cgroup").join(&self.name)
    }

    /// How the owner reaches a path that exists inside. Symbolic links on the way must be relative.
    pub fn from_outside(&self, inside: &Path) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.pid));
        root.join(inside.strip_prefix("/").unwrap_or(inside))
    }

    /// A command that will run inside, in a process group of its own, with `/` as working directory.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("env");
        command
            .args(CONFINED)
            .args(["nsenter", "--target"])
            .arg(self.pid.to_string())
            .args(["--mount", "--net", "--pid", "--"])
            .arg(program)
            .process_group(0);
        command
    }

    /// Runs a command inside to its end and gives its standard output.
    ///
    /// # Errors
    /// When it cannot be started or its status is not 0; the error shows its standard error.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let output = self
            .command(program)
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("Cannot run {program} in the namespaces of {}", self.name))?;
        ensure!(
            output.status.success(),
            "{program} {} ended with {}: {}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Calls `act` on a thread that is in the run's network. Sockets made there stay there, wherever they are
    /// used afterwards.
    ///
    /// # Errors
    /// When the network is gone, or what `act` returns.
    pub fn in_network<T: Send>(&self, act: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        let network = File::open(format!("/proc/{}/ns/net", self.pid))?;
        std::thread::scope(|scope| {
            scope
                .spawn(move || {
                    setns(network, CloneFlags::CLONE_NEWNET)?;
                    act()
                })
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("The thread in the network panicked")))
        })
    }

    /// A listening socket in the run's network.
    pub fn listen(&self, address: SocketAddr) -> Result<TcpListener> {
        self.in_network(|| TcpListener::bind(address))
            .with_context(|| format!("Cannot listen on {address} in the network of {}", self.name))
    }

    /// Ends everything inside and waits until it and its traces in the host are gone. Idempotent.
    pub fn stop(&self) {
        let running = self
            .running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(Running {
            lifeline,
            mut watch,
        }) = running
        {
            drop(lifeline);
            let _ = watch.wait();
        }
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Waits for the caller's turn, which lasts until the result is dropped, across threads and processes.
///
/// Beds can run side by side; tests on small machines take turns so that a cluster's time-outs are not stretched by
/// another test's load.
///
/// # Errors
/// When this is not root.
pub fn turn() -> Result<Flock<File>> {
    fs::create_dir_all(RUNS).with_context(|| format!("Cannot create {RUNS}; run as root"))?;
    cache::lock(&Path::new(RUNS).join(".turn"))
}

/// The number of the next run of this process.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// A new run's name, directory and lock.
fn new_run() -> Result<(String, PathBuf, Flock<File>)> {
    let runs = Path::new(RUNS);
    fs::create_dir_all(runs).with_context(|| format!("Cannot create {RUNS}"))?;
    // No sweep may look between a directory's creation and its lock.
    let _all = cache::lock(&runs.join(".lock"))?;
    sweep(runs)?;
    let pid = std::process::id();
    loop {
        // No name twice: what a run leaves behind, or that it left nothing, must not be taken for another's.
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("kemari-{pid}-{number}");
        let run = runs.join(&name);
        match fs::create_dir(&run) {
            // Of a process that had our number before.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            created => {
                created.with_context(|| format!("Cannot create {}", run.display()))?;
                let lock = cache::lock(&run.join("lock"))?;
                fs::create_dir(run.join("share"))?;
                fs::create_dir(run.join("disks"))?;
                return Ok((name, run, lock));
            }
        }
    }
}

/// Removes what runs left whose owner and watch were both killed.
fn sweep(runs: &Path) -> Result<()> {
    for entry in fs::read_dir(runs)? {
        let run = entry?.path();
        let Ok(file) = File::open(run.join("lock")) else {
            continue;
        };
        let (Ok(_lock), Some(name)) = (
            Flock::lock(file, FlockArg::LockExclusiveNonblock),
            run.file_name().and_then(OsStr::to_str),
        ) else {
            continue;
        };
        let mut removal = spawn_watch(name, &run, "")?;
        drop(removal.stdin.take());
        removal.wait()?;
    }
    Ok(())
}

/// Starts the process outside that outlives the owner and removes the run's traces.
fn spawn_watch(name: &str, run: &Path, program: &str) -> Result<Child> {
    let log = File::options()
        .create(true)
        .append(true)
        .open(run.join("supervisor.log"))
        .with_context(|| format!("Cannot write in {}", run.display()))?;
    Command::new("sh")
        .args(["-c", WATCH, "watch"])
        .arg(run)
        .args([name, program])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(log)
        .current_dir("/")
        // A signal to the owner's group (Ctrl-C, a test runner's time-out) must not take the watch with it.
        .process_group(0)
        .spawn()
        .context("Cannot run sh")
}
