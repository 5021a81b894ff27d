// SPDX-License-Identifier: Apache-2.0
//! `ocf:kemari:vm` as an administrator meets it: `ocf-tester`, `crm_resource --validate`, `pcs`, a
//! planned move, and a stop, on real nodes with the Debian package.

use std::time::Duration;

use kemari_cluster_tests::bed::Bed;
use kemari_cluster_tests::namespaces::Namespaces;
use kemari_cluster_tests::protected::{Guest, GuestFiles, Options, ProtectedVm};
use kemari_cluster_tests::{guests, ledger, package, supervisor};

const AGENT: &str = "/usr/lib/ocf/resource.d/kemari/vm";

fn ledger_vm() -> Options {
    Options {
        name: "vm".to_owned(),
        guest: Guest::Files(GuestFiles {
            kernel: guests::ledger().to_owned(),
            initrd: None,
            cmdline: "pages=16 interval=2000".to_owned(),
            memory_mib: 64,
        }),
        disk_mib: None,
        monitor_s: 5,
        replication: String::new(),
        patience: Duration::from_secs(90),
    }
}

/// Exit status and standard error of the resource agent, called as Pacemaker calls it.
fn call(bed: &Namespaces, node: &str, action: &str, environment: &str) -> (i32, String) {
    let command =
        format!("OCF_ROOT=/usr/lib/ocf OCF_RESOURCE_INSTANCE=vm {environment} {AGENT} {action}");
    let finished = bed
        .exec(node, &["sh", "-c", &command])
        .expect("the node can be entered");
    println!(
        "{action} with {environment}: {} {}",
        finished.status,
        finished.stderr.trim()
    );
    (finished.status, finished.stderr)
}

/// What a tired administrator gets wrong.
fn wrong_input_is_named(bed: &Namespaces, node: &str) {
    let write = |text: &str| {
        bed.write(node, "/etc/kemari/wrong.toml", text.as_bytes(), 0o644)
            .expect("a file");
    };
    let wrong = "OCF_RESKEY_config=/etc/kemari/wrong.toml";
    let deep = |parameters: &str| format!("OCF_CHECK_LEVEL=10 {parameters}");
    let (code, text) = call(bed, node, "validate-all", "");
    assert!(
        code == 6 && text.contains("config"),
        "OCF_ERR_CONFIGURED: {text}"
    );
    write("[vm]\nname = \"vm\"\nmemory = 64\n");
    let (code, text) = call(bed, node, "validate-all", wrong);
    assert!(
        code == 6 && text.contains("wrong.toml:3"),
        "OCF_ERR_CONFIGURED: {text}"
    );
    write("[vm]\nname = \"vm\"\nmemory_mib = 64\n[boot]\nkernel = \"/nonexistent\"\n");
    let (code, text) = call(bed, node, "validate-all", &deep(wrong));
    assert!(
        code == 5 && text.contains("/nonexistent"),
        "OCF_ERR_INSTALLED: {text}"
    );
    let good = "OCF_RESKEY_config=/etc/kemari/vm.toml";
    let slow = format!("{good} OCF_RESKEY_shutdown_timeout=soon");
    let (code, text) = call(bed, node, "validate-all", &slow);
    assert!(
        code == 6 && text.contains("shutdown_timeout=soon"),
        "OCF_ERR_CONFIGURED: {text}"
    );
    let (code, _) = call(bed, node, "monitor", good);
    assert_eq!(code, 7, "OCF_NOT_RUNNING");
    bed.exec(node, &["mv", "/dev/kvm", "/dev/kvm.away"])
        .expect("the node can be entered");
    let (code, text) = call(bed, node, "validate-all", &deep(good));
    bed.exec(node, &["mv", "/dev/kvm.away", "/dev/kvm"])
        .expect("the node can be entered");
    assert!(
        code == 5 && text.contains("/dev/kvm"),
        "OCF_ERR_INSTALLED: {text}"
    );
    assert_eq!(call(bed, node, "validate-all", &deep(good)).0, 0);
}

/// The engine's unit is ordered before Pacemaker's. A start that is under way when Pacemaker is told to stop must not
/// wait for that: Pacemaker would wait for the start.
fn a_start_does_not_wait_for_pacemaker_to_stop(bed: &Namespaces, node: &str) {
    let run = |command: &str| {
        let finished = bed.exec(node, &["sh", "-c", command]);
        let finished = finished.expect("the node can be entered");
        finished.success().unwrap_or_else(|e| panic!("{e:#}"))
    };
    let slow = "/run/systemd/system/pacemaker.service.d/slow.conf";
    bed.write(node, slow, b"[Service]\nExecStop=/bin/sleep 120\n", 0o644)
        .expect("a file");
    run("systemctl daemon-reload; systemctl --no-block stop pacemaker");
    run(
        "until systemctl list-jobs | grep -q 'pacemaker.service.*stop.*running'; do sleep 0.1; done",
    );
    let environment = "OCF_RESKEY_config=/etc/kemari/vm.toml OCF_RESKEY_CRM_meta_timeout=20000";
    assert_eq!(call(bed, node, "start", environment).0, 0);
    assert_eq!(call(bed, node, "stop", environment).0, 0);
    run(&format!(
        "systemctl kill --kill-whom=control pacemaker; systemctl stop pacemaker; rm {slow}; \
         systemctl daemon-reload; systemctl start pacemaker"
    ));
    bed.wait_online(&[node.to_owned()]).expect("it is back");
}

#[test]
fn ocf_tester_passes_pcs_makes_the_pair_and_a_standby_loses_nothing() {
    let _turn = supervisor::turn().expect("tests run as root");
    let deb = package::find().expect("make package was run before");
    let bed = Namespaces::builder()
        .nodes(3)
        .debs(vec![deb])
        .up()
        .expect("the bed comes up");
    bed.start_cluster().expect("the cluster forms");

    // A VM of its own: ocf-tester boots the guest more than once.
    let tested = ProtectedVm::install(&bed, ledger_vm()).expect("the VM is installed");
    wrong_input_is_named(&bed, "node1");
    let run = |command: &str| {
        tested
            .run("node1", command)
            .unwrap_or_else(|e| panic!("{e:#}"))
    };
    println!(
        "{}",
        run(&format!(
            "ocf-tester -n vm -o config=/etc/kemari/vm.toml {AGENT}"
        ))
    );
    run(
        "crm_resource --validate --class ocf --provider kemari --agent vm \
         --option config=/etc/kemari/vm.toml",
    );
    assert!(run("crm ra info ocf:kemari:vm").contains("config"));
    assert!(run("pcs resource describe ocf:kemari:vm").contains("config"));
    a_start_does_not_wait_for_pacemaker_to_stop(&bed, "node3");
    drop(tested);

    let vm = ProtectedVm::install(&bed, ledger_vm()).expect("the VM is installed");
    let example = "sh /usr/share/doc/kemari/examples/cluster-pcs.sh";
    let alone = vm
        .run("node1", &format!("{example} node1"))
        .expect_err("one host is no pair");
    assert!(
        format!("{alone:#}").contains("name two hosts or more"),
        "{alone:#}"
    );
    vm.run("node1", &format!("{example} node1 node2 node3"))
        .expect("pcs takes it");
    let (active, passive) = vm.wait_protected(bed.nodes()).expect("a pair forms");
    vm.observer
        .wait_for_more(500, Duration::from_secs(60))
        .expect("the guest prints");
    let shown = vm.wait_promoted(&active).expect("crm_mon shows it");
    println!("{shown}");
    let line = |role: &str, node: &str| {
        shown
            .lines()
            .any(|line| line.contains(role) && line.contains(&format!(" {node} ")))
    };
    assert!(
        line("* Promoted:", &active) && line("Unpromoted:", &passive),
        "{shown}"
    );

    let before = vm
        .replica(&active)
        .expect("it answers")
        .expect("it runs")
        .generation;
    vm.run("node1", &format!("pcs node standby {active}"))
        .expect("pcs takes it");
    vm.wait_active(&passive, before)
        .expect("the passive one takes over");
    vm.observer
        .wait_for_more(500, Duration::from_secs(60))
        .expect("the guest prints on");
    vm.run("node1", &format!("pcs node unstandby {active}"))
        .expect("pcs takes it");
    assert_eq!(vm.observer.violations(), []);
    println!(
        "{:?}",
        ledger::check(&vm.observer.bytes()).expect("the ledger is complete")
    );
}

/// What the engines of all nodes have said of this since they were installed.
fn said(vm: &ProtectedVm<'_>, bed: &Namespaces, words: &str) -> usize {
    let count = |node: &String| {
        let journal = vm
            .run(node, "journalctl -o cat -u kemari-vm@vm.service")
            .unwrap_or_else(|e| panic!("{e:#}"));
        journal.matches(words).count()
    };
    bed.nodes().iter().map(count).sum()
}

/// Disables the resource, and looks that all is down and nothing failed.
fn disable(vm: &ProtectedVm<'_>, bed: &Namespaces) {
    let run = |node: &str, command: &str| vm.run(node, command).unwrap_or_else(|e| panic!("{e:#}"));
    run("node1", "pcs resource disable vm-pair");
    vm.settle("node1").expect("the resource stops");
    let shown = vm.crm_mon("node1").expect("crm_mon shows it");
    println!("{shown}");
    assert!(!shown.contains("Failed Resource Actions"), "{shown}");
    assert!(!shown.contains("romoted: ["), "{shown}");
    for node in bed.nodes() {
        assert_eq!(vm.replica(node).expect("the node can be entered"), None);
        let failed = run(node, "systemctl list-units --failed --no-legend 'kemari-*'");
        assert_eq!(failed.trim(), "", "{node}");
    }
}

#[test]
fn a_stop_shuts_the_guest_down_and_a_standby_does_not() {
    let _turn = supervisor::turn().expect("tests run as root");
    let deb = package::find().expect("make package was run before");
    let bed = Namespaces::builder()
        .nodes(3)
        .debs(vec![deb])
        .up()
        .expect("the bed comes up");
    bed.start_cluster().expect("the cluster forms");
    let vm = ProtectedVm::install(&bed, ledger_vm()).expect("the VM is installed");
    vm.run("node1", "sh /usr/share/doc/kemari/examples/cluster-pcs.sh")
        .expect("pcs takes it");
    let off = "the guest powered itself off";
    let pressed = "pressing the guest's power button";
    let begin = || {
        let pair = vm.wait_protected(bed.nodes()).expect("a pair forms");
        vm.observer
            .wait_for_more(500, Duration::from_secs(60))
            .expect("the guest prints");
        vm.wait_promoted(&pair.0).expect("crm_mon shows it");
        vm.settle("node1").expect("Pacemaker is done");
        pair
    };

    // The guest goes on elsewhere.
    let (active, passive) = begin();
    let generation = vm
        .replica(&active)
        .expect("it answers")
        .expect("it runs")
        .generation;
    vm.run("node1", &format!("pcs node standby {active}"))
        .expect("pcs takes it");
    vm.wait_active(&passive, generation)
        .expect("the passive one takes over");
    vm.run("node1", &format!("pcs node unstandby {active}"))
        .expect("pcs takes it");
    begin();
    assert_eq!((said(&vm, &bed, pressed), said(&vm, &bed, off)), (0, 0));

    // The whole pair is stopped: nobody goes on.
    disable(&vm, &bed);
    assert_eq!((said(&vm, &bed, pressed), said(&vm, &bed, off)), (1, 1));
    assert_eq!(vm.observer.violations(), []);
    println!(
        "{:?}",
        ledger::check(&vm.observer.bytes()).expect("the ledger is complete")
    );

    // It comes back, and without the time to shut down it is ended.
    vm.run(
        "node1",
        "pcs resource update vm shutdown_timeout=0 && pcs resource enable vm-pair",
    )
    .expect("pcs takes it");
    begin();
    disable(&vm, &bed);
    assert_eq!((said(&vm, &bed, pressed), said(&vm, &bed, off)), (1, 1));
}
