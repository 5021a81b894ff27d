// SPDX-License-Identifier: Apache-2.0
//! `kemari-engine`: one replica of a fault-tolerant virtual machine.
//!
//! The process puts three things together: the machine (`kemari-vmm`), the protocol
//! (`kemari-replication`) and the outside: transports, outputs, the control socket, systemd.
//!
//! ```text
//!  control socket ──commands──▶ conductor ──owns──▶ machine, licence, roles
//!  (tokio, one thread)              ▲  │                 │ vCPU thread
//!                 acks, frames ─────┘  └─▶ sender        ▼
//!                 (link threads)           thread    event-tap ──▶ carrier ──▶ outside
//! ```
//!
//! The conductor is one thread with one queue: every decision about this replica is made there, in
//! order. The data path never crosses the async runtime.
#![forbid(unsafe_code)]

mod attachments;
mod check;
mod clock;
mod conductor;
mod control;
mod disk;
mod epoch_hash;
mod exit;
mod link;
mod machine_config;
mod memory_errors;
mod outputs;
mod record;
mod run;
mod sandbox;
mod snapshot;
mod storage;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use kemari_api::NodeName;
use snapshot::SnapshotCommand;

use crate::exit::{Failure, FailureKind};

/// One replica of a fault-tolerant virtual machine.
#[derive(Debug, Parser)]
#[command(name = "kemari-engine", version, about)]
struct CommandLine {
    #[command(subcommand)]
    command: Subject,
}

#[derive(Debug, Subcommand)]
enum Subject {
    /// Run a replica: boot the guest, or with --incoming wait to receive or to be promoted.
    Run(RunArguments),
    /// Write a guest to a file, or run it on from one.
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Check descriptions and whether this node has what they need, without starting anything.
    Check(CheckArguments),
    /// Print the JSON schema of a description, for editors.
    Schema,
}

/// What `kemari-engine check` was told.
#[derive(Debug, clap::Args)]
struct CheckArguments {
    /// Descriptions of VMs, TOML files.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,

    /// Check the text only, not whether this node has what it names.
    #[arg(long)]
    no_host: bool,
}

/// What `kemari-engine run` was told.
#[derive(Debug, clap::Args)]
struct RunArguments {
    /// The description of the VM, a TOML file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,

    /// Start without a guest and accept replication at kemari:tcp:ADDR:PORT, kemari:tls:ADDR:PORT or
    /// kemari:unix:/PATH; `auto` stands for every address of this node and the port of the
    /// description, with TLS where this node has a key. Without `kemari:` accept a live migration
    /// instead.
    #[arg(long, value_name = "ADDRESS")]
    incoming: Option<String>,

    /// The name of this node in the cluster; the host name if not given.
    #[arg(long, value_name = "NAME", env = "KEMARI_NODE")]
    node: Option<NodeName>,

    /// Without --incoming: boot although the other replica may have gone on with the guest.
    #[arg(long)]
    force: bool,

    /// Keep all rights while the guest runs; for debugging only.
    #[arg(long)]
    no_sandbox: bool,

    /// The snapshot that the guest goes on from.
    #[arg(skip)]
    restore: Option<PathBuf>,
}

fn main() -> ExitCode {
    start_logging();
    let ended = match CommandLine::parse().command {
        Subject::Run(arguments) => run::run(&arguments),
        Subject::Snapshot(SnapshotCommand::Save(arguments)) => snapshot::save(&arguments),
        Subject::Snapshot(SnapshotCommand::Restore(arguments)) => run::run(&arguments.into_run()),
        Subject::Check(arguments) => return check::run(&arguments),
        Subject::Schema => print_schema(),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            tracing::error!("{failure}");
            failure.tell_systemd();
            failure.exit_code()
        }
    }
}

fn print_schema() -> Result<(), Failure> {
    let mut text = format!("{:#}", kemari_api::config::schema());
    text.push('\n');
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(|error| Failure::new(FailureKind::Other, &error))
}

/// Events go to standard error, where journald or a person reads them.
fn start_logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("KEMARI_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let plain = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(false);
    // journald stamps every line itself.
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        plain.without_time().init();
    } else {
        plain.init();
    }
}
