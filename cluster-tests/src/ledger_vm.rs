// SPDX-License-Identifier: Apache-2.0
//! The VM of most scenarios in test bed A: a bare `ledger` guest in a cluster that has the package,
//! and the judgement of what it printed.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::ledger::LedgerSummary;
use crate::namespaces::{Builder, Namespaces};
use crate::observer::{Observer, Splice, Violation};
use crate::protected::{Guest, GuestFiles, Options, ProtectedVm};
use crate::{guests, ledger, package};

/// Console bytes that a life has to begin with before its [`crate::histories::Lives`] are read: more than a takeover
/// replays, so that only a boot begins at position 0.
pub const HEAD_BYTES: usize = 64 << 10;

/// The guest, with a replicated disk of this size or without one.
pub fn options(disk_mib: Option<u32>) -> Options {
    let disk = if disk_mib.is_some() { " disk=256" } else { "" };
    Options {
        name: "vm".to_owned(),
        guest: Guest::Files(GuestFiles {
            kernel: guests::ledger().to_owned(),
            initrd: None,
            cmdline: format!("pages=32{disk} interval=2000"),
            memory_mib: 256,
        }),
        disk_mib,
        monitor_s: 2,
        replication: String::new(),
        patience: Duration::from_secs(90),
    }
}

/// The bed with the package in every node, and its cluster formed.
///
/// # Errors
/// When `make package` was not run, or as [`Builder::up`].
pub fn clustered(builder: Builder) -> Result<Namespaces> {
    let bed = builder.debs(vec![package::find()?]).up()?;
    bed.start_cluster()?;
    Ok(bed)
}

/// Puts the VM on the nodes, with an observer that also hears a replica whose cable is cut: over a socket that the
/// nodes share.
///
/// # Errors
/// As [`ProtectedVm::install`].
pub fn install_overheard(bed: &Namespaces, options: Options) -> Result<ProtectedVm<'_>> {
    let socket = bed.supervisor().share().join("console.sock");
    let listener = UnixListener::bind(&socket)?;
    // A sandboxed engine is not root.
    fs::set_permissions(&socket, Permissions::from_mode(0o666))?;
    let observer = Observer::over_unix(listener)?;
    ProtectedVm::install_watched(bed, options, observer, "unix:/harness/console.sock")
}

/// Waits until anybody delivered so many more bytes, seen before or not.
///
/// # Errors
/// When they do not come.
pub fn delivers(vm: &ProtectedVm<'_>, bytes: usize) -> Result<()> {
    let least = vm.observer.with(delivered) + bytes;
    vm.observer.wait_for(vm.patience(), |seen| {
        (delivered(seen) >= least).then_some(())
    })?;
    Ok(())
}

/// How many bytes anybody has delivered.
pub fn delivered(seen: &Splice) -> usize {
    seen.raw().map(|(_, bytes)| bytes.len()).sum()
}

/// Waits until so many more bytes were seen outside.
///
/// # Errors
/// When they do not come.
pub fn prints_on(vm: &ProtectedVm<'_>, bytes: usize) -> Result<()> {
    let patience = vm.patience();
    vm.observer.wait_for_more(bytes, patience)?;
    Ok(())
}

/// Nothing is missing, nothing goes back but what was replayed byte for byte, no number was ever
/// seen with two time stamps, and never did two replicas release the same stretch.
///
/// # Errors
/// What was wrong.
pub fn judge(observer: &Observer) -> Result<LedgerSummary> {
    let violations = observer.violations();
    ensure!(violations.is_empty(), "As seen outside: {violations:#?}");
    let summary = ledger::check(&observer.bytes())?;
    observer.with(|splice| {
        ledger::check_stamps(splice.raw().map(|(header, bytes)| (header.position, bytes)))
    })?;
    println!(
        "observer: {summary:?}, {} takeovers",
        observer.takeovers().len()
    );
    Ok(summary)
}

/// Waits until a boot of this generation or a newer one has printed so many bytes.
///
/// # Errors
/// When they do not come.
pub fn boot_prints(vm: &ProtectedVm<'_>, generation: u64, bytes: usize) -> Result<()> {
    let printed = |splice: &Splice| {
        let of = |least: u64| {
            let connections = splice.raw();
            connections.filter(move |(header, _)| header.generation >= least)
        };
        let newest = of(generation).map(|(header, _)| header.generation).max()?;
        let length: usize = of(newest).map(|(_, bytes)| bytes.len()).sum();
        (length >= bytes).then_some(())
    };
    vm.observer.wait_for(vm.patience(), printed)?;
    Ok(())
}

/// An unprotected guest that was booted anew at times, each time under the next generation: what
/// each boot printed is a whole ledger, and none printed after a newer one had begun.
///
/// # Errors
/// What was wrong.
pub fn judge_boots(observer: &Observer) -> Result<usize> {
    let split = |violation: &Violation| {
        matches!(
            violation,
            Violation::OldGeneration { .. }
                | Violation::TwoNodes { .. }
                | Violation::Unreadable { .. }
        )
    };
    let violations: Vec<Violation> = observer.violations().into_iter().filter(split).collect();
    ensure!(violations.is_empty(), "As seen outside: {violations:#?}");
    let boots = observer.with(boots);
    for (generation, connections) in &boots {
        let mut stream: Vec<u8> = Vec::new();
        for (position, bytes) in connections {
            let position = usize::try_from(*position)?;
            ensure!(
                position <= stream.len(),
                "Generation {generation}: bytes {}..{position} are missing",
                stream.len()
            );
            stream.truncate(position);
            stream.extend_from_slice(bytes);
        }
        let summary = ledger::check(&stream).with_context(|| format!("generation {generation}"))?;
        println!("observer: generation {generation}: {summary:?}");
    }
    Ok(boots.len())
}

/// What was delivered under each generation: positions and bytes, as connections came.
fn boots(splice: &Splice) -> BTreeMap<u64, Vec<(u64, Vec<u8>)>> {
    let mut boots: BTreeMap<u64, Vec<(u64, Vec<u8>)>> = BTreeMap::new();
    for (header, bytes) in splice.raw() {
        let connections = boots.entry(header.generation).or_default();
        connections.push((header.position, bytes.to_vec()));
    }
    boots
}
