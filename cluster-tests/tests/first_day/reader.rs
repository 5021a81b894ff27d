// SPDX-License-Identifier: Apache-2.0
//! A reader of the chapter, the nodes in front of them, and what they have seen so far.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kemari_cluster_tests::bed::Bed as _;
use kemari_cluster_tests::book::{self, Step};
use kemari_cluster_tests::guests;
use kemari_cluster_tests::namespaces::Namespaces;
use kemari_cluster_tests::package::{self, Role};

pub(crate) const NODES: [&str; 3] = ["node1", "node2", "node3"];
pub(crate) const HOSTS: [&str; 2] = ["node1", "node2"];
pub(crate) const WITNESS: &str = "node3";

/// How long a reader waits for what the chapter says comes.
const PATIENCE: Duration = Duration::from_secs(240);
/// The guest's command line: the bare ledger's.
const CMDLINE: &str = "pages=32 interval=2000\n";

#[derive(Debug)]
pub(crate) struct Reader {
    bed: Namespaces,
    /// The last number of the guest's ledger that was seen.
    number: u64,
}

impl Reader {
    /// Three new nodes, with what the chapter takes for granted: ssh from one to the others, the packages, the guest.
    pub(crate) fn with_new_nodes() -> Self {
        let bed = Namespaces::builder().new_nodes().up().expect("nodes boot");
        let reader = Self { bed, number: 0 };
        let key = "ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519 && cat /root/.ssh/id_ed25519.pub";
        let key = reader.run("node1", key, "");
        for node in ["node2", "node3"] {
            let keys = "/root/.ssh/authorized_keys";
            reader.put(node, keys, key.as_bytes());
        }
        for node in NODES {
            for role in [Role::Host, Role::Witness] {
                let deb = package::deb(role).expect("make package was run");
                let name = deb.file_name().expect("a file").to_string_lossy();
                let bytes = std::fs::read(&deb).expect("a package");
                reader.put(node, &format!("/root/{name}"), &bytes);
            }
        }
        reader.put("node1", "/root/server.raw", &server());
        reader
    }

    fn put(&self, node: &str, path: &str, bytes: &[u8]) {
        self.bed
            .write(node, path, bytes, 0o600)
            .unwrap_or_else(|error| panic!("{error:#}"));
    }

    /// Runs a command and gives what a terminal would show, and its status.
    fn attempt(&self, node: &str, command: &str, keys: &str) -> (i32, String) {
        let script = format!("cd /root; exec 2>&1\n{command}");
        let mut child = self
            .bed
            .command(node, &["sh", "-c", &script])
            .expect("the node has power")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a shell");
        let mut stdin = child.stdin.take().expect("its input");
        // Who does not read has ended.
        let _ = stdin.write_all(keys.as_bytes());
        drop(stdin);
        let output = child.wait_with_output().expect("it ends");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code().unwrap_or(-1), text)
    }

    fn run(&self, node: &str, command: &str, keys: &str) -> String {
        let (status, text) = self.attempt(node, command, keys);
        assert_eq!(status, 0, "{node}# {command}\n{text}");
        text
    }

    /// Types a command on some nodes at the same time.
    pub(crate) fn says(&self, nodes: &[&str], command: &str) -> Vec<String> {
        for node in nodes {
            println!("{node}# {command}");
        }
        let printed: Vec<String> = std::thread::scope(|scope| {
            let threads: Vec<_> = nodes
                .iter()
                .map(|node| scope.spawn(|| self.run(node, command, keys(command))))
                .collect();
            let joined = threads.into_iter().map(|thread| thread.join());
            joined.map(|printed| printed.expect("it works")).collect()
        });
        if let Some(first) = printed.first() {
            println!("{first}");
        }
        printed
    }

    /// Types a step; what it prints is as the chapter shows it, if that shows anything.
    pub(crate) fn types(&self, step: &Step, nodes: &[&str]) {
        for printed in self.says(nodes, &step.text) {
            if !step.output.is_empty() {
                let printed = printed.replace("Password: ", "Password:\n");
                assert!(
                    is_as_shown(step, &printed),
                    "line {}: the chapter shows {:#?}",
                    step.line,
                    step.output
                );
            }
        }
    }

    /// Gives a command again and again, until it shows what the chapter shows.
    pub(crate) fn looks_until_it_is_as_shown(&self, step: &Step, nodes: &[&str]) {
        for node in nodes {
            let command = &step.text;
            let sees = self.until(|| {
                let (_, printed) = self.attempt(node, command, "");
                let wrong = printed.lines().any(|line| line.starts_with("FAIL"));
                let right = is_as_shown(step, &printed) && !wrong;
                right.then(|| printed.clone()).ok_or(printed)
            });
            match sees {
                Ok(printed) => println!("{node}# {command}\n{printed}"),
                Err(printed) => panic!(
                    "line {}: the chapter shows {:#?}\n{node}# {command}\n{printed}",
                    step.line, step.output
                ),
            }
        }
    }

    fn until<T>(&self, look: impl Fn() -> Result<T, String>) -> Result<T, String> {
        let begun = Instant::now();
        loop {
            match look() {
                Err(_) if begun.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_millis(500));
                }
                seen => return seen,
            }
        }
    }

    /// The node that shows the guest as active and the pair in sync.
    fn waits_for_a_pair(&self) -> String {
        let found = self.until(|| {
            let (_, shown) = self.attempt(WITNESS, "kemarictl status --check vm", "");
            let rows: Vec<Vec<&str>> = shown
                .lines()
                .map(|line| line.split_whitespace().collect())
                .collect();
            let row = |role: &str| {
                rows.iter().find_map(|row| match row.as_slice() {
                    ["vm", node, seen, _, "yes", ..] if *seen == role => Some((*node).to_owned()),
                    _ => None,
                })
            };
            match (row("active"), row("passive")) {
                (Some(active), Some(_)) => Ok(active),
                _ => Err(shown),
            }
        });
        found.unwrap_or_else(|shown| panic!("the VM is not protected:\n{shown}"))
    }

    pub(crate) fn waits_until_it_is_protected(&self) {
        self.waits_for_a_pair();
    }

    /// The chapter goes on with the guest on the first host, and says how to bring it there.
    pub(crate) fn has_it_on_the_first_host(&self) {
        let node = self.waits_for_a_pair();
        println!("(it booted on {node})");
        if node != "node1" {
            self.says(&["node1"], "kemarictl handover vm");
            self.waits_for_a_pair();
        }
    }

    /// The numbers that the guest prints on a node.
    fn numbers(&self, node: &str) -> Vec<u64> {
        // A person watches for some seconds and leaves.
        let (_, text) = self.attempt(node, "sleep 3 | timeout 5 kemarictl console vm", "");
        assert!(
            self.number == 0 || !text.contains("LEDGER START"),
            "the guest booted again: {text}"
        );
        let numbers: Vec<u64> = text
            .lines()
            .filter_map(|line| line.split_whitespace().next()?.parse().ok())
            .collect();
        assert!(!numbers.is_empty(), "the console shows {text:?}");
        numbers
    }

    pub(crate) fn looks_at_the_console(&mut self) {
        println!("node1# kemarictl console vm");
        let numbers = self.numbers("node1");
        self.number = numbers.last().copied().unwrap_or_default();
        println!("…\n{}", self.number);
    }

    /// The guest has gone on from where it was.
    pub(crate) fn finds_the_guest_in_its_first_life(&mut self) {
        let node = self.waits_for_a_pair();
        let numbers = self.numbers(&node);
        let last = numbers.last().copied().unwrap_or_default();
        println!("(the guest was at {} and is at {last})", self.number);
        assert!(last > self.number, "it was at {}", self.number);
        self.number = last;
        let boots: usize = HOSTS.iter().map(|node| self.boots(node)).sum();
        assert_eq!(boots, 1, "the guest has booted once");
    }

    /// How often the guest booted on a node, by its journal.
    fn boots(&self, node: &str) -> usize {
        let journal = self.run(node, "journalctl -o cat -u kemari-vm@vm", "");
        journal.matches("cold start: the guest boots").count()
    }

    pub(crate) fn takes_the_power(&self) {
        println!("(power is taken from node1)");
        self.bed.kill("node1").expect("power can be taken");
    }

    pub(crate) fn switches_it_on_again(&mut self) {
        println!("(power is given back to node1)");
        self.bed.power_on("node1").expect("it boots");
        assert_eq!(self.waits_for_a_pair(), "node2", "the roles are exchanged");
        self.finds_the_guest_in_its_first_life();
    }

    pub(crate) fn waits_until_it_is_stopped(&mut self) {
        self.without_processes();
        // The next boot is another life.
        self.number = 0;
    }

    pub(crate) fn waits_until_it_is_gone(&self) {
        self.without_processes();
        let shown = self.run("node1", "crm_mon -1 -r", "");
        assert!(shown.contains("No resources"), "{shown}");
    }

    fn without_processes(&self) {
        self.run("node1", "crm_resource --wait --timeout=120", "");
        for node in HOSTS {
            let (_, units) = self.attempt(
                node,
                "systemctl --no-legend list-units --state=active,deactivating 'kemari-vm@*'",
                "",
            );
            assert!(units.trim().is_empty(), "{node}: {units}");
        }
    }
}

/// What the chapter shows, other numbers aside.
fn is_as_shown(step: &Step, printed: &str) -> bool {
    let last = step.output.iter().rposition(|line| !line.is_empty());
    let shown = &step.output[..last.map_or(0, |last| last + 1)];
    if step.text.starts_with("pcs host auth") {
        // The nodes answer in any order.
        let mut lines: Vec<&str> = printed.lines().collect();
        lines.sort_unstable();
        let mut shown = shown.to_vec();
        shown.sort_unstable();
        return book::resembles(&shown, &lines.join("\n"));
    }
    book::resembles(shown, printed.trim_end())
}

/// What a reader answers to a program that asks.
fn keys(command: &str) -> &'static str {
    if command.starts_with("passwd ") {
        "secret of the test\nsecret of the test\n"
    } else if command.starts_with("pcs host auth") {
        "secret of the test\n"
    } else if command.starts_with("apt ") {
        "y\n"
    } else {
        ""
    }
}

/// A server's disk image, its kernel in `/boot`: the bare ledger.
fn server() -> Vec<u8> {
    let place = tempfile::tempdir().expect("a directory");
    let tree = place.path().join("tree");
    for directory in ["boot", "etc/kernel"] {
        std::fs::create_dir_all(tree.join(directory)).expect("a directory");
    }
    std::fs::copy(guests::ledger(), tree.join("boot/vmlinuz")).expect("the kernel");
    std::fs::write(tree.join("etc/kernel/cmdline"), CMDLINE).expect("a file");
    std::fs::write(tree.join("etc/os-release"), "ID=bare\n").expect("a file");
    let image = place.path().join("server.raw");
    make_file_system(&tree, &image);
    std::fs::read(image).expect("the image")
}

fn make_file_system(tree: &Path, image: &Path) {
    let made = Command::new("/usr/sbin/mkfs.ext4")
        .args(["-q", "-d"])
        .args([tree, image])
        .arg("32m")
        .output()
        .expect("make installs e2fsprogs");
    assert!(made.status.success(), "{made:?}");
}
