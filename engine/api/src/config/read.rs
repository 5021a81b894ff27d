// SPDX-License-Identifier: Apache-2.0
//! From text to a description, finding every problem on the way and not only the first.
//!
//! Each section is read by itself, so that a problem in one hides none in another. Within a
//! section, a wrong key is noted, taken out, and the section read again.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use super::lines::{KeyLines, line_at, shown};
use super::{ConfigError, DISKS_MAX, NETWORKS_MAX, VmConfig, across};

/// The longest description; the commented example has a few KiB.
const BYTES_MAX: u64 = 256 * 1024;

/// Problems told of one description; who has more has another problem.
const PROBLEMS_MAX: usize = 100;

/// A description and where its keys stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// What it describes.
    pub config: VmConfig,
    /// Where.
    pub lines: KeyLines,
}

impl Description {
    /// Reads and checks a description.
    ///
    /// # Errors
    /// Every problem found, in the order of the file.
    pub fn load(path: &Path) -> Result<Self, Vec<ConfigError>> {
        match read_limited(path) {
            Ok(text) => Self::parse(path, &text),
            Err(cause) => Err(vec![ConfigError::read(path, cause)]),
        }
    }

    /// Checks a description that was read already; `path` is for messages.
    ///
    /// # Errors
    /// Every problem found, in the order of the file.
    pub fn parse(path: &Path, text: &str) -> Result<Self, Vec<ConfigError>> {
        let table = DeTable::parse(text).map_err(|error| vec![syntax(path, text, &error)])?;
        let mut reader = Reader::new(path, text, table.into_inner());
        let sections = Sections::read(&mut reader);
        for problem in across::problems(&sections) {
            reader.problem(&problem.key, problem.message);
        }
        let Reader {
            mut problems,
            lines,
            ..
        } = reader;
        match sections.whole() {
            Some(config) if problems.is_empty() => Ok(Self { config, lines }),
            _ => {
                problems.sort_by_key(ConfigError::line);
                Err(problems)
            }
        }
    }
}

fn read_limited(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let read = File::open(path)?
        .take(BYTES_MAX + 1)
        .read_to_string(&mut text)?;
    if u64::try_from(read).is_ok_and(|read| read <= BYTES_MAX) {
        return Ok(text);
    }
    let told = format!("it is longer than {} KiB", BYTES_MAX / 1024);
    Err(io::Error::new(io::ErrorKind::FileTooLarge, told))
}

/// The sections that could be read. What is missing here was told as a problem.
#[derive(Debug)]
pub(super) struct Sections {
    pub(super) vm: Option<super::VmSection>,
    pub(super) memory: Option<super::MemorySection>,
    pub(super) boot: Option<super::BootSection>,
    pub(super) disk: Vec<Option<super::DiskSection>>,
    pub(super) network: Vec<Option<super::NetworkSection>>,
    console: Option<super::ConsoleSection>,
    rng: Option<super::RngSection>,
    balloon: Option<super::BalloonSection>,
    sandbox: Option<super::SandboxSection>,
    pub(super) replication: Option<super::ReplicationSection>,
}

/// Every top-level key.
pub(super) const SECTIONS: [&str; 10] = [
    "vm",
    "memory",
    "boot",
    "disk",
    "network",
    "console",
    "rng",
    "balloon",
    "sandbox",
    "replication",
];

impl Sections {
    fn read(reader: &mut Reader<'_>) -> Self {
        let sections = Self {
            vm: reader.required("vm"),
            memory: reader.optional("memory"),
            boot: reader.required("boot"),
            disk: reader.several("disk", DISKS_MAX),
            network: reader.several("network", NETWORKS_MAX),
            console: reader.optional("console"),
            rng: reader.optional("rng"),
            balloon: reader.optional("balloon"),
            sandbox: reader.optional("sandbox"),
            replication: reader.optional("replication"),
        };
        reader.unknown();
        sections
    }

    fn whole(self) -> Option<VmConfig> {
        Some(VmConfig {
            vm: self.vm?,
            memory: self.memory?,
            boot: self.boot?,
            disk: self.disk.into_iter().collect::<Option<_>>()?,
            network: self.network.into_iter().collect::<Option<_>>()?,
            console: self.console?,
            rng: self.rng?,
            balloon: self.balloon?,
            sandbox: self.sandbox?,
            replication: self.replication?,
        })
    }
}

struct Reader<'a> {
    path: PathBuf,
    table: DeTable<'a>,
    lines: KeyLines,
    last_line: usize,
    problems: Vec<ConfigError>,
}

impl<'a> Reader<'a> {
    fn new(path: &Path, text: &'a str, table: DeTable<'a>) -> Self {
        Self {
            path: path.to_owned(),
            lines: KeyLines::of(&table, text),
            last_line: text.lines().count().max(1),
            table,
            problems: Vec::new(),
        }
    }

    fn problem(&mut self, key: &str, message: impl Into<String>) {
        self.problem_at(self.lines.line(key), key, message);
    }

    fn problem_at(&mut self, line: usize, key: &str, message: impl Into<String>) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(ConfigError::Invalid {
                path: self.path.clone(),
                line,
                key: shown(key),
                message: message.into(),
            });
        }
    }

    fn required<T: DeserializeOwned>(&mut self, name: &str) -> Option<T> {
        let Some(value) = self.table.remove(name) else {
            let message = format!("the section is missing: add [{name}]");
            self.problem_at(self.last_line, name, message);
            return None;
        };
        self.section(name, value)
    }

    fn optional<T: DeserializeOwned + Default>(&mut self, name: &str) -> Option<T> {
        match self.table.remove(name) {
            Some(value) => self.section(name, value),
            None => Some(T::default()),
        }
    }

    fn several<T: DeserializeOwned>(&mut self, name: &str, most: usize) -> Vec<Option<T>> {
        let Some(value) = self.table.remove(name) else {
            return Vec::new();
        };
        let DeValue::Array(array) = value.into_inner() else {
            let message =
                format!("there may be several, so each begins with [[{name}]]: write that");
            self.problem(name, message);
            return vec![None];
        };
        if array.len() > most {
            let message = format!("{} are described: at most {most} fit", array.len());
            self.problem(&format!("{name}[{most}]"), message);
        }
        array
            .into_iter()
            .take(most)
            .enumerate()
            .map(|(index, value)| self.section(&format!("{name}[{index}]"), value))
            .collect()
    }

    /// Whatever no section asked for.
    fn unknown(&mut self) {
        let names: Vec<_> = self
            .table
            .keys()
            .map(|key| key.get_ref().to_string())
            .collect();
        for name in names {
            let known = SECTIONS.join(", ");
            self.problem(
                &name,
                format!("unknown section: remove it or give one of {known}"),
            );
        }
    }

    /// Reads one section. Every turn takes one key out, so it ends.
    fn section<T: DeserializeOwned>(
        &mut self,
        name: &str,
        mut value: Spanned<DeValue<'a>>,
    ) -> Option<T> {
        let (mut taken_out, mut mistyped) = (Vec::new(), false);
        while self.problems.len() < PROBLEMS_MAX {
            let error = match T::deserialize(ValueDeserializer::from(value.clone())) {
                Ok(section) => return taken_out.is_empty().then_some(section),
                Err(error) => error,
            };
            let key = error
                .span()
                .and_then(|span| self.lines.key_at(name, span.start))
                .filter(|_| missing(error.message()).is_none());
            let Some(path) = key.map(str::to_owned) else {
                // What the section lacks may be what was taken out, or what was mistyped.
                let follows = match missing(error.message()) {
                    Some(field) => mistyped || taken_out.iter().any(|key| key == field),
                    None => !taken_out.is_empty(),
                };
                if !follows {
                    self.problem(name, told(error.message()));
                }
                return None;
            };
            self.problem(&path, error.message());
            mistyped |= error.message().starts_with("unknown field");
            taken_out.push(take_out(&mut value, path.get(name.len() + 1..)?)?);
        }
        None
    }
}

/// Removes the key of a section that this path below it begins with.
fn take_out(section: &mut Spanned<DeValue<'_>>, path: &str) -> Option<String> {
    let key = path.split(['.', '[']).next()?;
    match section.get_mut() {
        DeValue::Table(table) => table.remove(key).map(|_| key.to_owned()),
        _ => None,
    }
}

/// A problem of a section as a whole.
fn told(message: &str) -> String {
    match missing(message) {
        Some(field) => format!("{field} is missing: add it"),
        None => message.to_owned(),
    }
}

/// The field that serde says is missing.
fn missing(message: &str) -> Option<&str> {
    message.strip_prefix("missing field `")?.strip_suffix('`')
}

/// A text that is no TOML.
fn syntax(path: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let line = line_at(text, error.span().map_or(0, |span| span.start));
    let key = text
        .lines()
        .nth(line - 1)
        .and_then(|line| line.split_once('='))
        .map_or("", |(key, _)| key.trim());
    ConfigError::Invalid {
        path: path.to_owned(),
        line,
        key: key.to_owned(),
        message: format!("{}: correct the TOML here", error.message()),
    }
}
