// SPDX-License-Identifier: Apache-2.0
//! A host whose hardware fails, in test bed B: corrected machine checks move the guest away before anything is lost, and
//! a page of its RAM that fails ends the active replica, which the passive one continues.
//!
//! Minutes each, since machines take long to boot, and the agent looks once a minute.

use std::time::{Duration, Instant};

use kemari_cluster_tests::bed::Bed;
use kemari_cluster_tests::ledger_vm::{self, judge, prints_on};
use kemari_cluster_tests::machines::Machines;
use kemari_cluster_tests::protected::{Guest, GuestFiles, Options, ProtectedVm};
use kemari_cluster_tests::{linux_guest, package, supervisor};

/// The agent looks once a minute.
const LOOKS: Duration = Duration::from_secs(180);

const SETTINGS: &str = "[health]\nprocessors = { yellow = 3, red = 6 }\n";

/// A guest that rests between its lines. Emulated machines are ten to thirty times slower than real ones, and one that
/// never rests leaves little to the cluster.
fn options() -> Options {
    let files = linux_guest::ensure().expect("Debian's kernel can be fetched");
    Options {
        guest: Guest::Files(GuestFiles {
            kernel: files.kernel,
            initrd: Some(files.initramfs),
            cmdline: linux_guest::command_line(500),
            memory_mib: 160,
        }),
        monitor_s: 20,
        replication: "peer_timeout_ms = 5000\n".to_owned(),
        patience: Duration::from_secs(360),
        ..ledger_vm::options(None)
    }
}

fn said(vm: &ProtectedVm<'_>, node: &str, command: &str) -> String {
    vm.run(node, command).unwrap_or_else(|e| panic!("{e:#}"))
}

/// Waits until Pacemaker has this of a node's health.
fn wait_health(vm: &ProtectedVm<'_>, node: &str, colour: &str) {
    let begun = Instant::now();
    loop {
        // It fails where there is no such attribute yet.
        let query = format!(
            "attrd_updater --query --name '#health-kemari-processors' --node {node} || true"
        );
        let shown = said(vm, node, &query);
        if shown.contains(&format!("value=\"{colour}\"")) {
            return;
        }
        assert!(begun.elapsed() < LOOKS, "not {colour}: {shown}");
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// A pair in a cluster of emulated machines, whose agents know [`SETTINGS`], and then what happens to (active, passive).
fn with_a_pair(happens: impl FnOnce(&Machines, &ProtectedVm<'_>, &str, &str)) {
    let _turn = supervisor::turn().expect("tests run as root");
    let bed = Machines::builder()
        .nodes(3)
        .debs(vec![package::find().expect("make package was run before")])
        .cluster_at_boot(true)
        .up()
        .expect("the bed comes up");
    bed.start_cluster().expect("the cluster forms");
    let vm = ProtectedVm::install(&bed, options()).expect("the VM is installed");
    for node in bed.nodes() {
        bed.write(node, "/etc/kemari/agent.toml", SETTINGS.as_bytes(), 0o644)
            .expect("a file");
        said(&vm, node, "systemctl restart kemari-agent");
    }
    vm.configure_with_crm().expect("crm takes it");
    let property = "crm configure property node-health-strategy=migrate-on-red";
    said(&vm, "node1", property);
    vm.wait_protected(bed.nodes()).expect("a pair forms");
    vm.settle("node1").expect("Pacemaker comes to rest");
    let (active, passive) = vm.wait_protected(bed.nodes()).expect("a pair forms");
    vm.wait_promoted(&active).expect("Pacemaker shows it");
    prints_on(&vm, 500).expect("the guest prints");
    happens(&bed, &vm, &active, &passive);
    vm.wait_protected(bed.nodes()).expect("a new pair forms");
    prints_on(&vm, 500).expect("the guest prints on");
    judge(&vm.observer).expect("one machine, as seen outside");
}

#[test]
#[ignore = "eight minutes: make campaign-pacemaker"]
fn a_host_with_machine_checks_gives_its_guest_away() {
    with_a_pair(corrected_errors);
}

#[test]
#[ignore = "five minutes: make campaign-pacemaker"]
fn a_guest_whose_memory_fails_goes_on_at_the_other_host() {
    with_a_pair(failed_memory);
}

/// Enough of them make the node red, and Pacemaker moves the guest; nothing of it is new to the guest.
fn corrected_errors(bed: &Machines, vm: &ProtectedVm<'_>, active: &str, passive: &str) {
    // The agent has counted what there was when it began.
    std::thread::sleep(Duration::from_secs(65));
    let replica = vm.replica(active).expect("the node answers");
    let before = replica.expect("it runs").generation;
    bed.inject_corrected_errors(active, 4).expect("injected");
    wait_health(vm, active, "yellow");
    bed.inject_corrected_errors(active, 4).expect("injected");
    wait_health(vm, active, "red");
    println!("{}", said(vm, passive, "crm_mon -1 -A"));
    vm.wait_active(passive, before).expect("the guest moves");
    prints_on(vm, 500).expect("the guest prints on");
    let journal = said(vm, active, "journalctl -o cat -u kemari-agent");
    for line in journal
        .lines()
        .filter(|line| line.contains("machine check"))
    {
        println!("{active}: {line}");
    }
    // As after the processor was replaced, but for the boot.
    said(
        vm,
        active,
        "systemctl restart kemari-agent && \
         attrd_updater --name '#health-kemari-processors' --update green",
    );
}

/// The replica ends at once with its reason, and the other one continues.
fn failed_memory(bed: &Machines, vm: &ProtectedVm<'_>, active: &str, passive: &str) {
    let replica = vm.replica(active).expect("the node answers");
    let before = replica.expect("it runs").generation;
    let shown = said(vm, active, "systemctl show -P MainPID kemari-vm@vm.service");
    let pid = shown.trim().parse().expect("the engine runs");
    bed.fail_page_of(active, pid)
        .expect("a page can be taken away");
    vm.wait_active(passive, before).expect("it continues");
    prints_on(vm, 500).expect("the guest prints on");
    let journal = said(vm, active, "journalctl -o cat -u 'kemari-vm@*'");
    let line = journal
        .lines()
        .find(|line| line.contains("This host's memory failed under the guest"));
    println!("{active}: {}", line.unwrap_or_else(|| panic!("{journal}")));
    let corrupted = said(vm, active, "grep HardwareCorrupted /proc/meminfo");
    assert!(corrupted.contains(" 4 kB"), "{corrupted}");
    println!("{}", said(vm, passive, "crm_mon -1 -r"));
}
