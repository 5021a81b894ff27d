// SPDX-License-Identifier: Apache-2.0
//! `ocf:kemari:vm`, the resource agent, installed as `/usr/lib/ocf/resource.d/kemari/vm`.
//!
//! Cloned as promotable it shows both replicas; as a plain primitive it is the active one, and the agents keep the
//! passive one (`form.rs`, `actions/plain.rs`).
//!
//! It translates Pacemaker's actions into requests to the engine of a VM, to systemd and to the
//! node's kemari-agent, and their answers into OCF exit codes. It decides nothing about who may
//! run: a promotion is asked of the agent, which knows the other nodes.
//!
//! Invariants: every error has an exit reason; no action outlives the timeout Pacemaker gave it;
//! `stop` succeeds only when no engine is left, or of a plain primitive one without a guest that the agent keeps; `monitor` tells running, failed and cleanly stopped
//! apart (see `actions/monitor.rs`); a replica whose state may be old gets no promotion score (see
//! `score.rs`).
#![forbid(unsafe_code)]

use std::env;
use std::process::ExitCode;

mod action;
mod actions;
mod cluster;
mod description;
mod destination;
mod engine;
mod environment;
mod exit;
mod form;
mod instance;
mod intention;
mod metadata;
#[cfg(test)]
mod reference;
mod resource;
mod scheduler;
mod score;
#[cfg(test)]
mod tests;
mod transition;
mod unit;

use action::Action;
use environment::Environment;
use exit::{Code, Failure, Outcome};

fn main() -> ExitCode {
    let name = env::args_os().nth(1).unwrap_or_default();
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::generic(format!("Cannot begin: {error}")))
        .and_then(|runtime| {
            let outcome = runtime.block_on(run(&name.to_string_lossy()));
            // A thread that hangs in a file system must not hold the answer back.
            runtime.shutdown_background();
            outcome
        });
    match outcome {
        Ok(code) => code.into(),
        Err(failure) => {
            exit::tell_reason(&failure.reason);
            failure.code.into()
        }
    }
}

async fn run(name: &str) -> Outcome {
    match (name, Action::named(name)) {
        (_, Some(Action::MetaData)) => print_metadata(),
        (_, Some(action)) => {
            actions::run(action, Environment::read(|key| env::var(key).ok())).await
        }
        ("usage" | "help", None) => {
            println!("{}", usage());
            Ok(Code::Success)
        }
        _ => {
            eprintln!("{}", usage());
            let text = format!("{name:?} is no action of ocf:kemari:vm");
            Err(Failure::new(Code::Unimplemented, text))
        }
    }
}

fn usage() -> String {
    let names = Action::ALL.map(Action::name).join("|");
    let actions =
        Action::ALL.map(|action| format!("  {:<13} {}\n", action.name(), action.meaning()));
    format!(
        "usage: vm {{{names}}}\n{}Parameters come from the environment, as Pacemaker sets it.",
        actions.concat()
    )
}

fn print_metadata() -> Outcome {
    let document = metadata::document()
        .map_err(|error| Failure::generic(format!("Cannot write the meta-data: {error}")))?;
    print!("{document}");
    Ok(Code::Success)
}
