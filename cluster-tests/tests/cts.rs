// SPDX-License-Identifier: Apache-2.0
//! The operations of Pacemaker's cluster test suite in test bed A, with a Kemari VM as the resource and
//! fencing by the bed's power switch; after each of them the audits.
//!
//! `make campaign-cts` runs 100. `KEMARI_TESTS` is how many, `KEMARI_SEED` the seed of their order.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kemari_cluster_tests::bed::Bed;
use kemari_cluster_tests::bench::quantiles::Quantiles;
use kemari_cluster_tests::cts::{Lab, Memory, Plan, audit};
use kemari_cluster_tests::ledger_vm::{self, HEAD_BYTES, delivers};
use kemari_cluster_tests::namespaces::Namespaces;
use kemari_cluster_tests::protected::Options;
use kemari_cluster_tests::supervisor;

const NODES: u8 = 3;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable} is {text:?}, which is no number")),
    )
}

#[test]
#[ignore = "a campaign of an hour: make campaign-cts"]
fn a_hundred_tests_and_no_audit_fails() {
    let _turn = supervisor::turn().expect("tests run as root");
    let count = usize::try_from(number("KEMARI_TESTS").unwrap_or(100)).expect("not that many");
    let seed = number("KEMARI_SEED").unwrap_or(1);
    let bed = ledger_vm::clustered(Namespaces::builder().nodes(NODES).stonith(true))
        .expect("the cluster forms");
    let options = Options {
        patience: Duration::from_secs(180),
        ..ledger_vm::options(Some(16))
    };
    let vm = ledger_vm::install_overheard(&bed, options).expect("installed");
    vm.configure_instances(NODES.into()).expect("crm takes it");
    vm.wait_protected(bed.nodes()).expect("a pair forms");
    delivers(&vm, HEAD_BYTES).expect("the guest prints");

    let mut lab = Lab::new(&bed, vm);
    let mut took: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
    let mut lives = 1;
    for (number, test) in (1..).zip(&Plan::of(seed, count, NODES.into()).tests) {
        println!("{number}: {test}");
        let begun = Instant::now();
        let memory = lab
            .carry_out(test)
            .unwrap_or_else(|error| panic!("{number}: {test}, seed {seed}: {error:?}"));
        if memory == Memory::MayBeLost {
            delivers(&lab.vm, HEAD_BYTES).expect("the guest prints");
        }
        let before = lives;
        lives = audit(&lab, memory, lives)
            .unwrap_or_else(|error| panic!("{number}: {test}, seed {seed}: {error:?}"));
        took.entry(test.name()).or_default().push(begun.elapsed());
        let lost = if lives > before {
            ", the guest booted anew"
        } else {
            ""
        };
        println!(
            "  {:.1} s, audits passed{lost}",
            begun.elapsed().as_secs_f64()
        );
    }
    for (name, took) in took {
        let of = Quantiles::of(took.clone()).expect("it was run");
        println!(
            "{name}: {} times, median {:.1} s, longest {:.1} s",
            took.len(),
            of.p50.as_secs_f64(),
            took.iter().max().map_or(0.0, Duration::as_secs_f64)
        );
    }
    println!("{count} tests of {NODES} nodes from seed {seed}: no audit failed, {lives} lives");
}
