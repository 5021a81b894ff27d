// SPDX-License-Identifier: Apache-2.0
//! One screen for people.

use std::fmt::Write;

use super::overview::{Cluster, Measured, Overview, Replica, Vm};
use super::paint::{Paint, Tone};

const HEAD: [&str; 11] = [
    "VM",
    "NODE",
    "ROLE",
    "LICENCE",
    "SYNC",
    "GENERATION",
    "EPOCH",
    "LAG",
    "PAUSE",
    "RATE",
    "DETAIL",
];

/// The cluster in one line, its replicas in a table, and what is not protected.
pub(super) fn screen(overview: &Overview, paint: Paint) -> String {
    let mut text = overview
        .cluster
        .as_ref()
        .map_or_else(String::new, |cluster| heading(cluster, paint));
    text.push_str(&replicas(&overview.vms, paint));
    let mut first = true;
    for vm in &overview.vms {
        let bare = vm
            .why_not
            .as_ref()
            .map(|why| (Tone::Bad, format!("VM {} is not protected: {why}", vm.name)));
        for (tone, line) in bare.into_iter().chain(failed_links(vm)) {
            if std::mem::take(&mut first) {
                text.push('\n');
            }
            let _ = writeln!(text, "{}", paint.text(tone, &line));
        }
    }
    text
}

/// A pair with several links has lost some of them.
fn failed_links(vm: &Vm) -> impl Iterator<Item = (Tone, String)> {
    let links = vm
        .replicas
        .iter()
        .filter_map(|replica| replica.figures.as_ref())
        .map(|figures| &figures.links)
        .filter(|links| links.len() > 1);
    links
        .flatten()
        .filter(|link| link.state == "failed")
        .map(|link| {
            let line = format!(
                "VM {}: link {} failed: {}",
                vm.name, link.address, link.failure
            );
            (Tone::Doubtful, line)
        })
}

fn heading(cluster: &Cluster, paint: Paint) -> String {
    let quorum = if cluster.quorate {
        "has quorum".to_owned()
    } else {
        paint.text(Tone::Bad, "has no quorum: nothing is promoted")
    };
    let mut text = format!(
        "Node {} {quorum}; members: {}\n",
        cluster.node,
        cluster.members.join(" ")
    );
    let silent: Vec<&str> = cluster
        .members
        .iter()
        .filter(|node| !cluster.agents.contains(node))
        .map(String::as_str)
        .collect();
    if !silent.is_empty() {
        let line = format!("No kemari-agent on: {}", silent.join(" "));
        let _ = writeln!(text, "{}", paint.text(Tone::Doubtful, &line));
    }
    text.push('\n');
    text
}

fn replicas(vms: &[Vm], paint: Paint) -> String {
    let rows: Vec<[(String, Tone); 11]> = vms
        .iter()
        .flat_map(|vm| vm.replicas.iter().map(|replica| row(vm, replica)))
        .collect();
    if rows.is_empty() {
        return "No replicas.\n".to_owned();
    }
    let head = HEAD.map(|name| (name.to_owned(), Tone::Head));
    let widths: Vec<usize> = (0..HEAD.len())
        .map(|column| {
            let cells = rows.iter().chain([&head]);
            let length = |row: &[(String, Tone); 11]| {
                row.get(column).map_or(0, |(text, _)| text.chars().count())
            };
            cells.map(length).max().unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for row in std::iter::once(&head).chain(&rows) {
        let last = row.iter().rposition(|(cell, _)| !cell.is_empty());
        for (column, ((cell, tone), width)) in row.iter().zip(&widths).enumerate() {
            if last.is_some_and(|last| column > last) {
                break;
            }
            text.push_str(&paint.text(*tone, cell));
            if last.is_some_and(|last| column < last) {
                let gap = width.saturating_sub(cell.chars().count()) + 2;
                text.extend(std::iter::repeat_n(' ', gap));
            }
        }
        text.push('\n');
    }
    text
}

fn row(vm: &Vm, replica: &Replica) -> [(String, Tone); 11] {
    let plain = |text: String| (text, Tone::Neutral);
    let absent = if replica.present {
        ""
    } else {
        "node lost, last words: "
    };
    let role = match replica.role.as_str() {
        _ if !replica.present => Tone::Doubtful,
        "active" | "passive" => Tone::Good,
        "outdated" => Tone::Bad,
        _ => Tone::Doubtful,
    };
    let licence = match replica.licence.as_str() {
        "paired" => Tone::Good,
        "solo" => Tone::Doubtful,
        "cut" => Tone::Bad,
        _ => Tone::Neutral,
    };
    let sync = if replica.in_sync {
        ("yes".to_owned(), Tone::Neutral)
    } else {
        ("no".to_owned(), Tone::Doubtful)
    };
    let role_text = if replica.role == "active" && !replica.running {
        "active (stopped)".to_owned()
    } else {
        replica.role.clone()
    };
    // Of replicas elsewhere it is as old as their last change of state: beside this node's it would look like a lag.
    let epoch = match replica.here {
        true => replica.epoch.to_string(),
        false => "-".to_owned(),
    };
    let active = replica
        .figures
        .as_ref()
        .filter(|_| replica.role == "active");
    let figure = |show: fn(&Measured) -> String| plain(active.map_or_else(|| "-".to_owned(), show));
    [
        plain(vm.name.clone()),
        plain(replica.node.clone()),
        (role_text, role),
        (replica.licence.clone(), licence),
        sync,
        plain(replica.generation.to_string()),
        plain(epoch),
        figure(|measured| time(measured.lag_us)),
        figure(|measured| time(measured.pause_us)),
        figure(|measured| rate(measured.sent_bytes_per_s)),
        plain(format!("{absent}{}", replica.detail)),
    ]
}

/// A duration in the unit that suits it; `-` for none.
pub(super) fn time(us: u64) -> String {
    match us {
        0 => "-".to_owned(),
        1..1_000 => format!("{us} us"),
        1_000..1_000_000 => format!("{}.{} ms", us / 1_000, us % 1_000 / 100),
        _ => format!("{}.{} s", us / 1_000_000, us % 1_000_000 / 100_000),
    }
}

/// Bytes a second in the unit that suits it.
pub(super) fn rate(bytes_per_s: f64) -> String {
    const KIB: f64 = 1024.0;
    if bytes_per_s < KIB * KIB {
        format!("{:.0} KiB/s", bytes_per_s / KIB)
    } else {
        format!("{:.1} MiB/s", bytes_per_s / KIB / KIB)
    }
}

#[cfg(test)]
mod tests {
    use super::super::overview::tests::{replica, view};
    use super::super::overview::{Link, overview};
    use super::*;
    use kemari_api::{Licence, Role};
    use std::collections::BTreeMap;

    fn measured() -> Measured {
        Measured {
            lag_us: 12_345,
            pause_us: 480,
            commit_us: 900,
            checkpoints: 7,
            checkpoints_per_s: 50.0,
            sent_bytes: 1,
            sent_bytes_per_s: 3_000_000.0,
            queue_outputs: 0,
            queue_bytes: 0,
            copying: false,
            link_failures: 0,
            last_link_failure: String::new(),
            links: Vec::new(),
        }
    }

    #[test]
    fn the_screen_names_links_that_failed_where_there_are_several() {
        let link = |address: &str, state: &str, failure: &str| Link {
            address: address.to_owned(),
            state: state.to_owned(),
            failure: failure.to_owned(),
        };
        let shown = |links| {
            let view = view(vec![replica("n1", Role::Active, Licence::Paired, true)]);
            let figures = BTreeMap::from([(
                "web".parse().unwrap(),
                Measured {
                    links,
                    ..measured()
                },
            )]);
            let overview = overview(Some(&view), &view.replicas, &figures, None);
            screen(&overview, Paint::Plain)
        };
        let two = shown(vec![
            link("kemari:tls:10.0.1.2:4444", "failed", "silent"),
            link("kemari:tls:10.0.2.2:4444", "in use", ""),
        ]);
        assert!(
            two.ends_with("\n\nVM web: link kemari:tls:10.0.1.2:4444 failed: silent\n"),
            "{two}"
        );
        // Of a single one the reason why the VM is not protected tells.
        let one = shown(vec![link("kemari:tls:10.0.1.2:4444", "failed", "silent")]);
        assert!(!one.contains("link"), "{one}");
    }

    #[test]
    fn the_screen_shows_who_is_lost_who_is_silent_and_what_is_not_protected() {
        let view = view(vec![
            replica("n2", Role::Passive, Licence::None, false),
            replica("n1", Role::Active, Licence::Cut, true),
        ]);
        let figures = BTreeMap::from([("web".parse().unwrap(), measured())]);
        let text = screen(
            &overview(Some(&view), &view.replicas, &figures, None),
            Paint::Plain,
        );
        assert_eq!(
            text,
            "Node n1 has quorum; members: n1 n3\n\
             No kemari-agent on: n3\n\
             \n\
             VM   NODE  ROLE     LICENCE  SYNC  GENERATION  EPOCH  LAG      PAUSE   RATE       DETAIL\n\
             web  n1    active   cut      yes   3           9      12.3 ms  480 us  2.9 MiB/s  replicating\n\
             web  n2    passive  none     yes   3           -      -        -       -          node lost, last words: replicating\n\
             \n\
             VM web is not protected: outputs are held: its passive replica is out of reach, and nobody \
             may say yet that it is gone (runbook, \"Outputs are held\")\n"
        );
    }

    #[test]
    fn colours_do_not_move_columns() {
        let view = view(vec![replica("n1", Role::Active, Licence::Paired, true)]);
        let overview = overview(Some(&view), &view.replicas, &BTreeMap::new(), None);
        let painted = screen(&overview, Paint::Colours);
        let mut bare = String::new();
        let mut escape = false;
        for char in painted.chars() {
            match (escape, char) {
                (false, '\u{1b}') => escape = true,
                (true, 'm') => escape = false,
                (false, char) => bare.push(char),
                (true, _) => {}
            }
        }
        assert_ne!(painted, bare);
        assert_eq!(bare, screen(&overview, Paint::Plain));
    }

    #[test]
    fn durations_have_their_units() {
        assert_eq!(time(0), "-");
        assert_eq!(time(999), "999 us");
        assert_eq!(time(1_000), "1.0 ms");
        assert_eq!(time(2_500_000), "2.5 s");
        assert_eq!(rate(2048.0), "2 KiB/s");
    }
}
