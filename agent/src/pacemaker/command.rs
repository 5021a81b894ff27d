// SPDX-License-Identifier: Apache-2.0
//! Runs Pacemaker's commands, which wait for its daemons and may wait for long.

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

/// Longest wait for one.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// What it printed.
///
/// # Errors
/// One sentence: what it said, or that it cannot be run, or did not end in time.
pub(super) async fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    match timeout(ANSWER_MAX, command.output()).await {
        Ok(Ok(output)) if output.status.success() => {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        }
        Ok(Ok(output)) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Ok(Err(error)) => Err(format!("{program} cannot be run: {error}")),
        Err(_) => Err(format!(
            "{program} did not end within {} s",
            ANSWER_MAX.as_secs()
        )),
    }
}
