// SPDX-License-Identifier: Apache-2.0
//! No boot loader: the kernel that the distribution's links or names point out.
//!
//! That is what `mmdebstrap` and the like make: a root file system with a kernel in `/boot` and
//! nothing that says how to boot it. The command line is `/etc/kernel/cmdline` as it is, or else
//! `root=` of the file system found and `ro`.

use crate::choice::Choice;
use crate::error::{BootDiskError, Looked};
use crate::limits::ENTRIES_MAX;
use crate::version;
use crate::volume::{Volume, join};
use crate::volumes::{FileAt, VolumeIndex, Volumes};

/// Links that packages of a kernel keep: to the kernel, and to its initrd.
const LINKS: [(&str, &str); 4] = [
    ("/vmlinuz", "/initrd.img"),
    ("/boot/vmlinuz", "/boot/initrd.img"),
    ("/boot/vmlinuz", "/boot/initrd"),
    ("/boot/vmlinuz", "/boot/initramfs.img"),
];
const DIRECTORIES: [&str; 2] = ["/boot", "/"];
/// Names of kernels before their version.
const KERNELS: [&str; 3] = ["vmlinuz-", "linux-", "bzImage-"];
/// Names of initrds around their version.
const INITRDS: [(&str, &str); 4] = [
    ("initrd.img-", ""),
    ("initramfs-", ".img"),
    ("initramfs-", ""),
    ("initrd-", ""),
];
/// What is in a root file system, and in hardly any other.
const ROOT_FILES: [&str; 3] = ["/etc/os-release", "/usr/lib/os-release", "/etc/fstab"];
const COMMAND_LINES: [&str; 2] = ["/etc/kernel/cmdline", "/usr/lib/kernel/cmdline"];

/// A kernel with its initrd.
struct Found {
    kernel: FileAt,
    initrd: Option<FileAt>,
    title: String,
}

/// The kernel to boot where no boot loader says which.
pub(crate) fn choose(
    volumes: &Volumes,
    looked: &mut Looked,
) -> Result<Option<Choice>, BootDiskError> {
    let found = match by_link(volumes)? {
        Some(found) => Some(found),
        None => by_version(volumes)?,
    };
    let Some(found) = found else {
        looked.note("no vmlinuz in / or /boot");
        return Ok(None);
    };
    let Some(cmdline) = command_line(volumes, &found)? else {
        looked.note(format!(
            "{} on {}: a kernel, but nothing tells the root file system (no configuration of a \
             boot loader, no /etc/kernel/cmdline)",
            found.kernel.path,
            volumes.get(found.kernel.volume).place()
        ));
        return Ok(None);
    };
    Ok(Some(Choice {
        title: found.title,
        named_by: "the links and names of kernels".to_owned(),
        config: found.kernel.volume,
        kernel: found.kernel,
        initrds: found.initrd.into_iter().collect(),
        cmdline,
    }))
}

fn by_link(volumes: &Volumes) -> Result<Option<Found>, BootDiskError> {
    let at = |volume, path: &str| FileAt {
        volume,
        path: path.to_owned(),
    };
    let mut without_initrd = None;
    for (index, volume) in volumes.iter() {
        for (kernel, initrd) in LINKS {
            if !volume.is_file(kernel)? {
                continue;
            }
            let mut found = Found {
                kernel: at(index, kernel),
                initrd: None,
                title: kernel.to_owned(),
            };
            if volume.is_file(initrd)? {
                found.initrd = Some(at(index, initrd));
                return Ok(Some(found));
            }
            without_initrd.get_or_insert(found);
        }
    }
    // A link without its counterpart says less than a pair of versions, if there is one.
    match by_version(volumes)? {
        Some(found) if found.initrd.is_some() => Ok(Some(found)),
        _ => Ok(without_initrd),
    }
}

/// The newest version of all directories.
fn by_version(volumes: &Volumes) -> Result<Option<Found>, BootDiskError> {
    let mut best: Option<(String, Found)> = None;
    for (index, volume) in volumes.iter() {
        for directory in DIRECTORIES {
            let names = volume.list(directory)?;
            let newest = names
                .iter()
                .filter_map(|name| Some((version_of(name)?, name)))
                .take(ENTRIES_MAX)
                .max_by(|(left, _), (right, _)| version::compare(left, right));
            let Some((version, name)) = newest else {
                continue;
            };
            if best
                .as_ref()
                .is_some_and(|(best, _)| version::compare(version, best).is_le())
            {
                continue;
            }
            let at = |name: &str| FileAt {
                volume: index,
                path: join(directory, name),
            };
            let initrd = INITRDS
                .iter()
                .map(|(before, after)| format!("{before}{version}{after}"))
                .find(|initrd| names.contains(initrd));
            let found = Found {
                kernel: at(name),
                initrd: initrd.map(|name| at(&name)),
                title: format!("Linux {version}"),
            };
            best = Some((version.to_owned(), found));
        }
    }
    Ok(best.map(|(_, found)| found))
}

/// The version in a kernel's name; none if it is no kernel, or one that is kept for emergencies.
fn version_of(name: &str) -> Option<&str> {
    const LEFTOVERS: [&str; 5] = [".old", ".bak", ".sig", ".hmac", "~"];
    let version = KERNELS
        .iter()
        .find_map(|prefix| name.strip_prefix(prefix))?;
    let usable = !version.is_empty()
        && !version.contains("rescue")
        && !version.contains(".dpkg-")
        && !LEFTOVERS.iter().any(|end| version.ends_with(end));
    usable.then_some(version)
}

/// The command line; none if the root file system cannot be told.
fn command_line(volumes: &Volumes, found: &Found) -> Result<Option<String>, BootDiskError> {
    let root = root_volume(volumes, found.kernel.volume)?;
    if let Some(root) = root {
        for path in COMMAND_LINES {
            let text = volumes.get(root).text(path)?.unwrap_or_default();
            let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
            if !line.is_empty() {
                return Ok(Some(line));
            }
        }
    }
    let root = match root {
        Some(root) => device(volumes.get(root), found.initrd.is_some()),
        // The root file system is of a kind that cannot be read, but its partition has a name.
        None => match volumes.root_partuuid() {
            Some(partuuid) => format!("PARTUUID={partuuid}"),
            None => return Ok(None),
        },
    };
    Ok(Some(format!("root={root} ro")))
}

/// The root file system: the one with the kernel if it looks like one, or the first that does.
fn root_volume(
    volumes: &Volumes,
    kernel: VolumeIndex,
) -> Result<Option<VolumeIndex>, BootDiskError> {
    let own = volumes.iter().filter(|(index, _)| *index == kernel);
    for (index, volume) in own.chain(volumes.iter()) {
        if !volume.is_for_linux() {
            continue;
        }
        for path in ROOT_FILES {
            if volume.is_file(path)? {
                return Ok(Some(index));
            }
        }
    }
    Ok(None)
}

/// How the kernel finds the file system: only an initrd knows `UUID=`.
fn device(volume: &Volume, has_initrd: bool) -> String {
    match (has_initrd, volume.partuuid()) {
        (true, _) => format!("UUID={}", volume.uuid()),
        (false, Some(partuuid)) => format!("PARTUUID={partuuid}"),
        // The first virtio disk, which has no partition to name.
        (false, None) => "/dev/vda".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(volumes: Vec<Volume>) -> Option<Choice> {
        choose(&Volumes::in_memory(volumes), &mut Looked::default()).unwrap()
    }

    fn whole(files: &[&str]) -> Volume {
        let files: Vec<_> = files.iter().map(|path| (*path, "x")).collect();
        Volume::in_memory(0, "uuid", &files)
    }

    #[test]
    fn links_come_before_versions() {
        let choice = on(vec![whole(&[
            "/vmlinuz",
            "/initrd.img",
            "/boot/vmlinuz-9.9",
            "/etc/os-release",
        ])])
        .unwrap();
        assert_eq!(choice.kernel.path, "/vmlinuz");
        assert_eq!(choice.cmdline, "root=UUID=uuid ro");
    }

    #[test]
    fn the_newest_version_is_taken_with_its_initrd() {
        for initrd in [
            "initrd.img-6.1.0-10",
            "initramfs-6.1.0-10.img",
            "initramfs-6.1.0-10",
        ] {
            let choice = on(vec![whole(&[
                "/boot/vmlinuz-6.1.0-9",
                "/boot/initrd.img-6.1.0-9",
                "/boot/vmlinuz-6.1.0-10",
                &format!("/boot/{initrd}"),
                "/boot/vmlinuz-0-rescue-abc",
                "/boot/vmlinuz-7.0.old",
                "/boot/vmlinuz-7.0.dpkg-new",
                "/etc/fstab",
            ])])
            .unwrap();
            assert_eq!(choice.kernel.path, "/boot/vmlinuz-6.1.0-10");
            assert_eq!(choice.initrds[0].path, format!("/boot/{initrd}"));
            assert_eq!(choice.title, "Linux 6.1.0-10");
        }
    }

    #[test]
    fn without_initrd_the_kernel_must_find_the_root_itself() {
        let choice = on(vec![whole(&["/boot/vmlinuz-1", "/etc/fstab"])]).unwrap();
        assert_eq!(choice.cmdline, "root=/dev/vda ro");
        let files = [("/boot/vmlinuz-1", "x"), ("/etc/fstab", "x")];
        let choice = on(vec![Volume::in_memory(3, "u", &files)]).unwrap();
        assert_eq!(choice.cmdline, "root=PARTUUID=partuuid-3 ro");
    }

    #[test]
    fn a_boot_partition_and_a_root_partition() {
        let choice = on(vec![
            Volume::in_memory(1, "b", &[("/vmlinuz-6", "k"), ("/initrd.img-6", "i")]),
            Volume::in_memory(2, "r", &[("/etc/os-release", "x")]),
        ])
        .unwrap();
        assert_eq!(choice.kernel.path, "/vmlinuz-6");
        assert_eq!(choice.cmdline, "root=UUID=r ro");
    }

    #[test]
    fn the_guests_own_command_line_is_taken_as_it_is() {
        let choice = on(vec![Volume::in_memory(
            1,
            "b",
            &[
                ("/boot/vmlinuz-6", "k"),
                ("/etc/os-release", "x"),
                (
                    "/etc/kernel/cmdline",
                    "root=LABEL=x  console=ttyS0\nquiet\n",
                ),
            ],
        )])
        .unwrap();
        assert_eq!(choice.cmdline, "root=LABEL=x console=ttyS0 quiet");
    }

    #[test]
    fn a_kernel_without_root_is_noted() {
        let volumes = Volumes::in_memory(vec![whole(&["/vmlinuz-6"])]);
        let mut looked = Looked::default();
        assert_eq!(choose(&volumes, &mut looked).unwrap(), None);
        assert!(
            looked
                .to_string()
                .contains("nothing tells the root file system")
        );
    }
}
