// SPDX-License-Identifier: Apache-2.0
//! Test bed B: nodes that are whole machines under `qemu-system-x86_64`, with a `/dev/kvm` of their own.
//!
//! Where the host has no hardware virtualisation, QEMU emulates an AMD processor with SVM in software, and Debian's
//! own `kvm_amd` in the node runs real Linux guests: everything is as on real hosts, 10 to 30 times slower. Where
//! the host nests KVM, that is used instead.
//!
//! Each node boots Debian's generic kernel and systemd from shared read-only images below an overlay whose upper
//! layer is the node's own disk. That disk survives power cuts; as on a real machine, what the node had not yet
//! written back is lost. A reset of the node by itself restarts it, a power-off ends it.
//!
//! Commands travel through a virtio-serial port, so cut cables do not matter to them. All QEMU processes live in
//! a [`Supervisor`]'s namespaces, each with a tap on its switch, and end with it.
//!
//! ```text
//! exec ── channel ──▶ virtio-serial ──▶ node-agent.py        node: kernel, systemd, corosync, pacemaker, kvm_amd
//! cut  ── switch  ──▶ tap down                                vda root │ vdb modules │ vdc packages │ vdd own disk
//!                                                           vde.. disks for guests
//! kill ── emulator ─▶ SIGKILL of QEMU                         ttyS0 → NODE.serial, hvc0 → NODE.journal
//! ```

mod channel;
mod clock;
mod cluster;
pub(crate) mod cpio;
mod disks;
mod emulator;
mod failing;
mod images;
mod initramfs;
mod journals;
mod machinery;

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::bed::{Bed, Finished};
use crate::corosync::{Cluster, Transport};
use crate::fencing::{FENCING_PORT, FencingServer, Power, Request};
use crate::kernel::{self, Flavour};
use crate::rootfs::{self, Extras};
use crate::site;
use crate::supervisor::Supervisor;
use crate::switch::{OUTSIDE, PREFIX, Switch};

pub use disks::{GuestDisk, guest_disk_path};
pub use emulator::Acceleration;
use emulator::Hardware;
use machinery::Machinery;

/// How long a command may take unless the caller says otherwise.
const COMMAND_LIMIT: Duration = Duration::from_secs(300);

/// Where a node has its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NodeNetwork {
    /// On its network card, `eth0`.
    #[default]
    Card,
    /// On a bridge [`BRIDGE`] with the card as a port: guests' TAPs join it and are in the nodes' network.
    Bridge,
}

/// The bridge of a node with [`NodeNetwork::Bridge`].
pub const BRIDGE: &str = "br0";

/// What a bed shall be; see [`Machines::builder`].
#[derive(Debug, Clone)]
pub struct Builder {
    nodes: u8,
    token_ms: u32,
    memory_mib: u32,
    vcpus: u8,
    network: NodeNetwork,
    guest_disks: Vec<GuestDisk>,
    transport: Transport,
    stonith: bool,
    cluster_at_boot: bool,
    debs: Vec<PathBuf>,
    extras: Extras,
}

impl Builder {
    /// How many nodes, 1 to 16; 3 unless told.
    #[must_use]
    pub fn nodes(mut self, nodes: u8) -> Self {
        self.nodes = nodes;
        self
    }

    /// Corosync's token time-out in milliseconds; 3000 unless told, and not much less is stable under emulation.
    #[must_use]
    pub fn token_ms(mut self, token_ms: u32) -> Self {
        self.token_ms = token_ms;
        self
    }

    /// Each node's memory in MiB, at least 512; 1024 unless told. Guests live in it.
    #[must_use]
    pub fn memory_mib(mut self, memory_mib: u32) -> Self {
        self.memory_mib = memory_mib;
        self
    }

    /// Each node's processors; 1 unless told.
    #[must_use]
    pub fn vcpus(mut self, vcpus: u8) -> Self {
        self.vcpus = vcpus;
        self
    }

    /// Where a node's address is; on `eth0` unless told.
    #[must_use]
    pub fn network(mut self, network: NodeNetwork) -> Self {
        self.network = network;
        self
    }

    /// One more disk in every node, for a guest: `/dev/vde`, the next one `/dev/vdf`, and so on to `/dev/vdh`.
    #[must_use]
    pub fn guest_disk(mut self, disk: GuestDisk) -> Self {
        self.guest_disks.push(disk);
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

    /// Whether every boot starts Corosync and Pacemaker; not unless told. Faster than starting them afterwards.
    #[must_use]
    pub fn cluster_at_boot(mut self, cluster_at_boot: bool) -> Self {
        self.cluster_at_boot = cluster_at_boot;
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

    /// Makes the bed and waits until every node has booted.
    ///
    /// # Errors
    /// When this is not root, a package or program is missing, or a node does not boot.
    pub fn up(self) -> Result<Machines> {
        ensure!(
            (1..=16).contains(&self.nodes),
            "A bed of {} machines cannot be made; 1 to 16 can",
            self.nodes
        );
        ensure!(
            self.memory_mib >= 512,
            "{} MiB are too little memory for a node; 512 is the least",
            self.memory_mib
        );
        ensure!(self.vcpus >= 1, "A node without a processor cannot be made");
        ensure!(
            self.guest_disks.len() <= disks::MOST,
            "{} disks for guests are too many; {} is the most",
            self.guest_disks.len(),
            disks::MOST
        );
        let machinery = Arc::new(self.assemble()?);
        let listener = machinery
            .supervisor
            .listen(SocketAddr::from((OUTSIDE, FENCING_PORT)))?;
        let power: Arc<dyn Power> = Arc::<Machinery>::clone(&machinery);
        let bed = Machines {
            fencing: FencingServer::serve(listener, power)?,
            machinery,
        };
        let begin = Instant::now();
        bed.on_all(bed.nodes(), |node| bed.power_on(node))?;
        eprintln!(
            "machines: {} node(s) booted in {} s",
            self.nodes,
            begin.elapsed().as_secs()
        );
        Ok(bed)
    }

    fn assemble(&self) -> Result<Machinery> {
        let rootfs = rootfs::ensure(self.extras)?;
        let site = site::build(&rootfs, &self.debs)?;
        let kernel = kernel::fetch(Flavour::Generic)?;
        let shared_images = [
            images::shared("rootfs", &rootfs)?,
            images::shared("modules", &kernel.modules)?,
            images::shared("site", &site)?,
        ];
        let vmlinux = kernel.vmlinux()?;
        let supervisor = Supervisor::start()?;
        let directory = supervisor.run_directory().to_owned();
        let initramfs = directory.join("initramfs");
        initramfs::write(&kernel, &kernel::busybox()?, &initramfs)?;
        let cluster = self.cluster(&supervisor);
        let acceleration = Acceleration::of_this_host();
        eprintln!(
            "machines: {} node(s), kernel {}, acceleration {acceleration:?}",
            self.nodes, kernel.release
        );
        let tsc_khz = match acceleration {
            Acceleration::Tcg => clock::tsc_khz()?,
            // KVM tells the machine itself.
            Acceleration::Kvm => None,
        };
        let hardware = cluster
            .nodes
            .iter()
            .map(|node| {
                let disk = supervisor.disks().join(format!("{node}.disk"));
                let outside = supervisor.from_outside(&disk);
                let own = images::Own {
                    rootfs: &rootfs,
                    cluster: &cluster,
                    node,
                    cluster_at_boot: self.cluster_at_boot,
                };
                own.make(&outside)?;
                let number = cluster.number(node).context("Too many nodes")?;
                let address = cluster.address(node).context("No address")?;
                let guest_disks = self
                    .guest_disks
                    .iter()
                    .enumerate()
                    .map(|(index, disk)| disk.place(&supervisor, node, index))
                    .collect::<Result<_>>()?;
                Ok(Hardware {
                    node: node.clone(),
                    acceleration,
                    memory_mib: self.memory_mib,
                    vcpus: self.vcpus,
                    network: self.network,
                    guest_disks,
                    tsc_khz,
                    kernel: vmlinux.clone(),
                    initramfs: initramfs.clone(),
                    shared_images: shared_images.clone(),
                    disk,
                    tap: Switch::of(&supervisor).add_tap(node, true)?,
                    // Locally administered, as QEMU's own are.
                    mac: format!("52:54:00:4b:4d:{number:02x}"),
                    address: format!("{address}/{PREFIX}"),
                    directory: directory.clone(),
                })
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Machinery::new(supervisor, cluster, hardware))
    }

    fn cluster(&self, supervisor: &Supervisor) -> Cluster {
        Cluster {
            name: supervisor.name().to_owned(),
            nodes: (1..=self.nodes).map(|n| format!("node{n}")).collect(),
            token_ms: self.token_ms,
            transport: self.transport,
            stonith: self.stonith,
        }
    }
}

/// A bed of machines. Dropping it removes everything it made; when that happens in a panic, the nodes' journals
/// are kept first and their place is printed.
#[derive(Debug)]
pub struct Machines {
    fencing: FencingServer,
    machinery: Arc<Machinery>,
}

impl Machines {
    /// Three nodes of 1024 MiB, token 3000 ms over knet, no fencing, no packages, unless told otherwise.
    pub fn builder() -> Builder {
        Builder {
            nodes: 3,
            token_ms: 3000,
            memory_mib: 1024,
            vcpus: 1,
            network: NodeNetwork::Card,
            guest_disks: Vec::new(),
            transport: Transport::Knet,
            stonith: false,
            cluster_at_boot: false,
            debs: Vec::new(),
            extras: Extras::None,
        }
    }

    /// The namespaces around the machines: also the place for processes and sockets of the outside world.
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

    /// Whether a node has power.
    pub fn is_on(&self, node: &str) -> Result<bool> {
        self.machinery.is_on(node)
    }

    /// Waits until a node that is being powered on has booted.
    pub fn wait_booted(&self, node: &str) -> Result<()> {
        self.machinery.wait_booted(node)
    }

    /// As [`Bed::exec`], with another limit than 300 s. A command that takes longer is killed: status 124.
    pub fn exec_within(&self, node: &str, command: &[&str], limit: Duration) -> Result<Finished> {
        self.machinery
            .node(node)?
            .powered()?
            .channel
            .execute(command, limit)
            .with_context(|| format!("Cannot run {command:?} in {node}"))
    }

    /// Calls `act` for several nodes at the same time; the first error counts.
    fn on_all(&self, nodes: &[String], act: impl Fn(&str) -> Result<()> + Sync) -> Result<()> {
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

impl Drop for Machines {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.keep_journals();
        }
        self.machinery.close();
    }
}

impl Bed for Machines {
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
        self.exec_within(node, command, COMMAND_LIMIT)
    }

    fn write(&self, node: &str, path: &str, contents: &[u8], mode: u32) -> Result<()> {
        self.machinery
            .node(node)?
            .powered()?
            .channel
            .write(path, contents, mode)
            .with_context(|| format!("Cannot write a file in {node}"))
    }

    fn kill(&self, node: &str) -> Result<()> {
        self.machinery.off(node)
    }

    fn power_on(&self, node: &str) -> Result<()> {
        self.machinery.on(node)
    }

    fn cut(&self, node: &str) -> Result<()> {
        self.machinery.set_link(node, false)
    }

    fn heal(&self, node: &str) -> Result<()> {
        self.machinery.set_link(node, true)
    }

    fn freeze(&self, node: &str) -> Result<()> {
        self.machinery.node(node)?.powered()?.freeze()
    }

    fn thaw(&self, node: &str) -> Result<()> {
        self.machinery.node(node)?.powered()?.thaw()
    }

    fn start_cluster(&self) -> Result<()> {
        Machines::start_cluster(self)
    }

    fn start_cluster_on(&self, node: &str) -> Result<()> {
        Machines::start_cluster_on(self, node)
    }

    fn collect_journals(&self, into: &Path) -> Result<()> {
        journals::collect(&self.machinery, into)
    }
}
