// SPDX-License-Identifier: Apache-2.0
//! `kemarictl`: what an administrator types. Its words are in `kemari_agent::command`, what it does in
//! `kemari_agent::operator`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use kemari_agent::command::{Exit, Kemarictl, exit_of};
use kemari_agent::operator;

fn main() -> ExitCode {
    let command = Kemarictl::parse().command;
    let result = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::new)
        .and_then(|runtime| {
            let result = runtime.block_on(operator::run(command));
            // Standard output may be stuck.
            runtime.shutdown_background();
            result
        });
    let exit = match result {
        Ok(()) => Exit::Done,
        Err(error) => {
            eprintln!("kemarictl: {error:#}");
            exit_of(&error)
        }
    };
    ExitCode::from(exit.number())
}
