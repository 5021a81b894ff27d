// SPDX-License-Identifier: Apache-2.0
//! What must hold between keys. Checked on whatever sections could be read.

use std::collections::BTreeSet;
use std::fmt::Display;

use super::link_hosts::same;
use super::read::Sections;
use super::{BootSection, DiskSection, NetworkSection};
use crate::VmName;

/// A key that does not go with another.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) key: String,
    pub(super) message: String,
}

/// Every rule between keys that is broken.
pub(super) fn problems(sections: &Sections) -> Vec<Problem> {
    let mut found = Vec::new();
    page_size(sections, &mut found);
    boot_disk(sections, &mut found);
    disks(&sections.disk, &mut found);
    networks(
        &sections.network,
        sections.vm.as_ref().map(|vm| &vm.name),
        &mut found,
    );
    certificates(sections, &mut found);
    addresses(sections, &mut found);
    found
}

/// An address leads to one node.
fn addresses(sections: &Sections, found: &mut Vec<Problem>) {
    let Some(replication) = &sections.replication else {
        return;
    };
    let all = || {
        let of = |(node, hosts): (_, &'_ super::LinkHosts)| (node, hosts.clone());
        replication.addresses.iter().map(of)
    };
    for (number, (node, hosts)) in all().enumerate() {
        let clash = hosts.iter().find_map(|host| {
            let mut before = all().take(number);
            let other = before.find(|(_, others)| others.iter().any(|other| same(other, host)))?;
            Some((host.clone(), other.0))
        });
        if let Some((host, other)) = clash {
            found.push(Problem {
                key: format!("replication.addresses.{node}"),
                message: format!(
                    "\"{host}\" is an address of {other} too: give each node its own addresses"
                ),
            });
        }
    }
}

/// Certificates are three files, and take the place of a cluster key.
fn certificates(sections: &Sections, found: &mut Vec<Problem>) {
    let Some(replication) = &sections.replication else {
        return;
    };
    let files = [
        ("replication.tls_authority", &replication.tls_authority),
        ("replication.tls_certificate", &replication.tls_certificate),
        ("replication.tls_key", &replication.tls_key),
    ];
    let Some((given, _)) = files.iter().find(|(_, file)| file.is_some()) else {
        return;
    };
    if let Some((missing, _)) = files.iter().find(|(_, file)| file.is_none()) {
        found.push(Problem {
            key: (*given).to_owned(),
            message: format!(
                "TLS with certificates needs tls_authority, tls_certificate and tls_key, and \
                 {missing} is not given: give all three, or none and use a cluster key"
            ),
        });
    }
    if replication.cluster_key.is_some() {
        found.push(Problem {
            key: "replication.cluster_key".into(),
            message: format!(
                "the link uses either a cluster key or certificates, and {given} is given too: \
                 leave one of them out"
            ),
        });
    }
}

fn page_size(sections: &Sections, found: &mut Vec<Problem>) {
    let (Some(vm), Some(memory)) = (&sections.vm, &sections.memory) else {
        return;
    };
    let mib = vm.memory_mib.get();
    let Some(page_mib) = memory.huge_pages.reserved_mib() else {
        return;
    };
    if mib % page_mib != 0 {
        let down = mib / page_mib * page_mib;
        let up = down + page_mib;
        let sizes = if down < super::MemoryMib::MIN {
            format!("{up}")
        } else {
            format!("{down} or {up}")
        };
        found.push(Problem {
            key: "vm.memory_mib".into(),
            message: format!(
                "{mib} MiB are no whole number of pages of {}: give {sizes}, or another \
                 memory.huge_pages",
                memory.huge_pages
            ),
        });
    }
}

fn boot_disk(sections: &Sections, found: &mut Vec<Problem>) {
    let Some(BootSection::Disk(boot)) = &sections.boot else {
        return;
    };
    let known: Vec<_> = sections
        .disk
        .iter()
        .flatten()
        .map(|disk| &disk.id)
        .collect();
    // A disk that could not be read may be the one.
    if known.contains(&&boot.disk) || sections.disk.contains(&None) {
        return;
    }
    let remedy = if known.is_empty() {
        format!("add a [[disk]] with id = \"{}\"", boot.disk)
    } else {
        let known: Vec<_> = known.iter().map(|id| id.as_str()).collect();
        format!("name one of the disks: {}", known.join(", "))
    };
    found.push(Problem {
        key: "boot.disk".into(),
        message: format!("there is no disk \"{}\": {remedy}", boot.disk),
    });
}

fn disks(disks: &[Option<DiskSection>], found: &mut Vec<Problem>) {
    let (mut ids, mut serials) = (Seen::default(), Seen::default());
    for (index, disk) in present(disks) {
        let key = |key: &str| format!("disk[{index}].{key}");
        let double = ids.twice(&disk.id, key("id"), "give each disk its own id");
        // A double id mostly makes a double serial number: told once.
        if double.is_none() {
            let remedy = "give each disk its own serial number";
            found.extend(serials.twice(disk.serial(), key("serial"), remedy));
        }
        found.extend(double);
        let clash = present(disks)
            .take_while(|(other, _)| *other < index)
            .find(|(_, other)| other.path == disk.path && !(other.read_only && disk.read_only));
        if let Some((_, other)) = clash {
            found.push(Problem {
                key: key("path"),
                message: format!(
                    "{} is already disk \"{}\": one file can be two disks only if both have \
                     read_only = true",
                    disk.path, other.id
                ),
            });
        }
    }
}

fn networks(networks: &[Option<NetworkSection>], vm: Option<&VmName>, found: &mut Vec<Problem>) {
    let (mut ids, mut taps, mut macs) = (Seen::default(), Seen::default(), Seen::default());
    for (index, network) in present(networks) {
        let key = |key: &str| format!("network[{index}].{key}");
        let double = ids.twice(&network.id, key("id"), "give each interface its own id");
        if let (None, Some(vm)) = (&double, vm) {
            let remedy = "give each interface its own TAP device";
            found.extend(taps.twice(network.tap(vm), key("tap"), remedy));
            let remedy = "give each interface its own address, or leave mac out and one is made";
            found.extend(macs.twice(network.mac(vm), key("mac"), remedy));
        }
        found.extend(double);
    }
}

fn present<T>(list: &[Option<T>]) -> impl Iterator<Item = (usize, &T)> {
    list.iter()
        .enumerate()
        .filter_map(|(index, element)| Some((index, element.as_ref()?)))
}

/// Values that must differ.
#[derive(Default)]
struct Seen(BTreeSet<String>);

impl Seen {
    /// The problem, where this value was there before.
    fn twice(&mut self, value: impl Display, key: String, remedy: &str) -> Option<Problem> {
        let value = value.to_string();
        let message = format!("{value:?} is given twice: {remedy}");
        (!self.0.insert(value)).then_some(Problem { key, message })
    }
}
