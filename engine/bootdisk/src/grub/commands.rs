// SPDX-License-Identifier: Apache-2.0
//! GRUB's commands, as far as they have a say in what is booted.

use super::condition::{self, FileQuestions};
use super::environment;
use super::parse::Script;
use super::run::{Flow, Item, Run};
use crate::error::{BootDiskError, Problem};
use crate::limits::{CONFIG_BYTES_MAX, INITRDS_MAX};
use crate::volume::{Volume, join};
use crate::volumes::{FileAt, VolumeIndex};

/// What starts something else than a Linux kernel.
const OTHER_LOADERS: [&str; 9] = [
    "chainloader",
    "multiboot",
    "multiboot2",
    "xen_hypervisor",
    "xen_hypervisor16",
    "kfreebsd",
    "knetbsd",
    "ntldr",
    "fwsetup",
];

/// Options of `menuentry` that take a value.
const VALUED: [&str; 4] = ["--class", "--users", "--hotkey", "--id"];

type Outcome = Result<(bool, Flow), BootDiskError>;

impl Run<'_> {
    /// Runs a command; tells whether it succeeded and what follows.
    pub(super) fn built_in(
        &mut self,
        line: usize,
        name: &str,
        arguments: &[String],
        block: Option<&Script>,
    ) -> Outcome {
        let done = |status| Ok((status, Flow::Next));
        match (name, arguments) {
            ("[", [inner @ .., last]) if last == "]" => done(condition::holds(inner, self)?),
            ("test", arguments) => done(condition::holds(arguments, self)?),
            ("set", [assignment, ..]) => {
                if let Some((name, value)) = assignment.split_once('=') {
                    self.set(name, value.to_owned())?;
                }
                done(true)
            }
            ("unset", names) => {
                names.iter().for_each(|name| self.unset(name));
                done(true)
            }
            ("menuentry" | "submenu", _) => {
                if let Some(body) = block {
                    self.add_item(item(arguments, body, name == "submenu"));
                }
                done(true)
            }
            ("linux" | "linux16" | "linuxefi", [path, words @ ..]) => {
                self.loaded.kernel = Some(self.file(line, path)?);
                self.loaded.cmdline = command_line(words);
                self.loaded.initrds.clear();
                done(true)
            }
            ("initrd" | "initrd16" | "initrdefi", paths) => self.initrd(line, paths),
            ("search" | "search.fs_uuid" | "search.fs_label" | "search.file", _) => {
                done(self.search(name, arguments)?)
            }
            ("load_env", arguments) => done(self.load_env(arguments)?),
            ("source" | ".", [path]) => match self.file(line, path) {
                Ok(file) => Ok((true, self.source(&file)?)),
                Err(_) => done(false),
            },
            ("configfile", [path]) => self.configfile(path),
            ("blscfg", _) => {
                self.blscfg = true;
                done(true)
            }
            ("false", _) => done(false),
            ("return", _) => Ok((true, Flow::Return)),
            ("exit" | "normal_exit", _) => Ok((true, Flow::Leave)),
            // There is no firmware whose settings could be entered.
            ("fwsetup", [option]) if option == "--is-supported" => done(false),
            (name, arguments) if OTHER_LOADERS.contains(&name) => {
                let what = arguments.first().map_or("", String::as_str);
                self.loaded.refused = Some(format!("{name} {what}").trim().to_owned());
                done(true)
            }
            // Modules, graphics, messages: without effect here.
            _ => done(true),
        }
    }

    fn initrd(&mut self, line: usize, paths: &[String]) -> Outcome {
        for path in paths.iter().filter(|path| !path.starts_with("--")) {
            if let Some(archive) = path.strip_prefix("newc:") {
                self.loaded.refused = Some(format!("initrd newc:{archive}"));
                continue;
            }
            let file = self.file(line, path)?;
            if self.loaded.initrds.len() < INITRDS_MAX {
                self.loaded.initrds.push(file);
            }
        }
        Ok((true, Flow::Next))
    }

    /// Another configuration takes over, if it is there: then what follows here is not run.
    fn configfile(&mut self, path: &str) -> Outcome {
        let Some(file) = self.locate(path) else {
            return Ok((false, Flow::Next));
        };
        if !self.volumes.get(file.volume).is_file(&file.path)? {
            return Ok((false, Flow::Next));
        }
        self.next_config = Some(file);
        Ok((true, Flow::Leave))
    }

    fn load_env(&mut self, arguments: &[String]) -> Result<bool, BootDiskError> {
        let path = match arguments {
            [option, path, ..] if option == "-f" || option == "--file" => path.clone(),
            _ => format!("{}/grubenv", self.variable("prefix")),
        };
        let Some(file) = self.locate(&path) else {
            return Ok(false);
        };
        let Some(text) = self.volumes.get(file.volume).text(&file.path)? else {
            return Ok(false);
        };
        for (name, value) in environment::parse(&text) {
            self.set(&name, value)?;
        }
        Ok(true)
    }

    /// `search` for a file system by identification, label or a file that it has.
    fn search(&mut self, name: &str, arguments: &[String]) -> Result<bool, BootDiskError> {
        let search = Search::parse(name, arguments);
        let mut found = None;
        for (index, volume) in self.volumes.iter() {
            if found.is_none() && search.fits(volume)? {
                found = Some(index);
            }
        }
        let Some(index) = found else {
            return Ok(false);
        };
        if let Some(variable) = &search.variable {
            let device = self.volumes.get(index).grub_device();
            self.set(variable, device)?;
        }
        Ok(true)
    }

    /// The file that a path of GRUB means: `(device)/path`, or `/path` on the device in `root`.
    fn locate(&self, path: &str) -> Option<FileAt> {
        let (device, path) = match path.strip_prefix('(') {
            Some(rest) => rest.split_once(')')?,
            None => (self.variable("root"), path),
        };
        Some(FileAt {
            volume: self.device(device)?,
            path: join("", path),
        })
    }

    fn device(&self, name: &str) -> Option<VolumeIndex> {
        let name = name.trim_start_matches('(').trim_end_matches(')');
        self.volumes.find(|volume| volume.is_grub_device(name))
    }

    fn file(&self, line: usize, path: &str) -> Result<FileAt, BootDiskError> {
        self.locate(path).ok_or_else(|| {
            self.error(Problem::Syntax {
                line,
                what: format!(
                    "{path} is on a device (root is {}) that is not on this disk or cannot be read",
                    self.variable("root")
                ),
            })
        })
    }
}

impl FileQuestions for Run<'_> {
    fn is_file(&self, path: &str) -> Result<bool, BootDiskError> {
        match self.locate(path) {
            Some(file) => self.volumes.get(file.volume).is_file(&file.path),
            None => Ok(false),
        }
    }

    fn is_directory(&self, path: &str) -> Result<bool, BootDiskError> {
        match self.locate(path) {
            Some(file) => self.volumes.get(file.volume).is_directory(&file.path),
            None => Ok(false),
        }
    }

    fn is_filled(&self, path: &str) -> Result<bool, BootDiskError> {
        let Some(file) = self.locate(path) else {
            return Ok(false);
        };
        let volume = self.volumes.get(file.volume);
        if !volume.is_file(&file.path)? {
            return Ok(false);
        }
        // A file too large to be read here is not empty.
        let content = volume.read(&file.path, CONFIG_BYTES_MAX);
        Ok(!matches!(content, Ok(Some(bytes)) if bytes.is_empty()))
    }
}

/// The arguments of `menuentry`: a title, and an identification among the options.
fn item(arguments: &[String], body: &Script, submenu: bool) -> Item {
    let mut item = Item {
        title: String::new(),
        id: None,
        body: body.clone(),
        submenu,
    };
    let mut title = None;
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        if let Some(id) = argument.strip_prefix("--id=") {
            item.id = Some(id.to_owned());
        } else if VALUED.contains(&argument.as_str()) {
            let value = rest.next();
            if argument == "--id" {
                item.id = value.cloned();
            }
        } else if !argument.starts_with("--") && title.is_none() {
            title = Some(argument.clone());
        }
    }
    item.title = title.unwrap_or_default();
    item
}

/// The kernel's words as one line, as GRUB joins them: what has blanks gets quotes, quotes and
/// backslashes get a backslash (`grub_create_loader_cmdline`).
fn command_line(words: &[String]) -> String {
    let quoted: Vec<String> = words
        .iter()
        .map(|word| {
            let mut escaped = String::with_capacity(word.len());
            for next in word.chars() {
                if matches!(next, '\\' | '\'' | '"') {
                    escaped.push('\\');
                }
                escaped.push(next);
            }
            match word.contains(' ') {
                true => format!("\"{escaped}\""),
                false => escaped,
            }
        })
        .collect();
    quoted.join(" ")
}

enum Wanted {
    Uuid,
    Label,
    File,
}

struct Search {
    wanted: Wanted,
    value: String,
    variable: Option<String>,
}

impl Search {
    fn parse(name: &str, arguments: &[String]) -> Self {
        let mut search = Self {
            wanted: match name {
                "search.fs_uuid" => Wanted::Uuid,
                "search.fs_label" => Wanted::Label,
                _ => Wanted::File,
            },
            value: String::new(),
            variable: None,
        };
        let mut names = Vec::new();
        for argument in arguments {
            match argument.as_str() {
                "-u" | "--fs-uuid" => search.wanted = Wanted::Uuid,
                "-l" | "--label" | "--fs-label" => search.wanted = Wanted::Label,
                "-f" | "--file" => search.wanted = Wanted::File,
                "-s" | "--set" => search.variable = Some("root".into()),
                option => match option.strip_prefix("--set=") {
                    Some(variable) => search.variable = Some(variable.to_owned()),
                    None if option.starts_with('-') => {}
                    None => names.push(argument.clone()),
                },
            }
        }
        // `search.fs_uuid UUID VARIABLE HINT…`, against `search --set=VARIABLE … UUID`.
        let short_form = name.contains('.');
        let value = if short_form {
            names.first()
        } else {
            names.last()
        };
        search.value = value.cloned().unwrap_or_default();
        match names.as_slice() {
            [_, variable, ..] if short_form => search.variable = Some(variable.clone()),
            // `--set VARIABLE UUID`.
            [variable, _] if search.variable.is_some() => search.variable = Some(variable.clone()),
            _ => {}
        }
        search
    }

    fn fits(&self, volume: &Volume) -> Result<bool, BootDiskError> {
        if self.value.is_empty() {
            return Ok(false);
        }
        Ok(match self.wanted {
            Wanted::Uuid => volume.uuid().eq_ignore_ascii_case(&self.value),
            Wanted::Label => volume.label() == self.value,
            Wanted::File => volume.is_file(&self.value)?,
        })
    }
}
