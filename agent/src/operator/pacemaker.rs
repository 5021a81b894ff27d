// SPDX-License-Identifier: Apache-2.0
//! What is asked of Pacemaker, by its own commands.
//!
//! Pacemaker places replicas; who wants one elsewhere tells it, or it puts things back.

use std::path::Path;
use std::process::Output;

use anyhow::Context;
use kemari_api::config::VmConfig;
use kemari_api::{NodeName, VmName};
use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};
use tokio::process::Command;

use crate::command::Ended;

/// A resource of `ocf:kemari:vm`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Resource {
    /// The primitive's id.
    pub primitive: String,
    /// The clone around it; a plain primitive has none.
    pub clone: Option<String>,
    /// The description it was given.
    pub config: String,
}

impl Resource {
    /// What constraints name.
    pub fn id(&self) -> &str {
        self.clone.as_deref().unwrap_or(&self.primitive)
    }
}

/// The resource that runs this VM; `None` if Pacemaker is not there or manages no such VM.
pub(super) async fn resource_of(vm: &VmName) -> Option<Resource> {
    let output = Command::new("cibadmin")
        .args(["--query", "--scope", "resources"])
        .output()
        .await
        .ok()?;
    let xml = String::from_utf8_lossy(&output.stdout).into_owned();
    let resources = resources(&xml).ok()?;
    resources.into_iter().find(|resource| names(resource, vm))
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

/// The description says which VM it is; where it cannot be read, its file name must do.
fn names(resource: &Resource, vm: &VmName) -> bool {
    let path = Path::new(&resource.config);
    match VmConfig::load(path) {
        Ok(config) => config.vm.name == *vm,
        Err(_) => path.file_stem().is_some_and(|stem| stem == vm.as_str()),
    }
}

/// All resources of `ocf:kemari:vm` in the CIB's section `resources`.
fn resources(xml: &str) -> anyhow::Result<Vec<Resource>> {
    let mut reader = Reader::from_str(xml);
    let mut found = Vec::new();
    let mut clone = None;
    let mut open: Option<Resource> = None;
    loop {
        let event = reader.read_event().context("The CIB is no XML")?;
        match &event {
            Event::Eof => return Ok(found),
            Event::Start(tag) | Event::Empty(tag) => match tag.name().as_ref() {
                "clone" | "master" => clone = attribute(tag, "id"),
                "primitive" if is_kemari(tag) => {
                    open = attribute(tag, "id").map(|primitive| Resource {
                        primitive,
                        clone: clone.clone(),
                        config: String::new(),
                    });
                }
                "nvpair" if attribute(tag, "name").as_deref() == Some("config") => {
                    if let (Some(resource), Some(value)) = (&mut open, attribute(tag, "value")) {
                        resource.config = value;
                    }
                }
                _ => {}
            },
            Event::End(tag) => match tag.name().as_ref() {
                "clone" | "master" => clone = None,
                "primitive" => found.extend(open.take()),
                _ => {}
            },
            _ => {}
        }
    }
}

fn is_kemari(tag: &BytesStart<'_>) -> bool {
    attribute(tag, "provider").as_deref() == Some("kemari")
        && attribute(tag, "type").as_deref() == Some("vm")
}

fn attribute(tag: &BytesStart<'_>, name: &str) -> Option<String> {
    let attribute = tag.try_get_attribute(name).ok()??;
    Some(attribute.value.into_owned())
}

/// Prefers this node for the role of the active replica, until [`clear`].
pub(super) async fn move_to(resource: &Resource, node: &NodeName) -> anyhow::Result<()> {
    crm_resource(&[
        "--move",
        "--promoted",
        "--resource",
        resource.id(),
        "--node",
        node.as_str(),
    ])
    .await
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

#[cfg(test)]
mod tests {
    use super::*;

    const CIB: &str = r#"<resources>
      <primitive id="ip" class="ocf" provider="heartbeat" type="IPaddr2">
        <instance_attributes id="a"><nvpair id="b" name="config" value="/x"/></instance_attributes>
      </primitive>
      <clone id="vm-pair">
        <meta_attributes id="m"><nvpair id="p" name="promotable" value="true"/></meta_attributes>
        <primitive id="vm" class="ocf" provider="kemari" type="vm">
          <instance_attributes id="vm-a">
            <nvpair id="vm-c" name="config" value="/nowhere/web.toml"/>
          </instance_attributes>
          <operations><op id="o" name="monitor" interval="10s"/></operations>
        </primitive>
      </clone>
      <primitive id="plain" class="ocf" provider="kemari" type="vm">
        <instance_attributes id="q"><nvpair id="r" name="config" value="/nowhere/db.toml"/></instance_attributes>
      </primitive>
    </resources>"#;

    #[test]
    fn resources_are_found_with_their_clones_and_descriptions() {
        let found = resources(CIB).unwrap();
        assert_eq!(
            found,
            [
                Resource {
                    primitive: "vm".to_owned(),
                    clone: Some("vm-pair".to_owned()),
                    config: "/nowhere/web.toml".to_owned(),
                },
                Resource {
                    primitive: "plain".to_owned(),
                    clone: None,
                    config: "/nowhere/db.toml".to_owned(),
                },
            ]
        );
        let ids: Vec<_> = found.iter().map(Resource::id).collect();
        assert_eq!(ids, ["vm-pair", "plain"]);
        assert!(
            found
                .first()
                .is_some_and(|it| names(it, &"web".parse().unwrap()))
        );
    }

    #[test]
    fn what_is_no_cib_is_an_error_and_an_empty_one_is_none() {
        assert!(resources("<a><b></a>").is_err());
        assert!(resources("<resources/>").unwrap().is_empty());
    }
}
