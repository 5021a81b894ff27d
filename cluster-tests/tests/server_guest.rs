// SPDX-License-Identifier: Apache-2.0
//! An unmodified Debian server as guest in a node of test bed B: it boots, is reached from the other node and from outside, serves, and
//! keeps what it was given.
//!
//! The scenario does not know who the VMM is. Everything runs in an emulated machine inside an emulated machine: minutes each.

use kemari_cluster_tests::baseline::Effort;
use kemari_cluster_tests::server_guest::scenario;
use kemari_cluster_tests::server_vmm::ServerVmm;
use kemari_cluster_tests::supervisor;

/// Figures are printed on demand: they take minutes more.
fn effort() -> Option<Effort> {
    std::env::var_os("KEMARI_TEST_FIGURES").map(|_| Effort {
        seconds: 5,
        pings: 50,
    })
}

#[test]
#[ignore = "the baseline, minutes more: make campaign-guest"]
fn debian_serves_under_qemu() {
    let _turn = supervisor::turn().expect("tests run as root");
    scenario::whole(ServerVmm::Qemu, 1, 1, effort()).unwrap();
}

#[test]
fn debian_serves_under_kemari() {
    let _turn = supervisor::turn().expect("tests run as root");
    scenario::whole(ServerVmm::Kemari, 1, 1, effort()).unwrap();
}
