// SPDX-License-Identifier: Apache-2.0
//! What the facts mean. Pure: the same facts, the same judgement.

use std::collections::{BTreeMap, BTreeSet};

use super::facts::{Described, Facts, Kvm};
use super::{Finding, Level};
use crate::corosync::advice::Fencing;

/// Clocks that differ more than this make logs of two nodes hard to compare.
const OFFSET_S_MAX: f64 = 0.1;

/// Flags of the x86-64 levels above the first (System V ABI), as Linux calls them.
const LEVELS: [(&str, &[&str]); 3] = [
    (
        "x86-64-v2",
        &["cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3"],
    ),
    (
        "x86-64-v3",
        &["avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"],
    ),
    (
        "x86-64-v4",
        &["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"],
    ),
];

/// Judges all of it, in the order in which things have to work.
pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut all = vec![
        user(facts),
        kvm(facts),
        cpu(facts),
        agent(facts),
        host_name(facts),
    ];
    all.extend(corosync(facts));
    all.extend(agents(facts));
    all.extend(pacemaker(facts));
    all.extend([clock(facts), versions(facts)]);
    all.extend(descriptions(facts));
    all.extend(ports(facts));
    all.extend(licences(facts));
    all
}

fn finding(
    name: &'static str,
    level: Level,
    found: impl Into<String>,
    remedy: impl Into<String>,
) -> Finding {
    Finding {
        name,
        level,
        found: found.into(),
        remedy: remedy.into(),
    }
}

fn fine(name: &'static str, found: impl Into<String>) -> Finding {
    finding(name, Level::Ok, found, "")
}

fn user(facts: &Facts) -> Finding {
    if facts.root {
        return fine("user", "root");
    }
    let found = "not root: much of this cannot be seen, and the agent does not answer";
    finding("user", Level::Warn, found, "run this as root")
}

fn kvm(facts: &Facts) -> Finding {
    let name = "kvm";
    match &facts.kvm {
        Kvm::Usable => fine(name, "/dev/kvm can be used"),
        // A node that only votes needs none.
        Kvm::Missing => finding(
            name,
            if facts.descriptions.is_empty() {
                Level::Warn
            } else {
                Level::Fail
            },
            "there is no /dev/kvm: no guest can run here",
            "enable virtualisation in the firmware, load kvm_intel or kvm_amd; a witness needs none",
        ),
        Kvm::Refused(why) => finding(
            name,
            Level::Fail,
            format!("/dev/kvm cannot be opened: {why}"),
            "run this as root; look at the permissions of /dev/kvm",
        ),
    }
}

fn cpu(facts: &Facts) -> Finding {
    let has = |flags: &[&str]| flags.iter().all(|flag| facts.cpu_flags.contains(*flag));
    let reached = LEVELS.iter().take_while(|(_, flags)| has(flags)).last();
    let level = reached.map_or("x86-64-v1", |(name, _)| *name);
    fine(
        "cpu",
        format!(
            "{} CPUs, level {level}: the guest's level must be one that both hosts reach",
            facts.cpus
        ),
    )
}

fn agent(facts: &Facts) -> Finding {
    match &facts.agent {
        Ok(view) if view.quorate => fine("agent", "kemari-agent answers, and there is quorum"),
        Ok(_) => finding(
            "agent",
            Level::Fail,
            "kemari-agent answers, and there is no quorum: nothing is promoted",
            "start more nodes; corosync-quorumtool -s shows the votes",
        ),
        Err(why) => finding(
            "agent",
            Level::Fail,
            why.clone(),
            "systemctl start kemari-agent; journalctl -u kemari-agent",
        ),
    }
}

fn agents(facts: &Facts) -> Option<Finding> {
    let view = facts.agent.as_ref().ok()?;
    let silent: Vec<&str> = view
        .members
        .iter()
        .filter(|node| !view.agents.contains(node))
        .map(|node| node.as_str())
        .collect();
    Some(if silent.is_empty() {
        fine(
            "agents",
            format!("one on each of {} members", view.members.len()),
        )
    } else {
        finding(
            "agents",
            Level::Fail,
            format!("no kemari-agent on {}: it does not vote", silent.join(", ")),
            "systemctl enable --now kemari-agent there",
        )
    })
}

/// The name by which engines call this node must be the one Corosync gives it.
fn host_name(facts: &Facts) -> Finding {
    let name = "host name";
    let here = &facts.host_name;
    match &facts.agent {
        Ok(view) if view.node.as_str() == here => {
            fine(name, format!("{here}, as in corosync.conf"))
        }
        Ok(view) => finding(
            name,
            Level::Fail,
            format!(
                "the host name is {here}, corosync.conf calls this node {}: nothing fails over by \
                 itself",
                view.node
            ),
            "set them equal (hostnamectl, or name: in corosync.conf), or KEMARI_NODE for the engines",
        ),
        Err(_) => finding(
            name,
            Level::Warn,
            format!("{here}; without the agent it is not known what Corosync calls this node"),
            "start kemari-agent, then look again",
        ),
    }
}

fn corosync(facts: &Facts) -> Vec<Finding> {
    let name = "corosync";
    let settings = match &facts.corosync {
        Ok(settings) => settings,
        Err(why) => {
            let remedy = "systemctl start corosync; journalctl -u corosync";
            return vec![finding(name, Level::Fail, why.clone(), remedy)];
        }
    };
    let advice = settings.advice(fencing(facts));
    if advice.is_empty() {
        let token = settings
            .token_ms
            .map_or_else(String::new, |token| format!(", token {token} ms"));
        return vec![fine(name, format!("{} nodes{token}", settings.nodes))];
    }
    advice
        .into_iter()
        .map(|advice| finding(name, Level::Warn, advice.found, advice.remedy))
        .collect()
}

fn fencing(facts: &Facts) -> Fencing {
    match (facts.stonith_enabled, facts.stonith_devices) {
        (Some(true), Some(devices)) if devices > 0 => Fencing::Configured,
        (None, _) | (_, None) => Fencing::Unknown,
        _ => Fencing::Missing,
    }
}

fn pacemaker(facts: &Facts) -> Vec<Finding> {
    if let Err(why) = &facts.pacemaker {
        let remedy = "systemctl start pacemaker; journalctl -u pacemaker";
        return vec![finding("pacemaker", Level::Fail, why.clone(), remedy)];
    }
    let few = facts
        .corosync
        .as_ref()
        .is_ok_and(|settings| settings.nodes < 3);
    let stonith = match fencing(facts) {
        Fencing::Configured => fine("stonith", "configured"),
        Fencing::Unknown => finding(
            "stonith",
            Level::Warn,
            "the CIB cannot be read",
            "run this as root, or as a member of haclient",
        ),
        Fencing::Missing => finding(
            "stonith",
            if few { Level::Fail } else { Level::Warn },
            "Pacemaker fences nothing (stonith-enabled=false, or no device)",
            "configure a stonith device for every node and test it",
        ),
    };
    vec![fine("pacemaker", "answers"), stonith]
}

fn clock(facts: &Facts) -> Finding {
    let name = "clock";
    let remedy = "install and start chrony";
    let synchronised = facts.clock.get("NTPSynchronized").map(String::as_str);
    match (synchronised, facts.clock_offset_s) {
        (_, Some(offset)) if offset > OFFSET_S_MAX => finding(
            name,
            Level::Warn,
            format!("chrony says it is {offset:.3} s off: logs of the nodes are hard to compare"),
            "chronyc makestep; look at chronyc sources",
        ),
        (Some("yes"), _) | (_, Some(_)) => fine(name, "synchronised"),
        (Some(_), None) => finding(name, Level::Warn, "not synchronised", remedy),
        (None, None) => finding(
            name,
            Level::Warn,
            "nobody can say whether it is synchronised",
            remedy,
        ),
    }
}

fn versions(facts: &Facts) -> Finding {
    let last = |text: &str| {
        text.split_whitespace()
            .last()
            .unwrap_or_default()
            .to_owned()
    };
    let own = facts.own_version;
    let others: Vec<String> = [
        ("corosync", &facts.corosync_version),
        ("pacemaker", &facts.pacemaker_version),
    ]
    .into_iter()
    .filter_map(|(name, version)| {
        let line = version.as_deref()?.lines().next()?.to_owned();
        Some(format!("{name}: {line}"))
    })
    .collect();
    let others = others.join("; ");
    match facts.engine.as_deref().map(last) {
        Some(engine) if engine == own => fine("versions", format!("kemari {own}; {others}")),
        Some(engine) => finding(
            "versions",
            Level::Warn,
            format!("kemari-engine is {engine}, kemarictl {own}"),
            "install one package on every node",
        ),
        None => finding(
            "versions",
            Level::Fail,
            format!("kemarictl is {own}, and kemari-engine does not run"),
            "install the package kemari",
        ),
    }
}

fn descriptions(facts: &Facts) -> Vec<Finding> {
    let name = "description";
    if facts.descriptions.is_empty() {
        return vec![fine(name, "none in /etc/kemari: this node only votes")];
    }
    facts
        .descriptions
        .iter()
        .map(|described| {
            let path = described.path.display();
            match &described.read {
                Err(why) => finding(
                    name,
                    Level::Fail,
                    why.clone(),
                    format!("kemari-engine check {path}"),
                ),
                Ok(it) if !it.missing.is_empty() => finding(
                    name,
                    Level::Fail,
                    format!("VM {}: not on this node: {}", it.vm, it.missing.join(", ")),
                    "both nodes need every file that the description names",
                ),
                Ok(it) if !it.unresolved.is_empty() => finding(
                    name,
                    Level::Fail,
                    format!("VM {}: no address for {}", it.vm, it.unresolved.join(", ")),
                    "correct replication.addresses, or /etc/hosts",
                ),
                Ok(it) => fine(name, format!("VM {} ({path})", it.vm)),
            }
        })
        .collect()
}

fn ports(facts: &Facts) -> Vec<Finding> {
    let name = "port";
    let mut users: BTreeMap<u16, BTreeSet<&str>> = BTreeMap::new();
    let good = facts
        .descriptions
        .iter()
        .filter_map(|it| it.read.as_ref().ok());
    for Described { vm, port, .. } in good {
        users.entry(*port).or_default().insert(vm);
    }
    users
        .into_iter()
        .map(|(port, vms)| {
            let shown: Vec<&str> = vms.iter().copied().collect();
            let shown = shown.join(", ");
            let ours = vms.iter().any(|vm| facts.engines.contains(*vm));
            let taken = facts.listening.contains(&port);
            if vms.len() > 1 {
                finding(
                    name,
                    Level::Fail,
                    format!("VMs {shown} share port {port}"),
                    "give each its own replication.port",
                )
            } else if taken && !ours {
                finding(
                    name,
                    Level::Fail,
                    format!("port {port} of VM {shown} is taken by something else"),
                    format!("ss -ltnp 'sport = :{port}'; change replication.port on both nodes"),
                )
            } else if ours && !taken {
                finding(
                    name,
                    Level::Warn,
                    format!("the engine of VM {shown} does not listen at port {port}"),
                    "it was started without --incoming, or with another description: restart it",
                )
            } else if taken {
                fine(name, format!("VM {shown} listens at port {port}"))
            } else {
                fine(name, format!("port {port} of VM {shown} is free"))
            }
        })
        .collect()
}

fn licences(facts: &Facts) -> Vec<Finding> {
    let name = "licence record";
    facts
        .licences
        .iter()
        .map(|record| {
            let path = record.path.display();
            match &record.read {
                Ok((generation, kind)) => {
                    fine(name, format!("{path}: generation {generation}, {kind}"))
                }
                Err(why) => finding(
                    name,
                    Level::Fail,
                    format!("{path} cannot be read: {why}"),
                    "look at the file system; only if the other replica runs, remove this file",
                ),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::facts::{DescribedVm, LicenceRecord};
    use super::*;
    use crate::corosync::advice::Settings;
    use kemari_api::agent::ClusterView;

    fn sound() -> Facts {
        let nodes = || vec!["n1".parse().unwrap(), "n2".parse().unwrap()];
        Facts {
            root: true,
            kvm: Kvm::Usable,
            cpu_flags: LEVELS
                .iter()
                .take(2)
                .flat_map(|(_, flags)| flags.iter().map(|flag| (*flag).to_owned()))
                .collect(),
            cpus: 8,
            host_name: "n1".to_owned(),
            corosync: Ok(Settings {
                token_ms: Some(1000),
                nodes: 3,
                two_node: Some(false),
                wait_for_all: Some(true),
                device: None,
            }),
            agent: Ok(ClusterView {
                node: "n1".parse().unwrap(),
                quorate: true,
                members: nodes(),
                agents: nodes(),
                replicas: vec![],
                generations: vec![],
            }),
            pacemaker: Ok(String::new()),
            stonith_enabled: Some(true),
            stonith_devices: Some(2),
            clock: BTreeMap::from([("NTPSynchronized".to_owned(), "yes".to_owned())]),
            clock_offset_s: Some(0.001),
            engine: Some(format!("kemari-engine {}", env!("CARGO_PKG_VERSION"))),
            own_version: env!("CARGO_PKG_VERSION"),
            corosync_version: None,
            pacemaker_version: None,
            descriptions: vec![described("web", 4444)],
            licences: vec![],
            listening: BTreeSet::from([4444]),
            engines: BTreeSet::from(["web".to_owned()]),
        }
    }

    fn described(vm: &str, port: u16) -> DescribedVm {
        DescribedVm {
            path: format!("/etc/kemari/{vm}.toml").into(),
            read: Ok(Described {
                vm: vm.to_owned(),
                port,
                unresolved: vec![],
                missing: vec![],
            }),
        }
    }

    #[test]
    fn a_sound_node_has_only_good_lines_and_nothing_to_do() {
        for finding in judge(&sound()) {
            assert_eq!(finding.level, Level::Ok, "{finding:?}");
            assert_eq!(finding.remedy, "");
        }
    }

    /// One thing is changed; exactly one line gets worse, to this level, with a remedy.
    fn spoiled(name: &str, level: Level, spoil: impl FnOnce(&mut Facts)) {
        let mut facts = sound();
        spoil(&mut facts);
        let worse: Vec<_> = judge(&facts)
            .into_iter()
            .filter(|finding| finding.level != Level::Ok)
            .collect();
        assert_eq!(worse.len(), 1, "{name}: {worse:?}");
        let only = worse.first().unwrap();
        assert_eq!((only.name, only.level), (name, level), "{only:?}");
        assert!(!only.remedy.is_empty(), "{only:?}");
    }

    #[test]
    fn each_thing_that_is_wrong_has_its_line() {
        spoiled("user", Level::Warn, |it| it.root = false);
        spoiled("kvm", Level::Fail, |it| it.kvm = Kvm::Missing);
        spoiled("kvm", Level::Fail, |it| {
            it.kvm = Kvm::Refused("no".to_owned())
        });
        spoiled("host name", Level::Fail, |it| {
            it.host_name = "n1.example.com".to_owned()
        });
        spoiled("agent", Level::Fail, |it| {
            it.agent.as_mut().unwrap().quorate = false
        });
        spoiled("agents", Level::Fail, |it| {
            it.agent.as_mut().unwrap().agents.truncate(1);
        });
        spoiled("corosync", Level::Fail, |it| {
            it.corosync = Err("no".to_owned())
        });
        spoiled("corosync", Level::Warn, |it| {
            it.corosync.as_mut().unwrap().token_ms = Some(9000);
        });
        spoiled("pacemaker", Level::Fail, |it| {
            it.pacemaker = Err("no".to_owned())
        });
        spoiled("stonith", Level::Warn, |it| {
            it.stonith_enabled = Some(false)
        });
        spoiled("stonith", Level::Warn, |it| it.stonith_devices = Some(0));
        spoiled("stonith", Level::Warn, |it| it.stonith_devices = None);
        spoiled("clock", Level::Warn, |it| it.clock_offset_s = Some(3.0));
        spoiled("clock", Level::Warn, |it| {
            it.clock.clear();
            it.clock_offset_s = None;
        });
        spoiled("versions", Level::Fail, |it| it.engine = None);
        spoiled("versions", Level::Warn, |it| {
            it.engine = Some("kemari-engine 9".to_owned())
        });
        spoiled("description", Level::Fail, |it| {
            it.descriptions.push(DescribedVm {
                path: "/etc/kemari/x.toml".into(),
                read: Err("x.toml:3".to_owned()),
            });
        });
        spoiled("port", Level::Fail, |it| {
            it.descriptions.push(described("db", 4444))
        });
        spoiled("port", Level::Fail, |it| it.engines.clear());
        spoiled("port", Level::Warn, |it| it.listening.clear());
        spoiled("licence record", Level::Fail, |it| {
            it.licences.push(LicenceRecord {
                path: "/var/lib/kemari/replicas/web/licence".into(),
                read: Err("EOF".to_owned()),
            });
        });
    }

    #[test]
    fn two_nodes_without_stonith_fail_and_a_witness_needs_no_kvm() {
        let mut facts = sound();
        facts.corosync.as_mut().unwrap().nodes = 2;
        facts.stonith_enabled = Some(false);
        let stonith = |it: &Finding| it.name == "stonith" && it.level == Level::Fail;
        assert!(judge(&facts).iter().any(stonith));
        let mut facts = sound();
        facts.kvm = Kvm::Missing;
        facts.descriptions.clear();
        assert!(judge(&facts).iter().all(|it| it.level != Level::Fail));
    }

    #[test]
    fn the_cpu_level_is_the_highest_whose_flags_are_all_there() {
        let text = |facts: &Facts| cpu(facts).found;
        let mut facts = sound();
        assert!(text(&facts).contains("x86-64-v3"));
        facts.cpu_flags.remove("popcnt");
        assert!(text(&facts).contains("x86-64-v1"));
    }
}
