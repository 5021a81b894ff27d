// SPDX-License-Identifier: Apache-2.0
//! What is asked of Pacemaker, by its own commands.
//!
//! Pacemaker places replicas; who wants one elsewhere tells it, or it puts things back.

use std::process::Output;

use anyhow::Context;
use kemari_api::{NodeName, VmName};
use tokio::process::Command;

use crate::command::Ended;
use crate::pacemaker::{Configuration, Resource};

/// The resource that runs this VM; `None` if Pacemaker is not there or manages no such VM.
pub(super) async fn resource_of(vm: &VmName) -> Option<Resource> {
    let resources = Configuration::read().await?.resources;
    resources.into_iter().find(|resource| resource.names(vm))
}

/// [`resource_of`], or words that say what to do without Pacemaker.
pub(super) async fn needed(vm: &VmName, by_hand: &str) -> anyhow::Result<Resource> {
    resource_of(vm).await.ok_or_else(|| {
        Ended::refused(format!(
            "Pacemaker does not answer on this node, or has no resource of ocf:kemari:vm for VM {vm}. \
             {by_hand}"
        ))
        .into()
    })
}

/// Prefers this node for the active replica, until [`clear`].
pub(super) async fn move_to(resource: &Resource, node: &NodeName) -> anyhow::Result<()> {
    let mut arguments = vec!["--move"];
    // A plain primitive has no roles: where it is, is the active replica.
    if resource.clone.is_some() {
        arguments.push("--promoted");
    }
    arguments.extend(["--resource", resource.id(), "--node", node.as_str()]);
    crm_resource(&arguments).await
}

/// Takes all such constraints of the resource back; of one node, if one is named.
pub(super) async fn clear(resource: &Resource, node: Option<&NodeName>) -> anyhow::Result<()> {
    let mut arguments = vec!["--clear", "--resource", resource.id()];
    if let Some(node) = node {
        arguments.extend(["--node", node.as_str()]);
    }
    crm_resource(&arguments).await
}

/// Allows no replica on this node, until [`clear`].
pub(super) async fn ban(resource: &Resource, node: &NodeName) -> anyhow::Result<()> {
    crm_resource(&[
        "--ban",
        "--resource",
        resource.id(),
        "--node",
        node.as_str(),
    ])
    .await
}

/// Forgets failures on this node and looks at the replica there anew.
pub(super) async fn clean_up(resource: &Resource, node: &NodeName) -> anyhow::Result<()> {
    crm_resource(&[
        "--cleanup",
        "--resource",
        &resource.primitive,
        "--node",
        node.as_str(),
    ])
    .await
}

async fn crm_resource(arguments: &[&str]) -> anyhow::Result<()> {
    let shown = format!("crm_resource {}", arguments.join(" "));
    let Output { status, stderr, .. } = Command::new("crm_resource")
        .args(arguments)
        .output()
        .await
        .with_context(|| format!("Cannot run `{shown}`"))?;
    if status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&stderr);
    let last = words.trim().lines().last().unwrap_or_default();
    Err(Ended::refused(format!("Pacemaker refused `{shown}`: {last}")).into())
}
