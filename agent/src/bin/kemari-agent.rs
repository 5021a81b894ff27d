// SPDX-License-Identifier: Apache-2.0
//! `kemari-agent`: one per node, started by systemd (`Type=notify`).
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use kemari_agent::command::KemariAgent;
use kemari_agent::settings::Settings;
use kemari_agent::{daemon, journal};
use tracing::error;

fn main() -> ExitCode {
    let arguments = KemariAgent::parse();
    if let Err(error) = journal::start() {
        eprintln!("kemari-agent: {error:#}");
        return ExitCode::FAILURE;
    }
    let settings = Settings::load(&arguments.settings).unwrap_or_else(|error| {
        let error = anyhow::Error::new(error);
        error!("{error:#}; this agent goes on with default settings");
        Settings::default()
    });
    let result = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::new)
        .and_then(|runtime| {
            let result = runtime.block_on(daemon::run(&arguments.metrics, settings));
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
