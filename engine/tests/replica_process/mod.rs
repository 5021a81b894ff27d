// SPDX-License-Identifier: Apache-2.0
//! An engine process of a test, and what is asked of it.

use std::fs::Permissions;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kemari_api::Generation;
use kemari_api::replica::{self, Promotion, ReplicaProxy, ReplicaStatus};
use kemari_cluster_tests::observer::Observer;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::runtime::Runtime;

/// No step of a test takes longer than this on a sound machine, however slow.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// One engine with directories of its own. Dropping it kills the process.
pub struct ReplicaProcess {
    /// Where it accepts replication.
    pub address: String,
    vm: String,
    command: Command,
    child: Child,
    directory: PathBuf,
    runtime: Runtime,
    proxy: ReplicaProxy<'static>,
}

/// What a VM description is made of.
pub struct Description<'a> {
    /// RAM.
    pub memory_mib: u32,
    /// A bare guest.
    pub kernel: &'a Path,
    /// Its command line.
    pub cmdline: &'a str,
    /// `[console] output`.
    pub console: &'a str,
    /// More lines for `[replication]`.
    pub replication: &'a str,
    /// More sections.
    pub sections: &'a str,
}

/// How an engine begins.
enum Start<'a> {
    Replication,
    With(&'a [&'a str]),
    At(&'a str),
    Migration,
    Snapshot(&'a Path),
    /// Told to report to this socket, as by a unit with `WatchdogSec=2`.
    Watched(&'a Path),
}

/// Whether guests can run here; says so where they cannot.
pub fn kvm_or_skip() -> bool {
    let usable = kemari_vmm::kvm_is_usable();
    if !usable {
        println!("SKIPPED: /dev/kvm cannot be opened on this machine");
    }
    usable
}

/// The outside that sees a console, and what a description calls it.
pub fn outside() -> (Observer, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let console = format!("tcp:{}", listener.local_addr().unwrap());
    (Observer::over(listener).unwrap(), console)
}

/// A port nobody listens on at this moment.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

impl ReplicaProcess {
    /// Starts an engine that waits.
    pub fn start(node: &str, description: &Description<'_>) -> Self {
        Self::start_named(node, "vm", description)
    }

    /// Starts an engine that waits, of a VM of this name.
    pub fn start_named(node: &str, vm: &str, description: &Description<'_>) -> Self {
        Self::start_from(node, vm, description, &Start::Replication)
    }

    /// Starts an engine that waits for a migration.
    pub fn start_for_migration(node: &str, description: &Description<'_>) -> Self {
        let mut engine = Self::start_from(node, "vm", description, &Start::Migration);
        engine.address = engine.address.replace("kemari:", "");
        engine
    }

    /// Starts an engine that goes on from a snapshot.
    pub fn restore(node: &str, description: &Description<'_>, snapshot: &Path) -> Self {
        Self::start_from(node, "vm", description, &Start::Snapshot(snapshot))
    }

    /// Starts an engine that waits, with more arguments.
    pub fn start_with(node: &str, description: &Description<'_>, arguments: &[&str]) -> Self {
        Self::start_from(node, "vm", description, &Start::With(arguments))
    }

    /// Starts an engine that waits at this address, in which `PORT` and `DIRECTORY` stand for its
    /// own.
    pub fn start_at(node: &str, description: &Description<'_>, incoming: &str) -> Self {
        Self::start_from(node, "vm", description, &Start::At(incoming))
    }

    /// Starts an engine that waits and reports to this socket, as to systemd.
    pub fn start_watched(node: &str, description: &Description<'_>, notify: &Path) -> Self {
        Self::start_from(node, "vm", description, &Start::Watched(notify))
    }

    fn start_from(node: &str, vm: &str, description: &Description<'_>, start: &Start<'_>) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("kemari-test-")
            .tempdir()
            .unwrap()
            .keep();
        let port = free_port();
        // Where the sandbox's user may read it, wherever the tests are built.
        let kernel = directory.join("kernel");
        std::fs::set_permissions(&directory, Permissions::from_mode(0o755)).unwrap();
        std::fs::copy(description.kernel, &kernel).unwrap();
        std::fs::set_permissions(&kernel, Permissions::from_mode(0o644)).unwrap();
        let config = directory.join("vm.toml");
        let text = format!(
            "[vm]\nname = {vm:?}\nmemory_mib = {}\n[boot]\nkernel = {:?}\ncmdline = {:?}\n\
             [console]\noutput = {:?}\n[sandbox]\nuser = \"nobody\"\n[replication]\nport = {port}\n{}\n\
             [replication.addresses]\n{node} = \"127.0.0.1\"\n{}",
            description.memory_mib,
            kernel,
            description.cmdline,
            description.console,
            description.replication,
            description.sections
        );
        std::fs::write(&config, text).unwrap();
        let log = std::fs::File::create(directory.join("log")).unwrap();
        let address = match start {
            Start::At(incoming) => incoming
                .replace("PORT", &port.to_string())
                .replace("DIRECTORY", &directory.display().to_string()),
            _ => format!("kemari:tcp:127.0.0.1:{port}"),
        };
        let mut command = Command::new(env!("CARGO_BIN_EXE_kemari-engine"));
        match start {
            Start::Replication | Start::At(_) => command.args(["run", "--incoming", &address]),
            Start::Watched(notify) => command
                .args(["run", "--incoming", &address])
                .env("NOTIFY_SOCKET", notify)
                .env("WATCHDOG_USEC", "2000000"),
            Start::With(arguments) => command
                .args(["run", "--incoming", &address])
                .args(*arguments),
            Start::Migration => {
                let address = address.replace("kemari:", "");
                command.args(["run", "--incoming", &address])
            }
            Start::Snapshot(snapshot) => command.args(["snapshot", "restore"]).arg(snapshot),
        };
        command
            .args(["--node", node, "--config"])
            .arg(&config)
            .env("KEMARI_RUN_DIR", &directory)
            .env("KEMARI_STATE_DIR", &directory)
            .env("KEMARI_LOG", "debug")
            .stdin(Stdio::null())
            .stderr(log);
        let mut engine = Self::spawn(vm, address, directory, command);
        if engine.address == "auto" {
            engine.address = engine.status().listen;
        }
        engine
    }

    /// Starts an engine that was killed, as it was started before.
    pub fn start_again(mut self) -> Self {
        let directory = std::mem::take(&mut self.directory);
        let command = std::mem::replace(&mut self.command, Command::new("true"));
        let (vm, address) = (self.vm.clone(), self.address.clone());
        Self::spawn(&vm, address, directory, command)
    }

    /// Boots the guest by hand where an engine was killed: `kemari-engine run --force`.
    pub fn boot_by_force(mut self) -> Self {
        let mut forced = Command::new(env!("CARGO_BIN_EXE_kemari-engine"));
        let mut arguments = self.command.get_args();
        forced.arg("run");
        // What follows --incoming ADDRESS stays.
        forced.args(arguments.by_ref().skip(3)).arg("--force");
        forced.envs(
            self.command
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        );
        forced.stdin(Stdio::null()).stderr(Stdio::null());
        let directory = std::mem::take(&mut self.directory);
        let (vm, address) = (self.vm.clone(), self.address.clone());
        Self::spawn(&vm, address, directory, forced)
    }

    fn spawn(vm: &str, address: String, directory: PathBuf, mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let name = vm;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build();
        let runtime = runtime.unwrap();
        let vm = name.parse().unwrap();
        let begun = Instant::now();
        let proxy = loop {
            let socket = directory.join(format!("{vm}.sock"));
            if let Ok((proxy, _)) = runtime.block_on(replica::connect_at(&vm, &socket)) {
                break proxy;
            }
            if begun.elapsed() > PATIENCE || child.try_wait().unwrap().is_some() {
                let log = std::fs::read_to_string(directory.join("log")).unwrap_or_default();
                panic!("the engine did not come up:\n{log}");
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        Self {
            address,
            vm: name.to_owned(),
            command,
            child,
            directory,
            runtime,
            proxy,
        }
    }

    /// What it says of itself.
    pub fn status(&self) -> ReplicaStatus {
        self.runtime
            .block_on(self.proxy.status())
            .unwrap_or_else(|error| panic!("{error}: {}", self.log()))
    }

    /// Waits until its status is as wanted.
    pub fn wait(&self, what: &str, wanted: impl Fn(&ReplicaStatus) -> bool) -> ReplicaStatus {
        let begun = Instant::now();
        loop {
            let status = self.status();
            if wanted(&status) {
                return status;
            }
            assert!(
                begun.elapsed() < PATIENCE,
                "{what} did not happen: {status:?}\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// `Promote`.
    pub fn promote(&self, how: Promotion, generation: u64) -> zbus::Result<()> {
        self.runtime
            .block_on(self.proxy.promote(how, Generation::new(generation)))
    }

    /// `Protect`, and waits until the other side is in sync.
    pub fn protect(&self, other: &Self) {
        self.runtime
            .block_on(self.proxy.protect(&other.address))
            .unwrap();
        let begun = Instant::now();
        while !self.status().in_sync {
            assert!(
                begun.elapsed() < PATIENCE,
                "a pair in sync did not happen: {:?}\n{}\nThe other side:\n{}",
                self.status(),
                self.log(),
                other.log()
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// `Demote`.
    pub fn demote(&self) -> zbus::Result<()> {
        self.runtime.block_on(self.proxy.demote())
    }

    /// `GoSolo`.
    pub fn go_solo(&self, generation: u64) -> zbus::Result<()> {
        self.runtime
            .block_on(self.proxy.go_solo(Generation::new(generation)))
    }

    /// `Outdate`.
    pub fn outdate(&self, generation: u64) -> zbus::Result<()> {
        self.runtime
            .block_on(self.proxy.outdate(Generation::new(generation)))
    }

    /// `Console`.
    pub fn console(&self, from: u64) -> zbus::Result<OwnedFd> {
        self.runtime
            .block_on(self.proxy.console(from))
            .map(OwnedFd::from)
    }

    /// `Monitor`.
    pub fn monitor(&self, line: &str) -> zbus::Result<String> {
        self.runtime.block_on(self.proxy.monitor(line))
    }

    /// `kemari-engine snapshot save`: its exit status and what it said.
    pub fn save(&self, file: &Path, arguments: &[&str]) -> (Option<i32>, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_kemari-engine"))
            .args(["snapshot", "save", "vm"])
            .arg(file)
            .args(arguments)
            .env("KEMARI_RUN_DIR", &self.directory)
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(said).unwrap())
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for the process to end by itself; its exit status.
    pub fn exit_status(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        kill(pid, signal).unwrap();
    }

    /// `migrate -d`.
    pub fn migrate(&self, address: &str) {
        self.monitor(&format!("migrate -d {address}")).unwrap();
    }

    /// A record it keeps beside its licence.
    pub fn record(&self, name: &str) -> PathBuf {
        self.directory.join("replicas").join(&self.vm).join(name)
    }

    /// Waits until it has logged this so many times.
    pub fn wait_for_log(&self, text: &str, times: usize) {
        let begun = Instant::now();
        while self.log().matches(text).count() < times {
            assert!(
                begun.elapsed() < PATIENCE,
                "{text:?} was not logged:\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Everything it logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }
}

impl Drop for ReplicaProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if !self.directory.as_os_str().is_empty() {
            let _ = std::fs::remove_dir_all(&self.directory);
        }
    }
}
