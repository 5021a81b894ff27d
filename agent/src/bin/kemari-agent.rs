// SPDX-License-Identifier: Apache-2.0
//! `kemari-agent`: one per node, started by systemd (`Type=notify`).
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use kemari_agent::{daemon, journal};
use tracing::error;

/// Watches this node's engines and Corosync, and decides with the other agents who may run a VM.
///
/// It needs a running Corosync and waits for it. VMs run on while it is stopped, but no lost node
/// is noticed then.
#[derive(Debug, Parser)]
#[command(name = "kemari-agent", version, after_help = ENVIRONMENT)]
struct Arguments {}

const ENVIRONMENT: &str = "Environment:
  KEMARI_LOG         what is logged, such as `debug` or `info,kemari_agent=trace` [info]
  KEMARI_RUN_DIR     control sockets of the engines [/run/kemari]
  KEMARI_STATE_DIR   the agent's votes, in claims/ [/var/lib/kemari]
  DBUS_SYSTEM_BUS_ADDRESS   another system bus";

fn main() -> ExitCode {
    let Arguments {} = Arguments::parse();
    if let Err(error) = journal::start() {
        eprintln!("kemari-agent: {error:#}");
        return ExitCode::FAILURE;
    }
    let result = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::new)
        .and_then(|runtime| {
            let result = runtime.block_on(daemon::run());
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
