// SPDX-License-Identifier: Apache-2.0
//! `kemarictl`: what an administrator types.
//!
//! It asks the agent for the cluster and the engines of this node for themselves; it decides
//! nothing. Exit status 0: done, 1: it failed and standard error says why, 2: wrong usage.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use kemari_agent::operator::{self, Attachment, Input};
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
    /// Attach this terminal to the console of a VM whose active replica is on this node.
    ///
    /// Shows the output that the engine still keeps, at most 256 KiB, then what follows. Ctrl-]
    /// detaches. If standard input is no terminal, it is typed to its end, what was put out until
    /// then is shown, and that is all.
    Console {
        /// The VM.
        vm: VmName,
        /// Go on at this byte of the console's output, as the last detachment named it.
        #[arg(long, value_name = "POSITION")]
        from: Option<u64>,
        /// Only show: do not read standard input, and go on until the console ends or Ctrl-C.
        #[arg(long)]
        read_only: bool,
    },
    /// Compare the disks of both replicas of a VM while the guest runs.
    ///
    /// On the node of the active replica. Exit status 1 if a block differs.
    Verify {
        /// The VM.
        vm: VmName,
    },
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
    Keygen(operator::Keygen),
}

fn main() -> ExitCode {
    let command = Arguments::parse().command;
    let result = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::new)
        .and_then(|runtime| {
            let result = runtime.block_on(run(command));
            // Standard output may be stuck.
            runtime.shutdown_background();
            result
        });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kemarictl: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Status { vm } => operator::status(vm.as_ref()).await,
        Command::List => operator::list().await,
        Command::Keygen(command) => operator::keygen(&command),
        Command::Console {
            vm,
            from,
            read_only,
        } => {
            let input = if read_only {
                Input::Ignored
            } else {
                Input::Typed
            };
            operator::attach(&vm, Attachment { from, input }).await
        }
        Command::Verify { vm } => operator::run_one(&vm, "verify").await,
        Command::Monitor { vm, command } if command.is_empty() => operator::converse(&vm).await,
        Command::Monitor { vm, command } => operator::run_one(&vm, &command.join(" ")).await,
    }
}
