// SPDX-License-Identifier: Apache-2.0
//! `[memory]` and `vm.memory_mib`: enough memory, of the kind and in the place that is asked for.

use std::path::PathBuf;

use kemari_api::config::{HugePages, VmConfig};

use super::Problem;
use super::host::{Host, Running};

/// What this node lacks for the guest's RAM.
pub(super) fn problems(config: &VmConfig, host: &Host, running: Running) -> Vec<Problem> {
    let mut found = Vec::new();
    found.extend(numa_node(config, host));
    if config.memory.huge_pages == HugePages::Transparent {
        found.extend(transparent(host));
    }
    if running == Running::No {
        found.extend(match config.memory.huge_pages.reserved_mib() {
            Some(page_mib) => reserved(config, host, page_mib.into()),
            None => available(config, host),
        });
    }
    found
}

fn numa_node(config: &VmConfig, host: &Host) -> Option<Problem> {
    let node = config.memory.numa_node?;
    let there = host
        .path(format!("sys/devices/system/node/node{node}"))
        .is_dir();
    let text = format!("this host has no NUMA node {node}; `numactl --hardware` lists them");
    (!there).then(|| Problem::missing("memory.numa_node", text))
}

fn transparent(host: &Host) -> Option<Problem> {
    let enabled = host.text("sys/kernel/mm/transparent_hugepage/enabled")?;
    let text = "transparent huge pages are off on this host, the guest will be slower; \
                write madvise to /sys/kernel/mm/transparent_hugepage/enabled, or give \"off\"";
    enabled
        .contains("[never]")
        .then(|| Problem::warning("memory.huge_pages", text))
}

/// Pages set aside that are free.
fn reserved(config: &VmConfig, host: &Host, page_mib: u64) -> Option<Problem> {
    let directory: PathBuf = match config.memory.numa_node {
        Some(node) => format!("sys/devices/system/node/node{node}/hugepages").into(),
        None => "sys/kernel/mm/hugepages".into(),
    };
    let kind = format!("hugepages-{}kB", page_mib * 1024);
    let free = host
        .number(directory.join(&kind).join("free_hugepages"))
        .unwrap_or(0);
    let needed = u64::from(config.vm.memory_mib.get()) / page_mib;
    let text = format!(
        "{needed} pages of {} are needed and {free} are free; set more aside by writing to \
         /{}/{kind}/nr_hugepages (at boot: hugepagesz= hugepages=)",
        config.memory.huge_pages,
        directory.display()
    );
    (free < needed).then(|| Problem::missing("memory.huge_pages", text))
}

/// Memory the kernel could find without swapping. Others may give some back: a warning only.
fn available(config: &VmConfig, host: &Host) -> Option<Problem> {
    let meminfo = host.text("proc/meminfo")?;
    let available_mib = meminfo.lines().find_map(|line| {
        let kib = line
            .strip_prefix("MemAvailable:")?
            .split_whitespace()
            .next()?;
        Some(kib.parse::<u64>().ok()? / 1024)
    })?;
    let wanted = u64::from(config.vm.memory_mib.get());
    let text = format!(
        "{wanted} MiB are asked for and {available_mib} MiB are available on this host; free some, \
         or give the guest less"
    );
    (available_mib < wanted).then(|| Problem::warning("vm.memory_mib", text))
}

#[cfg(test)]
mod tests {
    use super::super::Severity;
    use super::super::host::{FakeHost, described};
    use super::*;

    fn told(files: &[(&str, &str)], more: &str, running: Running) -> Vec<(String, Severity)> {
        let fake = FakeHost::with(files);
        problems(&described(more), &fake.host(), running)
            .into_iter()
            .map(|problem| (problem.key, problem.severity))
            .collect()
    }

    #[test]
    fn too_little_memory_is_a_warning_unless_the_vm_has_it_already() {
        let little = [("proc/meminfo", "MemTotal: 9 kB\nMemAvailable:    1024 kB\n")];
        let warning = vec![("vm.memory_mib".to_owned(), Severity::Warning)];
        assert_eq!(told(&little, "", Running::No), warning);
        assert_eq!(told(&little, "", Running::Here), []);
        let enough = [("proc/meminfo", "MemAvailable: 65536 kB\n")];
        assert_eq!(told(&enough, "", Running::No), []);
    }

    #[test]
    fn pages_that_were_not_set_aside_are_missing() {
        let pages = "[memory]\nhuge_pages = \"2M\"\n";
        let file = "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
        assert_eq!(told(&[(file, "32\n")], pages, Running::No), []);
        assert_eq!(told(&[(file, "31\n")], pages, Running::No).len(), 1);
        let on_node = format!("{pages}numa_node = 1\n");
        let file = "sys/devices/system/node/node1/hugepages/hugepages-2048kB/free_hugepages";
        assert_eq!(told(&[(file, "32\n")], &on_node, Running::No), []);
        assert_eq!(
            told(&[], &on_node, Running::No).len(),
            2,
            "neither node nor pages"
        );
    }

    #[test]
    fn transparent_huge_pages_that_are_off_are_a_warning() {
        let file = "sys/kernel/mm/transparent_hugepage/enabled";
        let off = [(file, "always madvise [never]\n")];
        assert_eq!(told(&off, "", Running::Here).len(), 1);
        assert_eq!(
            told(&off, "[memory]\nhuge_pages = \"off\"\n", Running::Here),
            []
        );
        assert_eq!(
            told(&[(file, "always [madvise] never\n")], "", Running::Here),
            []
        );
    }
}
