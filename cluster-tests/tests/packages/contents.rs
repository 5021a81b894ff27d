// SPDX-License-Identifier: Apache-2.0
//! What a package of each role holds, and what it must not.

use std::path::Path;
use std::process::Command;

use kemari_cluster_tests::package::{self, Role};

use crate::Sound;

/// What each package holds, beside the pages of the book and of the manual.
const BOTH: &[&str] = &[
    "/usr/sbin/kemari-agent",
    "/usr/bin/kemarictl",
    "/usr/lib/systemd/system/kemari-agent.service",
    "/usr/lib/tmpfiles.d/kemari.conf",
    "/usr/share/bash-completion/completions/kemarictl",
    "/usr/share/dbus-1/system.d/org.kemari.Agent.conf",
    "/usr/share/fish/vendor_completions.d/kemarictl.fish",
    "/usr/share/polkit-1/actions/org.kemari.policy",
    "/usr/share/doc/kemari/examples/agent.toml",
];

/// What is a host's only.
const HOST: &[&str] = &[
    "/etc/ufw/applications.d/kemari",
    "/usr/lib/firewalld/services/kemari.xml",
    "/usr/lib/ocf/resource.d/kemari/vm",
    "/usr/lib/systemd/system/kemari-vm@.service",
    "/usr/lib/systemd/system/kemari.slice",
    "/usr/lib/sysusers.d/kemari.conf",
    "/usr/sbin/kemari-engine",
    "/usr/share/doc/kemari/examples/cluster-crm.sh",
    "/usr/share/doc/kemari/examples/cluster-pcs.sh",
    "/usr/share/doc/kemari/examples/vm.toml",
    "/usr/share/doc/kemari/grafana/kemari.json",
    "/usr/share/doc/kemari/prometheus/kemari.rules.yml",
];

/// What a format needs that the other one has elsewhere or not at all.
fn own(role: Role) -> (Vec<String>, Vec<String>) {
    let name = role.package();
    let mut deb = vec![
        format!("/usr/share/doc/{name}/changelog.Debian.gz"),
        format!("/usr/share/doc/{name}/copyright"),
        format!("/usr/share/lintian/overrides/{name}"),
        "/usr/share/zsh/vendor-completions/_kemarictl".to_owned(),
    ];
    // needrestart is Debian's.
    if role == Role::Host {
        deb.push("/etc/needrestart/conf.d/kemari.conf".to_owned());
    }
    let rpm = vec![
        format!("/usr/share/licenses/{name}/LICENSE"),
        "/usr/share/zsh/site-functions/_kemarictl".to_owned(),
    ];
    (deb, rpm)
}

fn lines(program: &str, arguments: &[&str], file: &Path) -> Vec<String> {
    let output = Command::new(program)
        .args(arguments)
        .arg(file)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}; make installs it"));
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(str::to_owned).collect()
}

/// The files of a Debian package: mode and owner, path.
pub(crate) fn deb_files(role: Role) -> Vec<(String, String)> {
    let deb = package::deb(role).sound();
    lines("dpkg-deb", &["--contents"], &deb)
        .iter()
        .filter(|line| !line.starts_with('d'))
        .map(|line| {
            let mut words = line.split_whitespace();
            let mode = words.next().unwrap_or_default();
            let owner = words.next().unwrap_or_default();
            let path = line.split_once(" ./").unwrap_or_default().1;
            // cargo-deb writes numbers without names.
            let owner = match owner {
                "0/0" | "root/root" => "root:root",
                other => other,
            };
            (format!("{mode} {owner}"), format!("/{path}"))
        })
        .collect()
}

/// The same of an `.rpm`.
pub(crate) fn rpm_files(role: Role) -> Vec<(String, String)> {
    let rpm = package::rpm(role).sound();
    let format = "[%{FILEMODES:perms} %{FILEUSERNAME}:%{FILEGROUPNAME}\\t%{FILENAMES}\\n]";
    lines("rpm", &["-qp", "--queryformat", format], &rpm)
        .iter()
        .filter(|line| !line.starts_with('d'))
        .filter_map(|line| line.split_once('\t'))
        .map(|(mode, path)| (mode.to_owned(), path.to_owned()))
        .collect()
}

/// A page of the book or of the manual.
fn page(path: &str) -> bool {
    path.starts_with("/usr/share/man/")
        || (path.starts_with("/usr/share/doc/kemari/") && path.ends_with(".md"))
}

#[test]
fn each_package_holds_what_its_role_needs_and_nothing_else() {
    for role in [Role::Host, Role::Witness] {
        let mut expected: Vec<&str> = BOTH.to_vec();
        if role == Role::Host {
            expected.extend(HOST);
        }
        let (deb_own, rpm_own) = own(role);
        for (files, own) in [(deb_files(role), deb_own), (rpm_files(role), rpm_own)] {
            let mut expected: Vec<_> = expected.iter().map(|&path| path.to_owned()).collect();
            expected.extend(own);
            expected.sort();
            let mut found: Vec<_> = files.into_iter().map(|(_, path)| path).collect();
            found.retain(|path| !page(path));
            found.sort();
            assert_eq!(found, expected, "{role:?}");
        }
    }
}

#[test]
fn deb_and_rpm_hold_the_same_pages_with_the_same_modes() {
    for role in [Role::Host, Role::Witness] {
        let (deb_own, rpm_own) = own(role);
        let shared = |files: Vec<(String, String)>, own: &[String]| {
            let mut files: Vec<_> = files
                .into_iter()
                // cargo-deb compresses the manual.
                .map(|(mode, path)| match path.strip_suffix(".gz") {
                    Some(plain) if path.starts_with("/usr/share/man/") => (mode, plain.to_owned()),
                    _ => (mode, path),
                })
                .filter(|(_, path)| !own.contains(path))
                .collect();
            files.sort_by(|a, b| a.1.cmp(&b.1));
            files
        };
        let deb = shared(deb_files(role), &deb_own);
        assert_eq!(deb, shared(rpm_files(role), &rpm_own), "{role:?}");
        assert!(deb.iter().any(|(_, path)| path.ends_with("/kemarictl.1")));
        assert!(deb.iter().any(|(_, path)| path.ends_with("/install.md")));
        for (mode, path) in &deb {
            assert!(mode.ends_with(" root:root"), "{path}: {mode}");
        }
    }
}
