// SPDX-License-Identifier: Apache-2.0
//! The host: user, KVM, processor, clock, versions.

use super::super::facts::{Facts, Kvm};
use super::super::{Finding, Level};
use super::{finding, fine};

/// Clocks that differ more than this make logs of two nodes hard to compare.
const OFFSET_S_MAX: f64 = 0.1;

/// Flags of the x86-64 levels above the first (System V ABI), as Linux calls them.
pub(super) const LEVELS: [(&str, &[&str]); 3] = [
    (
        "x86-64-v2",
        &["cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3"],
    ),
    (
        "x86-64-v3",
        &["avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"],
    ),
    (
        "x86-64-v4",
        &["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"],
    ),
];

pub(super) fn user(facts: &Facts) -> Finding {
    if facts.root {
        return fine("user", "root");
    }
    let found = "not root: much of this cannot be seen, and the agent does not answer";
    finding("user", Level::Warn, found, "run this as root")
}

pub(super) fn settings(facts: &Facts) -> Finding {
    let name = "settings";
    match &facts.settings {
        Ok(()) => fine(name, "the agent's settings are right, or the defaults"),
        Err(why) => finding(
            name,
            Level::Fail,
            format!("{why}; the agent runs with default settings"),
            "correct /etc/kemari/agent.toml, then systemctl restart kemari-agent",
        ),
    }
}

pub(super) fn kvm(facts: &Facts) -> Finding {
    let name = "kvm";
    if facts.is_witness() {
        return fine(name, "not needed: this node only votes");
    }
    match &facts.kvm {
        Kvm::Usable => fine(name, "/dev/kvm can be used"),
        // A node that only votes needs none.
        Kvm::Missing => finding(
            name,
            if facts.descriptions.is_empty() {
                Level::Warn
            } else {
                Level::Fail
            },
            "there is no /dev/kvm: no guest can run here",
            "enable virtualisation in the firmware, load kvm_intel or kvm_amd; a witness needs none",
        ),
        Kvm::Refused(why) => finding(
            name,
            Level::Fail,
            format!("/dev/kvm cannot be opened: {why}"),
            "run this as root; look at the permissions of /dev/kvm",
        ),
    }
}

pub(super) fn cpu(facts: &Facts) -> Finding {
    let has = |flags: &[&str]| flags.iter().all(|flag| facts.cpu_flags.contains(*flag));
    let reached = LEVELS.iter().take_while(|(_, flags)| has(flags)).last();
    let level = reached.map_or("x86-64-v1", |(name, _)| *name);
    fine(
        "cpu",
        format!(
            "{} CPUs, level {level}: the guest's level must be one that both hosts reach",
            facts.cpus
        ),
    )
}

pub(super) fn clock(facts: &Facts) -> Finding {
    let name = "clock";
    let remedy = "install and start chrony";
    let synchronised = facts.clock.get("NTPSynchronized").map(String::as_str);
    match (synchronised, facts.clock_offset_s) {
        (_, Some(offset)) if offset > OFFSET_S_MAX => finding(
            name,
            Level::Warn,
            format!("chrony says it is {offset:.3} s off: logs of the nodes are hard to compare"),
            "chronyc makestep; look at chronyc sources",
        ),
        (Some("yes"), _) | (_, Some(_)) => fine(name, "synchronised"),
        (Some(_), None) => finding(name, Level::Warn, "not synchronised", remedy),
        (None, None) => finding(
            name,
            Level::Warn,
            "nobody can say whether it is synchronised",
            remedy,
        ),
    }
}

pub(super) fn versions(facts: &Facts) -> Finding {
    let last = |text: &str| {
        text.split_whitespace()
            .last()
            .unwrap_or_default()
            .to_owned()
    };
    let own = facts.own_version;
    let others: Vec<String> = [
        ("corosync", &facts.corosync_version),
        ("pacemaker", &facts.pacemaker_version),
    ]
    .into_iter()
    .filter_map(|(name, version)| {
        let line = version.as_deref()?.lines().next()?.to_owned();
        Some(format!("{name}: {line}"))
    })
    .collect();
    let others = others.join("; ");
    match facts.engine.as_deref().map(last) {
        Some(engine) if engine == own => fine("versions", format!("kemari {own}; {others}")),
        Some(engine) => finding(
            "versions",
            Level::Warn,
            format!("kemari-engine is {engine}, kemarictl {own}"),
            "install one package on every node",
        ),
        None if facts.is_witness() => fine(
            "versions",
            format!("kemari {own}, no engine: this node only votes; {others}"),
        ),
        None => finding(
            "versions",
            Level::Fail,
            format!("kemarictl is {own}, and kemari-engine does not run"),
            "install the package kemari",
        ),
    }
}
