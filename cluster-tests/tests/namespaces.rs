// SPDX-License-Identifier: Apache-2.0
//! Test bed A with a plain cluster: what each loss looks like to the others, fencing, and nothing left behind.
//!
//! Each test takes a turn (a lock file, so that it holds across processes too): clusters are real and the machine small.

use std::fs::{self, File, Permissions};
use std::io::{self, BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kemari_cluster_tests::bed::Bed;
use kemari_cluster_tests::corosync::Transport;
use kemari_cluster_tests::namespaces::{Builder, Namespaces};
use kemari_cluster_tests::supervisor::{self, RUNS};
use nix::fcntl::Flock;

fn turn() -> Flock<File> {
    supervisor::turn().expect("tests run as root")
}

/// A bed whose clusters form quickly.
fn quick() -> Builder {
    Namespaces::builder().transport(Transport::Udpu)
}

fn run(bed: &Namespaces, node: &str, command: &[&str]) -> String {
    bed.exec(node, command)
        .and_then(|finished| finished.success())
        .unwrap_or_else(|error| panic!("{command:?} in {node}: {error:#}"))
}

/// Waits until a command succeeds in a node, up to a limit far beyond what it needs.
fn eventually(bed: &Namespaces, node: &str, command: &[&str]) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !bed.exec(node, command).is_ok_and(|f| f.status == 0) {
        assert!(
            Instant::now() < deadline,
            "{command:?} never succeeded in {node}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn offline(bed: &Namespaces, observer: &str, node: &str) {
    let name = format!("<node name=\"{node}\"");
    bed.wait_for_status(observer, &format!("{node} offline"), |status| {
        status
            .lines()
            .any(|line| line.contains(&name) && line.contains("online=\"false\""))
    })
    .expect("the loss is seen");
}

fn quorate(bed: &Namespaces, node: &str) -> bool {
    bed.exec(node, &["corosync-quorumtool", "-s"])
        .expect("the node has power")
        .stdout
        .lines()
        .any(|line| line.starts_with("Quorate:") && line.ends_with("Yes"))
}

#[test]
fn every_loss_is_seen_and_every_node_comes_back() {
    let _turn = turn();
    let bed = Namespaces::builder()
        .nodes(3)
        .up()
        .expect("the bed comes up");
    bed.start_cluster().expect("the cluster forms");
    let all = bed.nodes().to_vec();
    assert!(all.iter().all(|node| quorate(&bed, node)));

    bed.kill("node3").expect("power can be taken");
    bed.exec("node3", &["true"])
        .expect_err("there is nobody in there");
    offline(&bed, "node1", "node3");
    assert!(quorate(&bed, "node1"));
    bed.power_on("node3").expect("it boots again");
    bed.start_cluster_on("node3").expect("it joins again");

    bed.cut("node2").expect("a cable can be pulled");
    offline(&bed, "node1", "node2");
    offline(&bed, "node2", "node1");
    assert!(quorate(&bed, "node1") && !quorate(&bed, "node2"));
    bed.heal("node2").expect("a cable can be plugged in");
    bed.wait_online(&all).expect("they merge");

    bed.freeze("node3").expect("a node can be stalled");
    offline(&bed, "node1", "node3");
    bed.thaw("node3").expect("it goes on");
    bed.wait_online(&all).expect("they merge");

    bed.freeze("node3").expect("a node can be stalled");
    bed.kill("node2").expect("power can be taken");
    let place = tempfile::tempdir().expect("a directory can be made");
    bed.collect_journals(place.path())
        .expect("journals can be read");
    for node in &all {
        let journal = fs::read_to_string(place.path().join(format!("{node}.journal")))
            .expect("every node has a journal, the dead and the frozen one too");
        assert!(journal.contains("pacemaker-controld"), "{node}: {journal}");
        let log = fs::read_to_string(place.path().join(format!("{node}.corosync.log")))
            .expect("corosync wrote its log");
        assert!(log.contains("[QUORUM]"), "{node}: {log}");
    }
    bed.kill("node3")
        .expect("a frozen node loses its power like any other");
    bed.power_on("node3").expect("it boots again");
    run(&bed, "node3", &["true"]);
}

#[test]
fn two_beds_side_by_side_do_not_meet() {
    let _turn = turn();
    let (one, two) = std::thread::scope(|scope| {
        let form = || {
            let bed = quick().nodes(2).up().expect("the bed comes up");
            bed.start_cluster().expect("the cluster forms");
            bed
        };
        let other = scope.spawn(form);
        (form(), other.join().expect("the other one forms too"))
    });
    one.kill("node2").expect("power can be taken");
    offline(&one, "node1", "node2");
    let both = two.nodes().to_vec();
    two.wait_online(&both)
        .expect("the other bed noticed nothing");
    drop(one);
    assert_eq!(run(&two, "node2", &["hostname"]), "node2\n");
}

#[test]
fn pacemaker_fences_a_lost_node_and_a_cut_node_fences_nobody() {
    let _turn = turn();
    let bed = quick()
        .nodes(3)
        .stonith(true)
        .up()
        .expect("the bed comes up");
    bed.start_cluster().expect("the cluster forms");
    let list = run(&bed, "node1", &["fence_bed", "-o", "list"]);
    assert_eq!(list, "node1,\nnode2,\nnode3,\n");
    run(&bed, "node1", &["stonith_admin", "-I"]);
    run(&bed, "node1", &["pcs", "stonith", "describe", "fence_bed"]);

    // People configure it with either shell.
    let parameters = ["ip=10.77.0.254", "op", "monitor", "interval=60s"];
    let crm = [
        "crm",
        "configure",
        "primitive",
        "second",
        "stonith:fence_bed",
        "params",
    ];
    run(&bed, "node1", &[&crm[..], &parameters[..]].concat());
    let pcs = ["pcs", "stonith", "create", "third", "fence_bed"];
    run(&bed, "node1", &[&pcs[..], &parameters[..]].concat());

    bed.write("node2", "/run/before", b"", 0o600)
        .expect("files can be written");
    bed.cut("node2").expect("a cable can be pulled");
    let attempt = bed
        .exec("node2", &["fence_bed", "-o", "off", "-n", "node1"])
        .expect("the node has power");
    assert_ne!(attempt.status, 0, "{}", attempt.stdout);

    eventually(&bed, "node2", &["test", "!", "-e", "/run/before"]);
    bed.wait_booted("node2").expect("it was switched on again");
    let requests = bed.fencing_requests();
    assert!(
        requests
            .iter()
            .any(|r| r.line == "reboot node2" && r.answer == "ok"),
        "{requests:?}"
    );
    assert!(
        requests.iter().all(|r| !r.line.ends_with("off node1")),
        "{requests:?}"
    );
    bed.heal("node2").expect("a cable can be plugged in");
    bed.start_cluster_on("node2").expect("it joins again");
    bed.wait_online(bed.nodes()).expect("all are there");
}

#[test]
fn a_node_is_a_small_computer() {
    let _turn = turn();
    let bed = quick().nodes(1).up().expect("the bed comes up");
    let state = run(&bed, "node1", &["systemctl", "is-system-running"]);
    assert_eq!(state, "running\n");
    for device in ["/dev/kvm", "/dev/net/tun"] {
        if Path::new(device).exists() {
            run(&bed, "node1", &["test", "-c", device]);
        } else {
            println!("SKIPPED: {device} in the node, because this machine has none");
        }
    }
    bed.write("node1", "/etc/kemari/vm.toml", b"x = 1\n", 0o640)
        .expect("files can be written");
    let file = run(
        &bed,
        "node1",
        &["stat", "-c", "%a %s", "/etc/kemari/vm.toml"],
    );
    assert_eq!(file, "640 6\n");
    let failed = bed
        .exec("node1", &["sh", "-c", "echo no >&2; exit 7"])
        .expect("sh runs");
    assert_eq!((failed.status, failed.stderr.as_str()), (7, "no\n"));
    let killed = bed
        .exec("node1", &["sh", "-c", "kill -TERM $$"])
        .expect("sh runs");
    assert_eq!(killed.status, 128 + 15);

    // A restart from within is followed by a boot, with the disk as it was.
    bed.write("node1", "/run/before", b"", 0o600)
        .expect("files can be written");
    let _ = bed.exec("node1", &["reboot", "--force", "--force"]);
    eventually(&bed, "node1", &["test", "!", "-e", "/run/before"]);
    bed.wait_booted("node1").expect("it boots");
    run(&bed, "node1", &["test", "-e", "/etc/kemari/vm.toml"]);
}

#[test]
fn a_node_without_power_does_not_say_goodbye() {
    let _turn = turn();
    let bed = quick().nodes(1).up().expect("the bed comes up");
    let serve = "socat TCP-LISTEN:5000,reuseaddr EXEC:'sleep 1000' & \
                 until ss -ltn | grep -q :5000; do sleep 0.05; done";
    let child = bed.command(
        "node1",
        &["sh", "-c", &format!("({serve}) >/dev/null 2>&1")],
    );
    child
        .expect("the node has power")
        .status()
        .expect("sh runs");
    let address: SocketAddr = "10.77.0.1:5000".parse().expect("an address");
    let mut client = bed
        .supervisor()
        .in_network(|| TcpStream::connect(address))
        .expect("the node listens");
    client
        .set_read_timeout(Some(Duration::from_millis(500)))
        .expect("a time-out can be set");
    bed.kill("node1").expect("power can be taken");
    let said = client.read(&mut [0]).expect_err("neither data nor an end");
    assert_eq!(said.kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn nothing_outlives_its_owner() {
    let _turn = turn();
    let bed = quick().nodes(2).up().expect("the bed comes up");
    let name = bed.supervisor().name().to_owned();
    assert!(
        !traces(&name).is_empty(),
        "the search for traces finds a living bed"
    );
    drop(bed);
    assert_eq!(traces(&name), Vec::<String>::new());

    let mut owner = Command::new(env!("CARGO_BIN_EXE_bed"))
        .args(["up", "2", "--bare"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the bed program was built");
    let mut line = String::new();
    BufReader::new(owner.stdout.take().expect("it is piped"))
        .read_line(&mut line)
        .expect("it is a pipe");
    let name = line
        .split(' ')
        .next()
        .expect("split gives one at least")
        .to_owned();
    assert!(!traces(&name).is_empty(), "{line}");
    let status = Command::new(env!("CARGO_BIN_EXE_bed"))
        .args(["--run", &name, "exec", "node2", "hostname"])
        .output()
        .expect("the bed program was built");
    assert_eq!(
        String::from_utf8_lossy(&status.stdout),
        "node2\n",
        "{status:?}"
    );
    owner.kill().expect("it runs");
    owner.wait().expect("it was our child");
    let deadline = Instant::now() + Duration::from_secs(30);
    while !traces(&name).is_empty() {
        assert!(
            Instant::now() < deadline,
            "left behind: {:?}",
            traces(&name)
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Everything that belongs to a run: its directory, its cgroup, and processes that have a mount of it.
fn traces(name: &str) -> Vec<String> {
    let mut found: Vec<String> = [RUNS, "/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .iter()
        .map(|place| Path::new(place).join(name))
        .filter(|path| path.exists())
        .map(|path| path.display().to_string())
        .collect();
    for process in fs::read_dir("/proc").expect("/proc is there").flatten() {
        let mounts = process.path().join("mountinfo");
        if fs::read_to_string(&mounts).is_ok_and(|text| text.contains(name)) {
            found.push(mounts.display().to_string());
        }
    }
    found
}

/// A Debian package with one file, whose maintainer script tries to start a service as debhelper's do.
fn package(place: &Path, name: &str, depends: &str) -> PathBuf {
    let tree = place.join(name);
    for directory in ["DEBIAN", "usr/share/probe"] {
        fs::create_dir_all(tree.join(directory)).expect("a directory can be made");
    }
    let control = format!(
        "Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: The Kemari authors\n\
         Depends: {depends}\nDescription: probe\n"
    );
    fs::write(tree.join("DEBIAN/control"), control).expect("a file can be written");
    let script = "#!/bin/sh\nset -e\ndeb-systemd-invoke start corosync.service || true\n";
    fs::write(tree.join("DEBIAN/postinst"), script).expect("a file can be written");
    fs::set_permissions(tree.join("DEBIAN/postinst"), Permissions::from_mode(0o755))
        .expect("it is ours");
    fs::write(tree.join("usr/share/probe").join(name), "here\n").expect("a file can be written");
    let deb = place.join(format!("{name}.deb"));
    let built = Command::new("dpkg-deb")
        .args(["--build", "--root-owner-group"])
        .args([&tree, &deb])
        .stdout(Stdio::null())
        .status()
        .expect("dpkg-deb is on every Debian");
    assert!(built.success());
    deb
}

#[test]
fn packages_are_installed_and_bad_ones_refused() {
    let _turn = turn();
    let place = tempfile::tempdir().expect("a directory can be made");
    let good = package(place.path(), "probe", "corosync");
    let bad = package(place.path(), "probe-bad", "no-such-package");

    let error = quick()
        .debs(vec![bad])
        .up()
        .expect_err("a dependency is missing");
    assert!(
        format!("{error:#}").contains("no-such-package"),
        "{error:#}"
    );

    let bed = quick()
        .nodes(1)
        .debs(vec![good])
        .up()
        .expect("the bed comes up");
    assert_eq!(
        run(&bed, "node1", &["cat", "/usr/share/probe/probe"]),
        "here\n"
    );
    run(&bed, "node1", &["dpkg", "--status", "probe"]);
    let corosync = bed.exec("node1", &["systemctl", "is-active", "corosync"]);
    assert_eq!(corosync.expect("systemctl runs").stdout, "inactive\n");
}
