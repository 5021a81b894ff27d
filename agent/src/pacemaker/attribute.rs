// SPDX-License-Identifier: Apache-2.0
//! Tells Pacemaker a node attribute of this node (attrd_updater(8)).

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;
use tracing::debug;

/// Longest wait for Pacemaker's command.
const TELL_MAX: Duration = Duration::from_secs(10);

/// Whether Pacemaker has heard it.
pub(crate) async fn tell(attribute: &str, value: &str) -> bool {
    // In one word: `-INFINITY` by itself would be read as options.
    ask(attribute, &format!("--update={value}")).await
}

/// Whether Pacemaker has forgotten it.
pub(crate) async fn forget(attribute: &str) -> bool {
    ask(attribute, "--delete").await
}

async fn ask(attribute: &str, what: &str) -> bool {
    let mut command = Command::new("attrd_updater");
    command
        .args(["--name", attribute, what])
        .stdin(Stdio::null())
        .kill_on_drop(true);
    match timeout(TELL_MAX, command.output()).await {
        Ok(Ok(output)) if output.status.success() => true,
        Ok(Ok(output)) => {
            let said = String::from_utf8_lossy(&output.stderr);
            debug!(
                what,
                "Pacemaker does not take {attribute} yet: {}",
                said.trim()
            );
            false
        }
        Ok(Err(error)) => {
            debug!(what, "Cannot run attrd_updater: {error}");
            false
        }
        Err(_) => {
            debug!(what, "attrd_updater took too long");
            false
        }
    }
}
