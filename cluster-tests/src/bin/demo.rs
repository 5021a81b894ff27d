// SPDX-License-Identifier: Apache-2.0
//! `make demo`: a Linux guest in a cluster of three nodes survives the loss of its host.
//!
//! Everything is real: Corosync, Pacemaker, crmsh, systemd, the Debian package, KVM and Debian's
//! kernel as guest. The resource is made, and looked at, with the commands of the book's first
//! chapter. Exit status 0 only if the guest went on, nothing it printed is missing, and nothing was
//! executed twice. What was made is removed at the end, however that comes.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use kemari_cluster_tests::bed::Bed;
use kemari_cluster_tests::linux_guest;
use kemari_cluster_tests::machines::Machines;
use kemari_cluster_tests::namespaces::Namespaces;
use kemari_cluster_tests::observer::monotonic_ns;
use kemari_cluster_tests::protected::{Guest, GuestFiles, Options, ProtectedVm};
use kemari_cluster_tests::{book, guests, host, ledger, package};

/// The chapter whose commands are typed.
const CHAPTER: &str = include_str!("../../../docs/install.md");

/// Seconds of output that are shown before the power goes, and after.
const SHOWN: u64 = 8;

/// Watch a Linux guest survive the loss of its host.
#[derive(Debug, Parser)]
struct Arguments {
    /// What the nodes are made of; by default namespaces where the machine can run Linux guests,
    /// otherwise emulated machines.
    #[arg(long, value_enum)]
    bed: Option<BedKind>,

    /// Run the bare test guest instead of Linux (it runs everywhere, in namespaces).
    #[arg(long)]
    bare: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum BedKind {
    Namespaces,
    Machines,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => {
            println!(
                "\nPASSED: the guest survived; no number is missing, none was executed twice."
            );
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("\nFAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Says what is being done, with the time since the demo began.
struct Narrator(Instant);

impl Narrator {
    fn step(&self, what: &str) {
        println!("[{:>4} s] {what}", self.0.elapsed().as_secs());
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let narrator = Narrator(Instant::now());
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the demo makes namespaces and network links: run it as root"
    );
    let deb = package::find()?;
    let linux_here = host::runs_linux_guests();
    let kind = arguments.bed.unwrap_or(if linux_here || arguments.bare {
        BedKind::Namespaces
    } else {
        BedKind::Machines
    });
    let guest = if arguments.bare {
        bare_guest()
    } else {
        linux(&narrator)?
    };
    narrator.step(match kind {
        BedKind::Namespaces => "bringing up three nodes (namespaces on this machine's kernel)",
        BedKind::Machines => {
            "bringing up three nodes (this machine has no hardware virtualisation, so each is a \
             whole emulated machine; about two minutes)"
        }
    });
    let bed: Box<dyn Bed> = match kind {
        BedKind::Namespaces => Box::new(Namespaces::builder().nodes(3).debs(vec![deb]).up()?),
        BedKind::Machines => Box::new(
            Machines::builder()
                .nodes(3)
                .cluster_at_boot(true)
                .debs(vec![deb])
                .up()?,
        ),
    };
    narrator.step("the nodes have booted; starting Corosync and Pacemaker on them");
    bed.start_cluster()?;
    let replication = match kind {
        BedKind::Namespaces => String::new(),
        // Emulated machines are ten to thirty times slower than real ones.
        BedKind::Machines => "peer_timeout_ms = 5000".to_owned(),
    };
    let outcome = show(&narrator, bed.as_ref(), guest, replication);
    if outcome.is_err() {
        let place = tempfile::Builder::new()
            .prefix("kemari-demo-")
            .tempdir()?
            .keep();
        bed.collect_journals(&place)?;
        narrator.step(&format!("the nodes' journals are in {}", place.display()));
    }
    outcome
}

fn bare_guest() -> Guest {
    Guest::Files(GuestFiles {
        kernel: guests::ledger().to_owned(),
        initrd: None,
        cmdline: "pages=32 interval=20000".to_owned(),
        memory_mib: 256,
    })
}

fn linux(narrator: &Narrator) -> Result<Guest> {
    narrator.step("preparing the guest: Debian's kernel and a small initial RAM disk");
    let files = linux_guest::ensure()?;
    Ok(Guest::Files(GuestFiles {
        kernel: files.kernel,
        initrd: Some(files.initramfs),
        cmdline: linux_guest::command_line(100),
        memory_mib: 160,
    }))
}

fn show(narrator: &Narrator, bed: &dyn Bed, guest: Guest, replication: String) -> Result<()> {
    let options = Options {
        name: "vm".to_owned(),
        guest,
        disk_mib: None,
        monitor_s: 10,
        replication,
        patience: Duration::from_secs(360),
    };
    narrator.step("installing the VM description and the guest's kernel on the nodes");
    let vm = ProtectedVm::install(bed, options)?;
    narrator.step("making it a resource, by the book:");
    type_section(&vm, "node1", "As a resource of crm")?;
    narrator.step("waiting for the guest to boot and for its passive copy to be in sync");
    vm.wait_protected(bed.nodes())?;
    wait_for_ledger(&vm)?;
    let (active, passive) = is_protected(narrator, bed, &vm)?;
    let generation = vm
        .replica(&active)?
        .context("the engine answers")?
        .generation;
    live(narrator, &vm, SHOWN)?;

    narrator.step(&format!("taking the power from {active} now"));
    let lost_ns = monotonic_ns();
    bed.kill(&active)?;
    let replica = vm.wait_active(&passive, generation)?;
    narrator.step(&format!(
        "{passive} is active, licence {}, generation {}",
        replica.licence, replica.generation
    ));
    live(narrator, &vm, SHOWN)?;
    narrator.step(&format!(
        "waiting until Pacemaker, too, calls {passive} promoted. crm_mon:"
    ));
    println!("{}", indented(&vm.wait_promoted(&passive)?));
    type_section(&vm, &passive, "Pull the plug")?;
    judge(narrator, &vm, lost_ns)
}

/// What the book types to see it, until it is so: on an emulated node Pacemaker may be starved while the guest boots, and
/// start its own daemons and a replica anew. Gives the active node and the passive one.
fn is_protected(
    narrator: &Narrator,
    bed: &dyn Bed,
    vm: &ProtectedVm<'_>,
) -> Result<(String, String)> {
    let begun = Instant::now();
    loop {
        let (active, passive) = vm.wait_protected(bed.nodes())?;
        vm.wait_promoted(&active)?;
        narrator.step(&format!(
            "{active} is active, {passive} passive and in sync. Is it protected?"
        ));
        match type_section(vm, &passive, "Is it protected?") {
            Ok(()) => return Ok((active, passive)),
            Err(error) if begun.elapsed() > vm.patience() => return Err(error),
            Err(_) => narrator.step("not at this moment; once more"),
        }
    }
}

/// Types on a node what a section of the book tells to look with or to type there, and shows what comes.
fn type_section(vm: &ProtectedVm<'_>, node: &str, section: &str) -> Result<()> {
    let steps = book::steps(CHAPTER);
    let mut typed = 0;
    for step in steps.iter().filter(|step| step.section == section) {
        // A console waits for a person; a handover is for when the lost node is back.
        let later = ["kemarictl console", "kemarictl handover"];
        if later.iter().any(|begin| step.text.starts_with(begin)) {
            continue;
        }
        let printed = vm.run(node, &step.text)?;
        println!("{}", indented(&format!("{node}# {}\n{printed}", step.text)));
        typed += 1;
    }
    ensure!(typed > 0, "The book has nothing to type in {section:?}");
    Ok(())
}

fn wait_for_ledger(vm: &ProtectedVm<'_>) -> Result<()> {
    let started = |bytes: &[u8]| bytes.windows(12).any(|window| window == b"LEDGER START");
    vm.observer
        .wait_for(Duration::from_secs(240), |splice| {
            started(splice.bytes()).then_some(())
        })
        .context("the guest printed no LEDGER START")?;
    vm.observer
        .wait_for_more(100, Duration::from_secs(60))
        .context("the guest prints no numbers")
}

/// A line a second: where the guest runs and what it printed last.
fn live(narrator: &Narrator, vm: &ProtectedVm<'_>, seconds: u64) -> Result<()> {
    for _ in 0..seconds {
        std::thread::sleep(Duration::from_secs(1));
        if let Some(latest) = vm.observer.latest() {
            narrator.step(&format!(
                "   on {} (generation {}) the guest says: {}",
                latest.source.node, latest.source.generation, latest.line
            ));
        }
    }
    Ok(())
}

fn judge(narrator: &Narrator, vm: &ProtectedVm<'_>, lost_ns: u64) -> Result<()> {
    let mut takeovers = vm.observer.takeovers();
    takeovers.retain(|takeover| takeover.resumed_ns.is_none_or(|at| at >= lost_ns));
    ensure!(
        takeovers.len() == 1,
        "one take-over was expected, the observer saw {takeovers:?}"
    );
    for takeover in &takeovers {
        narrator.step(&format!(
            "the outside saw nothing for {:.0} ms, {:.0} ms after the power went it saw the guest \
             again; {} bytes were repeated, byte for byte",
            takeover.silence().unwrap_or_default().as_secs_f64() * 1e3,
            Duration::from_nanos(
                takeover
                    .resumed_ns
                    .unwrap_or(lost_ns)
                    .saturating_sub(lost_ns)
            )
            .as_secs_f64()
                * 1e3,
            takeover.replayed
        ));
    }
    let violations = vm.observer.violations();
    ensure!(violations.is_empty(), "the observer saw {violations:?}");
    let summary = ledger::check(&vm.observer.bytes()).context("the ledger")?;
    narrator.step(&format!(
        "the ledger is complete: numbers 1 to {}, none missing",
        summary.last
    ));
    vm.observer
        .with(|splice| {
            ledger::check_stamps(splice.raw().map(|(header, bytes)| (header.position, bytes)))
        })
        .context("a number was executed twice")?;
    narrator.step("no number appeared with two time stamps: nothing was executed twice");
    Ok(())
}

fn indented(text: &str) -> String {
    text.lines()
        .map(|line| format!("         | {line}\n"))
        .collect()
}
