// SPDX-License-Identifier: Apache-2.0
//! `bed`: a cluster of namespaced nodes to try things in. `bed up` makes it and stays; the other commands reach it.
#![forbid(unsafe_code)]

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};

use kemari_cluster_tests::bed::Bed;
use kemari_cluster_tests::control;
use kemari_cluster_tests::namespaces::Namespaces;

/// A cluster of nodes made of namespaces, on this machine. Must run as root.
#[derive(Debug, Parser)]
struct Arguments {
    /// The bed's name, when several are up (printed by `bed up`)
    #[arg(long, global = true)]
    run: Option<String>,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make a bed and hold it until Ctrl-C or `bed down`
    Up {
        /// How many nodes
        #[arg(default_value_t = 3)]
        nodes: u8,
        /// Corosync's token time-out in milliseconds
        #[arg(long, default_value_t = 1000)]
        token_ms: u32,
        /// Let Pacemaker fence through the bed's power switch
        #[arg(long)]
        stonith: bool,
        /// A Debian package to install in every node; may be given several times
        #[arg(long = "deb")]
        debs: Vec<PathBuf>,
        /// Do not start Corosync and Pacemaker
        #[arg(long)]
        bare: bool,
    },
    /// End the bed
    Down,
    /// Show nodes and cables
    Status,
    /// Run a command in a node; a shell without one
    Exec {
        /// The node
        node: String,
        /// The command and its arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Take a node's power
    Kill {
        /// The node
        node: String,
    },
    /// Give a node its power back
    On {
        /// The node
        node: String,
    },
    /// Pull a node's cable
    Cut {
        /// The node
        node: String,
    },
    /// Plug a node's cable in
    Heal {
        /// The node
        node: String,
    },
    /// Stop all processes of a node
    Freeze {
        /// The node
        node: String,
    },
    /// Let a frozen node go on
    Thaw {
        /// The node
        node: String,
    },
}

fn main() -> ExitCode {
    match act(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn act(Arguments { run, action }: Arguments) -> Result<()> {
    let line = match action {
        Action::Up {
            nodes,
            token_ms,
            stonith,
            debs,
            bare,
        } => {
            let builder = Namespaces::builder()
                .nodes(nodes)
                .token_ms(token_ms)
                .stonith(stonith)
                .debs(debs);
            return hold(builder.up()?, bare);
        }
        Action::Exec { node, command } => return exec(run.as_deref(), &node, &command),
        Action::Down => String::from("down"),
        Action::Status => String::from("status"),
        Action::Kill { node } => format!("kill {node}"),
        Action::On { node } => format!("on {node}"),
        Action::Cut { node } => format!("cut {node}"),
        Action::Heal { node } => format!("heal {node}"),
        Action::Freeze { node } => format!("freeze {node}"),
        Action::Thaw { node } => format!("thaw {node}"),
    };
    print!(
        "{}",
        control::request(&control::find(run.as_deref())?, &line)?
    );
    Ok(())
}

/// Holds a bed until a request or a signal ends it. Also a signal that kills at once leaves nothing behind.
fn hold(bed: Namespaces, bare: bool) -> Result<()> {
    if !bare {
        bed.start_cluster()?;
    }
    println!(
        "{} is up: {}. Ctrl-C or `bed down` ends it.",
        bed.supervisor().name(),
        bed.nodes().join(" ")
    );
    let client = control::serve(&bed)?;
    drop(bed);
    control::answer_down(client);
    Ok(())
}

/// Becomes a command in a node, with this terminal.
fn exec(run: Option<&str>, node: &str, command: &[String]) -> Result<()> {
    let answer = control::request(&control::find(run)?, &format!("enter {node}"))?;
    let mut words = answer.lines();
    let program = words.next().context("The bed named no program")?;
    let mut entering = Command::new(program);
    entering.args(words);
    if command.is_empty() {
        entering.arg("/bin/bash");
    }
    let error = entering.args(command).exec();
    bail!("Cannot run {program}: {error}")
}
