// SPDX-License-Identifier: Apache-2.0
//! Test bed A: nodes made of Linux namespaces, with systemd as first process, on the host's own kernel.
//!
//! Every node has its own mount, network, pid, UTS, IPC and cgroup namespaces inside those of a
//! [`Supervisor`], a root of its own above a shared lower one, `/dev/kvm` and `/dev/net/tun` of the host, and
//! a cable to the run's switch. A node's disk survives its power cuts and ends with the bed.
//!
//! What such a node is not: it shares the kernel, the clock, `boot_id` and the CPUs with the others, and the kernel of a
//! frozen node still answers pings and acknowledges TCP segments.

mod cgroup;
mod cluster;
mod disk;
mod journals;
mod machinery;
mod node;

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};

use crate::bed::{Bed, Finished};
use crate::corosync::{Cluster, Transport};
use crate::fencing::{FENCING_PORT, FencingServer, Manner, Power, Request};
use crate::rootfs::{self, Extras};
use crate::supervisor::Supervisor;
use crate::switch::{OUTSIDE, Switch};
use crate::{new_nodes, site};

use machinery::Machinery;

/// What a bed shall be; see [`Namespaces::builder`].
#[derive(Debug, Clone)]
pub struct Builder {
    nodes: u8,
    token_ms: u32,
    transport: Transport,
    stonith: bool,
    debs: Vec<PathBuf>,
    extras: Extras,
    new_nodes: bool,
}

impl Builder {
    /// How many nodes, 1 to 200; 3 unless told.
    #[must_use]
    pub fn nodes(mut self, nodes: u8) -> Self {
        self.nodes = nodes;
        self
    }

    /// Corosync's token time-out in milliseconds, at least 130; 1000 unless told.
    #[must_use]
    pub fn token_ms(mut self, token_ms: u32) -> Self {
        self.token_ms = token_ms;
        self
    }

    /// Corosync's transport; knet unless told.
    #[must_use]
    pub fn transport(mut self, transport: Transport) -> Self {
        self.transport = transport;
        self
    }

    /// Whether Pacemaker fences, through the bed's power switch; not unless told.
    #[must_use]
    pub fn stonith(mut self, stonith: bool) -> Self {
        self.stonith = stonith;
        self
    }

    /// What the nodes have besides a cluster; nothing unless told.
    #[must_use]
    pub fn extras(mut self, extras: Extras) -> Self {
        self.extras = extras;
        self
    }

    /// Debian packages to install in every node.
    #[must_use]
    pub fn debs(mut self, debs: Vec<PathBuf>) -> Self {
        self.debs = debs;
        self
    }

    /// Nodes as a reader of the book has them before the first command ([`crate::new_nodes`]), instead of a cluster that
    /// only has to be started.
    #[must_use]
    pub fn new_nodes(mut self) -> Self {
        self.new_nodes = true;
        self
    }

    /// Makes the bed and waits until every node has booted. Corosync and Pacemaker do not run yet.
    ///
    /// # Errors
    /// When this is not root, the shared root or the packages cannot be installed, or a node does not boot.
    pub fn up(self) -> Result<Namespaces> {
        ensure!(
            (1..=200).contains(&self.nodes),
            "A bed of {} nodes cannot be made; 1 to 200 can",
            self.nodes
        );
        let rootfs = match self.new_nodes {
            true => new_nodes::rootfs()?,
            false => rootfs::ensure(self.extras)?,
        };
        let site = site::build(&rootfs, &self.debs)?;
        let supervisor = Supervisor::start()?;
        let cluster = Cluster {
            name: supervisor.name().to_owned(),
            nodes: (1..=self.nodes).map(|n| format!("node{n}")).collect(),
            token_ms: self.token_ms,
            transport: self.transport,
            stonith: self.stonith,
        };
        let new_nodes = self.new_nodes;
        let files = |cluster: &Cluster, name: &str| match new_nodes {
            true => new_nodes::files(
                &cluster.nodes,
                name,
                cluster.number(name).unwrap_or_default(),
            ),
            false => cluster.files(name),
        };
        let machinery = Machinery::new(supervisor, cluster, rootfs, &site, &files)?;
        let listener = machinery
            .supervisor
            .listen(SocketAddr::from((OUTSIDE, FENCING_PORT)))?;
        let power: Arc<dyn Power> = Arc::new(Arc::clone(&machinery));
        let bed = Namespaces {
            fencing: FencingServer::serve(listener, power)?,
            machinery,
        };
        let booted = bed.on_all(bed.nodes(), |node| bed.power_on(node));
        if booted.is_err() {
            bed.keep_journals();
        }
        booted.map(|()| bed)
    }
}

/// A bed of namespaced nodes. Dropping it removes everything it made; when that happens in a panic, the nodes'
/// journals are kept first and their place is printed.
#[derive(Debug)]
pub struct Namespaces {
    fencing: FencingServer,
    machinery: Arc<Machinery>,
}

impl Namespaces {
    /// Three nodes, token 1000 ms over knet, no fencing, no packages, unless told otherwise.
    pub fn builder() -> Builder {
        Builder {
            nodes: 3,
            token_ms: 1000,
            transport: Transport::Knet,
            stonith: false,
            debs: Vec::new(),
            extras: Extras::None,
            new_nodes: false,
        }
    }

    /// The namespaces around the nodes: also the place for processes and sockets of the outside world.
    pub fn supervisor(&self) -> &Supervisor {
        &self.machinery.supervisor
    }

    /// The switch between the nodes, for splits that [`Bed::cut`] cannot make.
    pub fn switch(&self) -> Switch<'_> {
        Switch::of(&self.machinery.supervisor)
    }

    /// What the fence agent asked for so far.
    pub fn fencing_requests(&self) -> Vec<Request> {
        self.fencing.requests()
    }

    /// How the power switch serves the fence agent from now on.
    pub fn set_fencing(&self, manner: Manner) {
        self.fencing.set_manner(manner);
    }

    /// Whether a node has power.
    pub fn is_on(&self, node: &str) -> Result<bool> {
        self.machinery.is_on(node)
    }

    /// Waits until a node that is being powered on, or restarts by itself, has booted.
    pub fn wait_booted(&self, node: &str) -> Result<()> {
        self.machinery.wait_booted(node)
    }

    /// A command that will run as root in a node, for callers that need its pipes.
    ///
    /// # Errors
    /// When the node does not exist or has no power.
    pub fn command(&self, node: &str, command: &[&str]) -> Result<Command> {
        self.machinery.command(node, command)
    }

    /// Calls `act` for several nodes at the same time; the first error counts.
    pub(crate) fn on_all(
        &self,
        nodes: &[String],
        act: impl Fn(&str) -> Result<()> + Sync,
    ) -> Result<()> {
        std::thread::scope(|scope| {
            let threads: Vec<_> = nodes
                .iter()
                .map(|node| (node, scope.spawn(|| act(node))))
                .collect();
            threads
                .into_iter()
                .try_for_each(|(node, thread)| match thread.join() {
                    Ok(result) => result.with_context(|| node.clone()),
                    Err(panic) => std::panic::resume_unwind(panic),
                })
        })
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.keep_journals();
        }
        self.machinery.close();
    }
}

impl Bed for Namespaces {
    fn nodes(&self) -> &[String] {
        &self.machinery.cluster.nodes
    }

    fn outside(&self) -> &str {
        &self.machinery.outside
    }

    fn listen_outside(&self, port: u16) -> Result<TcpListener> {
        self.supervisor().listen(SocketAddr::from((OUTSIDE, port)))
    }

    fn address(&self, node: &str) -> Result<String> {
        let address = self.machinery.cluster.address(node);
        Ok(address
            .with_context(|| format!("No node is called {node:?}"))?
            .to_string())
    }

    fn exec(&self, node: &str, command: &[&str]) -> Result<Finished> {
        let output = self
            .command(node, command)?
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("Cannot enter {node}"))?;
        Ok(finished(&output))
    }

    fn write(&self, node: &str, path: &str, contents: &[u8], mode: u32) -> Result<()> {
        let script = "mkdir -p \"$(dirname \"$1\")\" && umask 077 && cat >\"$1.new\" && \
                      chmod \"$2\" \"$1.new\" && mv \"$1.new\" \"$1\"";
        let mut child = self
            .command(
                node,
                &["sh", "-c", script, "write", path, &format!("{mode:o}")],
            )?
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("Cannot enter {node}"))?;
        let mut stdin = child.stdin.take().context("The child has no stdin")?;
        let written = stdin.write_all(contents);
        drop(stdin);
        finished(&child.wait_with_output()?)
            .success()
            .and_then(|_| Ok(written?))
            .with_context(|| format!("Cannot write {path} in {node}"))
    }

    fn kill(&self, node: &str) -> Result<()> {
        self.machinery.off(node)
    }

    fn power_on(&self, node: &str) -> Result<()> {
        self.machinery.on(node)
    }

    fn cut(&self, node: &str) -> Result<()> {
        self.machinery.set_cut(node, true)
    }

    fn heal(&self, node: &str) -> Result<()> {
        self.machinery.set_cut(node, false)
    }

    fn freeze(&self, node: &str) -> Result<()> {
        let node = self.machinery.node(node)?;
        node.powered()?;
        node.cgroup.freeze()
    }

    fn thaw(&self, node: &str) -> Result<()> {
        let node = self.machinery.node(node)?;
        node.powered()?;
        node.cgroup.thaw()
    }

    fn start_cluster(&self) -> Result<()> {
        Namespaces::start_cluster(self)
    }

    fn start_cluster_on(&self, node: &str) -> Result<()> {
        Namespaces::start_cluster_on(self, node)
    }

    fn collect_journals(&self, into: &Path) -> Result<()> {
        journals::collect(&self.machinery, into)
    }
}

fn finished(output: &Output) -> Finished {
    Finished {
        status: code(output.status),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// A shell's number for how a process ended.
fn code(status: ExitStatus) -> i32 {
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}
