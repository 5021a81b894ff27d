// SPDX-License-Identifier: Apache-2.0
//! The addresses of one node: one for each network between the replicas.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::SeqAccessDeserializer;
use serde::de::{Deserialize, Deserializer, SeqAccess, Visitor};

use super::{HostName, LINKS_MAX};

/// Where a node is found on each network between the replicas, the preferred one first. At least
/// one, none twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkHosts(Vec<HostName>);

impl LinkHosts {
    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &HostName> {
        self.0.iter()
    }
}

impl<'de> Deserialize<'de> for LinkHosts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OneOrSeveral)
    }
}

/// Reads a text, or a list of texts.
struct OneOrSeveral;

impl<'de> Visitor<'de> for OneOrSeveral {
    type Value = LinkHosts;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "an address such as \"10.0.1.1\", or a list of them such as [\"10.0.1.1\", \"10.0.2.1\"]",
        )
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<LinkHosts, E> {
        let host = usable(text).map_err(E::custom)?;
        Ok(LinkHosts(vec![host]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<LinkHosts, A::Error> {
        use serde::de::Error as _;
        let texts = Vec::<String>::deserialize(SeqAccessDeserializer::new(list))?;
        several(&texts).map_err(A::Error::custom)
    }
}

fn several(texts: &[String]) -> Result<LinkHosts, String> {
    let mut hosts: Vec<HostName> = Vec::new();
    for text in texts {
        let host = usable(text)?;
        if hosts.iter().any(|other| same(other, &host)) {
            return Err(format!(
                "\"{host}\" is given twice: give one address for each network between the replicas"
            ));
        }
        hosts.push(host);
    }
    match hosts.len() {
        0 => Err(
            "the list is empty: give at least one address, or leave the node out and its name is \
             looked up"
                .to_owned(),
        ),
        1..=LINKS_MAX => Ok(LinkHosts(hosts)),
        count => Err(format!(
            "{count} addresses are given: give at most {LINKS_MAX}"
        )),
    }
}

/// An address that can be connected to.
fn usable(text: &str) -> Result<HostName, String> {
    let host: HostName = text
        .parse()
        .map_err(|error: super::TextError| error.to_string())?;
    let address = text.parse::<IpAddr>().ok();
    if address.is_some_and(|address| address.is_unspecified() || address.is_multicast()) {
        return Err(format!(
            "\"{text}\" is the address of no node: give the one that this node has on the network \
             between the replicas"
        ));
    }
    Ok(host)
}

/// `fd00::1` and `fd00:0::1` are one address.
pub(super) fn same(one: &HostName, other: &HostName) -> bool {
    let address = |host: &HostName| host.as_str().parse::<IpAddr>().ok();
    match (address(one), address(other)) {
        (Some(one), Some(other)) => one == other,
        (None, None) => one.as_str().eq_ignore_ascii_case(other.as_str()),
        _ => false,
    }
}

impl JsonSchema for LinkHosts {
    fn schema_name() -> Cow<'static, str> {
        "LinkHosts".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let one = HostName::json_schema(generator);
        json_schema!({ "anyOf": [
            one,
            {
                "type": "array", "items": one, "minItems": 1, "maxItems": LINKS_MAX,
                "uniqueItems": true,
            },
        ] })
    }
}
