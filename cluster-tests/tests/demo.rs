// SPDX-License-Identifier: Apache-2.0
//! The demo, as `make demo` runs it: a Linux guest survives the loss of its host, and the program
//! judges that itself by what the outside saw.

use std::process::Command;

use kemari_cluster_tests::supervisor;

#[test]
fn a_linux_guest_survives_the_loss_of_its_host() {
    let _turn = supervisor::turn().expect("tests run as root");
    let status = Command::new(env!("CARGO_BIN_EXE_demo"))
        .status()
        .expect("it was built");
    assert!(status.success(), "the demo ended with {status}");
}
