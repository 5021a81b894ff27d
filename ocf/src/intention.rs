// SPDX-License-Identifier: Apache-2.0
//! What Pacemaker intends with this instance now, whatever it had in mind when it began the present action.
//!
//! When two parts of a cluster merge, promotion scores of nodes that were there all the time can be missing
//! for a moment (the part that was silent had forgotten them, and its cluster information base may be the one that
//! is kept). Pacemaker then demotes what it promotes again a moment later. Where a demotion would cost the
//! guest, its scheduler is asked again first: crm_simulate(8) on the live cluster.

use std::time::Duration;

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::exit::warn;
use crate::scheduler::{attribute, simulate};

/// How long missing scores may take to be there again.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two questions.
const PAUSE: Duration = Duration::from_millis(300);

/// Where Pacemaker's plans, made anew, lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Intention {
    /// This instance stays promoted, with no demotion on the way.
    StaysPromoted,
    /// Some instance is promoted in the end, and this one is demoted, or stays unpromoted.
    OtherPromoted,
    /// None is.
    NonePromoted,
    /// The scheduler could not be asked.
    Unknown,
}

/// Asks the scheduler about the instance of `resource` on `node` until it is to stay promoted, or the time is up: the
/// answer that came last.
pub(crate) async fn ask(resource: &str, node: &str, left: Duration) -> Intention {
    let until = Instant::now() + left.min(PATIENCE);
    let mut last = Intention::Unknown;
    let mut failed = None;
    while let Ok(answer) = timeout_at(until, simulate()).await {
        match answer {
            Ok(xml) => last = read(&xml, resource, node),
            Err(reason) => failed = Some(reason),
        }
        if last == Intention::StaysPromoted {
            return last;
        }
        let next = Instant::now() + PAUSE;
        if next >= until {
            break;
        }
        sleep_until(next).await;
    }
    if let Some(reason) = failed.filter(|_| last == Intention::Unknown) {
        warn(format!("Pacemaker's scheduler cannot be asked: {reason}"));
    }
    last
}

/// What a simulated transition comes to.
fn read(xml: &str, resource: &str, node: &str) -> Intention {
    // An instance of a unique clone has a number.
    let primitive = |id: &str| id.split(':').next().map(str::to_owned);
    let ours = |tag: &BytesStart<'_>, key: &str| {
        attribute(tag, key).as_deref().and_then(primitive) == primitive(resource)
    };
    let here = |tag: &BytesStart<'_>, key: &str| attribute(tag, key).as_deref() == Some(node);
    let mut reader = Reader::from_str(xml);
    let (mut planned, mut revised, mut in_promoted) = (false, false, false);
    let (mut demoted, mut some, mut this) = (false, false, false);
    loop {
        match reader.read_event() {
            Ok(Event::Start(tag) | Event::Empty(tag)) => match tag.name().as_ref() {
                "transition" => planned = true,
                "rsc_action" if planned && ours(&tag, "resource") && here(&tag, "node") => {
                    demoted |= attribute(&tag, "op").as_deref() == Some("demote");
                }
                "revised_cluster_status" => revised = true,
                "resource" if revised => {
                    let role = attribute(&tag, "role").unwrap_or_default();
                    in_promoted =
                        ours(&tag, "id") && matches!(role.as_str(), "Promoted" | "Master");
                }
                "node" if in_promoted => {
                    some = true;
                    this |= here(&tag, "name");
                }
                _ => {}
            },
            Ok(Event::End(tag)) if tag.name().as_ref() == "resource" => in_promoted = false,
            Ok(Event::Eof) if !revised => return Intention::Unknown,
            Ok(Event::Eof) if this && !demoted => return Intention::StaysPromoted,
            Ok(Event::Eof) if some => return Intention::OtherPromoted,
            Ok(Event::Eof) => return Intention::NonePromoted,
            Ok(_) => {}
            Err(_) => return Intention::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Intention, read};

    /// As Pacemaker 2.1.5 writes it.
    fn simulated(before: &str, actions: &str, after: &str, node: &str) -> String {
        let section = |name: &str, role: &str| {
            format!(
                "<{name}><nodes><node name=\"node2\"/></nodes><resources><clone id=\"vm-pair\">\
                 <resource id=\"vm\" role=\"{role}\"><node name=\"{node}\" id=\"2\"/></resource>\
                 <resource id=\"vm\" role=\"Unpromoted\"><node name=\"node3\" id=\"3\"/></resource>\
                 <resource id=\"other\" role=\"Promoted\"><node name=\"node3\" id=\"3\"/></resource>\
                 </clone></resources></{name}>"
            )
        };
        format!(
            "<pacemaker-result>{}<actions/><transition><pseudo_action task=\"vm-pair_demote_0\"/>\
             {actions}</transition>{}<status code=\"0\"/></pacemaker-result>",
            section("cluster_status", before),
            section("revised_cluster_status", after)
        )
    }

    #[test]
    fn what_counts_is_where_the_transition_leads_and_by_which_way() {
        let demote = "<rsc_action resource=\"vm\" op=\"demote\" node=\"node2\"/>";
        let of_another = "<rsc_action resource=\"vm\" op=\"demote\" node=\"node3\"/>\
                          <rsc_action resource=\"other\" op=\"demote\" node=\"node2\"/>";
        for (before, actions, after, node, intention) in [
            (
                "Promoted",
                "",
                "Promoted",
                "node2",
                Intention::StaysPromoted,
            ),
            (
                "Unpromoted",
                of_another,
                "Master",
                "node2",
                Intention::StaysPromoted,
            ),
            (
                "Promoted",
                demote,
                "Promoted",
                "node2",
                Intention::OtherPromoted,
            ),
            (
                "Promoted",
                "",
                "Promoted",
                "node1",
                Intention::OtherPromoted,
            ),
            (
                "Promoted",
                demote,
                "Unpromoted",
                "node2",
                Intention::NonePromoted,
            ),
        ] {
            let xml = simulated(before, actions, after, node);
            assert_eq!(read(&xml, "vm", "node2"), intention, "{xml}");
            assert_eq!(read(&xml, "vm:0", "node2"), intention, "{xml}");
        }
        for none in ["", "<pacemaker-result", "crm_simulate: no such option"] {
            assert_eq!(read(none, "vm", "node2"), Intention::Unknown);
        }
    }
}
