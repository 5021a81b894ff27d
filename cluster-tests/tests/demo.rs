// SPDX-License-Identifier: Apache-2.0
//! The demo, as `make demo` runs it: a guest survives the loss of its host, and the program judges that itself by what the
//! outside saw.

use std::process::Command;

use kemari_cluster_tests::{host, supervisor};

fn demo(arguments: &[&str]) {
    let _turn = supervisor::turn().expect("tests run as root");
    let status = Command::new(env!("CARGO_BIN_EXE_demo"))
        .args(arguments)
        .status()
        .expect("it was built");
    assert!(status.success(), "the demo ended with {status}");
}

#[test]
fn a_guest_survives_the_loss_of_its_host() {
    // Emulated nodes are too slow on some machines: Pacemaker finds its own daemons unresponsive while the guest boots.
    if host::runs_linux_guests() {
        demo(&[]);
    } else {
        println!(
            "SKIPPED: a Linux guest, in emulated nodes: make demo. A bare guest takes its place"
        );
        demo(&["--bare"]);
    }
}
