// SPDX-License-Identifier: Apache-2.0
//! One entry: a text file of keys and values.

use crate::volumes::VolumeIndex;

/// A boot entry that has a Linux kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) volume: VolumeIndex,
    /// The file's name.
    pub(super) file: String,
    /// The file's name without `.conf` and boot counter.
    pub(super) id: String,
    pub(super) tries: Option<Tries>,
    pub(super) title: Option<String>,
    pub(super) version: Option<String>,
    pub(super) machine_id: Option<String>,
    pub(super) sort_key: Option<String>,
    pub(super) linux: String,
    pub(super) initrds: Vec<String>,
    pub(super) options: String,
    /// What its paths may be relative to.
    pub(super) bases: &'static [&'static str],
}

/// The boot counter in a file's name: `name+LEFT-DONE.conf`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tries {
    pub(super) left: u32,
    pub(super) done: u32,
}

impl Entry {
    /// Parses an entry; the error says why it is none for this machine.
    pub(super) fn parse(volume: VolumeIndex, file: &str, text: &str) -> Result<Self, String> {
        let (id, tries) = name_parts(file);
        let mut entry = Self {
            volume,
            file: file.to_owned(),
            id: id.to_owned(),
            tries,
            title: None,
            version: None,
            machine_id: None,
            sort_key: None,
            linux: String::new(),
            initrds: Vec::new(),
            options: String::new(),
            bases: &[""],
        };
        let mut program = None;
        for (key, value) in text.lines().filter_map(key_and_value) {
            match key {
                "title" => entry.title = Some(value.to_owned()),
                "version" => entry.version = Some(value.to_owned()),
                "machine-id" => entry.machine_id = Some(value.to_owned()),
                "sort-key" => entry.sort_key = Some(value.to_owned()),
                "linux" => value.clone_into(&mut entry.linux),
                "initrd" => entry.initrds.push(value.to_owned()),
                "options" => {
                    if !entry.options.is_empty() {
                        entry.options.push(' ');
                    }
                    entry.options.push_str(value);
                }
                "efi" | "uki" => program = Some(value),
                "architecture" if !value.eq_ignore_ascii_case("x64") => {
                    return Err(format!("it is for {value}"));
                }
                // Keys that are not for us, and unknown ones: the specification says to ignore them.
                _ => {}
            }
        }
        match (entry.linux.is_empty(), program) {
            (false, _) => Ok(entry),
            (true, Some(path)) => Err(format!("it starts {path}, an EFI program")),
            (true, None) => Err("it names no kernel".to_owned()),
        }
    }

    /// What a person would call it.
    pub(super) fn name(&self) -> String {
        match (&self.title, &self.version) {
            (Some(title), Some(version)) if !title.contains(version.as_str()) => {
                format!("{title} ({version})")
            }
            (Some(title), _) => title.clone(),
            (None, Some(version)) => version.clone(),
            (None, None) => self.id.clone(),
        }
    }
}

/// The key and value of a line; none for comments and empty lines.
pub(super) fn key_and_value(line: &str) -> Option<(&str, &str)> {
    let line = line.trim();
    if line.starts_with('#') {
        return None;
    }
    let (key, value) = line.split_once(char::is_whitespace)?;
    Some((key, value.trim()))
}

/// Identification and boot counter.
fn name_parts(file: &str) -> (&str, Option<Tries>) {
    let name = file.strip_suffix(".conf").unwrap_or(file);
    let counted = name.rsplit_once('+').and_then(|(id, counter)| {
        let (left, done) = counter.split_once('-').unwrap_or((counter, "0"));
        let tries = Tries {
            left: left.parse().ok()?,
            done: done.parse().ok()?,
        };
        Some((id, Some(tries)))
    });
    counted.unwrap_or((name, None))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::volume::Volume;
    use crate::volumes::Volumes;

    fn index() -> VolumeIndex {
        Volumes::in_memory(vec![Volume::in_memory(1, "u", &[])])
            .find(|_| true)
            .unwrap()
    }

    #[test]
    fn names_with_counters() {
        let parts = |left, done| Some(Tries { left, done });
        assert_eq!(name_parts("a.conf"), ("a", None));
        assert_eq!(name_parts("a+3.conf"), ("a", parts(3, 0)));
        assert_eq!(name_parts("a+b+3-12.conf"), ("a+b", parts(3, 12)));
        assert_eq!(name_parts("a+b.conf"), ("a+b", None));
        assert_eq!(name_parts("a+-1.conf"), ("a+-1", None));
    }

    #[test]
    fn tabs_and_odd_lines() {
        let text = "\tlinux\t  /k\r\nlinux\n\n#linux /c\noptions \tro  quiet \nfoo bar\n";
        let entry = Entry::parse(index(), "x.conf", text).unwrap();
        assert_eq!(
            (entry.linux.as_str(), entry.options.as_str()),
            ("/k", "ro  quiet")
        );
        assert_eq!(entry.name(), "x");
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(
            file in "\\PC{0,30}",
            text in "((linux|initrd|options|title|efi|architecture|\\PC{0,8})[ \t\r\n]\\PC{0,20}\n?){0,20}",
        ) {
            let _ = Entry::parse(index(), &file, &text);
        }
    }
}
