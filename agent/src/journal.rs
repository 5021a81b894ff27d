// SPDX-License-Identifier: Apache-2.0
//! How the agent writes to the journal.
//!
//! Standard error, one line an event, fields as `name=value`. Under systemd the journal adds time
//! and needs no colours. `KEMARI_LOG` chooses what is written (`info` unless set).

use std::env;
use std::io::{self, IsTerminal};

use nix::time::{ClockId, clock_gettime};
use tracing_subscriber::EnvFilter;

/// Starts logging for this process.
///
/// # Errors
/// When `KEMARI_LOG` is no filter, or logging was started before.
pub fn start() -> anyhow::Result<()> {
    let filter = match env::var("KEMARI_LOG") {
        Ok(text) => EnvFilter::try_new(&text).map_err(|error| {
            anyhow::anyhow!("KEMARI_LOG={text:?} is no log filter ({error}): try KEMARI_LOG=debug")
        })?,
        Err(_) => EnvFilter::new("info"),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_target(false)
        .with_ansi(io::stderr().is_terminal());
    let started = if env::var_os("JOURNAL_STREAM").is_some() {
        builder.without_time().try_init()
    } else {
        builder.try_init()
    };
    started.map_err(|error| anyhow::anyhow!("Cannot start logging: {error}"))
}

/// Microseconds of `CLOCK_MONOTONIC`, the same clock for every process of a machine.
#[must_use]
pub fn mono_us() -> i64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |now| {
        now.tv_sec()
            .saturating_mul(1_000_000)
            .saturating_add(now.tv_nsec() / 1_000)
    })
}
