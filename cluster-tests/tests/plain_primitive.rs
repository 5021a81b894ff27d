// SPDX-License-Identifier: Apache-2.0
//! The plain primitive on real Pacemaker, as the book writes it, in one line: it is fault-tolerant as it stands. The agents
//! keep the passive replica, Pacemaker starts and moves the VM to where that is, and whatever happens the guest
//! goes on in one life, which the observer sees as one whole ledger, until somebody stops it.

use std::time::{Duration, Instant};

use kemari_cluster_tests::bed::{Bed, Finished};
use kemari_cluster_tests::fencing::Manner;
use kemari_cluster_tests::ledger_vm::{self, judge, prints_on};
use kemari_cluster_tests::namespaces::Namespaces;
use kemari_cluster_tests::protected::ProtectedVm;
use kemari_cluster_tests::supervisor;

const AGENT: &str = "/usr/lib/ocf/resource.d/kemari/vm";
const LINE: &str = "crm configure primitive vm ocf:kemari:vm params config=/etc/kemari/vm.toml";
const LINE_OF_PCS: &str = "pcs resource create vm ocf:kemari:vm config=/etc/kemari/vm.toml";
const PATIENCE: Duration = Duration::from_secs(90);

/// Who has the guest, who holds its state.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pair {
    active: String,
    passive: String,
    generation: u64,
}

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

    /// Waits until this holds; `what` it is, if it does not come.
    fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let begun = Instant::now();
        while !holds() {
            if begun.elapsed() > PATIENCE {
                let shown = self.vm.crm_mon(&self.bed.nodes()[0]);
                panic!("{what} does not come about: {shown:?}");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// A pair in sync whose active replica Pacemaker knows, nothing left to do, the guest printing.
    fn protected(&self, step: &str) -> Pair {
        self.protected_by(step, self.bed.nodes())
    }

    /// The same where only these nodes have power.
    fn protected_by(&self, step: &str, all: &[String]) -> Pair {
        self.vm.wait_protected(all).expect("a pair forms");
        self.vm.settle(&all[0]).expect("Pacemaker comes to rest");
        let (active, passive) = self.vm.wait_protected(all).expect("a pair forms");
        let started = format!("(ocf:kemari:vm):\t Started {active}");
        let shows = || {
            self.vm
                .crm_mon(&all[0])
                .is_ok_and(|shown| shown.contains(&started))
        };
        self.until("that Pacemaker knows where the guest is", shows);
        println!(
            "--- {step}\n{}",
            self.vm.crm_mon(&all[0]).expect("it shows")
        );
        prints_on(&self.vm, 500).expect("the guest prints on");
        let replica = self.vm.replica(&active).expect("the node answers");
        let generation = replica.map_or(0, |replica| replica.generation);
        Pair {
            active,
            passive,
            generation,
        }
    }

    /// Waits until the guest goes on where its state was.
    fn takes_over(&self, before: &Pair) {
        self.vm
            .wait_active(&before.passive, before.generation)
            .expect("the passive one goes on");
    }

    /// A step after which the guest goes on where its state was.
    fn moves(&self, step: &str, before: &Pair, act: impl FnOnce()) -> Pair {
        act();
        self.takes_over(before);
        let after = self.protected(step);
        assert_eq!(after.active, before.passive, "{step}");
        after
    }

    /// The guest goes on where its state was; of its old node nothing can be asked.
    fn goes_on_without(&self, step: &str, before: &Pair) {
        self.takes_over(before);
        let mut others = self.bed.nodes().to_vec();
        others.retain(|node| *node != before.active);
        assert_eq!(
            self.protected_by(step, &others).active,
            before.passive,
            "{step}"
        );
    }

    /// A step that nobody notices.
    fn undisturbed(&self, step: &str, before: &Pair, act: impl FnOnce()) {
        act();
        let after = self.protected(step);
        assert_eq!(
            (&after.active, after.generation),
            (&before.active, before.generation),
            "{step}"
        );
    }

    fn third(&self, pair: &Pair) -> String {
        let is_third = |node: &&String| **node != pair.active && **node != pair.passive;
        let third = self.bed.nodes().iter().find(is_third);
        third.expect("there are three").clone()
    }

    fn nothing_runs(&self, step: &str) {
        self.vm.settle("node1").expect("Pacemaker comes to rest");
        for node in self.bed.nodes() {
            let gone = || matches!(self.vm.replica(node), Ok(None));
            self.until(&format!("{step}: no engine on {node}"), gone);
        }
        println!(
            "--- {step}\n{}",
            self.vm.crm_mon("node1").expect("it shows")
        );
    }

    /// How often a guest has shut itself down because it was asked to.
    fn shut_down(&self) -> usize {
        let off = |node: &String| {
            let journal = self.run(node, "journalctl -o cat -u kemari-vm@vm.service");
            let off = journal.matches("the guest powered itself off").count();
            let pressed = journal.matches("pressing the guest's power button").count();
            assert_eq!(pressed, off, "{journal}");
            off
        };
        self.bed.nodes().iter().map(off).sum()
    }

    /// An action, as Pacemaker calls it.
    fn action(&self, node: &str, action: &str, level: u8) -> Finished {
        let command = format!(
            "OCF_ROOT=/usr/lib/ocf OCF_RESOURCE_INSTANCE=vm OCF_RESKEY_config=/etc/kemari/vm.toml \
             OCF_RESKEY_crm_feature_set=3.16.2 OCF_RESKEY_CRM_meta_timeout=60000 \
             OCF_CHECK_LEVEL={level} {AGENT} {action}"
        );
        let finished = self.bed.exec(node, &["sh", "-c", &command]);
        let finished = finished.expect("the node can be entered");
        println!("{node}: {action} at level {level}: {finished:?}");
        finished
    }
}

/// Level 0 and 10, by hand, by `crm_resource`, and as operations of Pacemaker.
fn is_looked_at(scene: &Scene<'_>, pair: &Pair) {
    let show = || scene.vm.run("node1", "crm configure show");
    scene.until("the location constraint", || {
        show().is_ok_and(|shown| shown.contains("rule kemari-vm: defined kemari-vm"))
    });
    scene.run("node1", "crm configure verify");
    println!("{}", show().expect("crm shows it"));
    assert_eq!(scene.action(&pair.active, "monitor", 0).status, 0);
    assert_eq!(scene.action(&pair.active, "monitor", 10).status, 0);
    for other in scene
        .bed
        .nodes()
        .iter()
        .filter(|node| **node != pair.active)
    {
        assert_eq!(
            scene.action(other, "monitor", 10).status,
            7,
            "OCF_NOT_RUNNING"
        );
    }
    scene.run(&pair.active, "crm_resource --force-check --resource vm");
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
    scene.undisturbed("re-probe of everything", pair, || {
        scene.run("node1", "crm_resource --refresh");
    });
}

/// What administrators and Pacemaker do to a resource.
fn is_moved(scene: &Scene<'_>, pair: &Pair) -> Pair {
    let to = pair.passive.clone();
    let pair = scene.moves("crm resource move", pair, || {
        scene.run("node1", &format!("crm resource move vm {to}"));
    });
    scene.run("node1", "crm resource clear vm");
    let third = scene.third(&pair);
    scene.undisturbed("a move to a node without the state", &pair, || {
        scene.run("node1", &format!("crm resource move vm {third}"));
    });
    scene.run("node1", "crm resource clear vm");
    let active = pair.active.clone();
    scene.moves("standby", &pair, || {
        scene.run("node1", &format!("crm node standby {active}"));
    });
    let gone = || matches!(scene.vm.replica(&active), Ok(None));
    scene.until("that nothing is kept on a node in standby", gone);
    scene.run("node1", &format!("crm node online {active}"));
    let pair = scene.protected("online again");
    let pair = scene.moves("kemarictl handover", &pair, || {
        scene.run("node1", "kemarictl handover vm");
    });
    scene.run("node1", "pcs resource meta vm allow-migrate=true");
    let to = pair.passive.clone();
    let pair = scene.moves("pcs resource move, with allow-migrate", &pair, || {
        scene.run("node1", &format!("pcs resource move vm {to}"));
    });
    let migrated = "crm_mon -1 --operations --output-as=xml | grep 'task=\"migrate_from\"' | grep -q 'rc=\"0\"'";
    scene.run("node1", migrated);
    scene.run("node1", "pcs resource meta vm allow-migrate=");
    pair
}

/// What fails.
fn is_lost(scene: &Scene<'_>, pair: &Pair) -> Pair {
    let active = pair.active.clone();
    let pair = scene.moves("its engine killed", pair, || {
        scene.run(&active, "systemctl kill --signal=KILL kemari-vm@vm");
    });
    let passive = pair.passive.clone();
    scene.run(&passive, "systemctl kill --signal=KILL kemari-vm@vm");
    scene
        .vm
        .wait_active(&pair.active, pair.generation)
        .expect("it goes solo");
    let pair = scene.protected("its passive engine killed");
    let active = pair.active.clone();
    scene.bed.kill(&active).expect("power can be taken");
    scene.goes_on_without("its node lost", &pair);
    scene.bed.power_on(&active).expect("it boots again");
    scene.bed.start_cluster_on(&active).expect("it joins again");
    scene.vm.start_agent(&active).expect("the agent starts");
    scene
        .bed
        .wait_online(scene.bed.nodes())
        .expect("the nodes merge");
    let waits = || matches!(scene.vm.replica(&active), Ok(Some(_)));
    scene.until("a replica on the node that is back", waits);
    let pair = scene.protected("its node is back");
    let active = pair.active.clone();
    scene.run(&active, "systemctl stop pacemaker");
    scene.goes_on_without("Pacemaker stopped on its node", &pair);
    scene.bed.start_cluster_on(&active).expect("it joins again");
    scene.protected("Pacemaker started again")
}

/// Pacemaker asks for the VM where it is not: the guest comes.
fn is_fetched(scene: &Scene<'_>, pair: &Pair) -> Pair {
    let to = pair.passive.clone();
    scene.moves("a start where the guest is not", pair, || {
        assert_eq!(scene.action(&to, "start", 0).status, 0);
    })
}

#[test]
fn one_line_makes_a_vm_that_survives_its_host() {
    let _turn = supervisor::turn().expect("tests run as root");
    let begun = Instant::now();
    let bed = ledger_vm::clustered(Namespaces::builder()).expect("the cluster forms");
    let (mut scene, pair) = with_the_line(&bed);
    // Nothing to fail over to, and no monitor.
    scene.run("node1", "kemarictl unprotect vm");
    let active = pair.active.clone();
    scene.run(&active, "systemctl kill --signal=KILL kemari-vm@vm");
    scene.vm.observe_anew().expect("the outside listens again");
    scene
        .vm
        .wait_active(&active, pair.generation + 1)
        .expect("Pacemaker starts it again");
    scene.run(&active, "kemarictl protect vm");
    scene.run("node1", "crm resource cleanup vm");

    let pair = scene.protected("booted again");
    is_looked_at(&scene, &pair);
    let pair = is_moved(&scene, &pair);
    let pair = is_lost(&scene, &pair);
    let pair = is_fetched(&scene, &pair);
    assert_eq!(scene.shut_down(), 0, "nobody asked it to");
    judge(&scene.vm.observer).expect("one life");

    scene.run("node1", "crm resource stop vm");
    scene.nothing_runs("stopped");
    assert_eq!(scene.shut_down(), 1);
    scene.vm.observe_anew().expect("the outside listens again");
    scene.run("node1", "crm resource start vm");
    let again = scene.protected("started again");
    assert!(
        again.generation > pair.generation,
        "{again:?} after {pair:?}"
    );

    scene.run("node1", "kemarictl unprotect vm");
    let alone = |node: &String| *node == again.active || matches!(scene.vm.replica(node), Ok(None));
    scene.until("one engine", || bed.nodes().iter().all(alone));
    scene.run(&again.active, "kemarictl protect vm");
    let pair = scene.protected("protected again");

    // The way from the one form to the other.
    scene.run(
        "node1",
        "crm configure clone vm-pair vm meta promotable=true notify=true interleave=true \
         clone-max=3 promoted-max=1",
    );
    scene
        .vm
        .wait_promoted(&pair.active)
        .expect("Pacemaker promotes what runs");
    let (active, _) = scene.vm.wait_protected(bed.nodes()).expect("a pair");
    let replica = scene.vm.replica(&active).expect("the node answers");
    let now = replica.expect("it runs").generation;
    scene.until("the location constraint to be gone", || {
        let shown = scene.vm.run("node1", "crm configure show");
        shown.is_ok_and(|shown| !shown.contains("kemari-location-vm"))
    });
    println!(
        "--- a clone\n{}",
        scene.vm.crm_mon("node1").expect("it shows")
    );
    assert_eq!((active, now), (pair.active, pair.generation));
    prints_on(&scene.vm, 2000).expect("the guest prints on");
    judge(&scene.vm.observer).expect("one life");
    println!("took {:?}", begun.elapsed());
}

/// Without STONITH Pacemaker finds the VM on two nodes when a silent one is back, and stops both.
#[test]
fn a_silent_host_that_is_back_does_not_cost_the_guest() {
    let _turn = supervisor::turn().expect("tests run as root");
    let bed = ledger_vm::clustered(Namespaces::builder()).expect("the cluster forms");
    let vm = ledger_vm::install_overheard(&bed, ledger_vm::options(Some(16))).expect("installed");
    let scene = Scene { bed: &bed, vm };
    scene.run("node1", LINE_OF_PCS);
    let mut pair = scene.protected("the line of the book for pcs");
    for _ in 0..3 {
        let silent = pair.active.clone();
        bed.freeze(&silent).expect("a node can be stalled");
        scene.takes_over(&pair);
        prints_on(&scene.vm, 500).expect("the guest prints on");
        bed.thaw(&silent).expect("it goes on");
        bed.wait_online(bed.nodes()).expect("the nodes merge");
        pair = scene.protected("the silent one is back");
    }
    judge(&scene.vm.observer).expect("one life");
}

fn fenced_bed(nodes: u8) -> Namespaces {
    let builder = Namespaces::builder().nodes(nodes).stonith(true);
    ledger_vm::clustered(builder).expect("the cluster forms")
}

/// The VM by the one line of the book, protected.
fn with_the_line(bed: &Namespaces) -> (Scene<'_>, Pair) {
    let vm = ProtectedVm::install(bed, ledger_vm::options(Some(16))).expect("the VM is installed");
    let scene = Scene { bed, vm };
    scene.run("node1", LINE);
    let pair = scene.protected("the line of the book");
    (scene, pair)
}

/// While the lost node waits to be fenced, a probe that found the guest would have Pacemaker take it for one that runs
/// twice, and stop both.
#[test]
fn a_probe_while_the_lost_node_is_being_fenced_does_not_cost_the_guest() {
    let _turn = supervisor::turn().expect("tests run as root");
    let bed = fenced_bed(3);
    let (scene, pair) = with_the_line(&bed);
    bed.set_fencing(Manner::Held);
    bed.kill(&pair.active).expect("power can be taken");
    scene.takes_over(&pair);
    let unclean = || {
        let shown = scene.vm.crm_mon(&pair.passive);
        shown.is_ok_and(|shown| shown.contains("UNCLEAN"))
    };
    scene.until("that the lost node is to be fenced", unclean);
    let node = &pair.passive;
    scene.run(
        node,
        &format!("crm_resource --refresh --resource vm --node {node}"),
    );
    prints_on(&scene.vm, 2000).expect("the guest prints on");
    bed.set_fencing(Manner::Prompt);
    let mut others = bed.nodes().to_vec();
    others.retain(|node| *node != pair.active);
    let after = scene.protected_by("fenced", &others);
    assert_eq!(after.active, pair.passive);
    judge(&scene.vm.observer).expect("one life");
}

/// Two agents are no majority: the fencing of the other node takes its place.
#[test]
fn one_of_two_nodes_goes_on_when_the_other_one_was_fenced() {
    let _turn = supervisor::turn().expect("tests run as root");
    let bed = fenced_bed(2);
    let (scene, pair) = with_the_line(&bed);
    let is_back = |node: &str| {
        if !bed.is_on(node).expect("the switch answers") {
            bed.power_on(node).expect("it boots again");
        }
        bed.wait_booted(node).expect("it boots");
        bed.start_cluster_on(node).expect("it joins again");
        scene.vm.start_agent(node).expect("the agent starts");
        bed.wait_online(bed.nodes()).expect("the nodes merge");
    };
    bed.kill(&pair.passive).expect("power can be taken");
    scene
        .vm
        .wait_active(&pair.active, pair.generation)
        .expect("it goes solo");
    prints_on(&scene.vm, 2000).expect("the guest prints on");
    is_back(&pair.passive);
    let pair = scene.protected("the passive node is back");
    bed.kill(&pair.active).expect("power can be taken");
    scene.takes_over(&pair);
    prints_on(&scene.vm, 2000).expect("the guest prints on");
    is_back(&pair.active);
    let after = scene.protected("the active node is back");
    assert_eq!(after.active, pair.passive);
    judge(&scene.vm.observer).expect("one life");
}

/// Pacemaker has nothing to stop where it has not started the VM yet.
#[test]
fn a_vm_that_is_stopped_before_pacemaker_has_found_it_shuts_down() {
    let _turn = supervisor::turn().expect("tests run as root");
    let bed = fenced_bed(3);
    let (scene, pair) = with_the_line(&bed);
    bed.set_fencing(Manner::Held);
    bed.kill(&pair.active).expect("power can be taken");
    scene.takes_over(&pair);
    prints_on(&scene.vm, 500).expect("the guest prints on");
    scene.run(
        &pair.passive,
        "crm_resource --meta --resource vm --set-parameter target-role --parameter-value Stopped",
    );
    for node in bed.nodes().iter().filter(|node| **node != pair.active) {
        let gone = || matches!(scene.vm.replica(node), Ok(None));
        scene.until("that no engine is left", gone);
    }
    let journal = scene.run(&pair.passive, "journalctl -o cat -u kemari-vm@vm.service");
    assert!(
        journal.contains("the guest powered itself off"),
        "{journal}"
    );
    bed.set_fencing(Manner::Prompt);
    judge(&scene.vm.observer).expect("one life");
}
