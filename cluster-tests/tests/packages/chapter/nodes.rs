// SPDX-License-Identifier: Apache-2.0
//! The nodes on which the chapter is typed: two hosts and a witness, as new as a reader's.

use std::path::Path;
use std::process::Command;

use kemari_cluster_tests::clean_root::CleanRoot;
use kemari_cluster_tests::kernel::{self, Flavour};
use kemari_cluster_tests::package::{self, Role};

use crate::Sound;

/// Programs of packages that the nodes of the test beds do not have.
const ELSEWHERE: &[&str] = &["dnf", "firewall-cmd", "scp", "ssh", "ufw"];

/// Where crm's and pcs's commands end up, since no cluster runs.
const CIBS: [&str; 2] = ["/root/crm.xml", "/root/pcs.xml"];

#[derive(Debug)]
pub(crate) struct Nodes {
    node1: CleanRoot,
    node2: CleanRoot,
    node3: CleanRoot,
}

impl Nodes {
    pub(crate) fn new() -> Self {
        let [node1, node2, node3] = [(); 3].map(|()| CleanRoot::new().sound());
        for cib in CIBS {
            node1
                .run(&format!("cibadmin --empty >{cib}; chown hacluster {cib}"))
                .sound();
        }
        node1
            .run(&format!(
                "printf '#!/bin/sh\\nexec /usr/sbin/pcs -f {} \"$@\"\\n' >/usr/local/sbin/pcs
                 chmod 755 /usr/local/sbin/pcs",
                CIBS[1]
            ))
            .sound();
        server(&node1.share().join("server.raw"));
        Self {
            node1,
            node2,
            node3,
        }
    }

    /// The host on which most is typed.
    pub(crate) fn root(&self) -> &CleanRoot {
        &self.node1
    }

    /// Types a command on the first host and gives what it printed; `None` where this machine cannot run it.
    pub(crate) fn type_in(&self, command: &str) -> Option<String> {
        if command.starts_with("kemari-engine") && !Path::new("/dev/kvm").exists() {
            println!("SKIPPED: {command}: this machine has no /dev/kvm");
            return None;
        }
        // The server's image is where the reader has it; the bridge lasts as long as the network of this one command.
        let script = format!(
            "cd /mnt; export CIB_file={}\nip link add br0 type bridge\n{command}",
            CIBS[0]
        );
        Some(self.node1.run(&script).sound())
    }

    /// Installs packages: those of Debian are here, ours come from `make package`.
    pub(crate) fn install(&self, command: &str) {
        for package in command.split_whitespace().skip(2) {
            let Some(glob) = package.strip_prefix("./") else {
                self.node1
                    .run(&format!(
                        "dpkg-query -W -f '${{Status}}' {package} | grep installed"
                    ))
                    .sound();
                continue;
            };
            match role(glob, &package::deb) {
                Role::Host => {
                    install(&self.node1, Role::Host);
                    install(&self.node2, Role::Host);
                }
                Role::Witness => install(&self.node3, Role::Witness),
            }
        }
    }

    /// Copies files to the other nodes, or runs a command there.
    pub(crate) fn send(&self, command: &str) {
        let mut words: Vec<&str> = command.split_whitespace().collect();
        if let Some(there) = command.strip_prefix("ssh node2 ") {
            self.node2.run(there).sound();
            return;
        }
        let target = words.pop().expect("a target");
        let (node, place) = target.split_once(':').expect("NODE:PLACE");
        let to = match node.trim_start_matches("root@") {
            "node2" => &self.node2,
            "node3" => &self.node3,
            other => panic!("{command}: which node is {other}?"),
        };
        for file in words.iter().skip(1).filter(|word| !word.starts_with('-')) {
            let bytes = self
                .node1
                .run(&format!("cp -p {file} /mnt/sent"))
                .map(|_| ());
            bytes.sound();
            std::fs::copy(self.node1.share().join("sent"), to.share().join("sent"))
                .expect("a file that was sent");
            let name = Path::new(file)
                .file_name()
                .expect("a file")
                .to_string_lossy();
            let place = match place.ends_with('/') {
                // As scp: what ends with a slash must be there.
                true => format!("{place}{name}"),
                false => place.to_owned(),
            };
            to.run(&format!("cp -p /mnt/sent {place}")).sound();
        }
    }

    /// Looks at the parts of a command that cannot be run here.
    pub(crate) fn look_at(&self, command: &str) {
        for part in command.split(" && ") {
            let words: Vec<&str> = part
                .split_whitespace()
                .filter(|word| !word.starts_with('>'))
                .collect();
            self.look_at_words(part, &words);
        }
    }

    fn look_at_words(&self, part: &str, words: &[&str]) {
        let program = *words.first().expect("a program");
        if !ELSEWHERE.contains(&program) {
            self.node1.run(&format!("command -v {program}")).sound();
        }
        match program {
            "kemarictl" | "crm_mon" => self.options(words),
            "pcs" => self.options(&words[..words.len().min(3)]),
            "systemctl" => {
                for unit in words.iter().skip(2).filter(|word| !word.starts_with('-')) {
                    self.node1
                        .run(&format!("ls /usr/lib/systemd/system/{unit}.service"))
                        .sound();
                }
            }
            "passwd" => {
                self.node1.run(&format!("id {}", words[1])).sound();
            }
            "firewall-cmd" => {
                for service in words
                    .iter()
                    .filter_map(|word| word.strip_prefix("--add-service="))
                {
                    // firewalld's own, or the package's.
                    assert!(
                        service == "high-availability"
                            || self
                                .node1
                                .attempt(&format!(
                                    "test -e /usr/lib/firewalld/services/{service}.xml"
                                ))
                                .sound()
                                .status
                                .success(),
                        "{part}: there is no service {service}"
                    );
                }
            }
            "ufw" => {
                let profile = words.last().expect("a profile");
                self.node1
                    .run(&format!("grep -Fx '[{profile}]' /etc/ufw/applications.d/*"))
                    .sound();
            }
            "dnf" => {
                for glob in words.iter().filter_map(|word| word.strip_prefix("./")) {
                    role(glob, &package::rpm);
                }
            }
            _ => {}
        }
    }

    /// A program's own help knows the subcommand and the options.
    fn options(&self, words: &[&str]) {
        let (options, others): (Vec<&str>, Vec<&str>) =
            words.iter().partition(|word| word.starts_with('-'));
        let command = match others.as_slice() {
            [program @ "kemarictl", subcommand, ..] => format!("{program} {subcommand}"),
            whole => whole.join(" "),
        };
        let help = self.node1.run(&format!("{command} --help")).sound();
        for option in options {
            let known = help
                .split(|c: char| c.is_whitespace() || ",[]=<|".contains(c))
                .any(|word| word == option);
            assert!(known, "{command} has no {option}: {help}");
        }
    }

    /// What was typed in sum is a configuration that Corosync and Pacemaker take.
    pub(crate) fn judge(&self) {
        self.node1.run("hostname node1; corosync -t").sound();
        for cib in CIBS {
            self.node1
                .run(&format!("crm_verify --xml-file {cib}"))
                .sound();
        }
        let keys = |root: &CleanRoot| {
            root.run("cat /etc/kemari/cluster.key /etc/corosync/authkey | sha256sum")
        };
        assert_eq!(keys(&self.node1).sound(), keys(&self.node2).sound());
        let descriptions =
            |root: &CleanRoot| root.run("stat -c %a /etc/kemari/*; cat /etc/kemari/vm.toml");
        assert_eq!(
            descriptions(&self.node1).sound(),
            descriptions(&self.node2).sound()
        );
        self.node3
            .run("test ! -e /etc/kemari/cluster.key; kemarictl --version")
            .sound();
    }
}

fn install(root: &CleanRoot, role: Role) {
    let deb = root.lend(&package::deb(role).sound()).sound();
    root.run(&format!("apt-get install -y {deb}")).sound();
}

/// Whose package file a shell would take for this glob; exactly one.
fn role(glob: &str, find: &dyn Fn(Role) -> anyhow::Result<std::path::PathBuf>) -> Role {
    let files = [Role::Host, Role::Witness].map(|role| (role, find(role).sound()));
    let fits: Vec<Role> = files
        .iter()
        .filter(|(_, file)| {
            let name = file.file_name().expect("a package").to_string_lossy();
            let script = format!("case \"$1\" in {glob}) ;; *) exit 1;; esac");
            Command::new("sh")
                .args(["-c", &script, "sh", &name])
                .status()
                .expect("sh runs")
                .success()
        })
        .map(|(role, _)| *role)
        .collect();
    match fits.as_slice() {
        [one] => *one,
        none_or_both => panic!("{glob} fits the packages of {none_or_both:?}"),
    }
}

/// The disk image of a server, as far as its boot files.
fn server(image: &Path) {
    let place = tempfile::tempdir().expect("a directory");
    let boot = place.path().join("boot");
    std::fs::create_dir(&boot).expect("a directory");
    let kernel = kernel::fetch(Flavour::Generic).sound();
    std::fs::copy(kernel.vmlinuz, boot.join("vmlinuz")).expect("the kernel");
    let etc = place.path().join("etc/kernel");
    std::fs::create_dir_all(&etc).expect("a directory");
    std::fs::write(etc.join("cmdline"), "root=/dev/vda ro\n").expect("a file");
    std::fs::write(place.path().join("etc/os-release"), "ID=debian\n").expect("a file");
    let made = Command::new("/usr/sbin/mkfs.ext4")
        .args(["-q", "-d"])
        .args([place.path(), image])
        .arg("64m")
        .output()
        .expect("make installs e2fsprogs");
    assert!(made.status.success(), "{made:?}");
}
