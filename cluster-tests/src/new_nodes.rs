// SPDX-License-Identifier: Apache-2.0
//! Nodes as a reader of the book has them before the first command: a Debian that nobody has used, with ssh, the networks
//! and the bridge of `docs/install.md`, and no cluster.
//!
//! A bed has no way out, so the packages that the chapter installs lie in apt's own cache; apt, dpkg and the packages'
//! scripts do with them what they do everywhere.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::cache::{self, Key};
use crate::corosync::NodeFile;
use crate::rootfs;

/// What such a Debian has.
const SYSTEM: &[&str] = &[
    "systemd",
    "systemd-sysv",
    "dbus",
    "udev",
    "libpam-systemd",
    "iproute2",
    "iputils-ping",
    "procps",
    "kmod",
    "less",
    "ca-certificates",
    "openssh-server",
    "openssh-client",
];

/// What the chapter installs from Debian, or what that depends on.
const FETCHED: &[&str] = &["corosync", "pacemaker", "crmsh", "pcs", "resource-agents"];

/// Files of the network that the chapter takes for granted; it is there before anything that uses it.
const NETWORK: &str = "\
[Unit]
Description=The networks of docs/install.md
DefaultDependencies=no
Before=network.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=ip address add 192.168.0.NUMBER/24 dev eth0
ExecStart=ip address add 10.1.0.NUMBER/24 dev eth0
ExecStart=ip link add br0 type bridge
ExecStart=ip link set br0 up
";

/// The lower root of such nodes, made now when this machine has none yet (about two minutes, 600 MB).
///
/// # Errors
/// When `mmdebstrap` is missing or fails (no network, no space, not root).
pub(crate) fn rootfs() -> Result<PathBuf> {
    let mut key = Key::new().with(rootfs::SUITE.as_bytes());
    for package in SYSTEM {
        key = key.with(package.as_bytes());
    }
    cache::obtain("new-node", &key.with(fetch().as_bytes()), bootstrap)
}

/// mmdebstrap's own apt takes no recommended packages; a reader's does.
fn fetch() -> String {
    format!(
        "chroot \"$1\" apt-get -q -y -o APT::Install-Recommends=true --download-only install {}",
        FETCHED.join(" ")
    )
}

fn bootstrap(into: &Path) -> Result<()> {
    let fetch = fetch();
    rootfs::bootstrap(
        into,
        SYSTEM,
        &["--skip=cleanup/apt", &format!("--customize-hook={fetch}")],
    )
}

/// What tells the node `name`, the one with this number from 1, from the others.
pub(crate) fn files(names: &[String], name: &str, number: u8) -> Vec<NodeFile> {
    let file = |path, contents: String| NodeFile {
        path,
        contents,
        mode: 0o644,
        pacemaker: false,
    };
    let hosts: String = (1..)
        .zip(names)
        .map(|(number, name)| format!("192.168.0.{number} {name}\n"))
        .collect();
    vec![
        file("/etc/hostname", format!("{name}\n")),
        file("/etc/hosts", format!("127.0.0.1 localhost\n{hosts}")),
        // systemd makes one of its own.
        file("/etc/machine-id", String::new()),
        file(
            "/etc/systemd/system/networks.service",
            NETWORK.replace("NUMBER", &number.to_string()),
        ),
        file(
            "/etc/systemd/system/multi-user.target.d/networks.conf",
            "[Unit]\nWants=networks.service\n".to_owned(),
        ),
        file(
            "/root/.ssh/config",
            "Host *\n  StrictHostKeyChecking accept-new\n".to_owned(),
        ),
    ]
}
