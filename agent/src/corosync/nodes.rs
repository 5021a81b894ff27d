// SPDX-License-Identifier: Apache-2.0
//! The node list of `corosync.conf`, read through cmap: ids and names.
//!
//! A node without `name:` is called by its first address, or `node-ID` when that is no node name
//! (an IPv6 address). Pacemaker wants names set, so this is the exception.

use std::collections::{BTreeMap, BTreeSet};

use kemari_api::NodeName;
use rust_corosync::cmap::{self, Data, Handle, Map};
use rust_corosync::{CsError, NodeId};

use super::{CorosyncError, Input, failed};

/// Corosync bears fewer nodes than this.
const NODES_MAX: u32 = 128;

/// The configured nodes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NodeList {
    pub local: NodeName,
    names: BTreeMap<u32, NodeName>,
}

impl NodeList {
    pub fn read() -> Result<Self, CorosyncError> {
        let handle = cmap::initialize(Map::Icmap).map_err(failed("connecting to cmap"))?;
        let mut names = BTreeMap::new();
        for position in 0..NODES_MAX {
            let key = |field: &str| format!("nodelist.node.{position}.{field}");
            let Some(address) = text(&handle, &key("ring0_addr"))? else {
                continue;
            };
            let id = number(&handle, &key("nodeid"))?.unwrap_or(position + 1);
            let name = text(&handle, &key("name"))?.unwrap_or(address);
            names.insert(id, name.parse().unwrap_or_else(|_| fallback(id)));
        }
        let id = number(&handle, "runtime.votequorum.this_node_id")?.unwrap_or(0);
        let local = names
            .get(&id)
            .cloned()
            .ok_or(CorosyncError::NotListed(id))?;
        Ok(Self { local, names })
    }

    pub fn configured(&self) -> BTreeSet<NodeName> {
        self.names.values().cloned().collect()
    }

    pub fn input(&self) -> Input {
        Input::Nodes {
            local: self.local.clone(),
            configured: self.configured(),
        }
    }

    pub fn knows(&self, ids: &[NodeId]) -> bool {
        ids.iter()
            .all(|&id| self.names.contains_key(&u32::from(id)))
    }

    pub fn name(&self, id: NodeId) -> NodeName {
        let id = u32::from(id);
        self.names.get(&id).cloned().unwrap_or_else(|| fallback(id))
    }

    pub fn names(&self, ids: &[NodeId]) -> BTreeSet<NodeName> {
        ids.iter().map(|&id| self.name(id)).collect()
    }
}

fn fallback(id: u32) -> NodeName {
    format!("node-{id}")
        .parse()
        .expect("letters, a hyphen and at most ten digits are a node name")
}

fn get(handle: &Handle, key: &str) -> Result<Option<Data>, CorosyncError> {
    match cmap::get(handle, key) {
        Ok(data) => Ok(Some(data)),
        Err(CsError::CsErrNotExist) => Ok(None),
        Err(code) => Err(failed("reading cmap")(code)),
    }
}

pub(super) fn text(handle: &Handle, key: &str) -> Result<Option<String>, CorosyncError> {
    Ok(get(handle, key)?.and_then(|data| match data {
        Data::String(text) => Some(text.trim_end_matches('\0').to_owned()),
        _ => None,
    }))
}

pub(super) fn number(handle: &Handle, key: &str) -> Result<Option<u32>, CorosyncError> {
    Ok(get(handle, key)?.and_then(|data| match data {
        Data::UInt32(number) => Some(number),
        _ => None,
    }))
}
