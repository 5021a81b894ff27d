// SPDX-License-Identifier: Apache-2.0
//! What an administrator has today, beside this: the same guest on the same nodes, as `ocf:heartbeat:VirtualDomain` and as
//! `ocf:kemari:vm`, loses its host and its VMM. Printed is how long the outside heard nothing and what the guest forgot.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kemari_cluster_tests::bed::Bed;
use kemari_cluster_tests::bench::quantiles::Quantiles;
use kemari_cluster_tests::machines::Machines;
use kemari_cluster_tests::namespaces::Namespaces;
use kemari_cluster_tests::protected::{Guest, GuestFiles, Options, ProtectedVm};
use kemari_cluster_tests::rootfs::Extras;
use kemari_cluster_tests::virtual_domain::{Loss, VirtualDomain};
use kemari_cluster_tests::{ledger, ledger_vm, linux_guest, package, supervisor};

/// Losses of each kind.
const TIMES: usize = 5;

/// What ends under the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Host,
    Vmm,
}

const KINDS: [Kind; 2] = [Kind::Host, Kind::Vmm];

/// A bed whose switch gives power back to a node that was fenced.
struct Scene<'a> {
    bed: &'a dyn Bed,
    /// Waits until a node that was fenced has booted.
    back: &'a dyn Fn(&str) -> Result<()>,
    files: GuestFiles,
    patience: Duration,
    replication: &'a str,
    times: usize,
}

#[derive(Default)]
struct Figures(Vec<(Kind, Loss)>);

impl Figures {
    fn print(&self, name: &str) {
        for kind in KINDS {
            let of: Vec<Loss> = self
                .0
                .iter()
                .filter(|(seen, _)| *seen == kind)
                .map(|(_, loss)| *loss)
                .collect();
            let silences: Vec<Duration> = of.iter().map(|loss| loss.silence).collect();
            let worst = silences.iter().max().copied().unwrap_or_default();
            if let Some(quantiles) = Quantiles::of(silences) {
                let forgot = of
                    .iter()
                    .filter(|loss| loss.after != loss.before + 1)
                    .count();
                println!(
                    "{name}, {kind:?} lost {} times: nothing heard for {:.2?} in the median, {worst:.2?} at most; \
                     the guest forgot everything in {forgot}; numbers before and after: {:?}",
                    of.len(),
                    quantiles.p50,
                    of.iter()
                        .map(|loss| (loss.before, loss.after))
                        .collect::<Vec<_>>(),
                );
            }
        }
    }
}

impl Scene<'_> {
    /// Waits until a lost node is back in the cluster.
    fn returns(&self, node: &str) -> Result<()> {
        let begun = Instant::now();
        // It has no power before it was fenced.
        while let Err(error) = (self.back)(node) {
            ensure!(begun.elapsed() < self.patience, "{node}: {error:#}");
            std::thread::sleep(Duration::from_millis(200));
        }
        self.bed.start_cluster_on(node)
    }

    /// What is lost, one after the other.
    fn kinds(&self) -> impl Iterator<Item = Kind> {
        let times = self.times;
        KINDS.into_iter().flat_map(move |kind| [kind].repeat(times))
    }

    /// Up to the interval of both monitors: a crash keeps no time.
    fn wait_somewhat(&self) {
        std::thread::sleep(Duration::from_millis(fastrand::u64(0..10_000)));
    }

    fn virtual_domain(&self) -> Result<Figures> {
        let domain = VirtualDomain::install(self.bed, &self.files, self.patience)?;
        let first = self.bed.nodes().first().context("a node")?;
        domain.configure(first)?;
        let mut figures = Figures::default();
        for (lives, kind) in (1..).zip(self.kinds()) {
            domain.wait_life(lives)?;
            domain.settle(first)?;
            // Not in step with the monitor, which came with the start.
            self.wait_somewhat();
            let node = domain.wait_started(first)?;
            ensure!(domain.count() == lives, "It was started once too often");
            match kind {
                Kind::Host => self.bed.kill(&node)?,
                Kind::Vmm => domain.kill(&node)?,
            }
            let loss = domain.wait_loss(lives)?;
            ensure!(domain.count() == lives + 1, "It was started once too often");
            println!("VirtualDomain, {kind:?} lost on {node}: {loss:?}");
            figures.0.push((kind, loss));
            if kind == Kind::Host {
                self.returns(&node)?;
                domain.prepare(&node)?;
            }
        }
        domain.remove(first)?;
        Ok(figures)
    }

    fn kemari(&self) -> Result<Figures> {
        let options = Options {
            name: "vm".to_owned(),
            guest: Guest::Files(self.files.clone()),
            disk_mib: None,
            monitor_s: 10,
            replication: self.replication.to_owned(),
            patience: self.patience,
        };
        let vm = ProtectedVm::install(self.bed, options)?;
        vm.configure_instances(self.bed.nodes().len())?;
        let mut figures = Figures::default();
        for kind in self.kinds() {
            vm.settle(&self.bed.nodes()[0])?;
            let (node, passive) = vm.wait_protected(self.bed.nodes())?;
            vm.observer.wait_for_more(1000, self.patience)?;
            self.wait_somewhat();
            let generation = vm
                .replica(&passive)?
                .map_or(0, |replica| replica.generation);
            let takeovers = vm.observer.takeovers().len();
            match kind {
                Kind::Host => self.bed.kill(&node)?,
                Kind::Vmm => {
                    vm.run(&node, "systemctl kill --signal=KILL kemari-vm@vm")?;
                }
            }
            vm.wait_active(&passive, generation)?;
            vm.observer.wait_for_more(1000, self.patience)?;
            let takeover = vm.observer.takeovers();
            let takeover = takeover
                .get(takeovers)
                .context("the observer saw no takeover")?;
            let silence = takeover.silence().context("it is silent")?;
            // Nothing is missing between: the whole ledger is read at the end, too.
            let position = usize::try_from(takeover.position + takeover.replayed)?;
            let bytes = vm.observer.bytes();
            let (seen, new) = bytes.split_at_checked(position).context("a position")?;
            let before = ledger::check(seen)?.last;
            // The first whole line that is new; the one before it may have been cut in two.
            let line_end = seen
                .iter()
                .rposition(|byte| *byte == b'\n')
                .map_or(0, |at| at + 1);
            let rest = [&seen[line_end..], new].concat();
            let after = rest.split(|byte| *byte == b'\n').find_map(ledger::entry);
            let (after, _) = after.context("no number came after it")?;
            let loss = Loss {
                silence,
                before,
                after,
            };
            println!("Kemari, {kind:?} lost on {node}: {loss:?}");
            figures.0.push((kind, loss));
            if kind == Kind::Host {
                self.returns(&node)?;
                vm.start_agent(&node)?;
            }
        }
        ledger_vm::judge(&vm.observer)?;
        Ok(figures)
    }

    fn compare(&self) -> Result<()> {
        let domain = self.virtual_domain()?;
        let kemari = self.kemari()?;
        domain.print("ocf:heartbeat:VirtualDomain");
        kemari.print("ocf:kemari:vm");
        Ok(())
    }
}

#[test]
#[ignore = "five minutes; a measurement: make compare"]
fn a_bare_guest() {
    let _turn = supervisor::turn().expect("tests run as root");
    let nodes = Namespaces::builder().nodes(3).stonith(true);
    let bed = ledger_vm::clustered(nodes.extras(Extras::Libvirt)).expect("a cluster");
    let options = ledger_vm::options(None);
    let Guest::Files(files) = options.guest else {
        panic!("the ledger starts from files");
    };
    let scene = Scene {
        bed: &bed,
        back: &|node| bed.wait_booted(node),
        files,
        patience: Duration::from_secs(150),
        replication: "",
        times: TIMES,
    };
    scene.compare().unwrap_or_else(|error| panic!("{error:#}"));
}

#[test]
#[ignore = "half an hour; a measurement: make compare"]
fn a_linux_guest() {
    let _turn = supervisor::turn().expect("tests run as root");
    let begun = Instant::now();
    let compare = || -> Result<()> {
        let bed = Machines::builder()
            .nodes(3)
            .stonith(true)
            .extras(Extras::Libvirt)
            .memory_mib(1280)
            .debs(vec![package::find()?])
            .up()?;
        bed.start_cluster()?;
        println!("the nodes are one cluster after {:?}", begun.elapsed());
        let linux = linux_guest::ensure()?;
        let scene = Scene {
            bed: &bed,
            back: &|node| bed.wait_booted(node),
            files: GuestFiles {
                kernel: linux.kernel,
                initrd: Some(linux.initramfs),
                cmdline: linux_guest::command_line(100),
                memory_mib: 160,
            },
            patience: Duration::from_secs(600),
            replication: "peer_timeout_ms = 5000",
            times: 2,
        };
        scene.compare()
    };
    compare().unwrap_or_else(|error| panic!("{error:#}"));
}
