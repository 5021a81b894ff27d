// SPDX-License-Identifier: Apache-2.0
//! Debian's own kernels and busybox, fetched as packages, unpacked into the cache and never installed.
//!
//! The generic flavour runs the emulated machines of bed B: it has `kvm_amd`, netem, softdog and the rest as
//! modules. The cloud flavour runs the guests. Which version that is, is what `apt` would install on this machine
//! now; another version makes another tree in the cache.

mod vmlinux;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::cache::{self, Key};

/// A flavour of Debian's kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// For machines: every driver.
    Generic,
    /// For guests: smaller, with PVH entry and virtio over PCI.
    Cloud,
}

impl Flavour {
    fn package(self) -> &'static str {
        match self {
            Self::Generic => "linux-image-amd64",
            Self::Cloud => "linux-image-cloud-amd64",
        }
    }
}

/// An unpacked kernel.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// What `uname -r` will say, e.g. `6.1.0-56-amd64`.
    pub release: String,
    /// The `bzImage`.
    pub vmlinuz: PathBuf,
    /// A tree with nothing but `usr/lib/modules/<release>`, `modules.dep` included.
    pub modules: PathBuf,
}

/// The newest kernel of a flavour that this machine's `apt` knows, fetched now when the cache lacks it.
///
/// # Errors
/// When `apt` knows no such package (its lists were never fetched), or the mirror or `dpkg`, `depmod` fail.
pub fn fetch(flavour: Flavour) -> Result<Kernel> {
    let package = dependency(flavour.package())?;
    let release = package
        .strip_prefix("linux-image-")
        .with_context(|| format!("{package} is not the name of a kernel package"))?
        .to_owned();
    let key = Key::new().with(version(&package)?.as_bytes());
    let tree = cache::obtain(&format!("kernel-{release}"), &key, |into| {
        eprintln!("kernel: fetching {package}");
        unpack(&package, into)?;
        arrange(&release, into)
    })?;
    Ok(Kernel {
        vmlinuz: tree.join("vmlinuz"),
        modules: tree.join("modules"),
        release,
    })
}

/// Debian's statically linked busybox.
///
/// # Errors
/// As [`fetch`].
pub fn busybox() -> Result<PathBuf> {
    const PACKAGE: &str = "busybox-static";
    let key = Key::new().with(version(PACKAGE)?.as_bytes());
    let tree = cache::obtain(PACKAGE, &key, |into| unpack(PACKAGE, into))?;
    // The program moved from /bin to /usr/bin with Debian 13.
    ["bin/busybox", "usr/bin/busybox"]
        .map(|path| tree.join(path))
        .into_iter()
        .find(|path| path.exists())
        .with_context(|| format!("The package {PACKAGE} holds no busybox"))
}

impl Kernel {
    /// The same kernel as an ELF file with a PVH entry note: larger, and faster to boot under emulation.
    ///
    /// # Errors
    /// When the program for the kernel's compression is missing (generic: `xz`, cloud: `lz4`).
    pub fn vmlinux(&self) -> Result<PathBuf> {
        let key = Key::new().with(self.vmlinuz.as_os_str().as_encoded_bytes());
        let tree = cache::obtain(&format!("vmlinux-{}", self.release), &key, |into| {
            let kernel = vmlinux::extract(&fs::read(&self.vmlinuz)?)
                .with_context(|| format!("Cannot unpack {}", self.vmlinuz.display()))?;
            fs::write(into.join("vmlinux"), kernel).context("Cannot write the unpacked kernel")
        })?;
        Ok(tree.join("vmlinux"))
    }

    /// The files of the named modules and of all they need, in the order in which they must be loaded.
    ///
    /// # Errors
    /// When `modules.dep` cannot be read or a module is not in it.
    pub fn load_order(&self, names: &[&str]) -> Result<Vec<PathBuf>> {
        let directory = self.modules.join("usr/lib/modules").join(&self.release);
        let path = directory.join("modules.dep");
        let table =
            fs::read_to_string(&path).with_context(|| format!("Cannot read {}", path.display()))?;
        let mut order = Vec::new();
        for name in names {
            let line = line_of(&table, name)
                .with_context(|| format!("Kernel {} has no module {name}", self.release))?;
            for file in line {
                let file = directory.join(file);
                if !order.contains(&file) {
                    order.push(file);
                }
            }
        }
        Ok(order)
    }
}

/// The files of one line of `modules.dep`, in loading order: it names the module and then what it needs, the
/// module needed by all others last.
fn line_of<'table>(table: &'table str, name: &str) -> Option<Vec<&'table str>> {
    let line = table.lines().find(|line| {
        let file = line.split(':').next().unwrap_or_default();
        let stem = file.rsplit('/').next().unwrap_or_default();
        stem.strip_suffix(".ko")
            .is_some_and(|stem| stem.replace('-', "_") == name)
    })?;
    let (module, needs) = line.split_once(':')?;
    let mut files: Vec<_> = needs.split_whitespace().collect();
    files.reverse();
    files.push(module);
    Some(files)
}

/// The versioned package behind a meta package.
fn dependency(meta: &str) -> Result<String> {
    let text = output(Command::new("apt-cache").args(["depends", "--important", meta]))?;
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|package| package.starts_with("linux-image-"))
        .map(str::to_owned)
        .with_context(|| format!("apt knows no {meta}; run `apt-get update` first"))
}

fn version(package: &str) -> Result<String> {
    let text = output(Command::new("apt-cache").args(["policy", package]))?;
    let version = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("Candidate: "))
        .with_context(|| format!("apt knows no {package}; run `apt-get update` first"))?;
    Ok(format!("{package} {version}"))
}

/// Downloads a package and unpacks it into a directory.
fn unpack(package: &str, into: &Path) -> Result<()> {
    let download = tempfile::tempdir_in(cache::directory()).context("Cannot make a directory")?;
    output(
        Command::new("apt-get")
            .args(["-o", "APT::Sandbox::User=root", "-q", "download", package])
            .current_dir(&download),
    )?;
    let deb = fs::read_dir(&download)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"));
    let Some(deb) = deb else {
        bail!("apt-get download {package} left no package");
    };
    output(Command::new("dpkg").arg("-x").arg(&deb).arg(into)).map(drop)
}

/// Turns an unpacked kernel package into `vmlinuz` and `modules/usr/lib/modules/<release>`.
fn arrange(release: &str, tree: &Path) -> Result<()> {
    let library = tree.join("modules/usr/lib");
    fs::create_dir_all(&library)?;
    let boot = tree.join("boot");
    fs::rename(
        boot.join(format!("vmlinuz-{release}")),
        tree.join("vmlinuz"),
    )
    .context("The package holds no kernel")?;
    fs::rename(tree.join("lib/modules"), library.join("modules"))
        .context("The package holds no modules")?;
    for rest in ["boot", "lib", "usr"] {
        let rest = tree.join(rest);
        if rest.exists() {
            fs::remove_dir_all(&rest)?;
        }
    }
    output(
        Command::new("depmod")
            .arg("-b")
            .arg(tree.join("modules/usr"))
            .arg(release),
    )
    .map(drop)
}

/// The standard output of a command that succeeds.
fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .env("LC_ALL", "C.UTF-8")
        .output()
        .with_context(|| format!("Cannot run {name}; is its package installed?"))?;
    ensure!(
        output.status.success(),
        "{name} ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::line_of;

    #[test]
    fn what_a_module_needs_is_loaded_before_it() {
        let table = "kernel/fs/ext4/ext4.ko: kernel/fs/jbd2/jbd2.ko kernel/lib/crc16.ko\n\
                     kernel/arch/x86/kvm/kvm-amd.ko: kernel/arch/x86/kvm/kvm.ko kernel/virt/lib/irqbypass.ko\n";
        assert_eq!(
            line_of(table, "kvm_amd").unwrap(),
            [
                "kernel/virt/lib/irqbypass.ko",
                "kernel/arch/x86/kvm/kvm.ko",
                "kernel/arch/x86/kvm/kvm-amd.ko"
            ]
        );
        assert!(line_of(table, "kvm").is_none());
    }
}
