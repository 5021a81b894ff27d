// SPDX-License-Identifier: Apache-2.0
//! `kemarictl`: what an administrator types.
//!
//! It asks the agent for the cluster and the engines of this node for themselves; it decides
//! nothing. Exit status 0: done, 1: it failed and standard error says why, 2: wrong usage.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use kemari_agent::operator;
use kemari_api::VmName;

/// Shows and commands the replicas of fault-tolerant VMs.
#[derive(Debug, Parser)]
#[command(name = "kemarictl", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the cluster and its replicas, as this node's agent knows them.
    ///
    /// Without an agent, shows the engines of this node.
    Status {
        /// Only this VM.
        vm: Option<VmName>,
    },
    /// List the VMs whose engines run on this node.
    List,
    /// Type commands to a VM's engine on this node, or run one.
    ///
    /// Without a command, reads one a line until end of file or `exit`. `quit` ends the engine.
    Monitor {
        /// The VM.
        vm: VmName,
        /// The command and its arguments, such as `migrate -d kemari:tcp:192.168.0.20:4444`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Status { vm } => operator::status(vm.as_ref()).await,
        Command::List => operator::list().await,
        Command::Monitor { vm, command } if command.is_empty() => operator::converse(&vm).await,
        Command::Monitor { vm, command } => operator::run_one(&vm, &command.join(" ")).await,
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kemarictl: {error:#}");
            ExitCode::FAILURE
        }
    }
}
