// SPDX-License-Identifier: Apache-2.0
//! The cluster: agents, names, Corosync, Pacemaker.

use super::super::facts::Facts;
use super::super::{Finding, Level};
use super::{finding, fine};
use crate::corosync::advice::Fencing;

pub(super) fn agent(facts: &Facts) -> Finding {
    match &facts.agent {
        Ok(view) if view.quorate => fine("agent", "kemari-agent answers, and there is quorum"),
        Ok(_) => finding(
            "agent",
            Level::Fail,
            "kemari-agent answers, and there is no quorum: nothing is promoted",
            "start more nodes; corosync-quorumtool -s shows the votes",
        ),
        Err(why) => finding(
            "agent",
            Level::Fail,
            why.clone(),
            "systemctl start kemari-agent; journalctl -u kemari-agent",
        ),
    }
}

pub(super) fn agents(facts: &Facts) -> Option<Finding> {
    let view = facts.agent.as_ref().ok()?;
    let silent: Vec<&str> = view
        .members
        .iter()
        .filter(|node| !view.agents.contains(node))
        .map(|node| node.as_str())
        .collect();
    Some(if silent.is_empty() {
        fine(
            "agents",
            format!("one on each of {} members", view.members.len()),
        )
    } else {
        finding(
            "agents",
            Level::Fail,
            format!("no kemari-agent on {}: it does not vote", silent.join(", ")),
            "systemctl enable --now kemari-agent there",
        )
    })
}

/// The name by which engines call this node must be the one Corosync gives it.
pub(super) fn host_name(facts: &Facts) -> Finding {
    let name = "host name";
    let here = &facts.host_name;
    match &facts.agent {
        Ok(view) if view.node.as_str() == here => {
            fine(name, format!("{here}, as in corosync.conf"))
        }
        Ok(view) => finding(
            name,
            Level::Fail,
            format!(
                "the host name is {here}, corosync.conf calls this node {}: nothing fails over by \
                 itself",
                view.node
            ),
            "set them equal (hostnamectl, or name: in corosync.conf), or KEMARI_NODE for the engines",
        ),
        Err(_) => finding(
            name,
            Level::Warn,
            format!("{here}; without the agent it is not known what Corosync calls this node"),
            "start kemari-agent, then look again",
        ),
    }
}

pub(super) fn corosync(facts: &Facts) -> Vec<Finding> {
    let name = "corosync";
    let settings = match &facts.corosync {
        Ok(settings) => settings,
        Err(why) => {
            let remedy = "systemctl start corosync; journalctl -u corosync";
            return vec![finding(name, Level::Fail, why.clone(), remedy)];
        }
    };
    let advice = settings.advice(fencing(facts));
    if advice.is_empty() {
        let token = settings
            .token_ms
            .map_or_else(String::new, |token| format!(", token {token} ms"));
        return vec![fine(name, format!("{} nodes{token}", settings.nodes))];
    }
    advice
        .into_iter()
        .map(|advice| finding(name, Level::Warn, advice.found, advice.remedy))
        .collect()
}

fn fencing(facts: &Facts) -> Fencing {
    match (facts.stonith_enabled, facts.stonith_devices) {
        (Some(true), Some(devices)) if devices > 0 => Fencing::Configured,
        (None, _) | (_, None) => Fencing::Unknown,
        _ => Fencing::Missing,
    }
}

pub(super) fn pacemaker(facts: &Facts) -> Vec<Finding> {
    if let Err(why) = &facts.pacemaker {
        let remedy = "systemctl start pacemaker; journalctl -u pacemaker";
        return vec![finding("pacemaker", Level::Fail, why.clone(), remedy)];
    }
    let few = facts
        .corosync
        .as_ref()
        .is_ok_and(|settings| settings.nodes < 3);
    let stonith = match fencing(facts) {
        Fencing::Configured => fine("stonith", "configured"),
        Fencing::Unknown => finding(
            "stonith",
            Level::Warn,
            "the CIB cannot be read",
            "run this as root, or as a member of haclient",
        ),
        Fencing::Missing => finding(
            "stonith",
            if few { Level::Fail } else { Level::Warn },
            "Pacemaker fences nothing (stonith-enabled=false, or no device)",
            "configure a stonith device for every node and test it",
        ),
    };
    vec![fine("pacemaker", "answers"), stonith]
}
