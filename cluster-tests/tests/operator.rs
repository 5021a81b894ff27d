// SPDX-License-Identifier: Apache-2.0
//! `kemarictl` against real agents, engines and Pacemaker: what it says, what it does, what it
//! refuses, and that the guest, as seen outside, notices nothing of all that but a forced start.

use std::time::{Duration, Instant};

use kemari_cluster_tests::bed::{Bed, Finished};
use kemari_cluster_tests::ledger_vm::{self, prints_on};
use kemari_cluster_tests::namespaces::Namespaces;
use kemari_cluster_tests::protected::ProtectedVm;
use kemari_cluster_tests::supervisor;
use serde_json::Value;

const DONE: i32 = 0;
const NOT_HERE: i32 = 3;
const REFUSED: i32 = 5;
const FOUND: i32 = 6;

/// The key of the test clusters, which no report may hold.
const KEY: &str = "7465737420636c7573746572";

/// Two nodes that may hold replicas, a witness, and a person at each.
struct Scene<'a> {
    bed: &'a Namespaces,
    vm: ProtectedVm<'a>,
}

impl<'a> Scene<'a> {
    fn begin(bed: &'a Namespaces) -> Self {
        let options = ledger_vm::options(Some(16));
        let vm = ProtectedVm::install(bed, options).expect("the VM is installed");
        vm.configure_with_crm()
            .expect("crm takes the configuration");
        vm.only_votes("node3").expect("crm takes the constraint");
        Self { bed, vm }
    }

    /// Runs a command in a node; it must end with this status.
    fn types(&self, node: &str, command: &str, status: i32) -> Finished {
        let finished = self
            .bed
            .exec(node, &["sh", "-c", command])
            .expect("the node can be entered");
        println!("{node}# {command}\n{}{}", finished.stdout, finished.stderr);
        assert_eq!(finished.status, status, "{node}# {command}: {finished:?}");
        finished
    }

    fn json(&self, node: &str, command: &str, status: i32) -> Value {
        let text = self.types(node, command, status).stdout;
        let value: Value = serde_json::from_str(&text).expect("it is JSON");
        assert_eq!(value["format"], 1, "{command}");
        value
    }

    /// (active, passive), with Pacemaker at rest and the guest printing.
    fn settled(&self) -> (String, String) {
        let all = self.bed.nodes();
        self.vm.wait_protected(all).expect("a pair forms");
        self.vm.settle("node3").expect("Pacemaker comes to rest");
        let pair = self.vm.wait_protected(all).expect("a pair forms");
        self.vm
            .wait_promoted(&pair.0)
            .expect("Pacemaker knows who is active");
        prints_on(&self.vm, 500).expect("the guest prints on");
        pair
    }

    /// What `crm_resource` moved or banned is taken back.
    fn no_constraint_is_left(&self) {
        let left = self
            .vm
            .run("node1", "cibadmin --query --scope constraints")
            .expect("the CIB can be read");
        assert!(!left.contains("cli-") && left.contains("witness"), "{left}");
    }
}

fn status_says_what_is(scene: &Scene<'_>) {
    let (active, passive) = scene.settled();
    for node in scene.bed.nodes() {
        let text = scene.types(node, "kemarictl status", DONE).stdout;
        assert!(
            text.contains(&active) && text.contains(&passive) && text.contains("paired"),
            "{text}"
        );
        scene.types(node, "kemarictl status --check vm", DONE);
        scene.types(node, "kemarictl status other", NOT_HERE);
        let status = scene.json(node, "kemarictl status --json", DONE);
        let cluster = &status["cluster"];
        assert_eq!(cluster["node"], node.as_str());
        assert_eq!(cluster["quorate"], true);
        for members in ["members", "agents"] {
            assert_eq!(cluster[members].as_array().map(Vec::len), Some(3));
        }
        let vm = &status["vms"][0];
        assert_eq!(vm["name"], "vm");
        assert_eq!(
            (&vm["protected"], &vm["why_not"]),
            (&Value::Bool(true), &Value::Null)
        );
        let replicas = vm["replicas"].as_array().expect("an array");
        assert_eq!(replicas.len(), 2);
        for replica in replicas {
            let runs = replica["node"] == active.as_str();
            assert_eq!(replica["role"], if runs { "active" } else { "passive" });
            assert_eq!(replica["licence"], if runs { "paired" } else { "none" });
            assert_eq!(replica["in_sync"], true);
            assert_eq!(replica["present"], true);
            assert_eq!(replica["running"], runs);
            let measured = runs && *node == active;
            assert_eq!(replica["figures"].is_object(), measured, "{replica}");
            if measured {
                assert!(replica["figures"]["checkpoints"].as_u64() > Some(0));
            }
        }
        let list = scene.json(node, "kemarictl list --json", DONE);
        let here = usize::from(*node == active || *node == passive);
        assert_eq!(list["vms"].as_array().map(Vec::len), Some(here));
    }
}

/// The active replica's own node tells its newest epoch, not the one of its last change of state.
fn status_is_of_now(scene: &Scene<'_>) {
    let (active, _) = scene.settled();
    let epoch = || {
        let status = scene.json(&active, "kemarictl status --json vm", DONE);
        let replicas = status["vms"][0]["replicas"].as_array().cloned();
        let mut replicas = replicas.expect("an array").into_iter();
        let own = replicas.find(|replica| replica["node"] == active.as_str());
        own.and_then(|replica| replica["epoch"].as_u64())
    };
    let before = epoch();
    prints_on(&scene.vm, 500).expect("the guest prints on");
    assert!(epoch() > before, "{before:?}");
}

fn handover_swaps_the_roles(scene: &Scene<'_>) {
    for _ in 0..2 {
        let (active, passive) = scene.settled();
        // From a node that has no replica.
        scene.types("node3", "kemarictl handover vm", DONE);
        assert_eq!(scene.settled(), (passive, active));
        scene.no_constraint_is_left();
    }
    scene.types("node3", "kemarictl handover other", REFUSED);
}

fn verify_finds_a_changed_block_and_resync_mends_it(scene: &Scene<'_>) {
    let (active, passive) = scene.settled();
    scene.types(&active, "kemarictl verify vm", DONE);
    let compared = scene.json(&active, "kemarictl verify --json vm", DONE);
    assert_eq!(compared["equal"], true);
    // A disk that rots, beyond what the guest uses.
    scene.types(
        &passive,
        "printf rotten | dd of=/srv/kemari/vm.disk bs=1M seek=9 conv=notrunc status=none",
        DONE,
    );
    let compared = scene.json(&active, "kemarictl verify --json vm", FOUND);
    assert_eq!(compared["equal"], false);
    scene.types(&active, "kemarictl verify vm", FOUND);

    scene.types(&active, "kemarictl resync vm", REFUSED);
    scene.types(&passive, "kemarictl resync vm", DONE);
    assert_eq!(scene.settled(), (active.clone(), passive));
    scene.types(&active, "kemarictl verify vm", DONE);
}

fn protection_ends_and_begins(scene: &Scene<'_>) {
    let (active, passive) = scene.settled();
    scene.types("node3", "kemarictl unprotect vm", DONE);
    scene.types("node3", "kemarictl status --check vm", FOUND);
    let replica = scene
        .vm
        .replica(&active)
        .expect("it answers")
        .expect("it runs");
    assert_eq!(replica.licence, "solo");
    assert_eq!(scene.vm.replica(&passive).expect("the node answers"), None);
    prints_on(&scene.vm, 500).expect("the guest prints on");
    scene.types("node3", "kemarictl handover vm", REFUSED);
    scene.types(&active, "kemarictl failover vm", REFUSED);
    scene.types("node3", "kemarictl protect vm", NOT_HERE);
    scene.types(&active, "kemarictl protect vm", DONE);
    scene.types(&active, "kemarictl status --check vm", DONE);
    scene.no_constraint_is_left();
    assert_eq!(scene.settled(), (active, passive));
}

fn failover_goes_on_from_the_last_commit(scene: &Scene<'_>) {
    let (active, passive) = scene.settled();
    scene.types("node3", "kemarictl failover vm", NOT_HERE);
    // The active one is not lost.
    scene.types(&passive, "kemarictl failover vm", REFUSED);
    scene.types(&passive, "kemarictl outdate vm", REFUSED);
    scene.types(&active, "kemarictl failover vm", DONE);
    assert_eq!(scene.settled(), (passive, active));
}

fn doctor_and_report_tell(scene: &Scene<'_>) {
    for node in scene.bed.nodes() {
        let text = scene
            .bed
            .exec(node, &["kemarictl", "doctor"])
            .expect("the node can be entered");
        println!("{node}# kemarictl doctor\n{}", text.stdout);
        let told = scene.json(node, "kemarictl doctor --json", text.status);
        let checks = told["checks"].as_array().expect("an array");
        let failed = checks.iter().filter(|check| check["level"] == "fail");
        let failed: Vec<&Value> = failed.collect();
        assert_eq!(text.status == FOUND, !failed.is_empty(), "{failed:?}");
        assert!(
            checks
                .iter()
                .filter_map(|check| check["found"].as_str())
                .all(|found| text.stdout.contains(found))
        );
    }
    let (active, _) = scene.settled();
    scene.types(&active, "kemarictl report /root/report.tar.gz", DONE);
    scene.types(&active, "kemarictl report /root/report.tar.gz", 1);
    let mode = scene.types(&active, "stat -c %a /root/report.tar.gz", DONE);
    assert_eq!(mode.stdout.trim(), "600");
    let entries = scene
        .types(&active, "tar tzf /root/report.tar.gz", DONE)
        .stdout;
    for entry in ["status", "journal", "crm_mon", "cib.xml", "vm.toml"] {
        assert!(entries.contains(entry), "{entry} in {entries}");
    }
    let all = "tar xzOf /root/report.tar.gz";
    scene.types(&active, &format!("{all} | grep -q 'VM vm'"), DONE);
    for secret in [KEY, "pages=32"] {
        let command = format!("{all} | grep -c -e {secret}");
        assert_eq!(scene.types(&active, &command, 1).stdout.trim(), "0");
    }
}

/// The replica that is left has an old copy: the other one ran on alone, and is gone.
fn a_stale_replica_runs_by_force_alone(scene: &mut Scene<'_>) {
    let (active, passive) = scene.settled();
    let before = scene
        .vm
        .replica(&active)
        .expect("it answers")
        .expect("it runs");
    scene.bed.kill(&passive).expect("power can be taken");
    scene
        .vm
        .wait_active(&active, before.generation)
        .expect("it goes solo");
    prints_on(&scene.vm, 2000).expect("the guest prints on");
    scene.bed.kill(&active).expect("power can be taken");
    ledger_vm::judge(&scene.vm.observer).expect("one machine, as seen outside");
    scene.vm.observe_anew().expect("the outside listens");

    scene.bed.power_on(&passive).expect("it boots again");
    scene
        .bed
        .start_cluster_on(&passive)
        .expect("it joins again");
    scene.vm.start_agent(&passive).expect("the agent starts");
    let begun = Instant::now();
    while scene
        .vm
        .replica(&passive)
        .expect("the node answers")
        .is_none()
    {
        assert!(begun.elapsed() < scene.vm.patience(), "no replica starts");
        std::thread::sleep(Duration::from_millis(200));
    }
    scene.vm.settle("node3").expect("Pacemaker comes to rest");
    println!("{}", scene.vm.crm_mon("node3").expect("it shows"));
    let replica = scene
        .vm
        .replica(&passive)
        .expect("it answers")
        .expect("it waits");
    assert_eq!(
        replica.role, "waiting",
        "Pacemaker promoted a stale replica"
    );

    scene.types(&passive, "kemarictl failover vm", REFUSED);
    scene.types(&passive, "kemarictl force-active vm </dev/null", REFUSED);
    scene.types(
        &passive,
        "kemarictl force-active vm --yes-i-lose other",
        REFUSED,
    );
    let promote = "busctl call org.kemari.Agent /org/kemari/Agent1 org.kemari.Agent1 Promote s vm";
    scene.types(&passive, promote, 1);
    assert!(scene.vm.observer.bytes().is_empty(), "nothing ran");
    let told = scene.types(&passive, "kemarictl force-active vm --yes-i-lose vm", DONE);
    assert!(
        told.stderr
            .contains(&format!("held by node {active} (solo)")),
        "{told:?}"
    );
    prints_on(&scene.vm, 500).expect("the guest boots and prints");
    scene
        .vm
        .wait_promoted(&passive)
        .expect("Pacemaker finds it active");

    // What was overruled comes back, is outdated and made anew.
    scene.bed.power_on(&active).expect("it boots again");
    scene.bed.start_cluster_on(&active).expect("it joins again");
    scene.vm.start_agent(&active).expect("the agent starts");
    assert_eq!(scene.settled(), (passive.clone(), active));
    scene.types(&passive, "kemarictl verify vm", DONE);
}

#[test]
fn kemarictl_does_what_it_says_and_the_guest_does_not_notice() {
    let _turn = supervisor::turn().expect("tests run as root");
    let begun = Instant::now();
    let bed = ledger_vm::clustered(Namespaces::builder()).expect("the cluster forms");
    let mut scene = Scene::begin(&bed);
    status_says_what_is(&scene);
    status_is_of_now(&scene);
    handover_swaps_the_roles(&scene);
    verify_finds_a_changed_block_and_resync_mends_it(&scene);
    protection_ends_and_begins(&scene);
    failover_goes_on_from_the_last_commit(&scene);
    doctor_and_report_tell(&scene);
    a_stale_replica_runs_by_force_alone(&mut scene);
    ledger_vm::judge(&scene.vm.observer).expect("one machine, as seen outside");
    println!("took {:?}", begun.elapsed());
}
