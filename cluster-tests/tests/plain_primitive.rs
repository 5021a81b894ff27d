// SPDX-License-Identifier: Apache-2.0
//! The plain primitive on real Pacemaker, as the book writes it: it starts, is looked at, shut down,
//! moved, recovered, and after the loss of its node it waits for that node. What it prints is a whole
//! ledger for each boot, and no boot prints after a newer one has begun.

use std::time::Instant;

use kemari_cluster_tests::bed::{Bed, Finished};
use kemari_cluster_tests::ledger_vm::{self, boot_prints};
use kemari_cluster_tests::namespaces::Namespaces;
use kemari_cluster_tests::protected::ProtectedVm;
use kemari_cluster_tests::supervisor;

const AGENT: &str = "/usr/lib/ocf/resource.d/kemari/vm";

/// A cluster with the one VM.
struct Scene<'a> {
    bed: &'a Namespaces,
    vm: ProtectedVm<'a>,
}

impl Scene<'_> {
    fn run(&self, node: &str, command: &str) -> String {
        println!("{node}# {command}");
        self.vm
            .run(node, command)
            .unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// The node and the generation of the one guest that runs; it prints, and Pacemaker knows it.
    fn runs(&self, step: &str, newer_than: u64) -> (String, u64) {
        self.vm.settle("node1").expect("Pacemaker comes to rest");
        let shown = self.vm.crm_mon("node1").expect("it shows");
        println!("--- {step}\n{shown}");
        let replicas = self.bed.nodes().iter().filter_map(|node| {
            let replica = self.vm.replica(node).expect("the node answers")?;
            (replica.role == "active").then_some(replica)
        });
        let active: Vec<_> = replicas.collect();
        let [replica] = active.as_slice() else {
            panic!("{step}: {active:?}")
        };
        assert_eq!(replica.licence, "solo", "{step}");
        assert!(replica.generation > newer_than, "{step}: {replica:?}");
        assert!(
            shown.contains(&format!("(ocf:kemari:vm):\t Started {}", replica.node)),
            "{shown}"
        );
        boot_prints(&self.vm, replica.generation, 500).expect("the guest prints");
        (replica.node.clone(), replica.generation)
    }

    fn nothing_runs(&self, step: &str) {
        self.vm.settle("node1").expect("Pacemaker comes to rest");
        println!(
            "--- {step}\n{}",
            self.vm.crm_mon("node1").expect("it shows")
        );
        for node in self.bed.nodes() {
            assert_eq!(
                self.vm.replica(node).expect("the node answers"),
                None,
                "{step}"
            );
        }
    }

    /// How often a guest has shut itself down on this node because it was asked to.
    fn shut_down(&self, node: &str) -> usize {
        let journal = self.run(node, "journalctl -o cat -u kemari-vm@vm.service");
        let off = journal.matches("the guest powered itself off").count();
        assert_eq!(
            journal.matches("pressing the guest's power button").count(),
            off,
            "{journal}"
        );
        off
    }

    /// `monitor`, as Pacemaker calls it.
    fn monitor(&self, node: &str, level: u8) -> Finished {
        let command = format!(
            "OCF_ROOT=/usr/lib/ocf OCF_RESOURCE_INSTANCE=vm OCF_RESKEY_config=/etc/kemari/vm.toml \
             OCF_RESKEY_CRM_meta_timeout=20000 OCF_CHECK_LEVEL={level} {AGENT} monitor"
        );
        let finished = self.bed.exec(node, &["sh", "-c", &command]);
        let finished = finished.expect("the node can be entered");
        println!("{node}: monitor at level {level}: {finished:?}");
        finished
    }
}

/// Level 0 and 10, by hand, by `crm_resource`, and as operations of Pacemaker.
fn is_looked_at(scene: &Scene<'_>, home: &str) {
    assert_eq!(scene.monitor(home, 0).status, 0);
    assert_eq!(scene.monitor(home, 10).status, 0);
    for other in scene.bed.nodes().iter().filter(|node| *node != home) {
        assert_eq!(scene.monitor(other, 10).status, 7, "OCF_NOT_RUNNING");
    }
    scene.run(home, "crm_resource --force-check --resource vm");
    scene.run("node1", "crm configure monitor vm 3s:20s");
    scene.run(
        "node1",
        "pcs resource op add vm monitor interval=5s timeout=20s OCF_CHECK_LEVEL=10",
    );
    scene.vm.settle("node1").expect("Pacemaker comes to rest");
    let history = "crm_mon -1 --operations --output-as=xml";
    for interval in ["3000ms", "5000ms"] {
        let seen = format!(
            "for i in $(seq 100); do {history} | grep 'task=\"monitor\"' | grep 'interval=\"{interval}\"' | \
             grep -q 'rc=\"0\"' && exit; sleep 0.2; done; {history}; exit 1"
        );
        scene.run("node1", &seen);
    }
}

/// The node that holds the right to run is gone: nobody else may have the guest, also if Pacemaker
/// asks for it. It runs again when that node is back.
fn waits_for_its_node(scene: &Scene<'_>, home: &str, generation: u64) -> (String, u64) {
    scene.bed.kill(home).expect("power can be taken");
    let witness = scene
        .bed
        .nodes()
        .iter()
        .find(|node| *node != home)
        .expect("there are three");
    scene
        .bed
        .wait_for_status(witness, "the loss", |status| {
            status.lines().any(|line| {
                line.contains(&format!("<node name=\"{home}\""))
                    && line.contains("online=\"false\"")
            })
        })
        .expect("the loss is seen");
    scene.vm.settle(witness).expect("Pacemaker comes to rest");
    let shown = scene.vm.crm_mon(witness).expect("it shows");
    println!("--- its node lost\n{shown}");
    let refused = format!("VM vm is not promoted: Node {home} ");
    assert!(shown.contains(&refused), "{shown}");
    for node in scene.bed.nodes().iter().filter(|node| *node != home) {
        let replica = scene.vm.replica(node).expect("the node answers");
        assert!(replica.is_none_or(|replica| replica.role != "active"));
    }
    scene.bed.power_on(home).expect("it boots again");
    scene.bed.start_cluster_on(home).expect("it joins again");
    scene.vm.start_agent(home).expect("the agent starts");
    scene.run("node1", "crm resource cleanup vm");
    scene.runs("its node is back", generation)
}

/// The book's way to a second replica: the guest that runs goes on, and is protected.
fn becomes_a_clone(scene: &Scene<'_>, home: &str, generation: u64) {
    scene.run(
        "node1",
        "crm configure clone vm-pair vm meta promotable=true notify=true interleave=true \
         clone-max=2 promoted-max=1",
    );
    let (active, _) = scene
        .vm
        .wait_protected(scene.bed.nodes())
        .expect("a pair forms");
    let shown = scene
        .vm
        .wait_promoted(home)
        .expect("Pacemaker promotes what runs");
    println!("--- a clone\n{shown}");
    let replica = scene.vm.replica(home).expect("the node answers");
    let now = replica.expect("it runs").generation;
    assert_eq!((active.as_str(), now), (home, generation));
    boot_prints(&scene.vm, generation, 5000).expect("the guest prints on");
}

#[test]
fn a_plain_primitive_starts_stops_moves_recovers_and_never_runs_twice() {
    let _turn = supervisor::turn().expect("tests run as root");
    let begun = Instant::now();
    let bed = ledger_vm::clustered(Namespaces::builder()).expect("the cluster forms");
    let vm = ProtectedVm::install(&bed, ledger_vm::options(None)).expect("the VM is installed");
    let scene = Scene { bed: &bed, vm };

    scene.run(
        "node1",
        "crm configure primitive vm ocf:kemari:vm params config=/etc/kemari/vm.toml",
    );
    let (home, generation) = scene.runs("the line of the book", 0);
    let said = "grep -r 'runs without protection' /var/log/pacemaker";
    println!("{}", scene.run(&home, said));
    is_looked_at(&scene, &home);

    scene.run("node1", "crm resource stop vm");
    scene.nothing_runs("stopped");
    assert_eq!(scene.shut_down(&home), 1);
    scene.run("node1", "crm resource start vm");
    let (home, generation) = scene.runs("started again", generation);

    let offs = scene.shut_down(&home);
    scene.run(&home, "systemctl kill --signal=KILL kemari-vm@vm");
    scene
        .vm
        .wait_active(&home, generation)
        .expect("Pacemaker starts it again");
    let (home, generation) = scene.runs("its engine killed", generation);
    assert_eq!(scene.shut_down(&home), offs);

    let other = bed.nodes().iter().find(|node| **node != home);
    let other = other.expect("there are three").clone();
    scene.run("node1", &format!("crm resource move vm {other}"));
    scene
        .vm
        .wait_active(&other, generation)
        .expect("it boots there");
    let (now, generation) = scene.runs("moved", generation);
    assert_eq!(now, other);
    assert_eq!(scene.shut_down(&home), offs + 1, "it was shut down first");
    scene.run("node1", "crm resource clear vm");

    let (home, generation) = waits_for_its_node(&scene, &now, generation);
    becomes_a_clone(&scene, &home, generation);
    let boots = ledger_vm::judge_boots(&scene.vm.observer).expect("one guest at a time");
    assert!(boots >= 5, "{boots} boots");
    println!("took {:?}", begun.elapsed());
}
