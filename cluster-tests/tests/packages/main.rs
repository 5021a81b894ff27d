// SPDX-License-Identifier: Apache-2.0
//! The packages of hosts and witnesses, on roots that nobody has used: what they hold, what they leave, and what the
//! book's first chapter types with them. Upgrades under running VMs are in `upgrade.rs`.

mod chapter;
mod contents;
mod deb;
mod judges;
mod rpm;

use std::collections::BTreeMap;
use std::path::PathBuf;

use kemari_cluster_tests::clean_root::CleanRoot;

/// What test nodes and people expect of a call that must work.
trait Sound<T> {
    /// The value, or a panic that shows the whole chain of errors.
    fn sound(self) -> T;
}

impl<T> Sound<T> for anyhow::Result<T> {
    fn sound(self) -> T {
        self.unwrap_or_else(|error| panic!("{error:#}"))
    }
}

/// The repository.
fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Type, mode, owner and target of every path of a root, but for what every use of dpkg or rpm changes.
fn paths(root: &CleanRoot) -> BTreeMap<String, String> {
    const OTHERS: [&str; 6] = [
        "/var/lib/dpkg/",
        "/var/lib/rpm",
        "/var/lib/apt",
        "/var/log/",
        "/var/cache/",
        "/root/",
    ];
    // The tables of users are kept twice, the older with a dash.
    let backup = |path: &str| path.starts_with("/etc/") && path.ends_with('-');
    root.run("find / -xdev -printf '%p\\t%y %m %u:%g %l\\n'")
        .sound()
        .lines()
        .filter_map(|line| line.split_once('\t'))
        .filter(|(path, _)| !OTHERS.iter().any(|other| path.starts_with(other)) && !backup(path))
        .map(|(path, what)| (path.to_owned(), what.to_owned()))
        .collect()
}

/// What is in `after` and not, or not so, in `before`.
fn more(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> Vec<String> {
    after
        .iter()
        .filter(|(path, what)| before.get(*path) != Some(what))
        .map(|(path, _)| path.clone())
        .collect()
}
