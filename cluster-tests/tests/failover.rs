// SPDX-License-Identifier: Apache-2.0
//! The whole way, in test bed A with a bare guest: a lost active replica is continued by the
//! passive one, as an outside observer sees it.
//!
//! Each scenario has a bed of its own with real Corosync, Pacemaker, crmsh and the Debian package.
//! Times are printed, never asserted.

use std::time::{Duration, Instant};

use kemari_cluster_tests::bed::Bed;
use kemari_cluster_tests::bench::quantiles::Quantiles;
use kemari_cluster_tests::namespaces::Namespaces;
use kemari_cluster_tests::observer::{Observer, monotonic_ns};
use kemari_cluster_tests::protected::{Options, ProtectedVm, Replica};
use kemari_cluster_tests::{ledger_vm, supervisor};

/// Failovers in one run, and how many of them lose a whole node.
/// Failovers in a row, unless `KEMARI_FAILOVERS` says another number.
const FAILOVERS: usize = 50;
/// Every so many a node is lost; in the others an engine.
const NODE_LOST_EACH: usize = 5;

fn bed() -> Namespaces {
    ledger_vm::clustered(Namespaces::builder().nodes(3)).expect("the cluster forms")
}

fn judge(observer: &Observer) {
    ledger_vm::judge(observer).expect("one machine, as seen outside");
}

fn see_more(vm: &ProtectedVm<'_>, bytes: usize) {
    ledger_vm::prints_on(vm, bytes).expect("the guest prints on");
}

fn generation(vm: &ProtectedVm<'_>, node: &str) -> u64 {
    let replica: Option<Replica> = vm.replica(node).expect("the node answers");
    replica.map_or(0, |replica| replica.generation)
}

/// Times of failovers.
#[derive(Debug, Default)]
struct Figures {
    loss_to_notification: Vec<Duration>,
    /// The claim recorded by a majority lies in between.
    notification_to_decision: Vec<Duration>,
    notification_to_run: Vec<Duration>,
}

impl Figures {
    fn take(&mut self, vm: &ProtectedVm<'_>, node: &str, lost_us: u128, notice: &str) {
        let notified = vm
            .logged_us(node, "kemari-agent", notice, lost_us)
            .expect("the agent logged it");
        let decided = vm
            .logged_us(
                node,
                "kemari-agent",
                "Promotion asked of the engine",
                lost_us,
            )
            .expect("the agent logged it");
        let running = vm
            .logged_us(
                node,
                "kemari-vm@vm",
                "took over: the guest executes",
                lost_us,
            )
            .expect("the engine logged it");
        let after = |from: u128, to: u128| {
            Duration::from_micros(u64::try_from(to.saturating_sub(from)).expect("a short time"))
        };
        assert!(notified >= lost_us, "noticed before it was lost");
        self.loss_to_notification.push(after(lost_us, notified));
        self.notification_to_decision.push(after(notified, decided));
        self.notification_to_run.push(after(notified, running));
    }

    fn print(&self, name: &str) {
        for (what, values) in [
            ("loss to notification", &self.loss_to_notification),
            ("notification to decision", &self.notification_to_decision),
            (
                "notification to first instruction",
                &self.notification_to_run,
            ),
        ] {
            let of = Quantiles::of(values.clone()).expect("there were failovers");
            println!(
                "{name}: {what}: median {} us, p99 {} us, n {}",
                of.p50.as_micros(),
                of.p99.as_micros(),
                values.len()
            );
        }
    }
}

fn now_us() -> u128 {
    u128::from(monotonic_ns()) / 1000
}

#[test]
fn failovers_in_a_row_lose_and_double_nothing() {
    let _turn = supervisor::turn().expect("tests run as root");
    let bed = bed();
    let vm = ProtectedVm::install(&bed, ledger_vm::options(Some(16))).expect("the VM is installed");
    vm.configure_with_crm()
        .expect("crm takes the configuration");
    let (mut engine_losses, mut node_losses) = (Figures::default(), Figures::default());
    let failovers = std::env::var("KEMARI_FAILOVERS").map_or(FAILOVERS, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("KEMARI_FAILOVERS={text} is no number of failovers"))
    });
    for round in 1..=failovers {
        let (active, passive) = vm.wait_protected(bed.nodes()).expect("a pair forms");
        see_more(&vm, 200);
        let before = generation(&vm, &passive);
        let lost_us = now_us();
        if round % NODE_LOST_EACH == 0 {
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
    assert_eq!(vm.observer.takeovers().len(), failovers);
}

/// A VM whose console leaves by a socket that no cut cable reaches: an isolated replica that let
/// anything out would be seen at once.
fn watched(bed: &Namespaces) -> ProtectedVm<'_> {
    let vm = ledger_vm::install_overheard(bed, ledger_vm::options(Some(16))).expect("installed");
    // As the book says for three hosts. With two instances Pacemaker, when a silent node is back, may stop the one
    // that the guest was just handed to (docs/limits.md).
    vm.configure_instances(bed.nodes().len())
        .expect("crm takes the configuration");
    vm
}

/// Two hosts and a witness. Pacemaker looks as seldom as the book has it, so it acts on old scores for longer.
fn watched_on_two(bed: &Namespaces) -> ProtectedVm<'_> {
    let options = Options {
        monitor_s: 10,
        ..ledger_vm::options(Some(16))
    };
    let vm = ledger_vm::install_overheard(bed, options).expect("installed");
    vm.configure_with_crm()
        .expect("crm takes the configuration");
    vm.only_votes("node3").expect("crm takes the constraint");
    vm
}

/// A pair, in a cluster that has dealt with what was lost before. A node that merges again makes
/// Pacemaker stop and start replicas; a second loss in the middle of that would be two failures.
fn settled(bed: &Namespaces, vm: &ProtectedVm<'_>) -> (String, String) {
    let all = bed.nodes();
    bed.wait_online(all).expect("the nodes merge");
    vm.settle(&all[0]).expect("Pacemaker comes to rest");
    let pair = vm.wait_protected(all).expect("a pair forms");
    see_more(vm, 200);
    pair
}

/// Waits until the old active replica has stopped: it found itself outdated, or Pacemaker, which
/// stops everything on a node without quorum, was first.
fn stops_being_active(vm: &ProtectedVm<'_>, node: &str) {
    let begun = Instant::now();
    loop {
        match vm.replica(node).expect("the node answers") {
            Some(replica) if replica.role == "active" => {
                assert!(
                    begun.elapsed() < Duration::from_secs(90),
                    "{replica:?} is still active"
                );
                std::thread::sleep(Duration::from_millis(20));
            }
            other => {
                println!("{node}, active before: {other:?}");
                return;
            }
        }
    }
}

/// Three times the active node falls silent, is taken over, and returns.
fn silent_and_back(
    name: &str,
    watched: for<'a> fn(&'a Namespaces) -> ProtectedVm<'a>,
    silence: fn(&Namespaces, &str),
    back: fn(&Namespaces, &str),
) {
    let _turn = supervisor::turn().expect("tests run as root");
    let bed = bed();
    let vm = watched(&bed);
    let mut figures = Figures::default();
    for _ in 0..3 {
        let (active, passive) = settled(&bed, &vm);
        let before = generation(&vm, &passive);
        let lost_us = now_us();
        silence(&bed, &active);
        vm.wait_active(&passive, before)
            .expect("the passive one takes over");
        figures.take(&vm, &passive, lost_us, "Corosync reports node lost");
        see_more(&vm, 500);
        back(&bed, &active);
        stops_being_active(&vm, &active);
    }
    let told = "Pacemaker is told not to promote this replica";
    let heard = |node: &String| {
        let look = format!("journalctl -u kemari-agent | grep -qF '{told}'");
        vm.run(node, &look).is_ok()
    };
    assert!(bed.nodes().iter().any(heard), "no agent lowered a score");
    vm.wait_protected(bed.nodes())
        .expect("the old one comes back as passive");
    figures.print(name);
    scores_are_of_nodes(&vm, bed.nodes());
    judge(&vm.observer);
}

/// What the agents told Pacemaker was understood: `-INFINITY` can be read as options of the command.
fn scores_are_of_nodes(vm: &ProtectedVm<'_>, nodes: &[String]) {
    let first = nodes.first().expect("the bed has nodes");
    let scores = vm
        .run(first, "attrd_updater --query --all --name master-vm")
        .expect("Pacemaker has scores");
    let lines = || scores.lines().filter(|line| line.contains("name="));
    let of_node = |line: &str| {
        let host = |node: &String| line.contains(&format!("host=\"{node}\""));
        nodes.iter().any(host)
    };
    assert!(lines().count() > 0 && lines().all(of_node), "{scores}");
}

#[test]
fn an_active_replica_that_is_cut_off_releases_nothing_and_is_outdated_when_it_returns() {
    silent_and_back(
        "cable pulled",
        watched,
        |bed, node| bed.cut(node).expect("a cable can be pulled"),
        |bed, node| bed.heal(node).expect("a cable can be plugged in"),
    );
}

#[test]
fn a_frozen_active_replica_is_outdated_when_it_thaws() {
    silent_and_back(
        "node frozen",
        watched,
        |bed, node| bed.freeze(node).expect("a node can be stalled"),
        |bed, node| bed.thaw(node).expect("it goes on"),
    );
}

/// Pacemaker finds two promoted instances when the silent one is back, and goes by their scores. The guest has no other
/// host to go to.
#[test]
fn a_host_that_was_silent_takes_nothing_from_the_only_other_one() {
    silent_and_back(
        "one of two hosts frozen",
        watched_on_two,
        |bed, node| bed.freeze(node).expect("a node can be stalled"),
        |bed, node| bed.thaw(node).expect("it goes on"),
    );
}

/// Pacemaker, when the silent one is back, may have lost the scores of those that were there all the time.
#[test]
fn a_passive_host_that_was_silent_does_not_stop_the_active_one_when_it_returns() {
    let _turn = supervisor::turn().expect("tests run as root");
    let bed = bed();
    let vm = watched_on_two(&bed);
    let (active, passive) = settled(&bed, &vm);
    for _ in 0..3 {
        let before = generation(&vm, &active);
        bed.freeze(&passive).expect("a node can be stalled");
        vm.wait_active(&active, before)
            .expect("the active one goes solo");
        see_more(&vm, 500);
        bed.thaw(&passive).expect("it goes on");
        assert_eq!(settled(&bed, &vm), (active.clone(), passive.clone()));
    }
    judge(&vm.observer);
}

#[test]
fn a_lost_passive_replica_holds_outputs_until_a_majority_lets_the_active_go_solo() {
    let _turn = supervisor::turn().expect("tests run as root");
    let bed = bed();
    let vm = watched(&bed);
    let (active, passive) = vm.wait_protected(bed.nodes()).expect("a pair forms");
    see_more(&vm, 200);
    let before = generation(&vm, &active);
    bed.kill(&passive).expect("power can be taken");
    let replica = vm
        .wait_active(&active, before)
        .expect("the active one goes solo or pairs anew");
    println!("after the loss of the passive replica: {replica:?}");
    see_more(&vm, 500);
    // The third node takes the lost one's place.
    let rest: Vec<String> = bed
        .nodes()
        .iter()
        .filter(|node| **node != passive)
        .cloned()
        .collect();
    vm.wait_protected(&rest).expect("a new pair forms");
    judge(&vm.observer);
}

#[test]
fn without_quorum_nothing_is_promoted_and_nothing_released() {
    let _turn = supervisor::turn().expect("tests run as root");
    let bed = bed();
    let vm = watched(&bed);
    let (active, passive) = vm.wait_protected(bed.nodes()).expect("a pair forms");
    see_more(&vm, 200);
    let before = generation(&vm, &passive);
    // Otherwise Pacemaker stops both replicas, and the VM with them.
    let freeze = "crm configure property no-quorum-policy=freeze";
    vm.run(&active, freeze).expect("crm takes the property");
    // Every node alone: nobody has a majority.
    for node in bed.nodes() {
        bed.cut(node).expect("a cable can be pulled");
    }
    std::thread::sleep(Duration::from_secs(10));
    let seen = vm.observer.bytes().len();
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(
        vm.observer.bytes().len(),
        seen,
        "nothing leaves without quorum"
    );
    assert_eq!(
        generation(&vm, &passive).max(generation(&vm, &active)),
        before
    );
    for node in bed.nodes() {
        bed.heal(node).expect("a cable can be plugged in");
    }
    vm.wait_protected(bed.nodes())
        .expect("the pair goes on, or forms anew");
    see_more(&vm, 500);
    judge(&vm.observer);
}
