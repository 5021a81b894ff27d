// SPDX-License-Identifier: Apache-2.0
//! The Debian packages in a root without running services: install, remove, purge, upgrade, and one in the other's place.

use std::collections::BTreeSet;

use kemari_cluster_tests::clean_root::CleanRoot;
use kemari_cluster_tests::package::{self, PREVIOUS_VERSION, Role};

use crate::contents::deb_files;
use crate::{Sound, more, paths};

/// A root with this package lent to it, and the package's path inside.
fn lent(role: Role) -> (CleanRoot, String) {
    let root = CleanRoot::new().sound();
    let deb = root.lend(&package::deb(role).sound()).sound();
    (root, deb)
}

/// What only this package's scripts make; the rest is what it holds.
fn made(role: Role) -> Vec<&'static str> {
    let mut made = vec![
        "/etc/kemari",
        "/etc/systemd/system/multi-user.target.wants/kemari-agent.service",
        "/run/kemari",
        "/var/lib/systemd/deb-systemd-helper-enabled/kemari-agent.service.dsh-also",
        "/var/lib/systemd/deb-systemd-helper-enabled/multi-user.target.wants/kemari-agent.service",
    ];
    if role == Role::Host {
        made.push("/var/lib/systemd/deb-systemd-helper-enabled/multi-user.target.wants");
    }
    made
}

/// What the scripts touch that is everybody's.
const EVERYBODYS: &[&str] = &[
    "/etc/.pwd.lock",
    "/etc/group",
    "/etc/gshadow",
    "/etc/passwd",
    "/etc/shadow",
    "/run/systemd",
];

/// What an administrator and a running cluster add.
fn use_it(root: &CleanRoot, role: Role) {
    root.run(
        "mkdir -p /var/lib/kemari/claims && chmod 700 /var/lib/kemari
         echo '{}' >/var/lib/kemari/claims/vm.json",
    )
    .sound();
    if role == Role::Host {
        root.run(
            "kemarictl keygen >/dev/null
             cp /usr/share/doc/kemari/examples/vm.toml /etc/kemari/vm.toml
             echo '# mine' >>/etc/ufw/applications.d/kemari",
        )
        .sound();
    }
}

const RECORD: &str = "/var/lib/kemari/claims/vm.json";
const KEY: &str = "/etc/kemari/cluster.key";
const DESCRIPTION: &str = "/etc/kemari/vm.toml";
const CONFFILE: &str = "/etc/ufw/applications.d/kemari";

fn enabled(root: &CleanRoot) -> String {
    let output = root.attempt("systemctl is-enabled kemari-agent").sound();
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn a_fresh_install_leaves_exactly_the_packages_files_and_a_purge_nothing() {
    for role in [Role::Host, Role::Witness] {
        let (root, deb) = lent(role);
        let before = paths(&root);
        root.run(&format!("dpkg -i {deb}")).sound();
        let installed = paths(&root);

        let mut listed: BTreeSet<String> = deb_files(role).into_iter().map(|f| f.1).collect();
        listed.extend(made(role).into_iter().map(str::to_owned));
        for path in &listed {
            assert!(installed.contains_key(path), "{role:?}: {path} is missing");
        }
        let parent = |path: &String| {
            listed
                .iter()
                .any(|file| file.starts_with(&format!("{path}/")))
        };
        let surprising: Vec<_> = more(&before, &installed)
            .into_iter()
            .filter(|path| !listed.contains(path) && !parent(path))
            .filter(|path| !EVERYBODYS.contains(&path.as_str()))
            .collect();
        assert!(surprising.is_empty(), "{role:?}: {surprising:#?}");

        assert_eq!(installed["/etc/kemari"].trim(), "d 755 root:root");
        assert_eq!(installed["/run/kemari"].trim(), "d 700 root:root");
        assert_eq!(enabled(&root), "enabled");
        let user = root.attempt("id kemari").sound();
        assert_eq!(user.status.success(), role == Role::Host, "{user:?}");
        let groups = String::from_utf8_lossy(&user.stdout);
        assert!(
            role == Role::Witness || groups.contains("(kvm)"),
            "{groups}"
        );

        root.run("dpkg --purge $(dpkg-query -W -f '${Package}\\n' 'kemari*')")
            .sound();
        let purged = paths(&root);
        let left: Vec<_> = more(&before, &purged)
            .into_iter()
            .filter(|path| !EVERYBODYS.contains(&path.as_str()))
            .collect();
        assert!(left.is_empty(), "{role:?}: left by purge: {left:#?}");
        assert_eq!(
            more(&purged, &before),
            more(&before, &purged),
            "lost by purge"
        );
    }
}

#[test]
fn what_is_installed_runs_and_is_well_formed() {
    for role in [Role::Host, Role::Witness] {
        let (root, deb) = lent(role);
        root.run(&format!("dpkg -i {deb}")).sound();
        root.run(
            "kemari-agent --version; kemarictl --version
             xmllint --noout /usr/share/polkit-1/actions/org.kemari.policy
             xmllint --noout --nonet /usr/share/dbus-1/system.d/org.kemari.Agent.conf
             systemd-analyze verify --man=no /usr/lib/systemd/system/kemari-agent.service
             bash -n /usr/share/bash-completion/completions/kemarictl",
        )
        .sound();
        if role == Role::Host {
            root.run(
                "kemari-engine --version
                 /usr/lib/ocf/resource.d/kemari/vm meta-data | xmllint --noout -
                 xmllint --noout /usr/lib/firewalld/services/kemari.xml
                 systemd-analyze verify --man=no /usr/lib/systemd/system/kemari-vm@vm.service
                 for script in /usr/share/doc/kemari/examples/*.sh; do sh -n \"$script\"; done",
            )
            .sound();
            // As needrestart reads it.
            let verdict = root.run(
                "perl -e 'my %nrconf; eval do { local(@ARGV, $/) = shift; <> }; die $@ if $@;
                     my ($re) = grep { \"kemari-vm\\@vm.service\" =~ /$_/ } keys %{$nrconf{override_rc}};
                     print $nrconf{override_rc}{$re};' /etc/needrestart/conf.d/kemari.conf",
            );
            assert_eq!(verdict.sound(), "0", "needrestart leaves engines alone");
        }
    }
}

#[test]
fn a_removal_keeps_what_a_cluster_needs_and_a_purge_takes_it() {
    let (root, deb) = lent(Role::Host);
    root.run(&format!("dpkg -i {deb}")).sound();
    use_it(&root, Role::Host);
    let key = root.run(&format!("cat {KEY}")).sound();

    root.run("dpkg --remove kemari").sound();
    root.run(&format!(
        "test ! -e /usr/sbin/kemari-agent
         test -e {RECORD} -a -e {DESCRIPTION}
         grep mine {CONFFILE}"
    ))
    .sound();
    assert_eq!(root.run(&format!("cat {KEY}")).sound(), key);
    assert_eq!(enabled(&root), "masked");

    root.run(&format!("dpkg -i {deb}")).sound();
    assert_eq!(enabled(&root), "enabled");
    assert_eq!(root.run(&format!("cat {KEY}")).sound(), key);
    root.run(&format!("test -e {RECORD}; grep mine {CONFFILE}"))
        .sound();

    let said = root.run("dpkg --purge kemari").sound();
    assert!(said.contains("kemari: /etc/kemari stays"), "{said}");
    root.run(&format!(
        "test -e {DESCRIPTION}
         test ! -e {KEY} -a ! -e /var/lib/kemari -a ! -e {CONFFILE} -a ! -e /etc/needrestart"
    ))
    .sound();
}

#[test]
fn the_scripts_may_run_again() {
    for role in [Role::Host, Role::Witness] {
        let name = role.package();
        let (root, deb) = lent(role);
        root.run(&format!("dpkg -i {deb}")).sound();
        use_it(&root, role);
        let once = paths(&root);
        root.run(&format!(
            "/var/lib/dpkg/info/{name}.postinst configure
             /var/lib/dpkg/info/{name}.postinst configure 0.0.9-1
             /var/lib/dpkg/info/{name}.prerm upgrade 0.2.0-1
             /var/lib/dpkg/info/{name}.postinst abort-upgrade 0.2.0-1
             /var/lib/dpkg/info/{name}.postrm upgrade 0.2.0-1
             /var/lib/dpkg/info/{name}.prerm remove
             /var/lib/dpkg/info/{name}.postinst abort-remove
             dpkg -i {deb}"
        ))
        .sound();
        let twice = paths(&root);
        assert_eq!(more(&once, &twice), Vec::<String>::new());
        assert_eq!(more(&twice, &once), Vec::<String>::new());

        root.run(&format!(
            "cp /var/lib/dpkg/info/{name}.postrm /tmp/postrm
             dpkg --purge {name}
             for again in 1 2; do /tmp/postrm remove; /tmp/postrm purge; done"
        ))
        .sound();
        assert_eq!(enabled(&root), "", "neither masked nor enabled");
    }
}

#[test]
fn an_upgrade_keeps_what_the_administrator_changed_and_renews_the_rest() {
    for role in [Role::Host, Role::Witness] {
        let name = role.package();
        let (root, deb) = lent(role);
        let place = tempfile::tempdir().expect("a directory");
        let old = root
            .lend(&package::previous_deb(role, place.path()).sound())
            .sound();
        root.run(&format!("dpkg -i {old}")).sound();
        use_it(&root, role);
        root.run(
            "grep WatchdogSec=77 /usr/lib/systemd/system/kemari-agent.service
             systemctl disable kemari-agent",
        )
        .sound();
        root.run(&format!("dpkg -i {deb}")).sound();
        root.run(&format!(
            "test ! -e /usr/share/kemari
             test -e {RECORD}
             ! grep WatchdogSec=77 /usr/lib/systemd/system/kemari-agent.service
             dpkg-query -W -f '${{Version}}' {name} | grep -v {PREVIOUS_VERSION}"
        ))
        .sound();
        assert_eq!(enabled(&root), "disabled", "an upgrade enables nothing");
        if role == Role::Host {
            root.run(&format!(
                "grep mine {CONFFILE}
                 test -e {KEY} -a -e {DESCRIPTION}
                 ! grep previous /etc/needrestart/conf.d/kemari.conf"
            ))
            .sound();
        }
    }
}

#[test]
fn a_host_becomes_a_witness_and_a_host_again() {
    let (root, host) = lent(Role::Host);
    let witness = root.lend(&package::deb(Role::Witness).sound()).sound();
    root.run(&format!("dpkg -i {host}")).sound();
    use_it(&root, Role::Host);
    let kept = format!("test -e {RECORD} -a -e {KEY} -a -e {DESCRIPTION}; kemarictl --version");

    // As the book says it; nothing has to be fetched.
    root.run(&format!("apt-get install -y {witness}")).sound();
    root.run("! dpkg -s kemari | grep '^Status: .* installed'")
        .sound();
    root.run("test ! -e /usr/sbin/kemari-engine -a ! -e /usr/lib/ocf/resource.d/kemari/vm")
        .sound();
    root.run(&kept).sound();
    assert_eq!(enabled(&root), "enabled");

    // What is left of the other one is no reason to lose what is in use.
    root.run("dpkg --purge kemari").sound();
    root.run(&kept).sound();
    assert_eq!(enabled(&root), "enabled");

    root.run(&format!("apt-get install -y {host}")).sound();
    root.run("kemari-engine --version; ! dpkg -s kemari-witness | grep '^Status: .* installed'")
        .sound();
    root.run("dpkg --purge kemari-witness").sound();
    root.run(&kept).sound();
    assert_eq!(enabled(&root), "enabled");
}
