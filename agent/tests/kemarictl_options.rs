// SPDX-License-Identifier: Apache-2.0
//! The book's page about every command and option of `kemarictl`, made from what the program parses with.
//!
//! `KEMARI_WRITE_DOCS=1 cargo test -p kemari-agent --test kemarictl_options` writes `docs/kemarictl-options.md`; without it
//! the test compares.

use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs};

use clap::builder::StyledStr;
use clap::{Arg, Command, CommandFactory as _};
use kemari_agent::command::Kemarictl;

const HEAD: &str = "\
<!-- SPDX-License-Identifier: Apache-2.0 -->
<!-- Generated from agent/src/command.rs: KEMARI_WRITE_DOCS=1 cargo test -p kemari-agent --test kemarictl_options -->
# Every command and option of kemarictl

What they are for, exit statuses and JSON: [kemarictl.md](kemarictl.md). `man kemarictl-COMMAND` says the same as this page.
";

#[test]
fn the_page_of_options_is_what_the_program_parses() {
    let made = page(&Kemarictl::command());
    let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/kemarictl-options.md");
    if env::var_os("KEMARI_WRITE_DOCS").is_some() {
        fs::write(&place, made).expect("the page is written");
        return;
    }
    let page = fs::read_to_string(&place).expect("the page is there");
    assert!(
        page == made,
        "docs/kemarictl-options.md is old: KEMARI_WRITE_DOCS=1 cargo test -p kemari-agent --test kemarictl_options"
    );
}

fn page(program: &Command) -> String {
    let mut text = HEAD.to_owned();
    for command in program.get_subcommands() {
        section(&mut text, command);
    }
    text
}

fn section(text: &mut String, command: &Command) {
    let arguments: Vec<&Arg> = command.get_arguments().collect();
    let words: Vec<String> = arguments.iter().map(|argument| usage(argument)).collect();
    let name = command.get_name();
    let _ = writeln!(
        text,
        "\n## {name}\n\n```\nkemarictl {}\n```\n",
        [vec![name.to_owned()], words].concat().join(" ")
    );
    let about = command.get_long_about().or_else(|| command.get_about());
    let _ = writeln!(text, "{}", prose(about));
    if arguments.is_empty() {
        return;
    }
    text.push_str("\n| | |\n| --- | --- |\n");
    for argument in arguments {
        let help = argument.get_long_help().or_else(|| argument.get_help());
        let help = prose(help).replace('\n', " ").replace('|', "\\|");
        let _ = writeln!(text, "| `{}` | {help} |", shown(argument));
    }
}

/// An argument, as it is typed.
fn shown(argument: &Arg) -> String {
    let values = || {
        let names = argument.get_value_names().unwrap_or_default();
        let names: Vec<&str> = names.iter().map(|name| name.as_str()).collect();
        names.join(" ")
    };
    match argument.get_long() {
        None => values(),
        Some(long) if argument.get_action().takes_values() => format!("--{long} {}", values()),
        Some(long) => format!("--{long}"),
    }
}

fn usage(argument: &Arg) -> String {
    let shown = shown(argument);
    if argument.is_required_set() {
        shown
    } else {
        format!("[{shown}]")
    }
}

/// Help as a page of the book has it: what stands in angle brackets is no HTML.
fn prose(help: Option<&StyledStr>) -> String {
    let help = help.map(ToString::to_string).unwrap_or_default();
    help.replace('<', "&lt;")
}
