// SPDX-License-Identifier: Apache-2.0
//! The lower root that all nodes share: a Debian 12 tree with systemd, Corosync, Pacemaker and its shells.
//!
//! It is made once by `mmdebstrap` and never written again: nodes mount it read-only below an overlay.
//! Nothing of it is specific to a node or to Kemari; that is [`crate::site`]'s layer.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::cache::{self, Key};

/// Debian's release, the one the project targets.
pub const SUITE: &str = "bookworm";

/// What a node needs to boot and to be looked into.
const SYSTEM: &[&str] = &[
    "systemd",
    "systemd-sysv",
    "dbus",
    "dbus-bin",
    "udev",
    "libpam-systemd",
    "polkitd",
    "iproute2",
    "iputils-ping",
    "procps",
    "psmisc",
    "kmod",
    "python3",
    "ca-certificates",
    "less",
    "strace",
    "nftables",
    "tcpdump",
    "socat",
    "openssl",
    "libxml2-utils",
    "time",
    // The other VMM, which Kemari's is measured against.
    "qemu-system-x86",
];

/// What a node uses as a client of servers that run in the cluster.
const CLIENTS: &[&str] = &["postgresql-client-15", "redis-tools"];

/// The cluster, and the libraries that Kemari's agent links.
const CLUSTER: &[&str] = &[
    "libcpg4",
    "libcfg7",
    "libcmap4",
    "libquorum5",
    "libvotequorum8",
    "corosync",
    "corosync-notifyd",
    "corosync-qdevice",
    "corosync-qnetd",
    "pacemaker",
    "pacemaker-cli-utils",
    "crmsh",
    "pcs",
    "resource-agents",
    "fence-agents",
];

/// What starts the other VMM under Pacemaker. Not in every root: systemd-machined comes with it, which Kemari's agent tells of its
/// VMs, and which takes an emulated node a minute to start.
const LIBVIRT: &[&str] = &["libvirt-daemon-system", "libvirt-clients"];

/// What nodes have besides a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Extras {
    /// Nothing.
    #[default]
    None,
    /// libvirt, for [`crate::virtual_domain`].
    Libvirt,
}

impl Extras {
    const fn packages(self) -> &'static [&'static str] {
        match self {
            Self::None => &[],
            Self::Libvirt => LIBVIRT,
        }
    }
}

/// The shared lower root, made now when this machine has none yet (about a minute, 600 MB).
///
/// # Errors
/// When `mmdebstrap` is missing or fails (no network, no space, not root).
pub fn ensure(extras: Extras) -> Result<PathBuf> {
    let packages = [SYSTEM, CLIENTS, CLUSTER, extras.packages()].concat();
    let key = packages
        .iter()
        .fold(Key::new().with(SUITE.as_bytes()), |key, package| {
            key.with(package.as_bytes())
        });
    cache::obtain("rootfs", &key, |into| {
        let lean = "--aptopt=APT::Install-Recommends \"false\"";
        bootstrap(into, &packages, &[lean])
    })
}

/// Makes a Debian tree with these packages; `options` are more of mmdebstrap's.
pub(crate) fn bootstrap(into: &Path, packages: &[&str], options: &[&str]) -> Result<()> {
    eprintln!(
        "rootfs: building Debian {SUITE} with mmdebstrap, a minute or more, once per machine"
    );
    let begin = Instant::now();
    // Its own mount and pid namespaces: what mmdebstrap mounts in the tree is gone with it, even when it is killed.
    let status = Command::new("unshare")
        .args(["--mount", "--pid", "--fork", "--mount-proc"])
        .args(["--propagation", "private", "--kill-child=SIGKILL", "--"])
        .args(["mmdebstrap", "--mode=root", "--variant=minbase"])
        .arg(format!("--include={}", packages.join(",")))
        .args(options)
        .arg("--dpkgopt=path-exclude=/usr/share/locale/*")
        .arg("--format=directory")
        .arg(SUITE)
        .arg(into)
        .env("TMPDIR", cache::directory())
        .status()
        .context("Cannot run unshare")?;
    ensure!(
        status.success(),
        "mmdebstrap ended with {status}; its own message is above (is the package mmdebstrap installed, is this root?)"
    );
    eprintln!("rootfs: done after {} s", begin.elapsed().as_secs());
    Ok(())
}
