// SPDX-License-Identifier: Apache-2.0
//! `[vm]`: KVM, and CPUs that can be what the guest is to see.

use std::fs::OpenOptions;

use kemari_api::config::{CpuModel, VmConfig};

use super::Problem;
use super::host::Host;

/// Flags of /proc/cpuinfo that make up a level of the x86-64 psABI ("Micro-architecture levels").
/// `pni` is SSE3, `abm` has LZCNT, `xsave` stands for OSXSAVE.
const V2: [&str; 7] = [
    "cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3",
];
const V3: [&str; 9] = [
    "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave",
];

/// What this node lacks for the CPUs of the guest.
pub(super) fn problems(config: &VmConfig, host: &Host) -> Vec<Problem> {
    let mut found = Vec::new();
    found.extend(kvm(host));
    let cpuinfo = host.text("proc/cpuinfo").unwrap_or_default();
    found.extend(level(config.vm.cpu, &cpuinfo));
    found.extend(number(config.vm.vcpus.get(), &cpuinfo));
    found
}

fn kvm(host: &Host) -> Option<Problem> {
    let path = host.path("dev/kvm");
    let error = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .err()?;
    let remedy = match error.kind() {
        std::io::ErrorKind::PermissionDenied => "run as root, or as a user in the group kvm",
        _ => "load kvm_intel or kvm_amd, and enable virtualisation in the firmware",
    };
    Some(Problem::inaccessible("vm", &path, &error, remedy))
}

fn level(cpu: CpuModel, cpuinfo: &str) -> Option<Problem> {
    let needed: Vec<_> = match cpu {
        CpuModel::Host => return None,
        CpuModel::X86_64V2 => V2.to_vec(),
        CpuModel::X86_64V3 => [V2.as_slice(), V3.as_slice()].concat(),
    };
    let flags = line(cpuinfo, "flags")?;
    let has = |flag: &&str| flags.split_whitespace().any(|it| it == *flag);
    let lacking: Vec<_> = needed.into_iter().filter(|flag| !has(flag)).collect();
    let text = format!(
        "this node's CPU cannot be {cpu}, it lacks {}; give a lower level, or another node",
        lacking.join(", ")
    );
    (!lacking.is_empty()).then(|| Problem::missing("vm.cpu", text))
}

fn number(vcpus: u32, cpuinfo: &str) -> Option<Problem> {
    let starts = |line: &&str| line.starts_with("processor");
    let cpus = cpuinfo.lines().filter(starts).count();
    let wanted = usize::try_from(vcpus).unwrap_or(usize::MAX);
    let text = format!(
        "{vcpus} virtual CPUs share the {cpus} CPUs of this node; give at most {cpus}, or they wait \
         for each other"
    );
    (cpus > 0 && wanted > cpus).then(|| Problem::warning("vm.vcpus", text))
}

/// The value of the first line of this name.
fn line<'a>(cpuinfo: &'a str, name: &str) -> Option<&'a str> {
    cpuinfo.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then_some(value)
    })
}

#[cfg(test)]
mod tests {
    use super::super::host::{FakeHost, described};
    use super::super::{FailureKind, Severity};
    use super::*;

    const CPUINFO: &str = "processor\t: 0\nflags\t\t: cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3 \
                           avx avx2 bmi1\n\nprocessor\t: 1\nflags\t: x\n";

    #[test]
    fn a_host_without_kvm_is_told_what_to_load() {
        let fake = FakeHost::with(&[("proc/cpuinfo", CPUINFO)]);
        let found = problems(&described(""), &fake.host());
        assert_eq!(found.len(), 1);
        assert_eq!(
            found[0].severity,
            Severity::Error(FailureKind::NotInstalled)
        );
        assert!(found[0].text.contains("kvm_intel or kvm_amd"), "{found:?}");
    }

    #[test]
    fn a_level_the_cpu_does_not_reach_is_told_with_what_it_lacks() {
        assert_eq!(level(CpuModel::Host, ""), None);
        assert_eq!(level(CpuModel::X86_64V2, CPUINFO), None);
        let told = level(CpuModel::X86_64V3, CPUINFO).unwrap();
        assert!(
            told.text.contains("bmi2, f16c, fma, abm, movbe, xsave"),
            "{told:?}"
        );
    }

    #[test]
    fn more_virtual_cpus_than_cpus_are_a_warning() {
        assert_eq!(number(2, CPUINFO), None);
        assert_eq!(number(3, CPUINFO).unwrap().severity, Severity::Warning);
        assert_eq!(number(3, ""), None);
    }
}
