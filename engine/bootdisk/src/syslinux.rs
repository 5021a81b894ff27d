// SPDX-License-Identifier: Apache-2.0
//! EXTLINUX and SYSLINUX: the label that `extlinux.conf` or `syslinux.cfg` boots by default.
//!
//! Key words without case, one a line. Paths are relative to the configuration's directory.

use crate::choice::Choice;
use crate::error::{BootDiskError, Looked, Problem};
use crate::limits::{ENTRIES_MAX, INCLUDE_DEPTH_MAX, INITRDS_MAX};
use crate::volume::{directory_of, join};
use crate::volumes::{FileAt, Volumes};

const CONFIGS: [&str; 10] = [
    "/boot/extlinux/extlinux.conf",
    "/extlinux/extlinux.conf",
    "/boot/extlinux.conf",
    "/extlinux.conf",
    "/boot/syslinux/extlinux.conf",
    "/boot/syslinux/syslinux.cfg",
    "/syslinux/syslinux.cfg",
    "/syslinux.cfg",
    "/EFI/syslinux/syslinux.cfg",
    "/EFI/BOOT/syslinux.cfg",
];

/// What the first configuration boots by default.
pub(crate) fn choose(
    volumes: &Volumes,
    looked: &mut Looked,
) -> Result<Option<Choice>, BootDiskError> {
    for (index, volume) in volumes.iter() {
        for path in CONFIGS {
            if !volume.is_file(path)? {
                continue;
            }
            let file = FileAt {
                volume: index,
                path: path.to_owned(),
            };
            let mut config = Config::default();
            config.read(volumes, &file, 0)?;
            if config.labels.is_empty() && config.default.is_none() {
                looked.note(format!("{path} on {}: no labels", volume.place()));
                continue;
            }
            return config.choice(volumes, &file).map(Some);
        }
    }
    looked.note("no extlinux.conf or syslinux.cfg");
    Ok(None)
}

#[derive(Debug, Default)]
struct Config {
    default: Option<String>,
    /// `MENU DEFAULT` inside a label, which wins over `DEFAULT vesamenu.c32`.
    menu_default: Option<String>,
    /// Options for labels that have none of their own.
    append: Option<String>,
    labels: Vec<Label>,
}

#[derive(Debug, Default, Clone)]
struct Label {
    name: String,
    title: Option<String>,
    kernel: Option<String>,
    initrd: Option<String>,
    append: Option<String>,
    /// What it starts if that is no Linux kernel.
    other: Option<String>,
}

impl Config {
    fn read(
        &mut self,
        volumes: &Volumes,
        file: &FileAt,
        depth: usize,
    ) -> Result<(), BootDiskError> {
        let volume = volumes.get(file.volume);
        let Some(text) = volume.text(&file.path)? else {
            return Ok(());
        };
        for line in text.lines() {
            let (key, value) = words(line);
            match (key.as_str(), value) {
                ("include", path) => self.include(volumes, file, path, depth)?,
                ("menu", rest) if words(rest).0 == "include" => {
                    let path = words(rest).1.split_whitespace().next();
                    self.include(volumes, file, path.unwrap_or_default(), depth)?;
                }
                (key, value) => self.line(key, value),
            }
        }
        Ok(())
    }

    fn include(
        &mut self,
        volumes: &Volumes,
        from: &FileAt,
        path: &str,
        depth: usize,
    ) -> Result<(), BootDiskError> {
        if depth >= INCLUDE_DEPTH_MAX {
            let problem = Problem::Unsupported("too many files include one another".into());
            return Err(volumes.get(from.volume).error(&from.path, problem));
        }
        let file = FileAt {
            volume: from.volume,
            path: join(directory_of(&from.path), path),
        };
        self.read(volumes, &file, depth + 1)
    }

    fn line(&mut self, key: &str, value: &str) {
        let text = || Some(value.to_owned());
        let room = self.labels.len() < ENTRIES_MAX;
        match (key, self.labels.last_mut()) {
            ("default" | "ontimeout", _) => self.default = text(),
            ("label", _) if room => self.labels.push(Label {
                name: value.to_owned(),
                ..Label::default()
            }),
            ("append", None) => self.append = text(),
            ("append", Some(label)) => label.append = text(),
            ("linux" | "kernel", Some(label)) => label.kernel = text(),
            ("initrd", Some(label)) => label.initrd = text(),
            ("com32" | "boot" | "bss" | "pxe" | "config" | "localboot", Some(label)) => {
                label.other = Some(format!("{key} {value}"));
            }
            ("menu", Some(label)) => match words(value) {
                (key, title) if key == "label" => label.title = Some(title.replace('^', "")),
                (key, _) if key == "default" => self.menu_default = Some(label.name.clone()),
                _ => {}
            },
            _ => {}
        }
    }

    fn choice(&self, volumes: &Volumes, file: &FileAt) -> Result<Choice, BootDiskError> {
        let unusable = |text: String| {
            volumes
                .get(file.volume)
                .error(&file.path, Problem::Unsupported(text))
        };
        let label = self
            .label()
            .ok_or_else(|| unusable("it has no label that boots Linux".into()))?;
        let name = &label.name;
        let Some(kernel) = label.kernel.as_ref().filter(|_| label.other.is_none()) else {
            let other = label.other.as_deref().unwrap_or("nothing");
            return Err(unusable(format!(
                "the default label {name} starts {other}, and only Linux kernels are started"
            )));
        };
        let append = label.append.as_ref().or(self.append.as_ref());
        // A dash says: not even the common options.
        let append = append.map_or("", String::as_str).trim();
        let append = if append == "-" { "" } else { append };
        let (initrd, cmdline) = take_initrd(append);
        let initrds = label.initrd.clone().or(initrd).unwrap_or_default();
        let at = |path: &str| FileAt {
            volume: file.volume,
            path: join(directory_of(&file.path), path),
        };
        Ok(Choice {
            title: label.title.clone().unwrap_or_else(|| name.clone()),
            named_by: format!("label {name} of {}", file.path),
            config: file.volume,
            kernel: at(kernel),
            initrds: initrds
                .split(',')
                .map(str::trim)
                .filter(|path| !path.is_empty())
                .take(INITRDS_MAX)
                .map(at)
                .collect(),
            cmdline,
        })
    }

    /// The label that is booted when nobody chooses: `DEFAULT` may name one, or be a menu program,
    /// or a kernel with its options.
    fn label(&self) -> Option<Label> {
        let by_name = |name: &String| {
            let mut labels = self.labels.iter();
            labels.find(|label| label.name == *name).cloned()
        };
        let menu = self.menu_default.as_ref().and_then(by_name);
        let named = self.default.as_ref().and_then(by_name);
        if let Some(label) = named.or(menu) {
            return Some(label);
        }
        let first = || self.labels.first().cloned();
        match self.default.as_deref().map(words_kept) {
            Some((kernel, options)) if !kernel.to_lowercase().ends_with(".c32") => {
                // A label's name that is not there is no kernel's name.
                match self.labels.is_empty() {
                    true => Some(Label {
                        name: kernel.to_owned(),
                        kernel: Some(kernel.to_owned()),
                        append: Some(options.to_owned()),
                        ..Label::default()
                    }),
                    false => first(),
                }
            }
            _ => first(),
        }
    }
}

/// The first word, in small letters, and the rest.
fn words(line: &str) -> (String, &str) {
    let (key, rest) = words_kept(line);
    (key.to_lowercase(), rest)
}

fn words_kept(line: &str) -> (&str, &str) {
    let line = line.trim();
    let (key, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    (key, rest.trim())
}

/// The value of `initrd=` among the options, and the options without it: SYSLINUX reads it itself.
fn take_initrd(append: &str) -> (Option<String>, String) {
    let (initrd, options): (Vec<&str>, Vec<&str>) = append
        .split_whitespace()
        .partition(|word| word.starts_with("initrd="));
    let initrd = initrd.last().and_then(|word| word.strip_prefix("initrd="));
    (initrd.map(str::to_owned), options.join(" "))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::volume::Volume;

    fn on(files: &[(&str, &str)]) -> Result<Option<Choice>, BootDiskError> {
        let volumes = Volumes::in_memory(vec![Volume::in_memory(1, "u", files)]);
        choose(&volumes, &mut Looked::default())
    }

    fn chosen(text: &str) -> Choice {
        on(&[("/boot/extlinux/extlinux.conf", text)])
            .unwrap()
            .unwrap()
    }

    #[test]
    fn debians_extlinux() {
        let choice = on(&[
            (
                "/boot/extlinux/extlinux.conf",
                "## comment\ndefault l0\ninclude linux.cfg\nprompt 0\ntimeout 50\n",
            ),
            (
                "/boot/extlinux/linux.cfg",
                "label l0\n\tmenu label Debian GNU/Linux, kernel 6.1.0\n\tlinux /boot/vmlinuz\n\
                 \tappend initrd=/boot/initrd.img root=/dev/vda1 ro quiet\n",
            ),
        ])
        .unwrap()
        .unwrap();
        assert_eq!(choice.title, "Debian GNU/Linux, kernel 6.1.0");
        assert_eq!(choice.kernel.path, "/boot/vmlinuz");
        assert_eq!(choice.initrds[0].path, "/boot/initrd.img");
        assert_eq!(choice.cmdline, "root=/dev/vda1 ro quiet");
    }

    #[test]
    fn alpines_menu_and_relative_paths() {
        let choice = chosen(
            "SERIAL 0 115200\nDEFAULT menu.c32\nAPPEND common\nLABEL other\n KERNEL ../o\n\
             LABEL virt\n  MENU DEFAULT\n  MENU LABEL Linux ^virt\n  LINUX vmlinuz-virt\n\
             INITRD a,b\n  APPEND -\n",
        );
        assert_eq!(choice.title, "Linux virt");
        assert_eq!(choice.kernel.path, "/boot/extlinux/vmlinuz-virt");
        let initrds: Vec<_> = choice
            .initrds
            .iter()
            .map(|file| file.path.as_str())
            .collect();
        assert_eq!(initrds, ["/boot/extlinux/a", "/boot/extlinux/b"]);
        assert_eq!(choice.cmdline, "");
    }

    #[test]
    fn a_kernel_as_default() {
        let choice = chosen("default vmlinuz initrd=i root=/dev/vda\n");
        assert_eq!(choice.kernel.path, "/boot/extlinux/vmlinuz");
        assert_eq!(choice.cmdline, "root=/dev/vda");
        assert_eq!(chosen("append a\nlabel x\nkernel k\n").cmdline, "a");
    }

    #[test]
    fn what_cannot_be_started_is_said() {
        let error = on(&[("/extlinux.conf", "label x\ncom32 chain.c32\n")]).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("the default label x starts com32 chain.c32"),
            "{text}"
        );
        let error = on(&[("/extlinux.conf", "include extlinux.conf\n")]).unwrap_err();
        assert!(error.to_string().contains("include one another"));
        assert_eq!(on(&[("/extlinux.conf", "prompt 1\n")]).unwrap(), None);
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(
            text in "((default|label|linux|append|initrd|menu default|include|\\PC{0,5}) ?\\PC{0,12}\n){0,20}",
        ) {
            let _ = on(&[("/extlinux.conf", &text)]);
        }
    }
}
