// SPDX-License-Identifier: Apache-2.0
//! Bed B by itself: three emulated machines become a cluster, and each way to lose a node is noticed and survived.
//!
//! One test, because machines take long to boot: about three minutes on two cores without hardware virtualisation.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use kemari_cluster_tests::bed::Bed;
use kemari_cluster_tests::machines::Machines;

/// `KVM_GET_API_VERSION` (KVM API section 4.1) and a VM with one vCPU, by the shortest way.
const KVM: &str = "
import fcntl, os
kvm = os.open('/dev/kvm', os.O_RDWR)
vm = fcntl.ioctl(kvm, 0xAE01, 0)
vcpu = fcntl.ioctl(vm, 0xAE41, 0)
print(fcntl.ioctl(kvm, 0xAE00, 0))
";

fn said(bed: &Machines, node: &str, command: &str) -> String {
    bed.exec(node, &["sh", "-c", command])
        .and_then(kemari_cluster_tests::bed::Finished::success)
        .unwrap_or_else(|error| panic!("{node}: {command}: {error:#}"))
        .trim()
        .to_owned()
}

fn step(begin: Instant, what: &str) {
    eprintln!("[{:4} s] {what}", begin.elapsed().as_secs());
}

/// Waits until `crm_mon` on `observer` shows that `node` is gone.
fn wait_lost(bed: &Machines, observer: &str, node: &str) -> Result<()> {
    let name = format!("<node name=\"{node}\"");
    bed.wait_for_status(observer, &format!("{node} offline"), |status| {
        status
            .lines()
            .any(|line| line.contains(&name) && line.contains("online=\"false\""))
    })
}

/// Waits until Pacemaker had a node's power switched; the switch then gives the power back.
fn wait_fenced(bed: &Machines, node: &str) -> Result<()> {
    let request = format!("reboot {node}");
    let begin = Instant::now();
    while !bed
        .fencing_requests()
        .iter()
        .any(|made| made.line == request && made.answer == "ok")
    {
        ensure!(
            begin.elapsed() < Duration::from_secs(180),
            "{node} was not fenced"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

#[test]
#[ignore = "four minutes; demo.rs and server_guest.rs need all of the bed but this: make campaign-pacemaker"]
fn machines_are_a_cluster_and_survive_losses() {
    let begin = Instant::now();
    let bed = Machines::builder()
        .nodes(3)
        .token_ms(3000)
        .stonith(true)
        .up()
        .unwrap();
    let all = bed.nodes().to_vec();
    step(begin, "booted");
    // Before there is a cluster, which would fence a node that is cut off for longer than the token.
    commands(&bed).unwrap();
    step(begin, "commands work");
    bed.start_cluster().unwrap();
    step(begin, "all nodes online");

    for node in &all {
        assert_eq!(said(&bed, node, "hostname"), *node);
        assert_eq!(
            said(
                &bed,
                node,
                "cat /sys/module/kvm*/parameters/npt /sys/module/kvm*/parameters/ept 2>/dev/null || true"
            ),
            "Y"
        );
        assert_eq!(
            bed.exec(node, &["python3", "-c", KVM])
                .unwrap()
                .success()
                .unwrap()
                .trim(),
            "12"
        );
    }
    step(begin, "KVM works in every node");

    bed.write("node3", "/var/tmp/kept", b"kept\n", 0o640)
        .unwrap();
    said(&bed, "node3", "sync");
    bed.kill("node3").unwrap();
    assert!(!bed.is_on("node3").unwrap());
    assert!(bed.exec("node3", &["true"]).is_err());
    wait_fenced(&bed, "node3").unwrap();
    step(begin, "node3 killed, its loss noticed, fenced");
    bed.power_on("node3").unwrap();
    assert_eq!(
        said(&bed, "node3", "cat /var/tmp/kept; stat -c %a /var/tmp/kept"),
        "kept\n640"
    );
    bed.start_cluster_on("node3").unwrap();
    bed.wait_online(&all).unwrap();
    step(begin, "node3 online again, its disk as it was");

    // From here on a lost node stays as it is.
    said(
        &bed,
        "node1",
        "crm_attribute --name stonith-enabled --update false",
    );

    bed.cut("node2").unwrap();
    wait_lost(&bed, "node1", "node2").unwrap();
    wait_lost(&bed, "node2", "node1").unwrap();
    step(begin, "node2 cut off, noticed on both sides");
    bed.heal("node2").unwrap();
    bed.wait_online(&all).unwrap();
    step(begin, "node2 healed");

    bed.freeze("node2").unwrap();
    wait_lost(&bed, "node1", "node2").unwrap();
    bed.thaw("node2").unwrap();
    bed.wait_online(&all).unwrap();
    step(begin, "node2 frozen, thawed, online again");

    bed.kill("node3").unwrap();
    let journals = tempfile::tempdir().unwrap();
    bed.collect_journals(journals.path()).unwrap();
    for node in &all {
        for kind in ["journal", "corosync.log", "pacemaker.log"] {
            let file = journals.path().join(format!("{node}.{kind}"));
            assert!(
                file.metadata().unwrap().len() > 0,
                "{} is empty",
                file.display()
            );
        }
    }
    let run = bed.supervisor().run_directory().to_owned();
    drop(bed);
    assert!(!run.exists());
    step(begin, "gone without a trace");
}

/// What the command channel promises, also while the network is cut.
fn commands(bed: &Machines) -> Result<()> {
    bed.cut("node2")?;
    let result = bed.exec("node2", &["sh", "-c", "echo out; echo err >&2; exit 3"])?;
    assert_eq!(
        (
            result.status,
            result.stdout.as_str(),
            result.stderr.as_str()
        ),
        (3, "out\n", "err\n")
    );
    bed.heal("node2")?;
    let killed = bed.exec("node1", &["sh", "-c", "kill -9 $$"])?;
    assert_eq!(killed.status, 137);
    assert_eq!(bed.exec("node1", &["no-such-program"])?.status, 127);
    let late = bed.exec_within("node1", &["sleep", "1000"], Duration::from_millis(200))?;
    assert_eq!(late.status, 124);
    // A command that does not end holds up nobody.
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| {
            bed.exec(
                "node1",
                &[
                    "sh",
                    "-c",
                    "until [ -e /run/go ]; do sleep 0.1; done; echo went",
                ],
            )
        });
        for _ in 0..3 {
            assert_eq!(said(bed, "node1", "echo quick"), "quick");
        }
        bed.write("node1", "/run/go", b"", 0o600)?;
        let slow = slow.join().expect("it does not panic")?;
        ensure!(slow.stdout == "went\n", "{slow:?}");
        Ok(())
    })?;
    let large: Vec<u8> = (0..=255).cycle().take(3_000_000).collect();
    bed.write("node1", "/run/large", &large, 0o600)?;
    assert_eq!(said(bed, "node1", "stat -c %s /run/large"), "3000000");
    let output = bed.exec("node1", &["base64", "-w0", "/run/large"])?;
    assert_eq!(output.stdout.len(), 4_000_000);
    Ok(())
}
