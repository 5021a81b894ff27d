// SPDX-License-Identifier: Apache-2.0
//! The first day of a new user: `docs/install.md` from its first command to its last on three new nodes, by crm and by
//! pcs. Everything is typed as printed, where the chapter says, and what comes back is as described.
//!
//! What is not typed is said with the reason. The guest is the bare ledger, on a disk image as the chapter's server is on
//! one, so that the test also sees that the guest goes on and does not boot again.

mod reader;

use std::collections::BTreeSet;

use kemari_cluster_tests::book::{self, Step};
use kemari_cluster_tests::supervisor;

use reader::{HOSTS, NODES, Reader, WITNESS};

/// What the reader decided for, where the chapter offers both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shell {
    Crm,
    Pcs,
}

impl Shell {
    fn name(self) -> &'static str {
        match self {
            Shell::Crm => "crm",
            Shell::Pcs => "pcs",
        }
    }

    fn other(self) -> Shell {
        match self {
            Shell::Crm => Shell::Pcs,
            Shell::Pcs => Shell::Crm,
        }
    }

    fn stop(self) -> &'static str {
        match self {
            Shell::Crm => "crm resource stop vm-pair",
            Shell::Pcs => "pcs resource disable vm-pair",
        }
    }

    fn start(self) -> &'static str {
        match self {
            Shell::Crm => "crm resource start vm-pair",
            Shell::Pcs => "pcs resource enable vm-pair",
        }
    }
}

#[test]
fn by_crm() {
    first_day(Shell::Crm);
}

#[test]
fn by_pcs() {
    first_day(Shell::Pcs);
}

/// Why a reader with these nodes does not type this.
fn passed_over(step: &Step, shell: Shell) -> Option<&'static str> {
    let other = shell.other().name();
    if step.section.ends_with(other) || step.text.starts_with(&format!("{other} ")) {
        Some("this reader took the other shell")
    } else if step.text.contains("fence_ipmilan") {
        Some("no IPMI here; the line for trying things out takes its place")
    } else if step.text.starts_with("firewall-cmd") || step.text.starts_with("ufw ") {
        Some("no packet filter runs on these nodes")
    } else if step.section == "With rpm" {
        Some("these nodes are Debian's")
    } else {
        None
    }
}

/// The nodes on which a step is typed: what the sentence before it names first, or else the first one.
fn place(step: &Step) -> &'static [&'static str] {
    let places: [(&str, &[&str]); 6] = [
        ("ll three", &NODES),
        ("very node", &NODES),
        ("oth hosts", &HOSTS),
        ("he witness", &[WITNESS]),
        ("`node1`", &["node1"]),
        ("`node2`", &["node2"]),
    ];
    if step.text.starts_with("apt ") && step.lead.is_empty() {
        // In the table about what remains.
        return match step.text.ends_with("-witness") {
            true => &[WITNESS],
            false => &HOSTS,
        };
    }
    places
        .iter()
        .filter_map(|(words, nodes)| Some((step.lead.find(words)?, *nodes)))
        .min_by_key(|(at, _)| *at)
        .map_or(&["node1"], |(_, nodes)| nodes)
}

/// Commands that are given again until they show what the chapter shows: what they look at takes its time.
fn is_a_look(step: &Step) -> bool {
    ["crm_mon", "kemarictl status", "kemarictl doctor"]
        .iter()
        .any(|begin| step.text.starts_with(begin))
}

fn first_day(shell: Shell) {
    let _turn = supervisor::turn().expect("tests run as root");
    let chapter = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/install.md");
    let chapter = std::fs::read_to_string(chapter).expect("the chapter");
    let steps = book::steps(&chapter);
    let mut reader = Reader::with_new_nodes();
    let mut typed = BTreeSet::new();
    let mut section = String::new();
    for step in &steps {
        if let Some(reason) = passed_over(step, shell) {
            println!(
                "--- line {}: not typed, {reason}: {}",
                step.line,
                step.first_line()
            );
            continue;
        }
        if step.section != section {
            step.section.clone_into(&mut section);
            println!("=== {section}");
            before(&section, &mut reader);
        }
        typed.insert(section.clone());
        act(step, shell, &mut reader);
    }
    let sections = [
        "Either way",
        "Fencing",
        "Kemari",
        "The VM",
        "Is it protected?",
        "Pull the plug",
        "Stop it, remove it",
    ];
    for section in sections {
        assert!(
            typed.contains(section),
            "nothing was typed of {section:?}: {typed:?}"
        );
    }
}

/// What the chapter tells in words at the beginning of a section.
fn before(section: &str, reader: &mut Reader) {
    match section {
        "Is it protected?" => reader.has_it_on_the_first_host(),
        "Pull the plug" => reader.takes_the_power(),
        _ => {}
    }
}

fn act(step: &Step, shell: Shell, reader: &mut Reader) {
    let nodes = place(step);
    match step.text.as_str() {
        "kemarictl console vm" => reader.looks_at_the_console(),
        "kemarictl handover vm" => {
            reader.switches_it_on_again();
            reader.types(step, nodes);
            reader.finds_the_guest_in_its_first_life();
        }
        text if text == shell.stop() => {
            reader.types(step, nodes);
            reader.waits_until_it_is_stopped();
        }
        text if text == shell.start() => {
            reader.types(step, nodes);
            reader.waits_until_it_is_protected();
        }
        text if text.contains(" delete ") => {
            // "stopped", says the table.
            reader.says(&["node1"], shell.stop());
            reader.waits_until_it_is_stopped();
            reader.types(step, nodes);
            reader.waits_until_it_is_gone();
        }
        _ if is_a_look(step) => reader.looks_until_it_is_as_shown(step, nodes),
        _ => reader.types(step, nodes),
    }
}
