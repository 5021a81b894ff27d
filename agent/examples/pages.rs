// SPDX-License-Identifier: Apache-2.0
//! Writes the manual pages and the shell completions of `kemarictl` and `kemari-agent` into a
//! directory: `cargo run -p kemari-agent --example pages -- target/pages` (`make package` does).
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::path::Path;

use anyhow::Context;
use clap::CommandFactory;
use clap_complete::Shell;
use clap_mangen::Man;
use kemari_agent::command::{KemariAgent, Kemarictl};

fn main() -> anyhow::Result<()> {
    let directory = std::env::args_os()
        .nth(1)
        .context("Usage: pages DIRECTORY")?;
    let directory = Path::new(&directory);
    let manual = directory.join("man");
    let completions = directory.join("completions");
    for path in [&manual, &completions] {
        if path.exists() {
            fs::remove_dir_all(path).with_context(|| format!("Cannot clear {}", path.display()))?;
        }
        fs::create_dir_all(path).with_context(|| format!("Cannot make {}", path.display()))?;
    }
    page(KemariAgent::command(), "8", "kemari-agent", &manual)?;
    let command = Kemarictl::command();
    // There is no page of `kemarictl help`.
    let shown = command.clone().disable_help_subcommand(true);
    page(shown, "1", "kemarictl", &manual)?;
    for subcommand in command.get_subcommands() {
        let name = format!("kemarictl-{}", subcommand.get_name());
        let shown = subcommand
            .clone()
            .bin_name(format!("kemarictl {}", subcommand.get_name()))
            .version(env!("CARGO_PKG_VERSION"))
            .disable_version_flag(true);
        page(shown, "1", &name, &manual)?;
    }
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut Kemarictl::command(), "kemarictl", &completions)
            .with_context(|| format!("Cannot write the completions of {shell}"))?;
    }
    Ok(())
}

fn page(command: clap::Command, section: &str, name: &str, into: &Path) -> anyhow::Result<()> {
    let path = into.join(format!("{name}.{section}"));
    let mut file =
        File::create(&path).with_context(|| format!("Cannot make {}", path.display()))?;
    // The name must outlive the command; this program ends soon.
    let shown: &'static str = Box::leak(name.to_owned().into_boxed_str());
    Man::new(command.name(shown))
        .title(name.to_uppercase())
        .section(section)
        .source("Kemari")
        .manual("System administration")
        .render(&mut file)
        .with_context(|| format!("Cannot write {}", path.display()))
}
