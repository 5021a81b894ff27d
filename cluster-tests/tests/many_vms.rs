// SPDX-License-Identifier: Apache-2.0
//! Several VMs in one cluster, with what administrators say of resources: priorities, utilization, colocation, order.
//! The host that carries two of them is lost; both go on, and what was said holds again.

use std::time::{Duration, Instant};

use kemari_cluster_tests::bed::Bed;
use kemari_cluster_tests::ledger_vm::{self, judge, prints_on};
use kemari_cluster_tests::namespaces::Namespaces;
use kemari_cluster_tests::protected::{Guest, Options, ProtectedVm};
use kemari_cluster_tests::supervisor;

/// The database comes before the web server and is the more important of the two; they belong together.
const SAID: &str = "\
property placement-strategy=utilization
colocation together inf: web-pair:Promoted db-pair:Promoted
order db-before-web Optional: db-pair:promote web-pair:promote
commit
";

fn options(name: &str, port: u16) -> Options {
    let mut options = ledger_vm::options(None);
    name.clone_into(&mut options.name);
    options.replication = format!("port = {port}\n");
    if let Guest::Files(files) = &mut options.guest {
        files.memory_mib = 64;
    }
    options
}

fn said(vm: &ProtectedVm<'_>, node: &str, command: &str) -> String {
    vm.run(node, command).unwrap_or_else(|e| panic!("{e:#}"))
}

/// Waits until all are protected as Pacemaker was told, at rest. Returns the active nodes of `db` and `mail`.
fn as_told(bed: &Namespaces, vms: &[ProtectedVm<'_>; 3], observer: &str) -> (String, String) {
    let begun = Instant::now();
    loop {
        vms[0].settle(observer).expect("Pacemaker comes to rest");
        let on: Vec<String> = bed
            .nodes()
            .iter()
            .filter(|node| bed.is_on(node).expect("the bed knows"))
            .cloned()
            .collect();
        let [db, web, mail] = vms
            .each_ref()
            .map(|vm| vm.wait_protected(&on).expect("it is protected").0);
        if db == web {
            for (vm, node) in vms.iter().zip([&db, &web, &mail]) {
                vm.wait_promoted(node).expect("Pacemaker shows it");
                prints_on(vm, 500).expect("the guest prints");
            }
            return (db, mail);
        }
        let shown = vms[0].crm_mon(observer).expect("it shows");
        assert!(
            begun.elapsed() < Duration::from_secs(180),
            "db on {db}, web on {web}, mail on {mail}:\n{shown}"
        );
        std::thread::sleep(Duration::from_millis(500));
    }
}

#[test]
fn a_host_with_two_vms_is_lost_and_the_cluster_keeps_what_it_was_told() {
    let _turn = supervisor::turn().expect("tests run as root");
    let bed = ledger_vm::clustered(Namespaces::builder()).expect("the cluster forms");
    let vms = [("db", 4444), ("web", 4445), ("mail", 4446)].map(|(name, port)| {
        ProtectedVm::install(&bed, options(name, port)).expect("the VM is installed")
    });
    for (vm, priority) in vms.iter().zip([20, 10, 0]) {
        // One after the other, as people do; the instances are placed by what each host can carry.
        vm.configure_instances(3).expect("crm takes it");
        let name = vm.name();
        said(
            vm,
            "node1",
            &format!("crm resource meta {name}-pair set priority {priority}"),
        );
        said(
            vm,
            "node1",
            &format!(
                "crm configure filter \"sed 's/params config/utilization memory=64 params config/'\" {name}"
            ),
        );
    }
    for node in bed.nodes() {
        said(
            &vms[0],
            "node1",
            &format!("crm node utilization {node} set memory 256"),
        );
    }
    bed.write("node1", "/root/said.crm", SAID.as_bytes(), 0o600)
        .expect("a file");
    said(
        &vms[0],
        "node1",
        "crm configure < /root/said.crm && crm configure verify",
    );
    let (lost, mail) = as_told(&bed, &vms, "node1");
    println!("{}", said(&vms[0], &mail, "crm_mon -1 -r"));

    let before = vms.each_ref().map(|vm| {
        let active = if vm.name() == "mail" { &mail } else { &lost };
        let replica = vm.replica(active).expect("the node answers");
        replica.expect("it runs").generation
    });
    bed.kill(&lost).expect("power can be taken");
    let mut rest = bed.nodes().iter().filter(|node| **node != lost);
    let (db, _) = as_told(&bed, &vms, rest.next().expect("two are left"));
    assert_ne!(db, lost);
    println!("{}", said(&vms[0], &db, "crm_mon -1 -r"));
    for (vm, before) in vms.iter().zip(before) {
        let takeovers = vm.observer.takeovers().len();
        println!(
            "{}: generation {before} when {lost} was lost, {takeovers} takeovers",
            vm.name()
        );
        let stayed = vm.name() == "mail" && mail != lost;
        assert!(stayed || takeovers > 0, "{} moved", vm.name());
    }

    // The lost host comes back, and another one is emptied.
    bed.power_on(&lost).expect("it boots again");
    bed.start_cluster_on(&lost).expect("it joins again");
    vms[0].start_agent(&lost).expect("the agent starts");
    said(&vms[0], &lost, &format!("crm node standby {db}"));
    as_told(&bed, &vms, &lost);
    said(&vms[0], &lost, &format!("crm node online {db}"));
    as_told(&bed, &vms, &lost);
    for vm in &vms {
        println!("{}:", vm.name());
        judge(&vm.observer).expect("one machine, as seen outside");
    }
}
