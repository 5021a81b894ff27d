// SPDX-License-Identifier: Apache-2.0
//! The shell around Corosync: quorum, the CPG group `kemari` and the node list.
//!
//! Corosync's libraries call back from inside a blocking `dispatch`; each service has a thread that
//! does nothing else and turns callbacks into [`Input`]s. A third thread sends. When Corosync
//! ends, membership counts as lost, and the threads connect again when it is back. The two
//! services are not ordered against each other. Nothing is decided here.

pub mod advice;
mod group;
mod nodes;
mod quorum;

use std::collections::BTreeSet;
use std::io;
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::Duration;

use kemari_api::NodeName;
use rust_corosync::CsError;
use thiserror::Error;
use tokio::sync::mpsc::UnboundedSender;
use tracing::{error, info, warn};

use advice::{Advice, Fencing, Settings};
use group::{Group, Outlet};
use nodes::NodeList;
use quorum::Quorum;

/// The CPG group of the agents.
pub const GROUP: &str = "kemari";

/// How long to wait before Corosync is tried again.
const RETRY: Duration = Duration::from_millis(250);

/// What Corosync says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Connected: this node and all nodes of `corosync.conf`. Also sent when that file changed.
    Nodes {
        /// This node.
        local: NodeName,
        /// Every configured node.
        configured: BTreeSet<NodeName>,
    },
    /// Quorum or membership changed. Not quorate and nobody in it: Corosync has ended.
    Quorum {
        /// This partition is quorate.
        quorate: bool,
        /// The nodes in it.
        members: BTreeSet<NodeName>,
    },
    /// The group changed. Nobody in it: Corosync has ended.
    Group {
        /// Nodes whose agents are in it.
        agents: BTreeSet<NodeName>,
        /// Who left, and what Corosync gives as reason.
        left: Vec<(NodeName, String)>,
    },
    /// A message of an agent.
    Message {
        /// The sender's node.
        from: NodeName,
        /// The message as it was sent.
        bytes: Vec<u8>,
    },
}

/// Why Corosync is not to be had.
#[derive(Debug, Error)]
pub enum CorosyncError {
    /// A call failed.
    #[error("Corosync: {call} failed ({code})")]
    Call {
        /// Which.
        call: &'static str,
        /// The library's code.
        code: CsError,
    },
    /// The user may not talk to Corosync.
    #[error(
        "Corosync refuses this user: run kemari-agent as root, or allow the user in \
         /etc/corosync/uidgid.d"
    )]
    Permission,
    /// This node has no entry.
    #[error("Node {0} is not in the nodelist of corosync.conf")]
    NotListed(u32),
}

fn failed(call: &'static str) -> impl Fn(CsError) -> CorosyncError {
    move |code| match code {
        CsError::CsErrAccess | CsError::CsErrSecurity => CorosyncError::Permission,
        code => CorosyncError::Call { call, code },
    }
}

/// Starts the threads. They end when the receiver of `inputs` is gone; messages are taken from
/// `outbound` and lost while Corosync is not there (the group is announced to afresh afterwards).
///
/// # Errors
/// When no thread can be made.
pub fn start(inputs: &UnboundedSender<Input>, outbound: Receiver<Vec<u8>>) -> io::Result<()> {
    let outlet = Outlet::default();
    let (to_quorum, to_group, filled) = (inputs.clone(), inputs.clone(), outlet.clone());
    thread::Builder::new()
        .name("quorum".to_owned())
        .spawn(move || follow_quorum(&to_quorum))?;
    thread::Builder::new()
        .name("group".to_owned())
        .spawn(move || follow_group(&to_group, &filled))?;
    thread::Builder::new()
        .name("multicast".to_owned())
        .spawn(move || {
            for bytes in outbound {
                outlet.multicast(&bytes);
            }
        })?;
    Ok(())
}

fn follow_quorum(inputs: &UnboundedSender<Input>) {
    let mut said = None;
    let mut advised = Vec::new();
    while !inputs.is_closed() {
        let error = match serve_quorum(inputs, &mut said, &mut advised) {
            Ok(never) => match never {},
            Err(error) => error,
        };
        let lost = Input::Quorum {
            quorate: false,
            members: BTreeSet::new(),
        };
        let _ = inputs.send(lost);
        complain_once(&mut said, &error);
        thread::sleep(RETRY);
    }
}

fn complain_once(said: &mut Option<String>, error: &CorosyncError) {
    let text = error.to_string();
    if said.as_ref() != Some(&text) {
        match error {
            CorosyncError::Permission | CorosyncError::NotListed(_) => error!("{text}"),
            CorosyncError::Call { .. } => warn!(
                reason = %text,
                "No Corosync, so no quorum; waiting for it: is corosync.service running?"
            ),
        }
        *said = Some(text);
    }
}

/// Logs what in the configuration will hurt, unless that was said before.
fn advise(before: &mut Vec<Advice>) {
    // Whoever cannot be asked now will be asked at the next connection.
    let Ok(settings) = Settings::read() else {
        return;
    };
    let advice = settings.advice(Fencing::Unknown);
    if advice != *before {
        for Advice { found, remedy } in &advice {
            warn!(%remedy, "Corosync's configuration: {found}");
        }
        *before = advice;
    }
}

/// Follows one run of Corosync to its end.
fn serve_quorum(
    inputs: &UnboundedSender<Input>,
    said: &mut Option<String>,
    said_of_settings: &mut Vec<Advice>,
) -> Result<std::convert::Infallible, CorosyncError> {
    let quorum = Quorum::open()?;
    let mut nodes = NodeList::read()?;
    *said = None;
    info!(node = %nodes.local, nodes = nodes.configured().len(), "Connected to Corosync");
    let _ = inputs.send(nodes.input());
    advise(said_of_settings);
    loop {
        for change in quorum.wait()? {
            let _ = inputs.send(Input::Quorum {
                quorate: change.quorate,
                members: nodes.names(&change.members),
            });
        }
        // `corosync-cfgtool -R` may have brought other nodes; looked at after the urgent part.
        let read = NodeList::read()?;
        if read != nodes {
            nodes = read;
            let _ = inputs.send(nodes.input());
        }
    }
}

fn follow_group(inputs: &UnboundedSender<Input>, outlet: &Outlet) {
    while !inputs.is_closed() {
        let Err(error) = serve_group(inputs, outlet);
        tracing::debug!(%error, "The group of agents is out of reach");
        outlet.close();
        let _ = inputs.send(Input::Group {
            agents: BTreeSet::new(),
            left: Vec::new(),
        });
        thread::sleep(RETRY);
    }
}

fn serve_group(
    inputs: &UnboundedSender<Input>,
    outlet: &Outlet,
) -> Result<std::convert::Infallible, CorosyncError> {
    let mut nodes = NodeList::read()?;
    let group = Group::join(GROUP)?;
    outlet.open(&group);
    loop {
        for change in group.wait()? {
            if !nodes.knows(change.node_ids()) {
                nodes = NodeList::read()?;
            }
            let _ = inputs.send(named(&nodes, change));
        }
    }
}

fn named(nodes: &NodeList, change: group::Change) -> Input {
    match change {
        group::Change::Members { agents, left } => Input::Group {
            agents: nodes.names(&agents),
            left: left
                .into_iter()
                .map(|(id, reason)| (nodes.name(id), reason))
                .collect(),
        },
        group::Change::Message { from, bytes } => Input::Message {
            from: nodes.name(from),
            bytes,
        },
    }
}
