// SPDX-License-Identifier: Apache-2.0
//! Pacemaker, by its own commands: what its configuration says, whom it fenced, and what it is told of this node.

mod attribute;
mod command;
mod configuration;
mod failure;
mod fenced;

use quick_xml::events::BytesStart;

pub(crate) use attribute::{forget, tell};
pub(crate) use configuration::{Configuration, Resource};
pub(crate) use failure::fail;
pub(crate) use fenced::is_fenced;

/// An attribute of an XML element.
fn attribute_of(tag: &BytesStart<'_>, name: &str) -> Option<String> {
    let attribute = tag.try_get_attribute(name).ok()??;
    Some(attribute.value.into_owned())
}
