// SPDX-License-Identifier: Apache-2.0
//! Tells Pacemaker that a resource has failed on this node (crm_resource(8), `--fail`).

use kemari_api::NodeName;

use super::command::run;

/// Has Pacemaker recover the resource, as after a monitor that failed.
///
/// # Errors
/// What Pacemaker said.
pub(crate) async fn fail(resource: &str, node: &NodeName) -> Result<(), String> {
    let arguments = ["--fail", "--resource", resource, "--node", node.as_str()];
    run("crm_resource", &arguments).await.map(drop)
}
