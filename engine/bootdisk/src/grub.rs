// SPDX-License-Identifier: Apache-2.0
//! GRUB 2: runs `grub.cfg` as far as it decides what is booted by default.
//!
//! The language is a small shell. What installers generate is understood: variables, `if`, `for`,
//! functions, `[`, `search`, `load_env`, `source`, `configfile`, menus and submenus, `linux` and
//! `initrd`. Other commands do nothing and succeed. Loops with a condition are not run. Each run has
//! a budget of commands, so that it ends whatever the file says.
//!
//! Choices made for one boot only (`next_entry`) are ignored: the disk is not written, so they would
//! hold for ever.

mod commands;
mod condition;
mod environment;
mod lex;
mod menu;
mod parse;
mod run;

use std::collections::HashMap;

use crate::choice::Choice;
use crate::error::{BootDiskError, Looked, Problem};
use crate::limits::INCLUDE_DEPTH_MAX;
use crate::volumes::{FileAt, Volumes};
use run::Run;

const CONFIGS: [&str; 4] = [
    "/boot/grub/grub.cfg",
    "/boot/grub2/grub.cfg",
    "/grub/grub.cfg",
    "/grub2/grub.cfg",
];

/// The configurations of the old GRUB, to say that they were seen.
const LEGACY: [&str; 4] = [
    "/boot/grub/menu.lst",
    "/boot/grub/grub.conf",
    "/grub/menu.lst",
    "/grub/grub.conf",
];

/// What GRUB would boot by default.
pub(crate) fn choose(
    volumes: &Volumes,
    looked: &mut Looked,
) -> Result<Option<Choice>, BootDiskError> {
    let configs = configs(volumes)?;
    for config in &configs {
        let run = run_config(volumes, config)?;
        if run.menu().is_empty() && !run.has_kernel() {
            let place = volumes.get(config.volume).place();
            looked.note(format!("{} on {place}: no menu entries", config.path));
            continue;
        }
        return menu::choose(run, config).map(Some);
    }
    if configs.is_empty() {
        looked.note("no grub.cfg");
    }
    for (_, volume) in volumes.iter() {
        for path in LEGACY {
            if volume.is_file(path)? {
                looked.note(format!(
                    "{path} on {}: of the old GRUB, which is not supported",
                    volume.place()
                ));
            }
        }
    }
    Ok(None)
}

/// What a `grub.cfg` gives the boot entries that it takes from `loader/entries`.
pub(crate) struct BlsEnvironment {
    variables: HashMap<String, String>,
    pub(crate) default: String,
}

impl BlsEnvironment {
    /// A value of an entry with its variables replaced.
    pub(crate) fn expand(&self, text: &str) -> String {
        lex::expand(text, |name| {
            self.variables.get(name).cloned().unwrap_or_default()
        })
    }
}

/// The environment of the first `grub.cfg` that calls `blscfg`.
pub(crate) fn bls_environment(
    volumes: &Volumes,
    looked: &mut Looked,
) -> Result<Option<BlsEnvironment>, BootDiskError> {
    for config in configs(volumes)? {
        match run_config(volumes, &config) {
            Ok(run) if run.calls_blscfg() => {
                return Ok(Some(BlsEnvironment {
                    default: run.variable("default").to_owned(),
                    variables: run.into_variables(),
                }));
            }
            Ok(_) => {}
            // Only the entries are wanted, and those have no part in what is wrong there.
            Err(error) => looked.note(error.to_string()),
        }
    }
    Ok(None)
}

/// All configurations, the real ones before those that only lead to them from the ESP.
fn configs(volumes: &Volumes) -> Result<Vec<FileAt>, BootDiskError> {
    let mut found = Vec::new();
    for (index, volume) in volumes.iter() {
        for path in CONFIGS {
            if volume.is_file(path)? {
                found.push(FileAt {
                    volume: index,
                    path: path.to_owned(),
                });
            }
        }
    }
    for (index, volume) in volumes.iter() {
        for vendor in volume.list("/EFI")? {
            let path = format!("/EFI/{vendor}/grub.cfg");
            if volume.is_file(&path)? {
                found.push(FileAt {
                    volume: index,
                    path,
                });
            }
        }
    }
    Ok(found)
}

/// Runs a configuration, and those it hands over to with `configfile`.
fn run_config<'a>(volumes: &'a Volumes, config: &FileAt) -> Result<Run<'a>, BootDiskError> {
    let mut run = Run::new(volumes, config);
    let mut next = Some(config.clone());
    for _ in 0..INCLUDE_DEPTH_MAX {
        let Some(config) = next else {
            return Ok(run);
        };
        run.start(&config)?;
        next = run.take_next_config();
    }
    let problem = Problem::Unsupported("too many configurations follow one another".into());
    Err(volumes.get(config.volume).error(&config.path, problem))
}
