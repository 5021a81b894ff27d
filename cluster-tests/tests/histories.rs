// SPDX-License-Identifier: Apache-2.0
//! Random histories in test bed A: nodes are killed, frozen, cut off in both ways and in one, engines,
//! agents and Corosync are killed, at any moment; then all is mended. An observer whose socket no
//! cut cable reaches sees one machine, and the VM is protected again.
//!
//! A few run with the other tests. `make histories` runs 200, with 2, 3 and 4 nodes;
//! `KEMARI_HISTORIES` is how many of each, `KEMARI_SEED` the first seed.

use std::time::{Duration, Instant};

use kemari_cluster_tests::bed::Bed;
use kemari_cluster_tests::bench::quantiles::Quantiles;
use kemari_cluster_tests::histories::{Lives, Plan, carry_out, mend_all};
use kemari_cluster_tests::ledger_vm::{self, HEAD_BYTES, delivers};
use kemari_cluster_tests::namespaces::Namespaces;
use kemari_cluster_tests::protected::{Guest, GuestFiles, Options, ProtectedVm};
use kemari_cluster_tests::{guests, package, supervisor};

/// Until the VM is protected again after all was mended.
const PATIENCE: Duration = Duration::from_secs(180);
fn options() -> Options {
    Options {
        name: "vm".to_owned(),
        guest: Guest::Files(GuestFiles {
            kernel: guests::ledger().to_owned(),
            initrd: None,
            cmdline: "pages=32 disk=256 interval=2000".to_owned(),
            memory_mib: 64,
        }),
        disk_mib: Some(16),
        monitor_s: 2,
        replication: String::new(),
        patience: PATIENCE,
    }
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable} is {text:?}, which is no number")),
    )
}

/// So many histories in one cluster, each from the state that the one before was mended to.
fn histories(nodes: u8, count: u64, seed: u64) {
    let _turn = supervisor::turn().expect("tests run as root");
    let deb = package::find().expect("make package was run before");
    let bed = Namespaces::builder()
        .nodes(nodes)
        .stonith(nodes == 2)
        .debs(vec![deb])
        .up()
        .expect("the bed comes up");
    bed.start_cluster().expect("the cluster forms");
    let vm = ledger_vm::install_overheard(&bed, options()).expect("installed");
    vm.configure_instances(nodes.into()).expect("crm takes it");
    vm.wait_protected(bed.nodes()).expect("a pair forms");
    delivers(&vm, HEAD_BYTES).expect("the guest prints");

    let mut whole = Vec::new();
    let mut lives = 1;
    for seed in seed..seed + count {
        let plan = Plan::of(seed, nodes.into());
        println!("history {seed} of {nodes} nodes");
        let begun = Instant::now();
        let course = carry_out(&bed, &plan, &mut |step| {
            println!("  {:6} ms  {step}", begun.elapsed().as_millis());
        });
        for line in &course.left_out {
            println!("  not done: {line}");
        }
        // Where Pacemaker fences, a node may be gone when it shall be struck.
        assert!(nodes == 2 || course.left_out.is_empty(), "history {seed}");
        let mended = Instant::now();
        protect_again(&bed, &vm);
        whole.push(mended.elapsed());
        delivers(&vm, 1_000).expect("the guest prints on");
        let seen = vm.observer.with(Lives::of);
        let summaries = seen
            .judge()
            .unwrap_or_else(|error| panic!("history {seed} of {nodes} nodes: {error:?}"));
        if seen.count() > lives {
            println!(
                "  the guest's memory was lost {} times",
                seen.count() - lives
            );
            lives = seen.count();
        }
        let last = summaries.last().expect("there is a life");
        println!("  protected again; life {lives}, {} lines", last.lines);
    }
    let of = Quantiles::of(whole).expect("there were histories");
    println!(
        "{count} histories of {nodes} nodes from seed {seed}: {lives} lives, protected again after \
         mending: median {:.1} s, p99 {:.1} s",
        of.p50.as_secs_f64(),
        of.p99.as_secs_f64()
    );
}

/// Pacemaker may fence a node when all seemed mended; then it is mended once more.
fn protect_again(bed: &Namespaces, vm: &ProtectedVm<'_>) {
    for last in [false, true] {
        mend_all(bed).expect("the cluster is whole again");
        let protected = vm.wait_protected(bed.nodes());
        let fenced = |node: &String| !bed.is_on(node).unwrap_or(true);
        match protected {
            Ok(_) => return,
            Err(error) if last || !bed.nodes().iter().any(fenced) => {
                panic!("the VM is not protected again: {error:?}")
            }
            Err(_) => {}
        }
    }
}

#[test]
fn random_histories_of_three_nodes_show_one_machine() {
    histories(3, 3, 1);
}

#[test]
#[ignore = "a campaign of hours: make histories"]
fn campaign_of_two_nodes() {
    histories(
        2,
        number("KEMARI_HISTORIES").unwrap_or(60),
        number("KEMARI_SEED").unwrap_or(1),
    );
}

#[test]
#[ignore = "a campaign of hours: make histories"]
fn campaign_of_three_nodes() {
    histories(
        3,
        number("KEMARI_HISTORIES").unwrap_or(80),
        number("KEMARI_SEED").unwrap_or(1),
    );
}

#[test]
#[ignore = "a campaign of hours: make histories"]
fn campaign_of_four_nodes() {
    histories(
        4,
        number("KEMARI_HISTORIES").unwrap_or(60),
        number("KEMARI_SEED").unwrap_or(1),
    );
}
