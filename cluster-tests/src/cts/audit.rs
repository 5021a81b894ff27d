// SPDX-License-Identifier: Apache-2.0
//! What must hold whenever the cluster is stable. The names are those of CTS's audits.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::lab::{Lab, Memory};
use crate::bed::Bed as _;
use crate::histories::Lives;

/// The cluster information base is passed on as it changes: two nodes may differ for a moment.
const AGREE_LIMIT: Duration = Duration::from_secs(15);

/// Runs every audit. `lives` is how many lives the guest had before the test; returns how many it has.
///
/// # Errors
/// What does not hold.
pub fn audit(lab: &Lab<'_>, memory: Memory, lives: usize) -> Result<usize> {
    let up = lab.up();
    cib_and_controllers(lab, &up)?;
    clone(lab, &up)?;
    files_and_logs(lab)?;
    ledger(lab, memory, lives).context("LedgerAudit")
}

/// `CIBAudit`, `ControllerStateAudit`: all nodes know the same and have one coordinator.
fn cib_and_controllers(lab: &Lab<'_>, up: &[String]) -> Result<()> {
    let begun = Instant::now();
    loop {
        match one_view(lab, up) {
            Ok(()) => return Ok(()),
            Err(error) if begun.elapsed() > AGREE_LIMIT => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}

fn one_view(lab: &Lab<'_>, up: &[String]) -> Result<()> {
    for (audit, command) in [
        ("ControllerStateAudit", "crmadmin --quiet --dc_lookup"),
        ("CIBAudit", "cibadmin --query --local"),
    ] {
        let mut views = Vec::new();
        for node in up {
            let said = lab.vm.run(node, command).context(audit)?;
            ensure!(!said.trim().is_empty(), "{audit}: {node} says nothing");
            views.push((node, said));
        }
        let same = views.windows(2).all(|pair| match pair {
            [(_, one), (_, other)] => one == other,
            _ => true,
        });
        ensure!(same, "{audit}: {views:#?}");
    }
    Ok(())
}

/// `CloneAudit`, `PrimitiveAudit`: one instance is promoted, and that one, and no other, runs the guest.
fn clone(lab: &Lab<'_>, up: &[String]) -> Result<()> {
    let mut active = Vec::new();
    for node in up {
        let role = lab.vm.replica(node)?.map(|replica| replica.role);
        active.extend((role.as_deref() == Some("active")).then_some(node));
    }
    let [active] = active.as_slice() else {
        anyhow::bail!("PrimitiveAudit: active are {active:?}");
    };
    let shown = lab.vm.wait_promoted(active).context("CloneAudit")?;
    let promoted: Vec<&str> = shown
        .lines()
        .filter(|line| line.contains("* Promoted:"))
        .collect();
    let one = promoted
        .first()
        .is_some_and(|line| line.split_whitespace().count() == 5);
    ensure!(one && promoted.len() == 1, "CloneAudit: {shown}");
    Ok(())
}

/// `FileAudit`, `LogAudit`: nothing left a core, and no part of Kemari ended by a panic.
fn files_and_logs(lab: &Lab<'_>) -> Result<()> {
    for node in lab.bed.nodes() {
        let run = |command: &str| lab.vm.run(node, command);
        let cores =
            "find /var/lib/pacemaker/cores /var/lib/corosync / -maxdepth 1 -name 'core*' -type f";
        let cores = run(cores)?;
        ensure!(cores.trim().is_empty(), "FileAudit: {node}: {cores}");
        let dumped = run("journalctl -b -o cat --no-pager | grep -F code=dumped || true")?;
        ensure!(dumped.trim().is_empty(), "FileAudit: {node}: {dumped}");
        let panics = run("journalctl -b -o cat --no-pager | grep -F 'panicked at' || true")?;
        ensure!(panics.trim().is_empty(), "LogAudit: {node}: {panics}");
    }
    Ok(())
}

/// What left the guest is the work of one machine.
fn ledger(lab: &Lab<'_>, memory: Memory, lives: usize) -> Result<usize> {
    let seen = lab.vm.observer.with(Lives::of);
    seen.judge()?;
    let now = seen.count();
    let most = match memory {
        Memory::Kept => lives,
        Memory::MayBeLost => lives + 1,
    };
    ensure!(
        now <= most,
        "The guest's memory was lost: {now} lives, {lives} before"
    );
    Ok(now)
}
