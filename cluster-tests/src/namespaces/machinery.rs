// SPDX-License-Identifier: Apache-2.0
//! The moving parts behind a bed of namespaces: starts nodes, enters them, takes their power, notices their end.
//!
//! Shared by the bed, its power switch and the threads that wait for nodes to end. After [`Machinery::close`]
//! nothing runs and nothing starts again.

use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use super::cgroup::NodeCgroup;
use super::disk;
use super::node::{End, Node};
use crate::corosync::{Cluster, NodeFile};
use crate::fencing::Power;
use crate::supervisor::{CONFINED, Supervisor};
use crate::switch::{OUTSIDE, PREFIX, Switch};

const BOOT: &str = include_str!("boot.sh");
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Joins the node's own cgroup and sees cgroups as the node does, then becomes the command.
const ENTER: &str =
    "echo 0 >/sys/fs/cgroup/harness.scope/cgroup.procs; exec nsenter -t 1 -C -- \"$@\"";

/// One bed's parts.
pub(super) struct Machinery {
    pub(super) supervisor: Supervisor,
    pub(super) cluster: Cluster,
    pub(super) rootfs: PathBuf,
    pub(super) outside: String,
    /// Overlay's `lowerdir`.
    lower: String,
    nodes: Vec<Arc<Node>>,
    notify: Vec<UnixDatagram>,
    closing: AtomicBool,
}

impl fmt::Debug for Machinery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machinery")
            .field("supervisor", &self.supervisor)
            .field("nodes", &self.nodes)
            .finish_non_exhaustive()
    }
}

impl Machinery {
    /// Nodes with disks and without power; `files` are each one's own.
    pub(super) fn new(
        supervisor: Supervisor,
        cluster: Cluster,
        rootfs: PathBuf,
        site: &Path,
        files: &dyn Fn(&Cluster, &str) -> Vec<NodeFile>,
    ) -> Result<Arc<Self>> {
        let (mut nodes, mut notify) = (Vec::new(), Vec::new());
        for name in &cluster.nodes {
            let directory = supervisor.from_outside(&supervisor.disks().join(name));
            disk::create(&directory, &rootfs, &files(&cluster, name))?;
            let cgroup = supervisor.from_outside(&supervisor.cgroup().join(name));
            let node = Arc::new(Node::new(name.clone(), NodeCgroup::new(cgroup)));
            notify.push(listen_for_ready(&supervisor, &node)?);
            nodes.push(node);
        }
        Ok(Arc::new(Self {
            lower: format!("{}:{}", site.display(), rootfs.display()),
            outside: OUTSIDE.to_string(),
            supervisor,
            cluster,
            rootfs,
            nodes,
            notify,
            closing: AtomicBool::new(false),
        }))
    }

    /// Ends every node and everything else in the run, and waits for it.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
        self.supervisor.stop();
        for socket in &self.notify {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    pub(super) fn node(&self, name: &str) -> Result<&Arc<Node>> {
        self.nodes
            .iter()
            .find(|node| node.name == name)
            .with_context(|| {
                format!(
                    "No node is called {name:?}; there are {}",
                    self.cluster.nodes.join(", ")
                )
            })
    }

    /// A node's directory, as a path inside the supervisor.
    pub(super) fn directory(&self, node: &str) -> PathBuf {
        self.supervisor.disks().join(node)
    }

    pub(super) fn wait_booted(&self, node: &str) -> Result<()> {
        self.node(node)?.wait_ready()
    }

    /// Pulls a node's cable or plugs it in. The cable stays as it is when the node loses or gets power.
    pub(super) fn set_cut(&self, node: &str, cut: bool) -> Result<()> {
        let node = self.node(node)?;
        let _transition = node.transition();
        node.set_cut(cut);
        if node.boot().is_some() {
            Switch::of(&self.supervisor).set_link(&node.name, !cut)?;
        }
        Ok(())
    }

    /// A command in a node. The capabilities that reach the host are dropped before the node is entered.
    pub(super) fn command(&self, node: &str, command: &[&str]) -> Result<Command> {
        let pid = self.node(node)?.powered()?.pid;
        let process = format!("/proc/{}/root/proc/{pid}", self.supervisor.pid());
        let mut enter = Command::new("env");
        enter.args(CONFINED).arg("nsenter");
        for (option, file) in [
            ("mount", "ns/mnt"),
            ("uts", "ns/uts"),
            ("ipc", "ns/ipc"),
            ("net", "ns/net"),
            ("pid", "ns/pid"),
            ("root", "root"),
            ("wd", "root"),
        ] {
            enter.arg(format!("--{option}={process}/{file}"));
        }
        enter
            .args(["--", "/usr/bin/env", "-i", PATH, "HOME=/root"])
            .args(["TERM=dumb", "LANG=C.UTF-8", "/bin/sh", "-c", ENTER, "sh"])
            .args(command)
            .process_group(0);
        Ok(enter)
    }

    /// Brings the first process of a node up to the point where systemd takes over. `transition` is held.
    fn start(self: &Arc<Self>, node: &Arc<Node>) -> Result<()> {
        ensure!(!self.closing.load(Ordering::SeqCst), "The bed is closing");
        let directory = self.directory(&node.name);
        node.cgroup.create()?;
        disk::prepare(&self.supervisor.from_outside(&directory))?;
        let switch = Switch::of(&self.supervisor);
        switch.remove(&node.name)?;

        let mut child = self.spawn_boot(node, &directory)?;
        match self.hand_over(node, &mut child, switch) {
            Ok(pid) => {
                let number = node.started(pid);
                let (machinery, node) = (Arc::clone(self), Arc::clone(node));
                std::thread::spawn(move || machinery.wait_for_end(&node, number, child));
                Ok(())
            }
            Err(error) => {
                node.cgroup.kill()?;
                child.wait()?;
                let console = self.supervisor.from_outside(&directory.join("console"));
                let said = fs::read_to_string(console).unwrap_or_default();
                Err(error.context(format!("{} did not start: {}", node.name, said.trim())))
            }
        }
    }

    fn spawn_boot(&self, node: &Node, directory: &Path) -> Result<Child> {
        let address = self.cluster.address(&node.name).context("No address")?;
        let console = self.supervisor.from_outside(&directory.join("console"));
        let console = fs::File::options()
            .create(true)
            .append(true)
            .open(console)?;
        self.supervisor
            .command("unshare")
            .args(["--mount", "--net", "--pid", "--uts", "--ipc", "--fork"])
            .args(["--propagation", "private", "--", "sh", "-c", BOOT, "boot"])
            .arg(directory)
            .arg(&node.name)
            .arg(format!("{address}/{PREFIX}"))
            .arg(&self.lower)
            .arg(self.supervisor.share())
            .arg(self.supervisor.cgroup().join(&node.name))
            .env("BOOT", BOOT)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(console)
            .spawn()
            .context("Cannot run env")
    }

    /// The dialogue with `boot.sh`; gives the first process's pid.
    fn hand_over(&self, node: &Node, child: &mut Child, switch: Switch<'_>) -> Result<u32> {
        let mut stdin = child.stdin.take().context("The node has no stdin")?;
        let stdout = child.stdout.take().context("The node has no stdout")?;
        let mut lines = BufReader::new(stdout).lines();
        let mut next = || {
            lines
                .next()
                .context("It ended too early")?
                .context("No answer")
        };
        let pid = next()?.trim().parse().context("It gave no pid")?;
        switch.add_veth(&node.name, pid, !node.is_cut())?;
        writeln!(stdin)?;
        let entered = next()?;
        ensure!(entered == "entered", "It said {entered:?}");
        Ok(pid)
    }

    /// Runs on a thread for each boot.
    fn wait_for_end(self: Arc<Self>, node: &Arc<Node>, number: u64, mut child: Child) {
        let status = child.wait();
        let end = node.ended(number);
        if end != End::ByItself || self.closing.load(Ordering::SeqCst) {
            return;
        }
        // A first process that called reboot(2) looks as if SIGHUP had ended it, power-off as SIGINT.
        let restarts = status.is_ok_and(|status| status.signal() == Some(Signal::SIGHUP as i32));
        if !restarts {
            return;
        }
        let _transition = node.transition();
        // The power may have been taken, or given again, since.
        if node.is_wanted()
            && node.boot().is_none()
            && let Err(error) = self.start(node)
        {
            eprintln!("{error:#}");
        }
    }
}

impl Power for Arc<Machinery> {
    fn nodes(&self) -> Vec<String> {
        self.cluster.nodes.clone()
    }

    fn off(&self, node: &str) -> Result<()> {
        let node = self.node(node)?;
        let _transition = node.transition();
        if !node.want(false) {
            return Ok(());
        }
        // A node without power says nothing more. Killed processes would still close their connections politely.
        let switch = Switch::of(&self.supervisor);
        let silenced = switch.set_link(&node.name, false);
        node.cgroup.kill()?;
        node.wait_off()?;
        switch.remove(&node.name)?;
        silenced.or_else(|error| {
            // It may have ended by itself in between, and its port with it.
            if node.boot().is_none() {
                Ok(())
            } else {
                Err(error)
            }
        })
    }

    fn on(&self, name: &str) -> Result<()> {
        let node = self.node(name)?;
        {
            let _transition = node.transition();
            if !node.want(true) {
                self.start(node)?;
            }
        }
        node.wait_ready().with_context(|| self.console(name))
    }

    fn is_on(&self, node: &str) -> Result<bool> {
        Ok(self.node(node)?.boot().is_some())
    }
}

impl Machinery {
    /// The end of what a node wrote to its console, for error messages.
    fn console(&self, node: &str) -> String {
        let path = self
            .supervisor
            .from_outside(&self.directory(node).join("console"));
        let text = fs::read_to_string(path).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        let tail = lines.len().saturating_sub(20);
        format!("console of {node}: {}", lines[tail..].join("\n"))
    }
}

/// Receives what systemd reports to `$NOTIFY_SOCKET`; `READY=1` means that the node has booted.
fn listen_for_ready(supervisor: &Supervisor, node: &Arc<Node>) -> Result<UnixDatagram> {
    let path = supervisor.share().join(format!("notify.{}", node.name));
    let socket = UnixDatagram::bind(&path)
        .with_context(|| format!("Cannot listen on {}", path.display()))?;
    let (receiver, node) = (socket.try_clone()?, Arc::clone(node));
    std::thread::Builder::new()
        .name(format!("ready {}", node.name))
        .spawn(move || {
            let mut message = [0; 8192];
            while let Ok(length @ 1..) = receiver.recv(&mut message) {
                let text = String::from_utf8_lossy(&message[..length]);
                if text.lines().any(|line| line == "READY=1") {
                    node.ready();
                }
            }
        })?;
    Ok(socket)
}
