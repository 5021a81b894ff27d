// SPDX-License-Identifier: Apache-2.0
//! What Pacemaker does takes its time, or fails: fencing that takes long, a power switch that is broken, a `promote`
//! that is refused. For fencing the guest does not wait.

use std::time::{Duration, Instant};

use kemari_cluster_tests::bed::Bed;
use kemari_cluster_tests::fencing::Manner;
use kemari_cluster_tests::ledger_vm::{self, boot_prints, judge_boots, prints_on};
use kemari_cluster_tests::namespaces::Namespaces;
use kemari_cluster_tests::protected::{Options, ProtectedVm};
use kemari_cluster_tests::supervisor;

fn fenced_bed() -> Namespaces {
    ledger_vm::clustered(Namespaces::builder().nodes(3).stonith(true)).expect("the cluster forms")
}

fn protected(bed: &Namespaces) -> ProtectedVm<'_> {
    let options = Options {
        patience: Duration::from_secs(150),
        ..ledger_vm::options(Some(16))
    };
    let vm = ProtectedVm::install(bed, options).expect("the VM is installed");
    vm.configure_instances(bed.nodes().len())
        .expect("crm takes the configuration");
    vm
}

fn generation(vm: &ProtectedVm<'_>, node: &str) -> u64 {
    let replica = vm.replica(node).expect("the node answers");
    replica.map_or(0, |replica| replica.generation)
}

fn all_but(bed: &Namespaces, lost: &str) -> Vec<String> {
    let others = bed.nodes().iter().filter(|node| *node != lost);
    others.cloned().collect()
}

/// Whether the switch took this node's power.
fn was_fenced(bed: &Namespaces, node: &str) -> bool {
    bed.fencing_requests().iter().any(|request| {
        request.line.ends_with(node) && request.answer == "ok" && !request.line.starts_with("on ")
    })
}

/// Whether the switch was asked for this node's power, in vain.
fn fencing_failed(bed: &Namespaces, node: &str) -> bool {
    let requests = bed.fencing_requests();
    requests
        .iter()
        .any(|request| request.line.ends_with(node) && request.answer.starts_with("error"))
}

/// Takes the power from the active node. Returns it, the one that went on, and the others that are left, in a new pair.
fn lose_the_active_node(bed: &Namespaces, vm: &ProtectedVm<'_>) -> (String, String, Vec<String>) {
    let (active, passive) = vm.wait_protected(bed.nodes()).expect("a pair forms");
    vm.settle(&active).expect("Pacemaker comes to rest");
    prints_on(vm, 500).expect("the guest prints");
    let before = generation(vm, &passive);
    bed.kill(&active).expect("power can be taken");
    vm.wait_active(&passive, before)
        .expect("the passive one takes over");
    prints_on(vm, 500).expect("the guest prints on");
    let rest = all_but(bed, &active);
    vm.wait_protected(&rest).expect("a new pair forms");
    (active, passive, rest)
}

#[test]
fn the_guest_does_not_wait_for_fencing_that_takes_long() {
    let _turn = supervisor::turn().expect("tests run as root");
    let bed = fenced_bed();
    let vm = protected(&bed);
    bed.set_fencing(Manner::Held);
    let (lost, active, _) = lose_the_active_node(&bed, &vm);
    assert!(!was_fenced(&bed, &lost), "it was protected again before");
    let shown = vm.crm_mon(&active).expect("it shows");
    println!("--- while the lost node is being fenced\n{shown}");
    assert!(shown.contains("UNCLEAN"), "{shown}");
    bed.set_fencing(Manner::Prompt);
    let shown = vm
        .wait_promoted(&active)
        .expect("Pacemaker finds it so once the node is fenced");
    println!("--- fenced\n{shown}");
    assert!(was_fenced(&bed, &lost));
    ledger_vm::judge(&vm.observer).expect("one machine, as seen outside");
}

#[test]
fn with_a_broken_power_switch_the_guest_goes_on_and_survives_the_next_loss_too() {
    let _turn = supervisor::turn().expect("tests run as root");
    let bed = fenced_bed();
    let vm = protected(&bed);
    bed.set_fencing(Manner::Broken);
    let (lost, active, rest) = lose_the_active_node(&bed, &vm);
    let begun = Instant::now();
    while !fencing_failed(&bed, &lost) {
        assert!(begun.elapsed() < vm.patience(), "nobody tried to fence it");
        std::thread::sleep(Duration::from_millis(200));
    }
    let shown = vm.crm_mon(&active).expect("it shows");
    println!("--- the lost node cannot be fenced\n{shown}");
    assert!(shown.contains("UNCLEAN"), "{shown}");

    // Pacemaker can do nothing for anything that ran on it; the agents can.
    let (active, passive) = vm.wait_protected(&rest).expect("a pair");
    let before = generation(&vm, &passive);
    vm.run(&active, "systemctl kill --signal=KILL kemari-vm@vm")
        .expect("it is killed");
    vm.wait_active(&passive, before)
        .expect("the passive one takes over");
    prints_on(&vm, 500).expect("the guest prints on");

    // A person looks that the node is off, and says so.
    vm.run(&passive, &format!("stonith_admin --confirm {lost}"))
        .expect("Pacemaker takes the word");
    let shown = vm
        .wait_promoted(&passive)
        .expect("Pacemaker goes on where it stood");
    println!("--- a person said that it is off\n{shown}");
    vm.wait_protected(&rest).expect("a pair forms");
    ledger_vm::judge(&vm.observer).expect("one machine, as seen outside");
}

#[test]
fn a_promote_that_fails_says_why_and_succeeds_after_the_remedy() {
    let _turn = supervisor::turn().expect("tests run as root");
    let bed = ledger_vm::clustered(Namespaces::builder().nodes(3)).expect("the cluster forms");
    let vm = protected(&bed);
    let (active, passive) = vm.wait_protected(bed.nodes()).expect("a pair forms");
    boot_prints(&vm, 0, 500).expect("the guest prints");
    let before = generation(&vm, &active);
    vm.run(&active, "crm resource stop vm-pair")
        .expect("it is stopped");
    vm.settle(&active).expect("Pacemaker comes to rest");

    // Wanted where nobody can say whether it may run.
    vm.run(&active, "systemctl stop kemari-agent")
        .expect("the agent ends");
    vm.run(
        &active,
        &format!(
            "crm configure location here vm-pair rule role=Promoted 2000: '#uname' eq {active}"
        ),
    )
    .expect("crm takes the constraint");
    vm.run(&active, "crm configure rsc_defaults migration-threshold=1")
        .expect("crm takes the default");
    vm.run(&active, "crm resource start vm-pair")
        .expect("it is started");
    let failed = format!("crm_mon -1 -r | grep -F 'vm promote on {active}'");
    let begun = Instant::now();
    let said = loop {
        match vm.run(&active, &failed) {
            Ok(said) => break said,
            Err(error) => assert!(begun.elapsed() < vm.patience(), "{error:#}"),
        }
        std::thread::sleep(Duration::from_millis(500));
    };
    println!("{said}");
    assert!(said.contains("systemctl start kemari-agent"), "{said}");

    // Its disk is the newest, so nobody else may boot; with its agent again it does.
    vm.run(&active, "systemctl start kemari-agent")
        .expect("the agent starts");
    vm.run(&active, "crm resource cleanup vm-pair")
        .expect("Pacemaker forgets the failure");
    boot_prints(&vm, before + 1, 500).expect("the guest boots");
    let shown = vm.wait_promoted(&active).expect("Pacemaker promotes it");
    println!("--- with its agent again; passive before was {passive}\n{shown}");
    assert_eq!(judge_boots(&vm.observer).expect("whole boots"), 2);
}
