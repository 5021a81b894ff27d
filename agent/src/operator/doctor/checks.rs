// SPDX-License-Identifier: Apache-2.0
//! What the facts mean. Pure: the same facts, the same judgement.

mod cluster;
mod node;
mod vms;

use super::facts::Facts;
use super::{Finding, Level};

/// Judges all of it, in the order in which things have to work.
pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut all = vec![
        node::user(facts),
        node::kvm(facts),
        node::cpu(facts),
        cluster::agent(facts),
        cluster::host_name(facts),
    ];
    all.extend(cluster::corosync(facts));
    all.extend(cluster::agents(facts));
    all.extend(cluster::pacemaker(facts));
    all.extend([
        node::clock(facts),
        node::versions(facts),
        node::settings(facts),
    ]);
    all.extend(vms::descriptions(facts));
    all.extend(vms::ports(facts));
    all.extend(vms::licences(facts));
    all.extend(vms::links(facts));
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

#[cfg(test)]
mod tests {
    use super::super::facts::{Described, DescribedVm, Kvm, LicenceRecord};
    use super::node::LEVELS;
    use super::*;
    use crate::corosync::advice::Settings;
    use kemari_api::agent::ClusterView;
    use kemari_api::replica::{LinkUse, LinkView};
    use std::collections::{BTreeMap, BTreeSet};

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
            settings: Ok(()),
            descriptions: vec![described("web", 4444)],
            licences: vec![],
            listening: BTreeSet::from([4444]),
            engines: BTreeSet::from(["web".to_owned()]),
            links: BTreeMap::from([(
                "web".to_owned(),
                vec![
                    link("10.0.1.2", LinkUse::InUse),
                    link("10.0.2.2", LinkUse::Idle),
                ],
            )]),
        }
    }

    fn link(host: &str, state: LinkUse) -> LinkView {
        LinkView {
            address: format!("kemari:tls:{host}:4444"),
            state,
            failure: if state == LinkUse::Failed {
                "silent".to_owned()
            } else {
                String::new()
            },
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
        spoiled("settings", Level::Fail, |it| {
            it.settings = Err("agent.toml is wrong".to_owned());
        });
        spoiled("kvm", Level::Fail, |it| it.kvm = Kvm::Missing);
        spoiled("kvm", Level::Fail, |it| {
            it.kvm = Kvm::Refused("no".to_owned());
        });
        spoiled("host name", Level::Fail, |it| {
            it.host_name = "n1.example.com".to_owned();
        });
        spoiled("agent", Level::Fail, |it| {
            it.agent.as_mut().unwrap().quorate = false;
        });
        spoiled("agents", Level::Fail, |it| {
            it.agent.as_mut().unwrap().agents.truncate(1);
        });
        spoiled("corosync", Level::Fail, |it| {
            it.corosync = Err("no".to_owned());
        });
        spoiled("corosync", Level::Warn, |it| {
            it.corosync.as_mut().unwrap().token_ms = Some(9000);
        });
        spoiled("pacemaker", Level::Fail, |it| {
            it.pacemaker = Err("no".to_owned());
        });
        spoiled("stonith", Level::Warn, |it| {
            it.stonith_enabled = Some(false);
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
            it.engine = Some("kemari-engine 9".to_owned());
        });
        spoiled("link", Level::Warn, |it| {
            let links = vec![
                link("10.0.1.2", LinkUse::Failed),
                link("10.0.2.2", LinkUse::InUse),
            ];
            it.links.insert("web".to_owned(), links);
        });
        spoiled("link", Level::Warn, |it| {
            let links = vec![link("10.0.1.2", LinkUse::Failed)];
            it.links.insert("web".to_owned(), links);
        });
        spoiled("description", Level::Fail, |it| {
            it.descriptions.push(DescribedVm {
                path: "/etc/kemari/x.toml".into(),
                read: Err("x.toml:3".to_owned()),
            });
        });
        spoiled("port", Level::Fail, |it| {
            it.descriptions.push(described("db", 4444));
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
        // With the package kemari-witness.
        facts.engine = None;
        assert!(judge(&facts).iter().all(|it| it.level == Level::Ok));
    }

    #[test]
    fn the_cpu_level_is_the_highest_whose_flags_are_all_there() {
        let text = |facts: &Facts| node::cpu(facts).found;
        let mut facts = sound();
        assert!(text(&facts).contains("x86-64-v3"));
        facts.cpu_flags.remove("popcnt");
        assert!(text(&facts).contains("x86-64-v1"));
    }
}
