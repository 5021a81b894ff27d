// SPDX-License-Identifier: Apache-2.0
//! The server guest of the tests: an unmodified Debian 12 with its stock kernel, systemd, PostgreSQL, Redis, nginx.
//!
//! Nothing in it knows of Kemari. `mmdebstrap` installs it, `customize.sh` does what an administrator would: the network by
//! DHCP, daemons that listen on it, a key for ssh, no timers. It logs in on `ttyS0` as `root` with the password `debian`.
//!
//! The disk is one ext4 without a partition table, or, made of the same when asked for, one in the only partition of a GPT.
//! There is no boot loader: kernel and initial RAM disk lie in `/boot` under Debian's names, and beside the image.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::cache::{self, Key};
use crate::rootfs::SUITE;

const CUSTOMIZE: &str = include_str!("debian_guest/customize.sh");

/// The root file system's UUID, the same in every image.
pub const ROOT_UUID: &str = "3f1c9a52-7d84-4b0e-9c66-2a5d8e7b4f10";
/// The root file system's label.
pub const ROOT_LABEL: &str = "server-root";
/// Root's password, for the console.
pub const PASSWORD: &str = "debian";

/// The image's size; the file is sparse.
const SIZE_MIB: u32 = 4096;
/// How long an image is kept that no test asked for.
const UNUSED: Duration = Duration::from_secs(3 * 24 * 3600);
/// Where the partition of the other variant begins.
const PARTITION_AT_MIB: u32 = 1;

/// A small server as Debian's installer leaves it, and what it serves.
const PACKAGES: &[&str] = &[
    "linux-image-cloud-amd64",
    "initramfs-tools",
    "busybox",
    "zstd",
    "systemd",
    "systemd-sysv",
    "udev",
    "dbus",
    "libpam-systemd",
    "cron",
    "logrotate",
    "kmod",
    "procps",
    "psmisc",
    "less",
    "nano",
    "e2fsprogs",
    "fdisk",
    "iproute2",
    "iputils-ping",
    "ca-certificates",
    "curl",
    "openssh-server",
    "nginx-light",
    "postgresql",
    "postgresql-contrib",
    "redis-server",
    "fio",
    "iperf3",
    "xz-utils",
    "python3",
    "gcc",
    "libc6-dev",
    "make",
];

/// The fstab that the installer would have written. It must be there when the initial RAM disk is made, which takes its
/// `fsck` from it.
const FSTAB_HOOK: &str = "mkdir -p \"$1/etc\" && printf 'UUID=%s / ext4 errors=remount-ro 0 1\\n' \"$ROOT_UUID\" >\"$1/etc/fstab\"";

/// The files of the guest.
#[derive(Debug, Clone)]
pub struct DebianGuest {
    directory: PathBuf,
}

/// The guest's files, made now when the cache lacks them (two to three minutes, 1.2 GB).
///
/// # Errors
/// When `mmdebstrap` or `mkfs.ext4` is missing or fails (no network, no space, not root).
pub fn ensure() -> Result<DebianGuest> {
    let mut key = Key::new()
        .with(SUITE.as_bytes())
        .with(CUSTOMIZE.as_bytes())
        .with(FSTAB_HOOK.as_bytes())
        .with(ROOT_UUID.as_bytes())
        .with(&SIZE_MIB.to_le_bytes());
    for package in PACKAGES {
        key = key.with(package.as_bytes());
    }
    let directory = cache::obtain("debian-guest", &key, build)?;
    Ok(DebianGuest { directory })
}

impl DebianGuest {
    /// A raw image: one ext4, no partition table.
    pub fn disk(&self) -> PathBuf {
        self.directory.join("disk.raw")
    }

    /// The same in the only partition of a GPT, made now when the cache lacks it.
    ///
    /// # Errors
    /// When `sfdisk` is missing (Debian: fdisk) or there is no space.
    pub fn partitioned_disk(&self) -> Result<PathBuf> {
        let key = Key::new()
            .with(self.directory.as_os_str().as_encoded_bytes())
            .with(&PARTITION_AT_MIB.to_le_bytes());
        let tree = cache::obtain("debian-guest-gpt", &key, |into| {
            partition(&self.disk(), &into.join("disk.raw"))
        })?;
        Ok(tree.join("disk.raw"))
    }

    /// A copy of the `bzImage` in `/boot`.
    pub fn kernel(&self) -> PathBuf {
        self.directory.join("vmlinuz")
    }

    /// A copy of the initial RAM disk in `/boot`, as initramfs-tools made it.
    pub fn initrd(&self) -> PathBuf {
        self.directory.join("initrd.img")
    }

    /// The private half of root's ssh key.
    pub fn ssh_key(&self) -> PathBuf {
        self.directory.join("id_ed25519")
    }

    /// The command line that Debian's boot loader would pass, with the console on the serial port.
    pub fn command_line(&self) -> String {
        format!("root=UUID={ROOT_UUID} ro console=ttyS0,115200 quiet")
    }
}

fn build(into: &Path) -> Result<()> {
    // Every change of the recipe makes another image, and images are large.
    cache::forget("debian-guest", UNUSED)?;
    eprintln!("debian-guest: building a Debian {SUITE} server, some minutes, once per machine");
    let begin = Instant::now();
    let tree = into.join("tree");
    bootstrap(&tree)?;
    for (from, to) in [
        ("vmlinuz", "vmlinuz"),
        ("initrd.img", "initrd.img"),
        ("root/.ssh/id_ed25519", "id_ed25519"),
    ] {
        let (from, to) = (tree.join(from), into.join(to));
        fs::copy(&from, &to).with_context(|| format!("Cannot copy {}", from.display()))?;
    }
    // The server knows who may come in, not how to get into others.
    fs::remove_file(tree.join("root/.ssh/id_ed25519"))?;
    run(Command::new("/usr/sbin/mkfs.ext4")
        .args(["-q", "-F", "-E", "root_owner=0:0", "-U", ROOT_UUID])
        .args(["-L", ROOT_LABEL, "-d"])
        .args([&tree, &into.join("disk.raw")])
        .arg(format!("{SIZE_MIB}m")))?;
    fs::remove_dir_all(&tree).context("Cannot remove the tree behind the image")?;
    eprintln!("debian-guest: done after {} s", begin.elapsed().as_secs());
    Ok(())
}

/// Installs the system into a directory. Mount and pid namespaces of its own: what `mmdebstrap` mounts is gone with it.
fn bootstrap(tree: &Path) -> Result<()> {
    let hook = tree.with_file_name("customize.sh");
    fs::write(&hook, CUSTOMIZE).context("Cannot write customize.sh")?;
    run(Command::new("unshare")
        .args(["--mount", "--pid", "--fork", "--mount-proc"])
        .args(["--propagation", "private", "--kill-child=SIGKILL", "--"])
        .args(["mmdebstrap", "--mode=root", "--variant=minbase"])
        .arg(format!("--include={}", PACKAGES.join(",")))
        .arg("--aptopt=APT::Install-Recommends \"false\"")
        .arg("--dpkgopt=path-exclude=/usr/share/locale/*")
        .arg("--dpkgopt=path-exclude=/usr/share/doc/*")
        .arg("--dpkgopt=path-exclude=/usr/share/man/*")
        .arg(format!("--essential-hook={FSTAB_HOOK}"))
        .arg(format!("--customize-hook=sh {} \"$1\"", hook.display()))
        .args(["--format=directory", SUITE])
        .arg(tree)
        .env("ROOT_UUID", ROOT_UUID)
        // PostgreSQL makes its first cluster in this locale.
        .env("LC_ALL", "C.UTF-8")
        .env("TMPDIR", cache::directory()))?;
    fs::remove_file(&hook).context("Cannot remove customize.sh")
}

/// Puts a file system behind a partition table.
fn partition(disk: &Path, to: &Path) -> Result<()> {
    // A backup of the table takes the last 33 sectors.
    let file = fs::File::create(to).with_context(|| format!("Cannot create {}", to.display()))?;
    file.set_len(u64::from(SIZE_MIB + PARTITION_AT_MIB + 1) << 20)?;
    drop(file);
    let script = tempfile::NamedTempFile::new().context("Cannot write a temporary file")?;
    fs::write(
        script.path(),
        format!(
            "label: gpt\nstart={PARTITION_AT_MIB}MiB, size={SIZE_MIB}MiB, type=linux, name={ROOT_LABEL}\n"
        ),
    )?;
    run(Command::new("/usr/sbin/sfdisk")
        .arg("--quiet")
        .arg(to)
        .stdin(fs::File::open(script.path())?))?;
    run(Command::new("dd")
        .arg(format!("if={}", disk.display()))
        .arg(format!("of={}", to.display()))
        .arg(format!("seek={PARTITION_AT_MIB}"))
        .args(["bs=1M", "conv=sparse,notrunc", "status=none"]))
}

fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command
        .status()
        .with_context(|| format!("Cannot run {name}; is its package installed?"))?;
    ensure!(
        status.success(),
        "{name} ended with {status}; its own message is above"
    );
    Ok(())
}
