// SPDX-License-Identifier: Apache-2.0
//! Where a plain primitive is to run after it was stopped here.
//!
//! Pacemaker tells a `stop` not what comes next, and it makes all the difference: a VM that is stopped shuts
//! down, one that moves goes on from its passive replica. So its scheduler is asked.

use std::collections::BTreeSet;
use std::time::Duration;

use quick_xml::Reader;
use quick_xml::events::Event;
use tokio::time::timeout;

use crate::exit::warn;
use crate::scheduler::{attribute, simulate};

/// Where Pacemaker's plan, made anew, leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Destination {
    /// It runs nowhere in the end.
    Nowhere,
    /// Here: it is restarted.
    Here,
    /// On another node.
    Elsewhere(String),
    /// Pacemaker finds it on other nodes, too, as after a node that was silent has come back, and wants one.
    OneOfSeveral,
    /// The scheduler could not be asked.
    Unknown,
}

/// Asks the scheduler about `resource`, which this `node` has.
pub(crate) async fn ask(resource: &str, node: &str, patience: Duration) -> Destination {
    let failed = match timeout(patience, simulate()).await {
        Ok(Ok(xml)) => return read(&xml, resource, node),
        Ok(Err(reason)) => reason,
        Err(_) => format!("no answer within {} s", patience.as_secs_f32()),
    };
    warn(format!("Pacemaker's scheduler cannot be asked: {failed}"));
    Destination::Unknown
}

fn read(xml: &str, resource: &str, node: &str) -> Destination {
    let mut reader = Reader::from_str(xml);
    let (mut revised, mut inside) = (false, false);
    let (mut before, mut after) = (BTreeSet::new(), BTreeSet::new());
    loop {
        match reader.read_event() {
            Ok(Event::Start(tag)) if tag.name().as_ref() == "revised_cluster_status" => {
                revised = true;
            }
            Ok(Event::Start(tag)) if tag.name().as_ref() == "resource" => {
                inside = attribute(&tag, "id").as_deref() == Some(resource);
            }
            Ok(Event::Start(tag) | Event::Empty(tag))
                if inside && tag.name().as_ref() == "node" =>
            {
                let nodes = if revised { &mut after } else { &mut before };
                nodes.extend(attribute(&tag, "name"));
            }
            Ok(Event::End(tag)) if tag.name().as_ref() == "resource" => inside = false,
            Ok(Event::Eof) if revised => break,
            Ok(Event::Eof) | Err(_) => return Destination::Unknown,
            Ok(_) => {}
        }
    }
    let several = before.iter().any(|other| other != node);
    match after.first() {
        None => Destination::Nowhere,
        Some(_) if several => Destination::OneOfSeveral,
        Some(_) if after.contains(node) => Destination::Here,
        Some(other) => Destination::Elsewhere(other.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::{Destination, read};

    fn simulated(before: &[&str], after: &[&str]) -> String {
        let section = |name: &str, nodes: &[&str]| {
            let nodes: String = nodes
                .iter()
                .map(|node| format!("<node name=\"{node}\" id=\"1\" cached=\"true\"/>"))
                .collect();
            // As Pacemaker 2.1.5 writes it; one that runs nowhere is an empty element.
            let ours = if nodes.is_empty() {
                "<resource id=\"vm\" role=\"Stopped\"/>".to_owned()
            } else {
                format!("<resource id=\"vm\" role=\"Started\">{nodes}</resource>")
            };
            format!(
                "<{name}><nodes><node name=\"n9\"/></nodes><resources>{ours}<resource id=\"other\" \
                 role=\"Started\"><node name=\"n3\"/></resource></resources></{name}>"
            )
        };
        format!(
            "<pacemaker-result>{}<transition/>{}<status code=\"0\"/></pacemaker-result>",
            section("cluster_status", before),
            section("revised_cluster_status", after)
        )
    }

    #[test]
    fn where_the_plan_leads_is_told_from_what_was_before() {
        let elsewhere = |node: &str| Destination::Elsewhere(node.to_owned());
        for (before, after, destination) in [
            (&["n1"][..], &[][..], Destination::Nowhere),
            (&["n1"], &["n1"], Destination::Here),
            (&["n1"], &["n2"], elsewhere("n2")),
            // The stop is done, in Pacemaker's eyes.
            (&[], &["n2"], elsewhere("n2")),
            (&["n1", "n2"], &["n1"], Destination::OneOfSeveral),
            (&["n1", "n2"], &["n2"], Destination::OneOfSeveral),
            (&["n1", "n2"], &[], Destination::Nowhere),
        ] {
            let xml = simulated(before, after);
            assert_eq!(read(&xml, "vm", "n1"), destination, "{xml}");
        }
        for none in [
            "",
            "<pacemaker-result",
            "<pacemaker-result></pacemaker-result>",
        ] {
            assert_eq!(read(none, "vm", "n1"), Destination::Unknown);
        }
    }
}
