// SPDX-License-Identifier: Apache-2.0
//! `docs/install.md`, typed: each command in its order, as it is printed there, by a new user on new nodes. The nodes
//! are roots without running services, so commands that need a cluster are looked at and not run ([`Way::Look`]);
//! `first_day.rs` runs them.

mod nodes;

use kemari_cluster_tests::book::{Step, matches, steps};

use crate::{Sound, repository};
use nodes::Nodes;

/// How a command of the chapter is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// It is run, and its output is as printed.
    Type,
    /// It is run; what it prints depends on the node.
    TypeOnly,
    /// Packages are installed, on the nodes that the chapter names.
    Install,
    /// It goes to the other host.
    Send,
    /// It needs a running cluster, a terminal, or what a root does not have: its parts must exist.
    Look,
}

/// What commands begin with; the first that fits counts. A command that nothing here fits fails the test.
const WAYS: &[(&str, Way)] = &[
    ("apt install", Way::Install),
    ("apt remove", Way::Look),
    ("apt purge", Way::Look),
    ("dnf install", Way::Look),
    ("scp ", Way::Send),
    ("ssh node2 ", Way::Send),
    ("cat > ", Way::Type),
    ("mkdir ", Way::Type),
    ("echo ", Way::Look),
    ("corosync-keygen", Way::Type),
    ("kemarictl keygen", Way::Type),
    ("kemari-engine check", Way::Type),
    ("sh /usr/share/doc/kemari/examples/", Way::TypeOnly),
    ("crm configure", Way::TypeOnly),
    ("crm resource", Way::TypeOnly),
    ("pcs stonith", Way::TypeOnly),
    ("pcs property", Way::TypeOnly),
    ("pcs resource", Way::TypeOnly),
    ("pcs host auth", Way::Look),
    ("pcs cluster setup", Way::Look),
    ("passwd ", Way::Look),
    ("systemctl ", Way::Look),
    ("crm_mon", Way::Look),
    ("kemarictl doctor", Way::Look),
    ("kemarictl status", Way::Look),
    ("kemarictl console", Way::Look),
    ("kemarictl handover", Way::Look),
    ("firewall-cmd ", Way::Look),
    ("ufw ", Way::Look),
];

fn way(step: &Step) -> Way {
    WAYS.iter()
        .find(|(begin, _)| step.text.starts_with(begin))
        .unwrap_or_else(|| panic!("line {}: how is this tried? {}", step.line, step.text))
        .1
}

#[test]
fn the_first_chapter_is_typed_on_new_nodes() {
    let chapter = std::fs::read_to_string(repository().join("docs/install.md")).expect("the page");
    let steps = steps(&chapter);
    assert!(steps.len() > 30, "only {} commands were found", steps.len());
    let nodes = Nodes::new();
    for step in &steps {
        println!("line {}: {:?}: {}", step.line, way(step), step.first_line());
        match way(step) {
            Way::Type | Way::TypeOnly => {
                let Some(printed) = nodes.type_in(&step.text) else {
                    continue;
                };
                assert!(
                    way(step) == Way::TypeOnly || matches(&step.output, &printed),
                    "line {}: {}\nthe book: {:#?}\nprinted: {printed}",
                    step.line,
                    step.first_line(),
                    step.output
                );
            }
            Way::Install => nodes.install(&step.text),
            Way::Send => nodes.send(&step.text),
            Way::Look => nodes.look_at(&step.text),
        }
    }
    nodes.judge();
}

#[test]
fn a_wrong_chapter_is_found() {
    let nodes = Nodes::new();
    nodes.install("apt install ./kemari_*.deb");
    let wrong = |act: &dyn Fn()| {
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(act)).expect_err("it is wrong");
    };
    wrong(&|| nodes.install("apt install ./kemari-host_*.deb"));
    wrong(&|| nodes.install("apt install no-such-package"));
    wrong(&|| nodes.send("scp /etc/kemari/no.toml node2:/etc/kemari/"));
    wrong(&|| nodes.send("scp /etc/passwd node2:/no/such/directory/"));
    wrong(&|| nodes.look_at("kemarictl statuss vm"));
    wrong(&|| nodes.look_at("kemarictl status --no-such-option vm"));
    wrong(&|| nodes.look_at("systemctl enable no-such-unit"));
    wrong(&|| nodes.look_at("no-such-program"));
    wrong(&|| nodes.look_at("firewall-cmd --add-service=no-such-service"));
    wrong(&|| drop(nodes.type_in("sh /usr/share/doc/kemari/examples/no.sh")));
    // And the same, right.
    nodes.install("apt install dpkg");
    nodes.send("scp /etc/passwd node2:/etc/kemari/");
    nodes.look_at("kemarictl status --check vm >/dev/null && echo protected");
    nodes.look_at("systemctl enable kemari-agent");
    nodes.look_at("firewall-cmd --add-service=kemari");
    let checked = nodes
        .root()
        .attempt("kemari-engine check /etc/kemari/no.toml");
    assert!(!checked.sound().status.success());
}
