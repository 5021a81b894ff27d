// SPDX-License-Identifier: Apache-2.0
//! The whole way, in test bed A with a bare guest: a lost active replica is continued by the
//! passive one, as an outside observer sees it.
//!
//! Each scenario has a bed of its own with real Corosync, Pacemaker, crmsh and the Debian package.
//! Times are printed, never asserted.

use std::time::Duration;

use kemari_cluster_tests::bed::Bed;
use kemari_cluster_tests::namespaces::Namespaces;
use kemari_cluster_tests::observer::{Observer, monotonic_ns};
use kemari_cluster_tests::protected::{Guest, Options, ProtectedVm, Replica};
use kemari_cluster_tests::{guests, ledger, package, supervisor};

/// Failovers in one run, and how many of them lose a whole node.
const FAILOVERS: usize = 50;
const NODE_LOSSES: usize = 10;

fn ledger_vm() -> Options {
    Options {
        guest: Guest {
            kernel: guests::ledger().to_owned(),
            initrd: None,
            cmdline: "pages=32 interval=2000".to_owned(),
            memory_mib: 256,
        },
        monitor_s: 2,
        replication: String::new(),
        patience: Duration::from_secs(90),
    }
}

fn bed() -> Namespaces {
    let deb = package::find().expect("make package was run before");
    let bed = Namespaces::builder()
        .nodes(3)
        .debs(vec![deb])
        .up()
        .expect("the bed comes up");
    bed.start_cluster().expect("the cluster forms");
    bed
}

/// Nothing is missing, nothing goes back but what was replayed byte for byte, no number was ever
/// seen with two time stamps, and never did two replicas release the same stretch.
fn judge(observer: &Observer) {
    let bytes = observer.bytes();
    assert_eq!(observer.violations(), [], "as seen outside");
    let summary = ledger::check(&bytes).expect("the ledger is complete");
    let stamped = observer.with(|splice| {
        ledger::check_stamps(splice.raw().map(|(header, bytes)| (header.position, bytes)))
    });
    stamped.expect("no number has two time stamps");
    println!(
        "observer: {summary:?}, {} takeovers",
        observer.takeovers().len()
    );
}

fn see_more(vm: &ProtectedVm<'_>, bytes: usize) {
    vm.observer
        .wait_for_more(bytes, Duration::from_secs(60))
        .expect("the guest prints on");
}

fn generation(vm: &ProtectedVm<'_>, node: &str) -> u64 {
    let replica: Option<Replica> = vm.replica(node).expect("the node answers");
    replica.map_or(0, |replica| replica.generation)
}

/// Times of one failover in microseconds.
#[derive(Debug, Default)]
struct Figures {
    loss_to_notification: Vec<u128>,
    notification_to_run: Vec<u128>,
}

impl Figures {
    fn take(&mut self, vm: &ProtectedVm<'_>, node: &str, lost_us: u128, notice: &str) {
        let notified = vm
            .logged_us(node, "kemari-agent", notice, lost_us)
            .expect("the agent logged it");
        let running = vm
            .logged_us(
                node,
                "kemari-vm@vm",
                "took over: the guest executes",
                lost_us,
            )
            .expect("the engine logged it");
        self.loss_to_notification.push(notified - lost_us);
        self.notification_to_run
            .push(running.saturating_sub(notified));
    }

    fn print(&mut self, name: &str) {
        for (what, values) in [
            ("loss to notification", &mut self.loss_to_notification),
            (
                "notification to first instruction",
                &mut self.notification_to_run,
            ),
        ] {
            values.sort_unstable();
            let at = |percent: usize| values[(values.len() * percent / 100).min(values.len() - 1)];
            println!(
                "{name}: {what}: median {} us, p99 {} us, n {}",
                at(50),
                at(99),
                values.len()
            );
        }
    }
}

fn now_us() -> u128 {
    u128::from(monotonic_ns()) / 1000
}

#[test]
fn fifty_failovers_in_a_row_lose_and_double_nothing() {
    let _turn = supervisor::turn().expect("tests run as root");
    let bed = bed();
    let vm = ProtectedVm::install(&bed, ledger_vm()).expect("the VM is installed");
    vm.configure_with_crm()
        .expect("crm takes the configuration");
    let (mut engine_losses, mut node_losses) = (Figures::default(), Figures::default());
    for round in 1..=FAILOVERS {
        let (active, passive) = vm.wait_protected(bed.nodes()).expect("a pair forms");
        see_more(&vm, 200);
        let before = generation(&vm, &passive);
        let lost_us = now_us();
        if round % (FAILOVERS / NODE_LOSSES) == 0 {
            bed.kill(&active).expect("power can be taken");
            vm.wait_active(&passive, before)
                .expect("the passive one takes over");
            node_losses.take(&vm, &passive, lost_us, "Corosync reports node lost");
            bed.power_on(&active).expect("it boots again");
            bed.start_cluster_on(&active).expect("it joins again");
            vm.start_agent(&active).expect("the agent starts");
        } else {
            vm.run(&active, "systemctl kill --signal=KILL kemari-vm@vm")
                .expect("it is killed");
            vm.wait_active(&passive, before)
                .expect("the passive one takes over");
            engine_losses.take(&vm, &passive, lost_us, "Node reports its engine ended");
        }
        see_more(&vm, 200);
    }
    engine_losses.print("engine killed");
    node_losses.print("node lost");
    judge(&vm.observer);
    assert_eq!(vm.observer.takeovers().len(), FAILOVERS);
}
