// SPDX-License-Identifier: Apache-2.0
//! Pacemaker's own decisions about the promotable clone, one after the other, while the guest runs
//! and the outside watches: whatever Pacemaker finds, forgets, looks at anew or wants elsewhere, the
//! guest is never started twice, never goes back and never loses an output.
//!
//! Each step says what `crm_mon` showed when it was over.

use std::cell::RefCell;
use std::time::Instant;

use kemari_cluster_tests::bed::Bed;
use kemari_cluster_tests::ledger_vm::{self, prints_on};
use kemari_cluster_tests::namespaces::Namespaces;
use kemari_cluster_tests::protected::ProtectedVm;
use kemari_cluster_tests::supervisor;

/// A cluster with a protected VM, and who is who in it.
struct Scene<'a> {
    bed: &'a Namespaces,
    vm: ProtectedVm<'a>,
    /// The pair after the last step.
    last: RefCell<Option<Pair>>,
}

/// Where the replicas are and how often the right to run has changed hands.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pair {
    active: String,
    passive: String,
    generation: u64,
}

impl<'a> Scene<'a> {
    fn begin(bed: &'a Namespaces) -> Self {
        let options = ledger_vm::options(Some(16));
        let vm = ProtectedVm::install(bed, options).expect("the VM is installed");
        vm.configure_with_crm()
            .expect("crm takes the configuration");
        Self {
            bed,
            vm,
            last: RefCell::default(),
        }
    }

    fn run(&self, node: &str, command: &str) -> String {
        println!("{node}# {command}");
        self.vm
            .run(node, command)
            .unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// A pair in sync that Pacemaker shows with its roles, nothing left to do, the guest printing.
    fn settled(&self) -> Pair {
        let all = self.bed.nodes();
        self.vm.wait_protected(all).expect("a pair forms");
        self.vm.settle(&all[0]).expect("Pacemaker comes to rest");
        let (active, passive) = self.vm.wait_protected(all).expect("a pair forms");
        prints_on(&self.vm, 500).expect("the guest prints on");
        let generation = self.generation(&active);
        let pair = Pair {
            active,
            passive,
            generation,
        };
        self.last.replace(Some(pair.clone()));
        pair
    }

    /// The pair as the last step left it.
    fn pair(&self) -> Pair {
        let last = self.last.borrow().clone();
        last.unwrap_or_else(|| self.settled())
    }

    fn generation(&self, node: &str) -> u64 {
        let replica = self.vm.replica(node).expect("the node answers");
        replica.map_or(0, |replica| replica.generation)
    }

    /// Ends the active engine as a crash would, and waits until the other replica goes on.
    fn active_engine_dies(&self, pair: &Pair) {
        self.run(&pair.active, "systemctl kill --signal=KILL kemari-vm@vm");
        self.vm
            .wait_active(&pair.passive, pair.generation)
            .expect("the passive one takes over");
        prints_on(&self.vm, 500).expect("the guest prints on");
    }

    /// What `crm_mon` shows, and that it shows the pair as it is.
    fn shown(&self, step: &str, pair: &Pair) {
        let shown = self
            .vm
            .wait_promoted(&pair.active)
            .expect("Pacemaker knows who is active");
        println!("--- {step}: {pair:?}\n{shown}");
    }

    /// A step after which the same replica is active under the same generation.
    fn undisturbed(&self, step: &str, act: impl FnOnce(&Pair)) {
        let before = self.pair();
        act(&before);
        let after = self.settled();
        self.shown(step, &after);
        assert_eq!(before, after, "{step} disturbs nothing");
    }

    /// A step that moves the guest to the other node. Returns the pair after it.
    fn moved(&self, step: &str, act: impl FnOnce(&Pair)) -> Pair {
        let before = self.pair();
        act(&before);
        self.vm
            .wait_active(&before.passive, before.generation)
            .expect("the other one goes on");
        let after = self.settled();
        self.shown(step, &after);
        assert_eq!(after.active, before.passive, "{step}");
        after
    }
}

fn looks_again(scene: &Scene<'_>) {
    scene.undisturbed("re-probe of everything", |pair| {
        scene.run(&pair.passive, "crm_resource --refresh");
    });
    scene.undisturbed("cleanup", |pair| {
        scene.run(&pair.active, "crm resource cleanup vm-pair");
    });
}

fn looks_away(scene: &Scene<'_>) {
    scene.undisturbed("maintenance mode, on and off", |pair| {
        scene.run(&pair.active, "crm configure property maintenance-mode=true");
        prints_on(&scene.vm, 500).expect("the guest prints on");
        println!("{}", scene.vm.crm_mon(&pair.active).expect("it shows"));
        scene.run(
            &pair.active,
            "crm configure property maintenance-mode=false",
        );
    });
    // The agents act first, and Pacemaker, which looked away, finds it so.
    scene.moved("failover during maintenance", |pair| {
        scene.run(&pair.active, "crm configure property maintenance-mode=true");
        scene.active_engine_dies(pair);
        scene.run(
            &pair.active,
            "crm configure property maintenance-mode=false",
        );
    });
    scene.moved("failover while unmanaged", |pair| {
        scene.run(&pair.active, "crm resource unmanage vm-pair");
        scene.active_engine_dies(pair);
        println!("{}", scene.vm.crm_mon(&pair.active).expect("it shows"));
        scene.run(&pair.active, "crm resource manage vm-pair");
    });
}

fn wants_elsewhere(scene: &Scene<'_>) {
    let before = scene.pair();
    scene.run("node1", &format!("crm node standby {}", before.passive));
    let third = scene.settled();
    scene.shown("standby of the passive node", &third);
    assert_eq!(third.active, before.active);
    assert_ne!(third.passive, before.passive);
    scene.run("node1", &format!("crm node online {}", before.passive));

    scene.moved("standby of the active node", |pair| {
        scene.run("node1", &format!("crm node standby {}", pair.active));
    });
    scene.run(
        "node1",
        "for n in node1 node2 node3; do crm node online $n; done",
    );

    scene.moved("crm resource move", |pair| {
        scene.run(
            "node1",
            &format!("crm resource move vm-pair {}", pair.passive),
        );
    });
    scene.undisturbed("crm resource clear", |_| {
        scene.run("node1", "crm resource clear vm-pair");
    });
}

fn wants_elsewhere_in_other_words(scene: &Scene<'_>) {
    scene.moved("pcs resource move", |pair| {
        let node = &pair.passive;
        scene.run(
            "node1",
            &format!("pcs resource move vm-pair --promoted {node}"),
        );
    });
    scene.moved("ban of the role from its node", |pair| {
        let node = &pair.active;
        scene.run(
            "node1",
            &format!("crm_resource --ban --promoted --resource vm-pair --node {node}"),
        );
    });
    scene.undisturbed("clear", |_| {
        scene.run("node1", "crm_resource --clear --resource vm-pair");
    });
    // An instance that may not be there at all.
    scene.moved("ban of the replica from its node", |pair| {
        let node = &pair.active;
        scene.run(
            "node1",
            &format!("crm_resource --ban --resource vm-pair --node {node}"),
        );
    });
    scene.run("node1", "crm_resource --clear --resource vm-pair");
    scene.settled();
}

/// `migration-threshold` counts crashes, and not what Pacemaker does about them.
fn a_crash_counts_once(scene: &Scene<'_>) {
    scene.run("node1", "crm resource cleanup vm-pair");
    // It looks at the replicas anew; what a probe finds failed is not counted.
    let before = scene.settled();
    let counted = |count: &str| {
        let said = scene.run(
            "node1",
            &format!(
                "crm_failcount --query --resource vm --node {}",
                before.active
            ),
        );
        assert!(said.contains(&format!("value={count}")), "{said}");
    };
    counted("0");
    scene.moved("failover", |pair| scene.active_engine_dies(pair));
    counted("1");
}

/// Kills the agent of one of the replicas' nodes; systemd starts it again, and the next failover goes
/// by the new one.
fn an_agent_dies(scene: &Scene<'_>, node_of: fn(&Pair) -> &str) {
    let pid = "systemctl show --property=MainPID --value kemari-agent";
    scene.undisturbed("an agent killed", |pair| {
        let node = node_of(pair);
        let before = scene.run(node, pid);
        scene.run(node, "systemctl kill --signal=KILL kemari-agent");
        scene.run(
            node,
            &format!(
                "for i in $(seq 200); do \
                 p=$({pid}); [ \"$p\" != 0 ] && [ \"$p\" != {} ] && \
                 kemarictl status >/dev/null 2>&1 && exit; sleep 0.1; done; exit 1",
                before.trim()
            ),
        );
    });
    scene.moved("failover after an agent was killed", |pair| {
        scene.active_engine_dies(pair);
    });
}

/// The designated coordinator is the active replica's node, and is lost.
fn the_coordinator_is_lost(scene: &Scene<'_>) {
    let mut pair = scene.pair();
    let coordinator = scene
        .run("node1", "crmadmin --quiet --dc_lookup")
        .trim()
        .to_owned();
    println!("The coordinator is {coordinator}");
    if pair.active != coordinator {
        if pair.passive != coordinator {
            // The third node gets the passive replica.
            scene.run("node1", &format!("crm node standby {}", pair.passive));
            scene.settled();
            scene.run("node1", &format!("crm node online {}", pair.passive));
        }
        pair = scene.moved("the coordinator's node becomes active", |pair| {
            assert_eq!(pair.passive, coordinator);
            scene.run(&pair.active, "kemarictl handover vm");
        });
    }
    assert_eq!(pair.active, coordinator);
    scene.bed.kill(&coordinator).expect("power can be taken");
    scene
        .vm
        .wait_active(&pair.passive, pair.generation)
        .expect("the passive one takes over");
    prints_on(&scene.vm, 500).expect("the guest prints on");
    let shown = scene
        .vm
        .wait_promoted(&pair.passive)
        .expect("the next coordinator finds it so");
    println!("--- the coordinator is lost\n{shown}");
    scene.bed.power_on(&coordinator).expect("it boots again");
    scene
        .bed
        .start_cluster_on(&coordinator)
        .expect("it joins again");
    scene
        .vm
        .start_agent(&coordinator)
        .expect("the agent starts");
    let after = scene.settled();
    scene.shown("the coordinator is back", &after);
}

/// Nobody may be promoted, then everybody again. The guest's state is kept.
fn wants_nobody_promoted(scene: &Scene<'_>) {
    let before = scene.pair();
    scene.run("node1", "crm resource demote vm-pair");
    scene.vm.settle("node1").expect("Pacemaker comes to rest");
    println!(
        "--- demote of everything\n{}",
        scene.vm.crm_mon("node1").expect("it shows")
    );
    for node in scene.bed.nodes() {
        let replica = scene.vm.replica(node).expect("the node answers");
        println!("{replica:?}");
        assert!(
            replica.is_none_or(|replica| replica.role != "active"),
            "{before:?}"
        );
    }
    scene.run("node1", "crm resource promote vm-pair");
    let after = scene.settled();
    scene.shown("promoted again", &after);
    assert!(after.generation > before.generation);
}

fn stops_everything(scene: &Scene<'_>) {
    scene.run("node1", "crm resource stop vm-pair");
    scene.vm.settle("node1").expect("Pacemaker comes to rest");
    let shown = scene.vm.crm_mon("node1").expect("it shows");
    println!("--- stop of everything\n{shown}");
    for node in scene.bed.nodes() {
        assert_eq!(scene.vm.replica(node).expect("the node answers"), None);
    }
}

fn in_a_bed(decide: impl FnOnce(&Scene<'_>)) {
    let _turn = supervisor::turn().expect("tests run as root");
    let begun = Instant::now();
    let bed = ledger_vm::clustered(Namespaces::builder()).expect("the cluster forms");
    let scene = Scene::begin(&bed);
    decide(&scene);
    stops_everything(&scene);
    ledger_vm::judge(&scene.vm.observer).expect("one machine, as seen outside");
    println!("took {:?}", begun.elapsed());
}

#[test]
fn whatever_pacemaker_decides_the_guest_goes_on_once() {
    in_a_bed(|scene| {
        looks_again(scene);
        looks_away(scene);
        wants_elsewhere(scene);
        a_crash_counts_once(scene);
        wants_nobody_promoted(scene);
    });
}

#[test]
fn without_the_coordinator_or_an_agent_the_guest_goes_on_once() {
    in_a_bed(|scene| {
        an_agent_dies(scene, |pair| &pair.passive);
        the_coordinator_is_lost(scene);
    });
}

#[test]
#[ignore = "campaign: make campaign-pacemaker"]
fn every_decision_five_times_over() {
    in_a_bed(|scene| {
        for round in 1..=5 {
            println!("=== round {round}");
            looks_again(scene);
            looks_away(scene);
            wants_elsewhere(scene);
            wants_elsewhere_in_other_words(scene);
            a_crash_counts_once(scene);
            an_agent_dies(scene, |pair| &pair.passive);
            an_agent_dies(scene, |pair| &pair.active);
            the_coordinator_is_lost(scene);
            wants_nobody_promoted(scene);
        }
    });
}
