// SPDX-License-Identifier: Apache-2.0
//! Running a script: variables, control flow, functions. The commands are in `commands`.

use std::collections::HashMap;

use super::lex::{Part, Word};
use super::parse::{Node, Script, parse};
use crate::error::{BootDiskError, Problem};
use crate::limits::{CONFIG_BYTES_MAX, ENTRIES_MAX, INCLUDE_DEPTH_MAX};
use crate::volume::directory_of;
use crate::volumes::{FileAt, Volumes};

/// Commands of one run. A large generated file has a few thousand.
const STEPS_MAX: u32 = 50_000;
/// Bytes of one variable or of all words of a command.
const VALUE_BYTES_MAX: usize = 16 << 10;
const VARIABLES_MAX: usize = 4096;
/// Bytes of all files that are run, each counted as often as it is.
const SOURCE_BYTES_MAX: u64 = 8 << 20;

/// Variables that GRUB has from the start: what the platform is, and what this GRUB can do.
const BUILT_IN: [(&str, &str); 9] = [
    ("grub_cpu", "x86_64"),
    ("grub_platform", "efi"),
    ("feature_200_final", "y"),
    ("feature_all_video_module", "y"),
    ("feature_chainloader_bpb", "y"),
    ("feature_default_font_path", "y"),
    ("feature_menuentry_id", "y"),
    ("feature_platform_search_hint", "y"),
    ("feature_timeout_style", "y"),
];

/// A menu entry or submenu.
#[derive(Debug, Clone)]
pub(super) struct Item {
    pub(super) title: String,
    pub(super) id: Option<String>,
    pub(super) body: Script,
    pub(super) submenu: bool,
}

/// What `linux` and `initrd` named.
#[derive(Debug, Clone, Default)]
pub(super) struct Loaded {
    pub(super) kernel: Option<FileAt>,
    pub(super) cmdline: String,
    pub(super) initrds: Vec<FileAt>,
    /// What was asked for that cannot be done.
    pub(super) refused: Option<String>,
}

/// What follows a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    Next,
    /// Leaves the function or file.
    Return,
    /// Leaves everything: another configuration takes over.
    Leave,
}

/// The state of GRUB's script interpreter.
pub(crate) struct Run<'a> {
    pub(super) volumes: &'a Volumes,
    pub(super) config: FileAt,
    pub(super) loaded: Loaded,
    pub(super) next_config: Option<FileAt>,
    pub(super) blscfg: bool,
    variables: HashMap<String, String>,
    functions: HashMap<String, Script>,
    menu: Vec<Item>,
    arguments: Vec<String>,
    status: bool,
    steps: u32,
    source_bytes: u64,
    depth: usize,
}

impl<'a> Run<'a> {
    pub(super) fn new(volumes: &'a Volumes, config: &FileAt) -> Self {
        Self {
            volumes,
            config: config.clone(),
            loaded: Loaded::default(),
            next_config: None,
            blscfg: false,
            variables: BUILT_IN
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            functions: HashMap::new(),
            menu: Vec::new(),
            arguments: Vec::new(),
            status: true,
            steps: 0,
            source_bytes: 0,
            depth: 0,
        }
    }

    /// Runs a configuration as GRUB's first one, with the variables that earlier ones left.
    pub(super) fn start(&mut self, config: &FileAt) -> Result<(), BootDiskError> {
        self.menu.clear();
        self.loaded = Loaded::default();
        self.next_config = None;
        self.config = config.clone();
        let device = self.volumes.get(config.volume).grub_device();
        let directory = directory_of(&config.path);
        let directory = format!("({device}){directory}");
        for (name, value) in [
            ("root", device),
            ("config_file", config.path.clone()),
            ("config_directory", directory.clone()),
            ("prefix", directory),
        ] {
            self.set(name, value)?;
        }
        self.source(config).map(drop)
    }

    pub(super) fn menu(&self) -> &[Item] {
        &self.menu
    }

    pub(super) fn has_kernel(&self) -> bool {
        self.loaded.kernel.is_some()
    }

    pub(super) fn calls_blscfg(&self) -> bool {
        self.blscfg
    }

    pub(super) fn take_next_config(&mut self) -> Option<FileAt> {
        self.next_config.take()
    }

    pub(super) fn into_variables(self) -> HashMap<String, String> {
        self.variables
    }

    pub(super) fn variable(&self, name: &str) -> &str {
        self.variables.get(name).map_or("", String::as_str)
    }

    /// An error of the configuration that is being run.
    pub(super) fn error(&self, problem: Problem) -> BootDiskError {
        let volume = self.volumes.get(self.config.volume);
        volume.error(&self.config.path, problem)
    }

    pub(super) fn unsupported(&self, text: impl Into<String>) -> BootDiskError {
        self.error(Problem::Unsupported(text.into()))
    }

    pub(super) fn set(&mut self, name: &str, value: String) -> Result<(), BootDiskError> {
        if value.len() > VALUE_BYTES_MAX || self.variables.len() >= VARIABLES_MAX {
            return Err(self.unsupported(format!("the variable {name} grows without limit")));
        }
        self.variables.insert(name.to_owned(), value);
        Ok(())
    }

    pub(super) fn unset(&mut self, name: &str) {
        self.variables.remove(name);
    }

    pub(super) fn add_item(&mut self, item: Item) {
        if self.menu.len() < ENTRIES_MAX {
            self.menu.push(item);
        }
    }

    /// Runs the body of a menu item: an entry's commands, or a submenu that replaces the menu.
    pub(super) fn enter(&mut self, item: &Item) -> Result<(), BootDiskError> {
        self.menu.clear();
        self.loaded = Loaded::default();
        self.script(&item.body).map(drop)
    }

    /// Runs a file in place.
    pub(super) fn source(&mut self, file: &FileAt) -> Result<Flow, BootDiskError> {
        let volume = self.volumes.get(file.volume);
        let Some(bytes) = volume.read(&file.path, CONFIG_BYTES_MAX)? else {
            self.status = false;
            return Ok(Flow::Next);
        };
        self.source_bytes += bytes.len() as u64;
        if self.source_bytes > SOURCE_BYTES_MAX {
            return Err(self.unsupported("it includes files for ever"));
        }
        let text = String::from_utf8_lossy(&bytes);
        let script = parse(&text)
            .map_err(|(line, what)| volume.error(&file.path, Problem::Syntax { line, what }))?;
        let outer = std::mem::replace(&mut self.config, file.clone());
        let flow = self.deeper(|run| run.script(&script));
        self.config = outer;
        Ok(match flow? {
            Flow::Return => Flow::Next,
            flow => flow,
        })
    }

    /// Calls files and functions no deeper than anyone nests them.
    fn deeper(
        &mut self,
        call: impl FnOnce(&mut Self) -> Result<Flow, BootDiskError>,
    ) -> Result<Flow, BootDiskError> {
        if self.depth >= INCLUDE_DEPTH_MAX {
            return Err(self.unsupported("functions or files call one another too deep"));
        }
        self.depth += 1;
        let flow = call(self);
        self.depth -= 1;
        flow
    }

    fn script(&mut self, script: &Script) -> Result<Flow, BootDiskError> {
        for node in script.iter() {
            let flow = self.node(node)?;
            if flow != Flow::Next {
                return Ok(flow);
            }
        }
        Ok(Flow::Next)
    }

    fn step(&mut self) -> Result<(), BootDiskError> {
        self.steps += 1;
        if self.steps > STEPS_MAX {
            return Err(self.unsupported("it runs for ever"));
        }
        Ok(())
    }

    fn node(&mut self, node: &Node) -> Result<Flow, BootDiskError> {
        self.step()?;
        match node {
            Node::Command { line, words, block } => self.command(*line, words, block.as_ref()),
            Node::If {
                branches,
                otherwise,
            } => {
                for (condition, body) in branches {
                    let flow = self.script(condition)?;
                    if flow != Flow::Next {
                        return Ok(flow);
                    }
                    if self.status {
                        return self.script(body);
                    }
                }
                self.status = true;
                self.script(otherwise)
            }
            Node::For {
                variable,
                words,
                body,
            } => {
                for value in self.expand(words)? {
                    self.step()?;
                    self.set(variable, value)?;
                    let flow = self.script(body)?;
                    if flow != Flow::Next {
                        return Ok(flow);
                    }
                }
                Ok(Flow::Next)
            }
            Node::Function { name, body } => {
                if self.functions.len() < VARIABLES_MAX {
                    self.functions.insert(name.clone(), body.clone());
                }
                Ok(Flow::Next)
            }
            Node::Loop => Ok(Flow::Next),
        }
    }

    fn command(
        &mut self,
        line: usize,
        words: &[Word],
        block: Option<&Script>,
    ) -> Result<Flow, BootDiskError> {
        if let Some((name, value)) = assignment(words) {
            let value = self.expand(&[value])?.join(" ");
            self.set(&name, value)?;
            self.status = true;
            return Ok(Flow::Next);
        }
        let words = self.expand(words)?;
        let Some((name, arguments)) = words.split_first() else {
            return Ok(Flow::Next);
        };
        if let Some(body) = self.functions.get(name).cloned() {
            let outer = std::mem::replace(&mut self.arguments, arguments.to_vec());
            let flow = self.deeper(|run| run.script(&body));
            self.arguments = outer;
            return Ok(match flow? {
                Flow::Return => Flow::Next,
                flow => flow,
            });
        }
        let (status, flow) = self.built_in(line, name, arguments, block)?;
        self.status = status;
        Ok(flow)
    }

    /// The words with their variables' values, cut at blanks where no quotes forbid it.
    fn expand(&self, words: &[Word]) -> Result<Vec<String>, BootDiskError> {
        let mut fields = Vec::new();
        let mut bytes = 0;
        for word in words {
            // None: so far the word is empty, and vanishes if it stays so.
            let mut field: Option<String> = None;
            for part in &word.0 {
                match part {
                    Part::Text(text) | Part::Quoted(text) => {
                        field.get_or_insert_default().push_str(text);
                    }
                    Part::QuotedVariable(name) => {
                        field.get_or_insert_default().push_str(&self.value(name));
                    }
                    Part::Variable(name) => split(&self.value(name), &mut field, &mut fields),
                }
                bytes += field.as_ref().map_or(0, String::len);
                if bytes > VALUE_BYTES_MAX || fields.len() > VALUE_BYTES_MAX {
                    return Err(self.unsupported("a command grows without limit"));
                }
            }
            fields.extend(field);
        }
        Ok(fields)
    }

    fn value(&self, name: &str) -> String {
        match name {
            "?" => u8::from(!self.status).to_string(),
            "#" => self.arguments.len().to_string(),
            "@" | "*" => self.arguments.join(" "),
            name => match name.parse::<usize>() {
                Ok(number) => number
                    .checked_sub(1)
                    .and_then(|at| self.arguments.get(at).cloned())
                    .unwrap_or_default(),
                Err(_) => self.variable(name).to_owned(),
            },
        }
    }
}

/// Adds a value that is cut at its blanks.
fn split(value: &str, field: &mut Option<String>, fields: &mut Vec<String>) {
    if value.starts_with(char::is_whitespace) {
        fields.extend(field.take());
    }
    let mut pieces = value.split_whitespace().peekable();
    while let Some(piece) = pieces.next() {
        field.get_or_insert_default().push_str(piece);
        if pieces.peek().is_some() || value.ends_with(char::is_whitespace) {
            fields.extend(field.take());
        }
    }
}

/// `name=value` as a command of its own.
fn assignment(words: &[Word]) -> Option<(String, Word)> {
    let [Word(parts)] = words else {
        return None;
    };
    let (Part::Text(first), rest) = parts.split_first()? else {
        return None;
    };
    let (name, value) = first.split_once('=')?;
    let valid = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.is_empty() || !name.chars().all(valid) {
        return None;
    }
    let mut parts = vec![Part::Quoted(value.to_owned())];
    parts.extend(rest.iter().cloned().map(|part| match part {
        Part::Variable(name) => Part::QuotedVariable(name),
        part => part,
    }));
    Some((name.to_owned(), Word(parts)))
}
