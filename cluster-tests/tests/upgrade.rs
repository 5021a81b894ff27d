// SPDX-License-Identifier: Apache-2.0
//! A cluster of two hosts and a witness is upgraded while its VM runs, in test bed A: nobody notices, and a failover
//! works afterwards. The release before is this one with a lower number ([`package::previous_deb`]); engines go on with the
//! program they were started from.

use std::fs;
use std::time::{Duration, Instant};

use kemari_cluster_tests::bed::Bed;
use kemari_cluster_tests::namespaces::Namespaces;
use kemari_cluster_tests::package::{self, PREVIOUS_VERSION, Role};
use kemari_cluster_tests::protected::{Guest, GuestFiles, Options, ProtectedVm};
use kemari_cluster_tests::{guests, ledger, supervisor};

const WITNESS: &str = "node3";
const PATIENCE: Duration = Duration::from_secs(90);

fn ledger_vm() -> Options {
    Options {
        name: "vm".to_owned(),
        guest: Guest::Files(GuestFiles {
            kernel: guests::ledger().to_owned(),
            initrd: None,
            cmdline: "pages=16 disk=64 interval=2000".to_owned(),
            memory_mib: 64,
        }),
        disk_mib: Some(16),
        monitor_s: 5,
        replication: String::new(),
        patience: PATIENCE,
    }
}

/// Installs a package file of this machine in a node, as `apt install ./FILE` does.
fn install(bed: &Namespaces, node: &str, file: &std::path::Path) {
    let bytes = fs::read(file).expect("the package can be read");
    bed.write(node, "/root/new.deb", &bytes, 0o644)
        .expect("a file");
    run(bed, node, "apt-get install -y /root/new.deb </dev/null");
}

fn run(bed: &Namespaces, node: &str, command: &str) -> String {
    let finished = bed
        .exec(node, &["sh", "-c", command])
        .expect("the node can be entered");
    finished
        .success()
        .unwrap_or_else(|error| panic!("{node}: {command}: {error:#}"))
}

/// Which process a unit is, and since when.
fn process(bed: &Namespaces, node: &str, unit: &str) -> String {
    let properties = "ActiveState,MainPID,ExecMainStartTimestampMonotonic,NRestarts";
    let shown = run(bed, node, &format!("systemctl show -p {properties} {unit}"));
    assert!(
        shown.contains("ActiveState=active"),
        "{node} {unit}: {shown}"
    );
    shown
}

/// Waits until the node's agent calls the VM protected: it has heard the others.
fn wait_until_the_agent_knows(bed: &Namespaces, node: &str) {
    let begun = Instant::now();
    loop {
        let asked = bed
            .exec(node, &["kemarictl", "status", "--check", "vm"])
            .expect("the node can be entered");
        if asked.status == 0 {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{node}: {asked:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn a_cluster_is_upgraded_under_a_vm_that_does_not_notice() {
    let _turn = supervisor::turn().expect("tests run as root");
    let place = tempfile::tempdir().expect("a directory");
    let [old_host, old_witness] = [Role::Host, Role::Witness].map(|role| {
        let place = place.path().join(role.package());
        fs::create_dir(&place).expect("a directory");
        package::previous_deb(role, &place).expect("make package was run before")
    });
    let bed = Namespaces::builder()
        .nodes(3)
        .debs(vec![old_host])
        .up()
        .expect("the bed comes up");
    // The third node changes over to the package of witnesses.
    install(&bed, WITNESS, &old_witness);
    bed.start_cluster().expect("the cluster forms");
    let vm = ProtectedVm::install(&bed, ledger_vm()).expect("the VM is installed");
    // The witness has what a host has but the package: nothing else keeps the VM away from it.
    vm.configure_with_crm()
        .expect("crm takes the configuration");
    let hosts: Vec<String> = bed
        .nodes()
        .iter()
        .filter(|n| *n != WITNESS)
        .cloned()
        .collect();
    let (active, passive) = vm.wait_protected(&hosts).expect("a pair forms");
    let generation = |node: &str| {
        let replica = vm.replica(node).expect("the node answers");
        replica.expect("an engine answers").generation
    };
    let first = generation(&active);
    let takeovers = vm.observer.takeovers().len();

    let refused = bed
        .exec(&active, &["dpkg", "--remove", "kemari"])
        .expect("the node can be entered");
    assert!(
        refused.status != 0 && refused.stderr.contains("kemari-vm@vm.service"),
        "{refused:?}"
    );
    process(&bed, &active, "kemari-agent");

    for (node, role) in [
        (WITNESS, Role::Witness),
        (&passive, Role::Host),
        (&active, Role::Host),
    ] {
        let agent = process(&bed, node, "kemari-agent");
        let engine = (role == Role::Host).then(|| process(&bed, node, "kemari-vm@vm"));
        let seen = vm.observer.bytes().len();
        install(
            &bed,
            node,
            &package::deb(role).expect("make package was run before"),
        );
        let version = format!("dpkg-query -W -f '${{Version}}' {}", role.package());
        assert_ne!(run(&bed, node, &version), PREVIOUS_VERSION);
        assert_ne!(
            process(&bed, node, "kemari-agent"),
            agent,
            "{node}: the new agent runs"
        );
        let now = (role == Role::Host).then(|| process(&bed, node, "kemari-vm@vm"));
        assert_eq!(now, engine, "{node}: the engine is the one that ran before");
        vm.observer
            .wait_for_more(200, Duration::from_secs(60))
            .expect("the guest prints on");
        println!(
            "{node} upgraded: {} bytes seen meanwhile",
            vm.observer.bytes().len() - seen
        );
        for node in bed.nodes() {
            wait_until_the_agent_knows(&bed, node);
        }
    }
    assert_eq!(generation(&active), first, "nothing changed hands");
    assert_eq!(vm.observer.takeovers().len(), takeovers, "as seen outside");

    bed.kill(&active).expect("the power goes");
    let taken = vm
        .wait_active(&passive, first)
        .expect("the passive replica goes on");
    println!("after the upgrade, {active} lost its power: {taken:?}");
    vm.observer
        .wait_for_more(200, Duration::from_secs(60))
        .expect("the guest prints on");
    vm.settle(&passive).expect("Pacemaker comes to rest");
    let shown = vm.crm_mon(&passive).expect("crm_mon runs");
    println!("{shown}");
    let on_witness = |line: &&str| line.contains("romoted:") && line.contains(WITNESS);
    assert_eq!(shown.lines().find(on_witness), None);
    assert_eq!(vm.observer.violations(), [], "as seen outside");
    println!(
        "observer: {:?}",
        ledger::check(&vm.observer.bytes()).expect("the ledger is complete")
    );
}
