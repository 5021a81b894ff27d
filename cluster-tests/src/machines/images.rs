// SPDX-License-Identifier: Apache-2.0
//! Disk images: the shared read-only ones, made once and cached, and the one each node owns.
//!
//! All are plain ext4 made by `mkfs.ext4 -d`, without mounting anything. A block device is several times faster
//! than a 9p share under emulation. Overlay whiteouts and opaque marks survive: `mkfs.ext4` copies device nodes
//! and extended attributes.

use std::fs::{self, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::sys::stat::{Mode, SFlag, mknod};

use crate::cache::{self, Key};
use crate::corosync::Cluster;

/// The agent that runs commands in a node.
const AGENT: &str = include_str!("node-agent.py");

const AGENT_PATH: &str = "/usr/lib/kemari-test-bed/node-agent.py";

const AGENT_UNIT: &str = "\
[Unit]
Description=Commands of the test bed
DefaultDependencies=no
After=basic.target dbus.service

[Service]
ExecStart=/usr/bin/python3 -ISE /usr/lib/kemari-test-bed/node-agent.py
Restart=always
OOMScoreAdjust=-1000
# What a command left behind is not the agent's to kill.
KillMode=process

[Install]
WantedBy=multi-user.target
";

/// The journal stays on the disk and is copied to a port of the machine, where it outlives the machine.
const JOURNAL: &str = "\
[Journal]
ForwardToConsole=yes
TTYPath=/dev/hvc0
MaxLevelConsole=info
Audit=no
ReadKMsg=no
";

/// Three emulated machines on two busy cores can need longer than the 90 s that systemd grants a service.
const PATIENCE: &str = "[Manager]\nDefaultTimeoutStartSec=300\nDefaultTimeoutStopSec=300\n";

/// Units that a test node does not need and that cost seconds under emulation. No udev: devtmpfs makes the nodes.
const MASKED: &[&str] = &[
    "console-getty.service",
    "cryptsetup.target",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "e2scrub_all.timer",
    "getty.target",
    "integritysetup.target",
    "kmod-static-nodes.service",
    "modprobe@configfs.service",
    "proc-sys-fs-binfmt_misc.automount",
    "remote-fs.target",
    "serial-getty@ttyS0.service",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-ask-password-console.path",
    "systemd-ask-password-wall.path",
    "systemd-binfmt.service",
    "systemd-firstboot.service",
    "systemd-initctl.socket",
    "systemd-journald-audit.socket",
    "systemd-machine-id-commit.service",
    "systemd-modules-load.service",
    "systemd-pcrphase-sysinit.service",
    "systemd-pcrphase.service",
    "systemd-random-seed.service",
    "systemd-remount-fs.service",
    "systemd-repart.service",
    "systemd-sysctl.service",
    "systemd-sysusers.service",
    "systemd-tmpfiles-clean.timer",
    "systemd-tmpfiles-setup-dev.service",
    "systemd-udev-settle.service",
    "systemd-udev-trigger.service",
    "systemd-udevd-control.socket",
    "systemd-udevd-kernel.socket",
    "systemd-udevd.service",
    "systemd-update-utmp-runlevel.service",
    "systemd-update-utmp.service",
    "systemd-user-sessions.service",
    "veritysetup.target",
];

/// Size of a shared image in MiB; the file is sparse.
const SHARED_MIB: u32 = 4096;
/// Size of a node's own disk in MiB; sparse too.
const OWN_MIB: u32 = 2048;

/// The read-only image of a tree, made when the cache has none.
///
/// # Errors
/// When the tree cannot be read or `mkfs.ext4` fails.
pub(crate) fn shared(kind: &str, tree: &Path) -> Result<PathBuf> {
    let key = Key::new()
        .with(tree.as_os_str().as_encoded_bytes())
        .with(&SHARED_MIB.to_le_bytes());
    let directory = cache::obtain(&format!("image-{kind}"), &key, |into| {
        eprintln!("machines: making the {kind} image");
        make(
            tree,
            &into.join("image"),
            SHARED_MIB,
            &["-O", "^has_journal"],
        )
    })?;
    Ok(directory.join("image"))
}

/// What makes a node's own disk.
pub(crate) struct Own<'bed> {
    pub(crate) rootfs: &'bed Path,
    pub(crate) cluster: &'bed Cluster,
    pub(crate) node: &'bed str,
    /// Whether a boot starts Corosync and Pacemaker.
    pub(crate) cluster_at_boot: bool,
}

impl Own<'_> {
    /// Makes the disk: `upper` and `work` of the node's overlay, with all that tells it from other nodes.
    ///
    /// # Errors
    /// When files cannot be written beside `image` or `mkfs.ext4` fails.
    pub(crate) fn make(&self, image: &Path) -> Result<()> {
        let stage = Stage::new(&image.with_extension("stage"))?;
        for file in self.cluster.files(self.node) {
            stage.file(file.path, file.contents.as_bytes(), file.mode)?;
        }
        stage.give_to_pacemaker(self.rootfs)?;
        stage.file(AGENT_PATH, AGENT.as_bytes(), 0o644)?;
        stage.file(
            "/etc/systemd/journald.conf.d/virtual-machine.conf",
            JOURNAL.as_bytes(),
            0o644,
        )?;
        stage.file(
            "/etc/systemd/system.conf.d/test-bed.conf",
            PATIENCE.as_bytes(),
            0o644,
        )?;
        stage.file(
            "/etc/systemd/system/pacemaker.service.d/test-bed.conf",
            b"[Service]\nTimeoutStartSec=300\n",
            0o644,
        )?;
        stage.units(self.rootfs, self.cluster_at_boot)?;
        make(&stage.root, image, OWN_MIB, &[])?;
        fs::remove_dir_all(&stage.root).context("Cannot remove a staging directory")
    }
}

fn make(tree: &Path, image: &Path, size_mib: u32, options: &[&str]) -> Result<()> {
    let output = Command::new("/usr/sbin/mkfs.ext4")
        .args(["-q", "-F", "-E", "root_owner=0:0"])
        .args(options)
        .arg("-d")
        .args([tree, image])
        .arg(format!("{size_mib}m"))
        .output()
        .context("Cannot run mkfs.ext4; is the package e2fsprogs installed?")?;
    ensure!(
        output.status.success(),
        "mkfs.ext4 of {} ended with {}: {}",
        tree.display(),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

/// The contents of a node's disk before the image is made of it.
struct Stage {
    root: PathBuf,
}

impl Stage {
    fn new(root: &Path) -> Result<Self> {
        for part in ["upper", "work"] {
            fs::create_dir_all(root.join(part))
                .with_context(|| format!("Cannot create {}", root.display()))?;
        }
        Ok(Self { root: root.into() })
    }

    fn place(&self, path: &str) -> Result<PathBuf> {
        let place = self.root.join("upper").join(path.trim_start_matches('/'));
        if let Some(parent) = place.parent() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(parent)
                .with_context(|| format!("Cannot create {}", parent.display()))?;
        }
        Ok(place)
    }

    fn file(&self, path: &str, contents: &[u8], mode: u32) -> Result<()> {
        let place = self.place(path)?;
        fs::write(&place, contents)
            .and_then(|()| fs::set_permissions(&place, Permissions::from_mode(mode)))
            .with_context(|| format!("Cannot write {}", place.display()))
    }

    fn link(&self, path: &str, target: &str) -> Result<()> {
        let place = self.place(path)?;
        symlink(target, &place).with_context(|| format!("Cannot link {}", place.display()))
    }

    /// Hides a file of the layers below.
    fn hide(&self, path: &str) -> Result<()> {
        let place = self.place(path)?;
        mknod(&place, SFlag::S_IFCHR, Mode::empty(), 0)
            .with_context(|| format!("Cannot make the whiteout {}", place.display()))
    }

    fn units(&self, rootfs: &Path, cluster_at_boot: bool) -> Result<()> {
        for unit in MASKED {
            self.link(&format!("/etc/systemd/system/{unit}"), "/dev/null")?;
        }
        // Generators look for disks, ttys and old init scripts that are not there.
        let generators = rootfs.join("usr/lib/systemd/system-generators");
        for generator in fs::read_dir(&generators)
            .with_context(|| format!("Cannot read {}", generators.display()))?
        {
            let name = generator?.file_name().to_string_lossy().into_owned();
            self.link(
                &format!("/etc/systemd/system-generators/{name}"),
                "/dev/null",
            )?;
        }
        // Started on demand through D-Bus.
        self.hide("/usr/lib/systemd/system/multi-user.target.wants/systemd-logind.service")?;
        self.link(
            "/etc/systemd/system/default.target",
            "/usr/lib/systemd/system/multi-user.target",
        )?;
        const WANTS: &str = "/etc/systemd/system/multi-user.target.wants";
        self.file(
            "/etc/systemd/system/bed-agent.service",
            AGENT_UNIT.as_bytes(),
            0o644,
        )?;
        self.link(
            &format!("{WANTS}/bed-agent.service"),
            "/etc/systemd/system/bed-agent.service",
        )?;
        if cluster_at_boot {
            for unit in ["corosync", "pacemaker"] {
                self.link(
                    &format!("{WANTS}/{unit}.service"),
                    &format!("/lib/systemd/system/{unit}.service"),
                )?;
            }
        }
        Ok(())
    }

    /// The first CIB and the directories above it belong to Pacemaker's own user.
    fn give_to_pacemaker(&self, rootfs: &Path) -> Result<()> {
        let (user, group) = pacemaker_owner(rootfs)?;
        for (path, mode) in [
            ("/var/lib/pacemaker", 0o750),
            ("/var/lib/pacemaker/cib", 0o750),
            ("/var/lib/pacemaker/cib/cib.xml", 0o600),
        ] {
            let place = self.place(path)?;
            chown(&place, Some(user), Some(group))
                .and_then(|()| fs::set_permissions(&place, Permissions::from_mode(mode)))
                .with_context(|| format!("Cannot change the owner of {}", place.display()))?;
        }
        Ok(())
    }
}

/// `hacluster`'s user and group number in the shared root.
fn pacemaker_owner(rootfs: &Path) -> Result<(u32, u32)> {
    let path = rootfs.join("etc/passwd");
    let table =
        fs::read_to_string(&path).with_context(|| format!("Cannot read {}", path.display()))?;
    owner_in(&table).with_context(|| format!("{} has no user hacluster", path.display()))
}

fn owner_in(passwd: &str) -> Option<(u32, u32)> {
    let mut fields = passwd
        .lines()
        .find(|line| line.starts_with("hacluster:"))?
        .split(':')
        .skip(2)
        .map(str::parse);
    Some((fields.next()?.ok()?, fields.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_owner_of_the_cib_is_found_in_passwd() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nhacluster:x:104:107::/var/lib/pacemaker:/usr/sbin/nologin\n";
        assert_eq!(super::owner_in(passwd), Some((104, 107)));
        assert_eq!(super::owner_in("root:x:0:0::/:/bin/sh\n"), None);
    }
}
