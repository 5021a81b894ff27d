// SPDX-License-Identifier: Apache-2.0
//! The order of entries: Boot Loader Specification, "Sorting", as systemd-boot does it.

use std::cmp::Ordering;

use super::entry::Entry;
use crate::version;

/// Which entry comes first in the menu. Total, whatever the entries hold.
pub(super) fn compare(left: &Entry, right: &Entry) -> Ordering {
    used_up(left)
        .cmp(&used_up(right))
        .then_with(|| by_sort_key(left, right))
        // The name usually has the version in it: newer ones first.
        .then_with(|| version::compare(&right.id, &left.id))
        .then_with(|| by_tries(left, right))
        .then_with(|| left.file.cmp(&right.file))
        .then_with(|| left.volume.cmp(&right.volume))
}

/// Entries whose tries are used up come last.
fn used_up(entry: &Entry) -> bool {
    entry.tries.is_some_and(|tries| tries.left == 0)
}

/// Entries with a sort key come first; within a key, of one machine, the newest version first.
fn by_sort_key(left: &Entry, right: &Entry) -> Ordering {
    match (&left.sort_key, &right.sort_key) {
        (Some(left_key), Some(right_key)) => left_key
            .cmp(right_key)
            .then_with(|| left.machine_id.cmp(&right.machine_id))
            .then_with(|| {
                let version = |entry: &'_ Entry| entry.version.clone().unwrap_or_default();
                version::compare(&version(right), &version(left))
            }),
        (left_key, right_key) => left_key.is_none().cmp(&right_key.is_none()),
    }
}

/// More tries left first, then those that were tried less often.
fn by_tries(left: &Entry, right: &Entry) -> Ordering {
    let (Some(left), Some(right)) = (left.tries, right.tries) else {
        return Ordering::Equal;
    };
    right
        .left
        .cmp(&left.left)
        .then_with(|| left.done.cmp(&right.done))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::Volume;
    use crate::volumes::Volumes;

    fn sorted(entries: &[(&str, &str)]) -> Vec<String> {
        let volumes = Volumes::in_memory(vec![Volume::in_memory(1, "u", &[])]);
        let volume = volumes.find(|_| true).unwrap();
        let mut entries: Vec<Entry> = entries
            .iter()
            .map(|(file, text)| Entry::parse(volume, file, &format!("linux /k\n{text}")).unwrap())
            .collect();
        entries.sort_by(compare);
        entries.into_iter().map(|entry| entry.file).collect()
    }

    #[test]
    fn keys_then_versions_then_names() {
        let order = sorted(&[
            ("z-9.conf", ""),
            ("m.conf", "sort-key fedora\nversion 5"),
            ("z-10.conf", ""),
            ("n.conf", "sort-key fedora\nversion 6"),
            ("o.conf", "sort-key debian\nversion 1"),
            ("bad+0-1.conf", "sort-key aaa\nversion 99"),
        ]);
        assert_eq!(
            order,
            [
                "o.conf",
                "n.conf",
                "m.conf",
                "z-10.conf",
                "z-9.conf",
                "bad+0-1.conf"
            ]
        );
    }

    #[test]
    fn counters_decide_among_equals() {
        let order = sorted(&[("a+1-2.conf", ""), ("a+3.conf", ""), ("a+3-1.conf", "")]);
        assert_eq!(order, ["a+3.conf", "a+3-1.conf", "a+1-2.conf"]);
    }
}
