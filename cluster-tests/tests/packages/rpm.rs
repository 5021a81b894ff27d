// SPDX-License-Identifier: Apache-2.0
//! The `.rpm`s by Debian's `rpm`: what they say of themselves, and installed into a root, upgraded and erased. That root
//! is Debian's; no distribution that uses rpm was tried.

use std::path::{Path, PathBuf};
use std::process::Command;

use kemari_cluster_tests::clean_root::CleanRoot;
use kemari_cluster_tests::package::{self, Role};

use crate::contents::rpm_files;
use crate::{Sound, more, paths, repository};

fn query(role: Role, arguments: &[&str]) -> String {
    let output = Command::new("rpm")
        .args(["-qp"])
        .args(arguments)
        .arg(package::rpm(role).sound())
        .output()
        .expect("make installs rpm");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn the_digests_are_sound_and_a_damaged_one_is_not() {
    let check = |path: &Path| {
        Command::new("rpm")
            .arg("-K")
            .arg(path)
            .output()
            .expect("rpm")
    };
    for role in [Role::Host, Role::Witness] {
        let rpm = package::rpm(role).sound();
        let sound = check(&rpm);
        assert!(sound.status.success(), "{sound:?}");
        let mut bytes = std::fs::read(&rpm).expect("the package");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        let place = tempfile::tempdir().expect("a directory");
        let damaged = place.path().join("damaged.rpm");
        std::fs::write(&damaged, bytes).expect("a file");
        assert!(!check(&damaged).status.success());
    }
}

#[test]
fn an_rpm_names_what_it_needs_and_what_it_excludes() {
    for (role, other) in [(Role::Host, Role::Witness), (Role::Witness, Role::Host)] {
        let requires = query(role, &["--requires"]);
        for needed in [
            "libcpg.so.4",
            "libc.so.6",
            "/bin/sh",
            "corosync >= 3.1",
            "pacemaker >= 2.1",
        ] {
            assert!(requires.contains(needed), "{role:?}: {needed}: {requires}");
        }
        assert_eq!(requires.contains("resource-agents"), role == Role::Host);
        assert_eq!(query(role, &["--conflicts"]).trim(), other.package());
        let of = "%{NAME} %{LICENSE} %{URL} %{SUMMARY}";
        let said = query(role, &["--queryformat", of]);
        assert!(
            said.starts_with(&format!("{} Apache-2.0 https://", role.package())),
            "{said}"
        );
        let config = query(role, &["--configfiles"]);
        let expected = match role {
            Role::Host => "/etc/ufw/applications.d/kemari",
            Role::Witness => "",
        };
        assert_eq!(config.trim(), expected);
    }
}

/// The same package with a lower version, by the tool that makes them.
fn previous(role: Role, place: &Path) -> PathBuf {
    let directory = match role {
        Role::Host => "ocf",
        Role::Witness => "agent",
    };
    let rpm = place.join(format!("{}-previous.rpm", role.package()));
    let made = Command::new(env!("CARGO"))
        .args(["generate-rpm", "--package", directory])
        .args([
            "--auto-req",
            "disabled",
            "--set-metadata",
            "version = \"0.0.9\"",
        ])
        .args(["--payload-compress", "gzip", "--output"])
        .arg(&rpm)
        .current_dir(repository())
        .output()
        .expect("cargo runs");
    assert!(
        made.status.success(),
        "make package has cargo-generate-rpm: {made:?}"
    );
    rpm
}

/// rpm's dependencies are packages that a Debian root does not have by these names.
const RPM: &str = "rpm --root $ROOT --nodeps";

#[test]
fn an_rpm_installs_upgrades_and_goes() {
    for role in [Role::Host, Role::Witness] {
        let name = role.package();
        let root = CleanRoot::new().sound();
        let place = tempfile::tempdir().expect("a directory");
        let old = previous(role, place.path());
        let new = package::rpm(role).sound();
        let before = paths(&root);
        let host = |script: &str| root.run_on_host(script).sound();

        host(&format!("{RPM} -i {}", old.display()));
        let installed = paths(&root);
        for (_, path) in rpm_files(role) {
            assert!(installed.contains_key(&path), "{path}");
        }
        assert_eq!(installed["/etc/kemari"].trim(), "d 755 root:root");
        assert_eq!(installed["/run/kemari"].trim(), "d 700 root:root");
        let user = root.attempt("id kemari").sound();
        assert_eq!(user.status.success(), role == Role::Host);
        root.run(
            "echo '{}' >/etc/kemari/cluster.key
             mkdir -p /var/lib/kemari/claims
             if [ -d /etc/ufw ]; then echo '# mine' >>/etc/ufw/applications.d/kemari; fi
             systemctl disable kemari-agent",
        )
        .sound();

        host(&format!("{RPM} -U {}", new.display()));
        assert_eq!(
            host(&format!("{RPM} -q {name} | grep -c ^{name}-0.0.9 || true")).trim(),
            "0"
        );
        let changed = host(&format!("{RPM} -V {name} || true"));
        let changed: Vec<_> = changed.lines().collect();
        match role {
            Role::Host => {
                assert!(
                    changed.len() == 1 && changed[0].ends_with("c /etc/ufw/applications.d/kemari")
                );
                root.run("grep mine /etc/ufw/applications.d/kemari").sound();
            }
            Role::Witness => assert_eq!(changed, Vec::<&str>::new()),
        }
        let state = root.attempt("systemctl is-enabled kemari-agent").sound();
        assert_eq!(String::from_utf8_lossy(&state.stdout).trim(), "disabled");

        host(&format!("{RPM} -e {name}"));
        let left = more(&before, &paths(&root));
        // rpm knows no purge; the runbook says what to delete.
        root.run("test -e /etc/kemari/cluster.key -a -d /var/lib/kemari/claims")
            .sound();
        let surprising: Vec<_> = left
            .iter()
            .filter(|path| rpm_files(role).iter().any(|(_, file)| file == *path))
            .collect();
        assert!(surprising.is_empty(), "{surprising:?}");
    }
}

#[test]
fn the_agent_stays_enabled_when_one_rpm_takes_the_others_place() {
    let root = CleanRoot::new().sound();
    let [host, witness] = [Role::Host, Role::Witness].map(|role| package::rpm(role).sound());
    root.run_on_host(&format!("{RPM} -i {}", host.display()))
        .sound();
    root.run("systemctl enable kemari-agent").sound();
    // As `dnf swap` does: the new one first, then the old one goes, in one transaction or two.
    root.run_on_host(&format!(
        "{RPM} -i --replacefiles {}; {RPM} -e kemari",
        witness.display()
    ))
    .sound();
    let state = root.run("systemctl is-enabled kemari-agent; kemarictl --version");
    assert!(state.sound().starts_with("enabled\n"));
    root.run("test ! -e /usr/sbin/kemari-engine -a ! -e /usr/lib/ocf/resource.d/kemari/vm")
        .sound();
    root.run_on_host(&format!("{RPM} -e kemari-witness"))
        .sound();
    let state = root.attempt("systemctl is-enabled kemari-agent").sound();
    assert!(!state.status.success(), "{state:?}");
}
