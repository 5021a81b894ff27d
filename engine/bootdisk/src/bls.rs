// SPDX-License-Identifier: Apache-2.0
//! Boot Loader Specification, type #1: `loader/entries/*.conf`, as systemd-boot and GRUB's `blscfg`
//! read them.
//!
//! Entries of all file systems are one list (the specification joins those of the ESP and of
//! XBOOTLDR). The default is, in this order: `default` of `loader.conf`; GRUB's default, if a
//! `grub.cfg` of the disk calls `blscfg`; the first of the specification's order, which puts the
//! newest version first. Boot counting is respected (entries without tries left come last) but not
//! written.

mod entry;
mod order;

use crate::choice::Choice;
use crate::error::{BootDiskError, Looked};
use crate::glob;
use crate::grub;
use crate::limits::{ENTRIES_MAX, ENTRY_BYTES_MAX, INITRDS_MAX};
use crate::volume::join;
use crate::volumes::{FileAt, VolumeIndex, Volumes};
use entry::Entry;

/// Where entries are, and what their paths may be relative to: the file system's root, or `/boot`
/// where that is no file system of its own.
const DIRECTORIES: [(&str, &[&str]); 2] = [
    ("/loader/entries", &[""]),
    ("/boot/loader/entries", &["", "/boot"]),
];

const LOADER_CONF: [&str; 2] = ["/loader/loader.conf", "/boot/loader/loader.conf"];

/// The entry that would be booted.
pub(crate) fn choose(
    volumes: &Volumes,
    looked: &mut Looked,
) -> Result<Option<Choice>, BootDiskError> {
    let mut entries = read_all(volumes, looked)?;
    if entries.is_empty() {
        return Ok(None);
    }
    entries.sort_by(order::compare);
    let grub = grub::bls_environment(volumes, looked)?;
    let preferred = match default_pattern(volumes)? {
        Some(pattern) => entries.iter().find(|entry| entry.fits(&pattern)),
        None => grub
            .as_ref()
            .and_then(|grub| by_grub(&entries, &grub.default)),
    };
    let Some(entry) = preferred.or_else(|| entries.first()) else {
        return Ok(None);
    };
    let expand = |text: &str| match &grub {
        Some(grub) => grub.expand(text),
        None => text.to_owned(),
    };
    let file = |text: &str| locate(volumes, entry, text);
    let initrds: Vec<FileAt> = entry
        .initrds
        .iter()
        .flat_map(|line| {
            expand(line)
                .split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        })
        .take(INITRDS_MAX)
        .map(|path| file(&path))
        .collect::<Result<_, _>>()?;
    Ok(Some(Choice {
        title: entry.name(),
        named_by: format!("boot entry {}", entry.file),
        config: entry.volume,
        kernel: file(&expand(&entry.linux))?,
        initrds,
        cmdline: expand(&entry.options).trim().to_owned(),
    }))
}

fn read_all(volumes: &Volumes, looked: &mut Looked) -> Result<Vec<Entry>, BootDiskError> {
    let mut entries = Vec::new();
    for (index, volume) in volumes.iter() {
        for (directory, bases) in DIRECTORIES {
            let names = volume.list(directory)?;
            let configs = names.iter().filter(|name| name.ends_with(".conf"));
            for name in configs.take(ENTRIES_MAX) {
                let path = join(directory, name);
                let Some(text) = volume.text_of(&path, ENTRY_BYTES_MAX)? else {
                    continue;
                };
                match Entry::parse(index, name, &text) {
                    Ok(entry) => entries.push(Entry { bases, ..entry }),
                    Err(why) => looked.note(format!("{path} on {}: {why}", volume.place())),
                }
            }
        }
        note_unified_images(volumes, index, looked)?;
        entries.truncate(ENTRIES_MAX);
    }
    if entries.is_empty() {
        looked.note("no boot entries in loader/entries");
    }
    Ok(entries)
}

/// Type #2 entries are EFI programs: say that they were seen.
fn note_unified_images(
    volumes: &Volumes,
    index: VolumeIndex,
    looked: &mut Looked,
) -> Result<(), BootDiskError> {
    let volume = volumes.get(index);
    let names = volume.list("/EFI/Linux")?;
    if let Some(name) = names
        .iter()
        .find(|name| name.to_lowercase().ends_with(".efi"))
    {
        looked.note(format!(
            "/EFI/Linux/{name} on {}: a unified kernel image, which is not supported",
            volume.place()
        ));
    }
    Ok(())
}

/// `default` of the first `loader.conf` that has one. Names like `@saved` mean variables of the
/// firmware, which there is none of.
fn default_pattern(volumes: &Volumes) -> Result<Option<String>, BootDiskError> {
    for (_, volume) in volumes.iter() {
        for path in LOADER_CONF {
            let text = volume.text(path)?.unwrap_or_default();
            let found = text
                .lines()
                .filter_map(entry::key_and_value)
                .rfind(|(key, value)| *key == "default" && !value.starts_with('@'));
            if let Some((_, pattern)) = found {
                return Ok(Some(pattern.to_owned()));
            }
        }
    }
    Ok(None)
}

impl Entry {
    /// Whether the pattern is for this entry, given with or without `.conf`.
    fn fits(&self, pattern: &str) -> bool {
        let full = format!("{}.conf", self.id);
        [self.id.as_str(), &full, &self.file]
            .iter()
            .any(|name| glob::fits(pattern, name))
    }
}

/// What GRUB's variable `default` means: a number, an identification or a title.
fn by_grub<'a>(entries: &'a [Entry], default: &str) -> Option<&'a Entry> {
    if let Ok(number) = default.parse::<usize>() {
        return entries.get(number);
    }
    let wanted = default.trim_end_matches(".conf");
    entries
        .iter()
        .find(|entry| entry.id == wanted || entry.title.as_deref() == Some(default))
}

/// The file that an entry means by a path.
fn locate(volumes: &Volumes, entry: &Entry, path: &str) -> Result<FileAt, BootDiskError> {
    let path = join("", path);
    let volume = volumes.get(entry.volume);
    let mut candidates = entry.bases.iter().map(|base| format!("{base}{path}"));
    for candidate in candidates.by_ref() {
        if volume.is_file(&candidate)? {
            return Ok(FileAt {
                volume: entry.volume,
                path: candidate,
            });
        }
    }
    Ok(FileAt {
        volume: entry.volume,
        path,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::Volume;

    const OLD: &str =
        "title Debian\nversion 6.1.0-9\nsort-key debian\nlinux /old\noptions root=A\n";
    const NEW: &str = "# comment\ntitle Debian\nversion 6.1.0-10\nsort-key debian\nlinux /new\n\
                       initrd /one\ninitrd /two\noptions root=B\noptions ro quiet\n";

    fn chosen(volumes: Vec<Volume>) -> Choice {
        choose(&Volumes::in_memory(volumes), &mut Looked::default())
            .unwrap()
            .unwrap()
    }

    #[test]
    fn the_newest_version_is_taken_with_all_its_lines() {
        let choice = chosen(vec![Volume::in_memory(
            1,
            "u",
            &[
                ("/loader/entries/a.conf", NEW),
                ("/loader/entries/b.conf", OLD),
                ("/new", "k"),
            ],
        )]);
        assert_eq!(choice.kernel.path, "/new");
        assert_eq!(choice.cmdline, "root=B ro quiet");
        let initrds: Vec<_> = choice
            .initrds
            .iter()
            .map(|file| file.path.as_str())
            .collect();
        assert_eq!(initrds, ["/one", "/two"]);
        assert_eq!(choice.title, "Debian (6.1.0-10)");
        assert_eq!(choice.named_by, "boot entry a.conf");
    }

    #[test]
    fn loader_conf_says_which() {
        for default in ["b.conf", "b", "b*", "?.conf\ndefault b.c*"] {
            let choice = chosen(vec![Volume::in_memory(
                1,
                "u",
                &[
                    (
                        "/loader/loader.conf",
                        &format!("timeout 3\ndefault {default}\n"),
                    ),
                    ("/loader/entries/a.conf", NEW),
                    ("/loader/entries/b+3-1.conf", OLD),
                ],
            )]);
            assert_eq!(choice.kernel.path, "/old", "{default}");
        }
        let choice = chosen(vec![Volume::in_memory(
            1,
            "u",
            &[
                ("/loader/loader.conf", "default @saved\n"),
                ("/loader/entries/a.conf", NEW),
                ("/loader/entries/b.conf", OLD),
            ],
        )]);
        assert_eq!(choice.kernel.path, "/new");
    }

    #[test]
    fn an_entry_without_tries_left_comes_last() {
        let choice = chosen(vec![Volume::in_memory(
            1,
            "u",
            &[
                ("/loader/entries/a+0-3.conf", NEW),
                ("/loader/entries/b.conf", OLD),
            ],
        )]);
        assert_eq!(choice.kernel.path, "/old");
    }

    #[test]
    fn entries_under_boot_may_mean_boot() {
        let choice = chosen(vec![Volume::in_memory(
            1,
            "u",
            &[
                (
                    "/boot/loader/entries/a.conf",
                    "linux /vmlinuz\ninitrd initrd.img\n",
                ),
                ("/boot/vmlinuz", "k"),
                ("/boot/initrd.img", "i"),
            ],
        )]);
        assert_eq!(choice.kernel.path, "/boot/vmlinuz");
        assert_eq!(choice.initrds[0].path, "/boot/initrd.img");
    }

    const GRUB_CFG: &str = "\
set pager=1
if [ -s $prefix/grubenv ]; then
  load_env
fi
if [ \"${next_entry}\" ] ; then
   set default=\"${next_entry}\"
else
   set default=\"${saved_entry}\"
fi
if [ -z \"${kernelopts}\" ]; then
  set kernelopts=\"root=fallback\"
fi
insmod blscfg
blscfg
";

    fn red_hat(saved_entry: &str) -> Choice {
        let env = format!(
            "# GRUB Environment Block\nsaved_entry={saved_entry}\nkernelopts=root=/dev/vda2 ro\n####"
        );
        let entry = |version: &str| {
            format!(
                "title Red Hat ({version})\nversion {version}\nlinux /vmlinuz-{version}\n\
                 initrd /initramfs-{version}.img $tuned_initrd\noptions $kernelopts $tuned_params\n\
                 grub_users $grub_users\n"
            )
        };
        chosen(vec![Volume::in_memory(
            1,
            "u",
            &[
                ("/grub2/grub.cfg", GRUB_CFG),
                ("/grub2/grubenv", &env),
                ("/loader/entries/id-5.14.0-70.conf", &entry("5.14.0-70")),
                ("/loader/entries/id-5.14.0-503.conf", &entry("5.14.0-503")),
                ("/loader/entries/id-0-rescue.conf", &entry("0-rescue")),
            ],
        )])
    }

    #[test]
    fn variables_and_default_of_grub_are_used() {
        let choice = red_hat("id-5.14.0-70");
        assert_eq!(choice.kernel.path, "/vmlinuz-5.14.0-70");
        assert_eq!(choice.cmdline, "root=/dev/vda2 ro");
        assert_eq!(choice.initrds.len(), 1);
        assert_eq!(red_hat("1").kernel.path, "/vmlinuz-5.14.0-70");
        assert_eq!(red_hat("gone").kernel.path, "/vmlinuz-5.14.0-503");
        assert_eq!(red_hat("").kernel.path, "/vmlinuz-5.14.0-503");
    }

    #[test]
    fn what_is_not_for_this_machine_is_noted() {
        let volumes = Volumes::in_memory(vec![Volume::in_memory(
            1,
            "u",
            &[
                ("/loader/entries/a.conf", "title T\nefi /shell.efi\n"),
                ("/loader/entries/b.conf", "linux /k\narchitecture aa64\n"),
                ("/EFI/Linux/arch.efi", "MZ"),
            ],
        )]);
        let mut looked = Looked::default();
        assert_eq!(choose(&volumes, &mut looked).unwrap(), None);
        let text = looked.to_string();
        for part in ["an EFI program", "for aa64", "unified kernel image"] {
            assert!(text.contains(part), "{text}");
        }
    }
}
