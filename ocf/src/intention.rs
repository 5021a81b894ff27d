// SPDX-License-Identifier: Apache-2.0
//! What Pacemaker would have of this instance now, whatever it had in mind when it began the present action.
//!
//! When two parts of a cluster merge, promotion scores of nodes that were there all the time can be missing
//! for a moment (the part that was silent had forgotten them, and its cluster information base may be the one that
//! is kept). Pacemaker then demotes what it promotes again a moment later. Where a demotion would cost the
//! guest, its scheduler is asked again first: crm_simulate(8) on the live cluster.

use std::process::Stdio;
use std::time::Duration;

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};

use crate::exit::warn;

/// How long missing scores may take to be there again.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two questions.
const PAUSE: Duration = Duration::from_millis(300);

/// Whether Pacemaker, asked for at most so long, comes to promote the instance of `resource` on `node`.
pub(crate) async fn promotes(resource: &str, node: &str, left: Duration) -> bool {
    let until = Instant::now() + left.min(PATIENCE);
    loop {
        let asked = timeout(until.saturating_duration_since(Instant::now()), simulate());
        match asked.await {
            Ok(Ok(xml)) if is_promoted(&xml, resource, node) => return true,
            Ok(Ok(_)) => {}
            Ok(Err(reason)) => {
                warn(format!("Pacemaker's scheduler cannot be asked: {reason}"));
                return false;
            }
            Err(_) => return false,
        }
        sleep(PAUSE).await;
    }
}

async fn simulate() -> Result<String, String> {
    let mut command = Command::new("crm_simulate");
    command
        .args(["--live-check", "--simulate", "--output-as=xml"])
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = command.output().await.map_err(|error| error.to_string())?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }
}

/// Whether the status that the transition leads to has the instance promoted. What is no such XML has not.
fn is_promoted(xml: &str, resource: &str, node: &str) -> bool {
    // An instance of a unique clone has a number.
    let primitive = resource.split(':').next().unwrap_or(resource);
    let mut reader = Reader::from_str(xml);
    let (mut revised, mut promoted) = (false, false);
    loop {
        match reader.read_event() {
            Ok(Event::Start(tag) | Event::Empty(tag)) => match tag.name().as_ref() {
                "revised_cluster_status" => revised = true,
                "resource" => {
                    let id = attribute(&tag, "id").unwrap_or_default();
                    let role = attribute(&tag, "role").unwrap_or_default();
                    promoted = id.split(':').next() == Some(primitive)
                        && matches!(role.as_str(), "Promoted" | "Master");
                }
                "node"
                    if revised && promoted && attribute(&tag, "name").as_deref() == Some(node) =>
                {
                    return true;
                }
                _ => {}
            },
            Ok(Event::End(tag)) if tag.name().as_ref() == "resource" => promoted = false,
            Ok(Event::Eof) | Err(_) => return false,
            Ok(_) => {}
        }
    }
}

fn attribute(tag: &BytesStart<'_>, name: &str) -> Option<String> {
    let attribute = tag.try_get_attribute(name).ok()??;
    Some(attribute.value.into_owned())
}

#[cfg(test)]
mod tests {
    use super::is_promoted;

    fn status(before: &str, after: &str) -> String {
        let section = |name: &str, role: &str| {
            format!(
                "<{name}><nodes><node name=\"node2\"/></nodes><resources><clone id=\"vm-pair\">\
                 <resource id=\"vm\" role=\"{role}\"><node name=\"node2\" id=\"2\"/></resource>\
                 <resource id=\"vm\" role=\"Unpromoted\"><node name=\"node1\" id=\"1\"/></resource>\
                 <resource id=\"other\" role=\"Promoted\"><node name=\"node1\" id=\"1\"/></resource>\
                 </clone></resources></{name}>"
            )
        };
        format!(
            "<pacemaker-result>{}{}<status code=\"0\"/></pacemaker-result>",
            section("cluster_status", before),
            section("revised_cluster_status", after)
        )
    }

    #[test]
    fn what_counts_is_where_the_transition_leads() {
        let to_promoted = status("Unpromoted", "Promoted");
        assert!(is_promoted(&to_promoted, "vm", "node2"));
        assert!(is_promoted(&to_promoted, "vm:0", "node2"));
        assert!(is_promoted(&status("Promoted", "Master"), "vm", "node2"));
        assert!(!is_promoted(&to_promoted, "vm", "node1"));
        assert!(!is_promoted(&to_promoted, "v", "node2"));
        assert!(!is_promoted(
            &status("Promoted", "Unpromoted"),
            "vm",
            "node2"
        ));
        for no_status in ["", "<pacemaker-result", "crm_simulate: no such option"] {
            assert!(!is_promoted(no_status, "vm", "node2"));
        }
    }
}
