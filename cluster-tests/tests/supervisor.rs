// SPDX-License-Identifier: Apache-2.0
//! A supervisor's namespaces: separate from the host and from each other, and gone with their owner.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;

use kemari_cluster_tests::supervisor::Supervisor;
use kemari_cluster_tests::switch::{OUTSIDE, Switch};

fn start() -> Supervisor {
    Supervisor::start().expect("namespaces can be made by root")
}

#[test]
fn two_runs_have_the_same_addresses_and_do_not_meet() {
    let (one, two) = (start(), start());
    let address = SocketAddr::from((OUTSIDE, 7000));
    let listener = one.listen(address).expect("the port is free in one");
    two.listen(address)
        .expect("the port is free in two as well");
    let mut client = one
        .in_network(|| TcpStream::connect(address))
        .expect("one reaches its own listener");
    let (mut server, _) = listener.accept().expect("a client is there");
    client.write_all(b"x").expect("the connection stands");
    let mut byte = [0];
    server.read_exact(&mut byte).expect("the byte arrives");
    assert!(two.in_network(|| TcpStream::connect(address)).is_err());
}

#[test]
fn the_host_is_read_only_and_its_processes_invisible() {
    let run = start();
    run.run("sh", &["-c", "! touch /kemari-was-here"])
        .expect("the root is read-only");
    let processes = run
        .run("sh", &["-c", "ls -d /proc/[0-9]*"])
        .expect("ls runs");
    assert!(processes.lines().count() < 10, "too many: {processes}");
    let bounding = run
        .run("sh", &["-c", "grep CapBnd /proc/self/status"])
        .expect("grep runs");
    let bits = u64::from_str_radix(bounding.trim_start_matches("CapBnd:").trim(), 16)
        .expect("capabilities are hexadecimal");
    for (name, bit) in [("sys_module", 16), ("sys_rawio", 17), ("sys_time", 25)] {
        assert_eq!(bits >> bit & 1, 0, "{name} is still there");
    }
}

#[test]
fn stopping_ends_processes_and_removes_directory_and_cgroup() {
    let run = start();
    let directory = run.run_directory().to_owned();
    let mut sleeper = run
        .command("sleep")
        .arg("1000")
        .spawn()
        .expect("sleep runs");
    Switch::of(&run)
        .add_tap("node1", true)
        .expect("a tap can be made");
    Switch::of(&run).remove("node1").expect("it can be removed");
    Switch::of(&run)
        .remove("node1")
        .expect("a missing port is fine");
    run.stop();
    assert!(!sleeper.wait().expect("it was our child").success());
    assert!(!directory.exists());
    assert!(
        !Path::new("/sys/fs/cgroup/unified")
            .join(run.name())
            .exists()
    );
    assert!(!Path::new("/sys/fs/cgroup").join(run.name()).exists());
    run.run("true", &[])
        .expect_err("nothing runs in there any more");
}
