// SPDX-License-Identifier: Apache-2.0
//! Tells Pacemaker that a resource has failed on this node (crm_resource(8), `--fail`).

use kemari_api::NodeName;
use tokio::process::Command;

/// Has Pacemaker recover the resource, as after a monitor that failed.
///
/// # Errors
/// What Pacemaker said.
pub(crate) async fn fail(resource: &str, node: &NodeName) -> Result<(), String> {
    let output = Command::new("crm_resource")
        .args(["--fail", "--resource", resource, "--node", node.as_str()])
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| error.to_string())?;
    if output.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }
}
