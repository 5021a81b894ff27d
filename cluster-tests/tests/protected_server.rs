// SPDX-License-Identifier: Apache-2.0
//! A Debian server with a replicated disk, protected by a real cluster, loses its host; real clients of its data bases lose nothing.

use kemari_cluster_tests::{protected_server, supervisor};

#[test]
fn clients_of_a_server_cannot_tell_that_its_host_was_lost() {
    let _turn = supervisor::turn().unwrap();
    protected_server::survives(1).unwrap();
}
