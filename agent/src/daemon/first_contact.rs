// SPDX-License-Identifier: Apache-2.0
//! Before anything can be decided: which node is this? Until Corosync has said so every request is refused.

use std::collections::BTreeSet;

use anyhow::Context;
use kemari_api::NodeName;
use sd_notify::NotifyState;
use tokio::sync::mpsc::UnboundedReceiver;

use super::{TICK, sign_of_life};
use crate::{bus, corosync};

/// What Corosync said first: which node this is, and what came before that.
pub(super) struct FirstContact {
    pub(super) node: NodeName,
    pub(super) configured: BTreeSet<NodeName>,
    /// What it said before that.
    pub(super) earlier: Vec<corosync::Input>,
    /// The agent has its name on the bus.
    pub(super) on_bus: bool,
}

const NO_COROSYNC: &str =
    "kemari-agent waits for Corosync and knows of nothing yet: is corosync.service running?";

/// Waits until Corosync has said which node this is; without that nothing can be decided.
pub(super) async fn first_contact(
    inputs: &mut UnboundedReceiver<corosync::Input>,
    requests: &mut UnboundedReceiver<bus::Input>,
) -> anyhow::Result<FirstContact> {
    let _ = sd_notify::notify(&[NotifyState::Status("Waiting for Corosync")]);
    let mut earlier = Vec::new();
    let mut on_bus = false;
    let mut tick = tokio::time::interval(TICK);
    loop {
        let input = tokio::select! {
            input = inputs.recv() => input.context("The Corosync threads have ended")?,
            _ = tick.tick() => {
                sign_of_life();
                continue;
            }
            Some(request) = requests.recv() => {
                refuse_without_corosync(request, &mut on_bus);
                continue;
            }
        };
        match input {
            corosync::Input::Nodes { local, configured } => {
                return Ok(FirstContact {
                    node: local,
                    configured,
                    earlier,
                    on_bus,
                });
            }
            // Nothing but "no quorum" can come before the nodes.
            corosync::Input::Quorum { .. } => {}
            other => earlier.push(other),
        }
        // Of the many that say "nobody yet" none matters.
        if earlier.iter().all(says_nobody) {
            earlier.clear();
        }
    }
}

fn refuse_without_corosync(request: bus::Input, on_bus: &mut bool) {
    match request {
        bus::Input::Status(answer) => drop(answer.send(Err(NO_COROSYNC.to_owned()))),
        bus::Input::Votes { answer, .. } => drop(answer.send(Err(NO_COROSYNC.to_owned()))),
        bus::Input::PowerButton { answer, .. }
        | bus::Input::FailOver { answer, .. }
        | bus::Input::Fetch { answer, .. } => {
            let _ = answer.send(Err(NO_COROSYNC.to_owned()));
        }
        bus::Input::Promote { answer, cancel, .. }
        | bus::Input::ForceActive { answer, cancel, .. } => {
            let _ = cancel.send(0);
            let _ = answer.send(Err(NO_COROSYNC.to_owned()));
        }
        bus::Input::Serving(serving) => *on_bus = serving,
        bus::Input::PassiveGone { .. } | bus::Input::Cancel(_) => {}
    }
}

fn says_nobody(input: &corosync::Input) -> bool {
    matches!(input, corosync::Input::Group { agents, .. } if agents.is_empty())
}
