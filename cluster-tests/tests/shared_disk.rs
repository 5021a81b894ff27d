// SPDX-License-Identifier: Apache-2.0
//! A VM that writes to one disk that all nodes see, under Pacemaker with fencing: whatever becomes of
//! the active replica, the other one goes on only after the node was fenced, and a planned move
//! fences nobody.
//!
//! Nodes of test bed A share one kernel, so each sees the disk through a loop device of its own.

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use kemari_cluster_tests::bed::Bed;
use kemari_cluster_tests::ledger_vm::{self, prints_on};
use kemari_cluster_tests::namespaces::Namespaces;
use kemari_cluster_tests::observer::monotonic_ns;
use kemari_cluster_tests::protected::{Guest, Options, ProtectedVm};
use kemari_cluster_tests::{guests, supervisor};
use tempfile::TempDir;

/// Where each node has the disk.
const DISK: &str = "/dev/shared-disk";

const GUEST: &str = r#"
[vm]
name = "vm"
memory_mib = 128

[boot]
kernel = "/srv/kemari/kernel"
cmdline = "pages=32 disk=256 interval=2000"

[[disk]]
id = "data"
path = "/dev/shared-disk"
storage = "shared"
direct = true

"#;

/// One file, and a block device over it for each node.
struct SharedDisk {
    devices: Vec<String>,
    _directory: TempDir,
}

impl SharedDisk {
    /// Of 16 MiB; none, with a word, where this machine lets us make none.
    fn make_or_skip(nodes: usize) -> Option<Self> {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let image = directory.path().join("image");
        let file = File::create(&image).expect("a file can be made");
        file.set_len(16 << 20).expect("it can be long");
        let mut disk = Self {
            devices: Vec::new(),
            _directory: directory,
        };
        for _ in 0..nodes {
            let Some(device) = attach(&image) else {
                println!("SKIPPED: no loop device can be made here (losetup)");
                return None;
            };
            disk.devices.push(device);
        }
        Some(disk)
    }

    /// Gives a node its device, perhaps after a boot.
    fn plug_in(&self, bed: &Namespaces, node: &str) {
        let number = bed.nodes().iter().position(|name| name == node);
        let device = number.and_then(|number| self.devices.get(number));
        let minor = device.and_then(|device| device.strip_prefix("/dev/loop"));
        let minor = minor.expect("each node has a loop device");
        run(bed, node, &format!("mknod -m 660 {DISK} b 7 {minor}"));
    }
}

fn attach(image: &Path) -> Option<String> {
    let output = Command::new("losetup")
        .args(["--find", "--show"])
        .arg(image)
        .output()
        .ok()?;
    let device = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    output.status.success().then_some(device)
}

impl Drop for SharedDisk {
    fn drop(&mut self) {
        for device in &self.devices {
            let _ = Command::new("losetup").args(["--detach", device]).status();
        }
    }
}

fn run(bed: &Namespaces, node: &str, command: &str) -> String {
    println!("{node}# {command}");
    bed.exec(node, &["sh", "-c", command])
        .and_then(|finished| finished.success())
        .unwrap_or_else(|error| panic!("{node}# {command}: {error:#}"))
}

/// A cluster that fences, with a VM on the shared disk.
struct Scene<'a> {
    bed: &'a Namespaces,
    disk: &'a SharedDisk,
    vm: ProtectedVm<'a>,
}

impl<'a> Scene<'a> {
    fn begin(bed: &'a Namespaces, disk: &'a SharedDisk) -> Self {
        let kernel = std::fs::read(guests::ledger()).expect("it was built");
        for node in bed.nodes() {
            disk.plug_in(bed, node);
            bed.write(node, "/srv/kemari/kernel", &kernel, 0o644)
                .expect("a file");
        }
        let options = Options {
            guest: Guest::Described(GUEST.to_owned()),
            ..ledger_vm::options(None)
        };
        let vm = ProtectedVm::install(bed, options).expect("the VM is installed");
        vm.configure_fenced().expect("crm takes it");
        Self { bed, disk, vm }
    }

    /// (active, passive, generation), with all nodes there, Pacemaker at rest and the guest printing.
    fn settled(&self) -> (String, String, u64) {
        let all = self.bed.nodes();
        self.bed.wait_online(all).expect("all nodes are there");
        self.vm.wait_protected(all).expect("a pair forms");
        self.vm.settle(&all[0]).expect("Pacemaker comes to rest");
        let (active, passive) = self.vm.wait_protected(all).expect("a pair forms");
        prints_on(&self.vm, 500).expect("the guest prints on");
        let replica = self.vm.replica(&active).expect("the node answers");
        let generation = replica.expect("it runs").generation;
        (active, passive, generation)
    }

    /// How often this node was fenced.
    fn fenced(&self, node: &str) -> usize {
        let line = format!("reboot {node}");
        let requests = self.bed.fencing_requests();
        let done = requests
            .iter()
            .filter(|request| request.line == line && request.answer == "ok")
            .count();
        println!("{node} was fenced {done} times");
        done
    }

    /// The active replica is lost in this way, its node is fenced, the guest goes on, and it was in
    /// this order. The node comes back.
    fn lost(&self, how: &str, lose: impl FnOnce(&str), back: impl FnOnce(&str)) {
        let (active, passive, generation) = self.settled();
        println!("--- {how}: {active} is active");
        let before = self.fenced(&active);
        lose(&active);
        self.vm
            .wait_active(&passive, generation)
            .expect("the passive one takes over");
        prints_on(&self.vm, 500).expect("the guest prints on");
        assert_eq!(self.fenced(&active), before + 1, "{how}: fenced once");
        let requests = self.bed.fencing_requests();
        let line = format!("reboot {active}");
        let last = requests.iter().rfind(|request| request.line == line);
        let since = last.expect("it was fenced").answered.elapsed();
        let fenced_ns = u128::from(monotonic_ns()).saturating_sub(since.as_nanos());
        let takeovers = self.vm.observer.takeovers();
        let resumed_ns = takeovers.last().and_then(|takeover| takeover.resumed_ns);
        let resumed_ns = resumed_ns.expect("it prints again");
        assert!(
            u128::from(resumed_ns) >= fenced_ns,
            "{how}: took over before its node was fenced"
        );
        println!("{}", self.vm.crm_mon(&passive).expect("it shows"));

        let begun = Instant::now();
        while !self.bed.is_on(&active).expect("the node exists") {
            assert!(begun.elapsed() < self.vm.patience(), "it gets power again");
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        self.bed.wait_booted(&active).expect("it boots again");
        back(&active);
        self.disk.plug_in(self.bed, &active);
        self.bed.start_cluster_on(&active).expect("it joins again");
        self.vm.start_agent(&active).expect("the agent starts");
    }
}

#[test]
fn with_a_shared_disk_the_other_replica_goes_on_after_fencing_and_not_before() {
    let _turn = supervisor::turn().expect("tests run as root");
    let begun = Instant::now();
    let Some(disk) = SharedDisk::make_or_skip(3) else {
        return;
    };
    let bed = ledger_vm::clustered(Namespaces::builder().stonith(true)).expect("it forms");
    let scene = Scene::begin(&bed, &disk);
    scene.lost(
        "power lost",
        |node| bed.kill(node).expect("power can be taken"),
        |_| {},
    );
    // It lives, and can reach the disk until it is fenced.
    scene.lost(
        "cable pulled",
        |node| bed.cut(node).expect("a cable can be pulled"),
        |node| bed.heal(node).expect("a cable can be plugged in"),
    );
    scene.lost(
        "engine killed",
        |node| {
            run(&bed, node, "systemctl kill --signal=KILL kemari-vm@vm");
        },
        |_| {},
    );

    let (active, passive, _) = scene.settled();
    let before = bed.fencing_requests().len();
    run(&bed, &passive, "kemarictl handover vm");
    let (now, _, _) = scene.settled();
    assert_eq!((&now, bed.fencing_requests().len()), (&passive, before));
    println!("--- handed over from {active} to {now}");
    ledger_vm::judge(&scene.vm.observer).expect("one machine, as seen outside");
    println!("took {:?}", begun.elapsed());
}
