// SPDX-License-Identifier: Apache-2.0
//! Tells Pacemaker a node attribute of this node (attrd_updater(8)).

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;
use tracing::debug;

use super::Health;

/// Longest wait for Pacemaker's command.
const TELL_MAX: Duration = Duration::from_secs(10);

/// Whether Pacemaker has heard it.
pub(super) async fn tell(attribute: &str, health: Health) -> bool {
    let mut command = Command::new("attrd_updater");
    command
        .args(["--name", attribute, "--update", &health.to_string()])
        .stdin(Stdio::null())
        .kill_on_drop(true);
    match timeout(TELL_MAX, command.output()).await {
        Ok(Ok(output)) if output.status.success() => true,
        Ok(Ok(output)) => {
            let said = String::from_utf8_lossy(&output.stderr);
            debug!(%health, "Pacemaker does not take {attribute} yet: {}", said.trim());
            false
        }
        Ok(Err(error)) => {
            debug!(%health, "Cannot run attrd_updater: {error}");
            false
        }
        Err(_) => {
            debug!(%health, "attrd_updater took too long");
            false
        }
    }
}
