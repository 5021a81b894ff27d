// SPDX-License-Identifier: Apache-2.0
//! A VM under Kemari in a test bed: what a person would install and type, and what they would see.
//!
//! The bed's nodes have the package; this puts a guest and its description on them, configures the
//! promotable clone with `crm`, and reads roles from the engines' monitors. All of it through
//! [`Bed`], so it works alike in both beds.

use std::net::TcpListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::bed::Bed;
use crate::observer::Observer;

/// The key of every test cluster, as `kemarictl keygen` writes it. No secret.
const CLUSTER_KEY: &str = "kemari-cluster-key-1 \
    7465737420636c75737465723a206e6f7420736563726574206174616c6c2121\n";

/// The guest of a protected VM.
#[derive(Debug, Clone)]
pub enum Guest {
    /// It starts from files.
    Files(GuestFiles),
    /// The sections of its description but `[console]` and `[replication]`; what they name is on the nodes already.
    Described(String),
}

/// What a guest starts from; the files are those of the machine that runs the test.
#[derive(Debug, Clone)]
pub struct GuestFiles {
    /// bzImage or PVH ELF.
    pub kernel: PathBuf,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    pub cmdline: String,
    /// RAM.
    pub memory_mib: u32,
}

/// How the VM is set up.
#[derive(Debug, Clone)]
pub struct Options {
    /// The VM's name; its primitive's, too, whose clone is called `NAME-pair`.
    pub name: String,
    /// The guest.
    pub guest: Guest,
    /// MiB of a replicated disk that each node has of its own, empty at first.
    pub disk_mib: Option<u32>,
    /// Seconds between Pacemaker's monitors: how soon it notices a replica that failed.
    pub monitor_s: u32,
    /// More lines for `[replication]`.
    pub replication: String,
    /// How long a role change may take before the test gives up.
    pub patience: Duration,
}

/// What an engine says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replica {
    /// Its node.
    pub node: String,
    /// `waiting`, `passive`, `active` or `outdated`.
    pub role: String,
    /// `none`, `solo`, `paired` or `cut`.
    pub licence: String,
    /// A complete checkpoint is held by the passive side.
    pub in_sync: bool,
    /// How often the right to run has changed hands.
    pub generation: u64,
}

/// A VM on the nodes of a bed, and the outside that watches its console.
#[derive(Debug)]
pub struct ProtectedVm<'a> {
    bed: &'a dyn Bed,
    /// The outside world.
    pub observer: Observer,
    options: Options,
    /// Where the observer listens on the outside's address, if it does.
    port: u16,
}

impl<'a> ProtectedVm<'a> {
    /// Puts guest and description on every node and starts the agents. The cluster runs already.
    /// The console goes over the nodes' network.
    ///
    /// # Errors
    /// When a file cannot be read or written, or an agent does not start.
    pub fn install(bed: &'a dyn Bed, options: Options) -> Result<Self> {
        let listener: TcpListener = bed.listen_outside(0)?;
        let port = listener.local_addr()?.port();
        let sink = format!("tcp:{}:{port}", bed.outside());
        let vm = Self::install_watched(bed, options, Observer::over(listener)?, &sink)?;
        Ok(Self { port, ..vm })
    }

    /// Forgets what was seen: before a cold start, which begins a new stream. Only after
    /// [`Self::install`].
    ///
    /// # Errors
    /// When the outside cannot listen again.
    pub fn observe_anew(&mut self) -> Result<()> {
        ensure!(
            self.port != 0,
            "The observer of this VM is the caller's own"
        );
        // The old one listens until it is dropped.
        self.observer = Observer::over(self.bed.listen_outside(0)?)?;
        self.observer = Observer::over(self.bed.listen_outside(self.port)?)?;
        Ok(())
    }

    /// The VM's name.
    pub fn name(&self) -> &str {
        &self.options.name
    }

    /// How long a role change may take before the test gives up.
    pub fn patience(&self) -> Duration {
        self.options.patience
    }

    /// The same with an observer of the caller's, which listens at the console sink `sink`.
    ///
    /// # Errors
    /// As [`Self::install`].
    pub fn install_watched(
        bed: &'a dyn Bed,
        options: Options,
        observer: Observer,
        sink: &str,
    ) -> Result<Self> {
        let vm = Self {
            bed,
            observer,
            options,
            port: 0,
        };
        let description = vm.description(sink);
        for node in bed.nodes() {
            if let Guest::Files(files) = &vm.options.guest {
                bed.put(node, &files.kernel, "/srv/kemari/kernel")?;
                if let Some(initrd) = &files.initrd {
                    bed.put(node, initrd, "/srv/kemari/initrd")?;
                }
            }
            if let Some(mib) = vm.options.disk_mib {
                vm.run(node, &format!("truncate -s {mib}M {}", vm.disk()))?;
            }
            // Replicas speak TLS, as in a cluster that was set up by the book. Servers do without:
            // emulated machines have no instructions for AES.
            if matches!(vm.options.guest, Guest::Files(_)) {
                let key = CLUSTER_KEY.as_bytes();
                bed.write(node, "/etc/kemari/cluster.key", key, 0o600)?;
            }
            let place = format!("/etc/kemari/{}.toml", vm.options.name);
            bed.write(node, &place, description.as_bytes(), 0o644)?;
            vm.start_agent(node)?;
        }
        Ok(vm)
    }

    /// The replicated disk on each node.
    fn disk(&self) -> String {
        format!("/srv/kemari/{}.disk", self.options.name)
    }

    fn description(&self, sink: &str) -> String {
        let addresses: String = self
            .bed
            .nodes()
            .iter()
            .filter_map(|node| Some(format!("{node} = {:?}\n", self.bed.address(node).ok()?)))
            .collect();
        format!(
            "{}[console]\noutput = {sink:?}\n\n[replication]\n{}\n\
             [replication.addresses]\n{addresses}",
            self.guest_sections(),
            self.options.replication,
        )
    }

    fn guest_sections(&self) -> String {
        let files = match &self.options.guest {
            Guest::Files(files) => files,
            Guest::Described(sections) => return sections.clone(),
        };
        let initrd = files
            .initrd
            .as_ref()
            .map_or("", |_| "initrd = \"/srv/kemari/initrd\"\n");
        let disk = self.options.disk_mib.map_or_else(String::new, |_| {
            format!("[[disk]]\nid = \"data\"\npath = {:?}\n\n", self.disk())
        });
        format!(
            "[vm]\nname = {:?}\nmemory_mib = {}\n\n[boot]\nkernel = \"/srv/kemari/kernel\"\n\
             {initrd}cmdline = {:?}\n\n{disk}",
            self.options.name, files.memory_mib, files.cmdline
        )
    }

    /// Starts the agent of a node, perhaps one that came back.
    pub fn start_agent(&self, node: &str) -> Result<()> {
        self.run(node, "systemctl start kemari-agent").map(drop)
    }

    /// Makes the promotable clone with `crm`, as the book says: two instances.
    pub fn configure_with_crm(&self) -> Result<()> {
        self.configure_instances(2)
    }

    /// The same with an instance for each of so many hosts, of which two are a pair and the others wait.
    pub fn configure_instances(&self, instances: usize) -> Result<()> {
        self.configure(instances, "")
    }

    /// Two instances; a failure of the active one, or a stop of either that fails, ends in fencing, also where its node lives:
    /// for a disk that both see (docs/storage.md).
    pub fn configure_fenced(&self) -> Result<()> {
        self.configure(2, " on-fail=fence")
    }

    /// `on_fail` is said of the operations after which an active replica may be left behind.
    fn configure(&self, instances: usize, on_fail: &str) -> Result<()> {
        let monitor_s = self.options.monitor_s;
        let name = &self.options.name;
        let script = format!(
            "primitive {name} ocf:kemari:vm params config=/etc/kemari/{name}.toml \
             op start timeout=60s interval=0 op stop timeout=60s interval=0{on_fail} \
             op promote timeout=60s interval=0 op demote timeout=60s interval=0 \
             op notify timeout=20s interval=0 \
             op monitor interval={monitor_s}s role=Promoted timeout=20s{on_fail} \
             op monitor interval={}s role=Unpromoted timeout=20s\n\
             clone {name}-pair {name} meta promotable=true notify=true interleave=true clone-max={instances} \
             clone-node-max=1 promoted-max=1 promoted-node-max=1\ncommit\n",
            monitor_s + 1,
        );
        let node = self.first_node()?;
        self.bed
            .write(node, "/root/vm.crm", script.as_bytes(), 0o600)?;
        self.run(node, "crm configure < /root/vm.crm").map(drop)
    }

    /// Keeps the clone away from a node, which is a witness then.
    pub fn only_votes(&self, node: &str) -> Result<()> {
        let name = &self.options.name;
        let constraint = format!(
            "crm configure location witness {name}-pair resource-discovery=never -inf: {node}"
        );
        self.run(self.first_node()?, &constraint).map(drop)
    }

    /// Runs a shell command in a node.
    pub fn run(&self, node: &str, command: &str) -> Result<String> {
        self.bed.shell(node, command)
    }

    fn first_node(&self) -> Result<&str> {
        Ok(self.bed.nodes().first().context("The bed has no node")?)
    }

    /// What `crm_mon` shows on a node.
    pub fn crm_mon(&self, node: &str) -> Result<String> {
        self.run(node, "crm_mon -1 -r")
    }

    /// What the engine of a node says, `None` if none answers.
    pub fn replica(&self, node: &str) -> Result<Option<Replica>> {
        let finished = self.bed.exec(
            node,
            &["kemarictl", "monitor", &self.options.name, "info", "status"],
        )?;
        if finished.status != 0 {
            return Ok(None);
        }
        let field = |name: &str| {
            finished
                .stdout
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
                .unwrap_or_default()
                .to_owned()
        };
        Ok(Some(Replica {
            node: node.to_owned(),
            role: field("role"),
            licence: field("licence"),
            in_sync: field("in sync") == "yes",
            generation: field("generation").parse().context("generation")?,
        }))
    }

    /// Waits until Pacemaker has nothing more to do, so that what was lost before is dealt with.
    pub fn settle(&self, node: &str) -> Result<()> {
        let seconds = self.options.patience.as_secs();
        self.run(node, &format!("crm_resource --wait --timeout={seconds}"))
            .map(drop)
    }

    /// Waits until one of these nodes is active and its peer in sync. Returns (active, passive).
    pub fn wait_protected(&self, nodes: &[String]) -> Result<(String, String)> {
        let begun = Instant::now();
        let mut seen = Vec::new();
        while begun.elapsed() < self.options.patience {
            seen.clear();
            for node in nodes {
                seen.extend(self.replica(node)?);
            }
            if let Some(active) = seen.iter().find(|r| r.role == "active" && r.in_sync) {
                let passive = seen.iter().find(|r| {
                    r.role == "passive" && r.in_sync && r.generation == active.generation
                });
                if let Some(passive) = passive {
                    return Ok((active.node.clone(), passive.node.clone()));
                }
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let crm_mon = self
            .crm_mon(nodes.first().context("no node")?)
            .unwrap_or_default();
        bail!(
            "No pair in sync within {:?}; replicas {seen:#?}\n{crm_mon}",
            self.options.patience
        )
    }

    /// Waits until a node is active under a generation newer than this one.
    pub fn wait_active(&self, node: &str, newer_than: u64) -> Result<Replica> {
        let begun = Instant::now();
        let mut last = None;
        while begun.elapsed() < self.options.patience {
            last = self.replica(node)?;
            if let Some(replica) = &last
                && replica.role == "active"
                && replica.generation > newer_than
            {
                return Ok(replica.clone());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        bail!(
            "{node} did not take over within {:?}: {last:?}",
            self.options.patience
        )
    }

    /// Waits until `crm_mon` shows this node promoted.
    pub fn wait_promoted(&self, node: &str) -> Result<String> {
        let begun = Instant::now();
        loop {
            let shown = self.crm_mon(node)?;
            if is_promoted(&shown, &self.options.name, node) {
                return Ok(shown);
            }
            ensure!(
                begun.elapsed() < self.options.patience,
                "Pacemaker did not show {node} promoted:\n{shown}"
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// When a program logged a message: the first time after `since_us`, in microseconds of the
    /// node's CLOCK_MONOTONIC. journald is given time to take the line in.
    pub fn logged_us(&self, node: &str, unit: &str, message: &str, since_us: u128) -> Result<u128> {
        let begun = Instant::now();
        loop {
            let journal = self.run(
                node,
                &format!("journalctl -b -o cat -u '{unit}' --no-pager"),
            )?;
            let found = journal
                .lines()
                .filter(|line| line.contains(message))
                .filter_map(stamp_us)
                .find(|at_us| *at_us >= since_us);
            if let Some(at_us) = found {
                return Ok(at_us);
            }
            ensure!(
                begun.elapsed() < self.options.patience,
                "{node}: {unit} logged no {message:?} after {since_us} us"
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Whether `crm_mon` shows a node among the promoted instances of a primitive's clone.
fn is_promoted(shown: &str, primitive: &str, node: &str) -> bool {
    shown
        .lines()
        .skip_while(|line| !line.contains(&format!(" [{primitive}] ")))
        .skip(1)
        .take_while(|line| !line.contains("Clone Set:"))
        .any(|line| line.contains("* Promoted:") && line.contains(&format!(" {node} ")))
}

/// The field `t_mono_us` of a log line.
fn stamp_us(line: &str) -> Option<u128> {
    line.split("t_mono_us=")
        .nth(1)?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::is_promoted;

    #[test]
    fn each_clone_has_its_own_promoted_node() {
        let shown = "Full List of Resources:\n  \
            * Clone Set: one-pair [one] (promotable):\n    \
              * Promoted: [ node1 ]\n    * Unpromoted: [ node2 ]\n  \
            * Clone Set: two-pair [two] (promotable):\n    \
              * Promoted: [ node2 ]\n    * Unpromoted: [ node3 ]\n";
        assert!(is_promoted(shown, "one", "node1"));
        assert!(!is_promoted(shown, "one", "node2"));
        assert!(is_promoted(shown, "two", "node2"));
        assert!(!is_promoted(shown, "two", "node3"));
        assert!(!is_promoted(shown, "three", "node1"));
    }
}
