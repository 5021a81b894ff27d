// SPDX-License-Identifier: Apache-2.0
//! `kemari-agent`: one per node, started by systemd (`Type=notify`).
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use kemari_agent::command::KemariAgent;
use kemari_agent::{daemon, journal};
use tracing::error;

fn main() -> ExitCode {
    let arguments = KemariAgent::parse();
    if let Err(error) = journal::start() {
        eprintln!("kemari-agent: {error:#}");
        return ExitCode::FAILURE;
    }
    let result = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::new)
        .and_then(|runtime| {
            let result = runtime.block_on(daemon::run(&arguments.metrics));
            runtime.shutdown_background();
            result
        });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
