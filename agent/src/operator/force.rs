// SPDX-License-Identifier: Apache-2.0
//! `kemarictl force-active`: says what may be lost, asks for the VM's name, and asks the agents.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _, stderr, stdin};

use anyhow::Context;
use kemari_api::agent::{ClusterView, Vote};
use kemari_api::replica::DiskState;
use kemari_api::{Licence, Role, VmName};

use super::place_of::{here, replicas_of};
use super::{agent, ask_agent, print, refused};
use crate::command::Ended;

/// Forces the start of the replica on this node.
pub(super) async fn force(vm: &VmName, confirmed: Option<&str>) -> anyhow::Result<()> {
    let (_, local) = here(vm).await?;
    if local.role == Role::Active && local.licence == Licence::Cut {
        return Err(Ended::refused(format!(
            "The replica of VM {vm} on this node is active and holds its outputs back, because {} is \
             out of reach: see \"Outputs are held\" in the runbook",
            if local.peer.is_empty() { "the passive one" } else { &local.peer }
        ))
        .into());
    }
    let (view, agent) = (ask_agent().await?, agent().await?);
    let votes = agent.votes(vm).await.map_err(|error| refused(&error))?;
    let told = told(vm, &view, &votes);
    let typed = match confirmed {
        Some(typed) => {
            eprint!("{told}");
            typed.to_owned()
        }
        None if stdin().is_terminal() => ask(vm, &told)?,
        None => {
            return Err(Ended::refused(format!(
                "Standard input is no terminal: to force without a person, give --yes-i-lose {vm}. \
                 Nothing was done.\n{told}"
            ))
            .into());
        }
    };
    if typed != vm.as_str() {
        let text = format!("{typed:?} is not {vm}: nothing was done");
        return Err(Ended::refused(text).into());
    }
    agent
        .force_active(vm, &typed)
        .await
        .map_err(|error| refused(&error))?;
    print(&format!("VM {vm} runs on node {}\n", local.node))
}

fn ask(vm: &VmName, told: &str) -> anyhow::Result<String> {
    let mut out = stderr().lock();
    write!(
        out,
        "{told}Type the name of the VM to go on ({vm}), anything else to leave: "
    )
    .and_then(|()| out.flush())
    .context("Cannot write to the terminal")?;
    let mut line = String::new();
    io::stdin()
        .read_line(&mut line)
        .context("Cannot read from the terminal")?;
    Ok(line.trim().to_owned())
}

/// What this node would run from, and what others say that they have.
fn told(vm: &VmName, view: &ClusterView, votes: &[Vote]) -> String {
    let mut text = format!("Forcing VM {vm} on node {}.\n", view.node);
    let mut here = None;
    for replica in replicas_of(view, vm) {
        let status = &replica.status;
        if status.node == view.node {
            here = Some(status);
            continue;
        }
        let known = if replica.present { "says" } else { "said last" };
        let _ = writeln!(
            text,
            "  Node {} {known}: {}, licence {}, generation {}, epoch {}, disks {}",
            status.node, status.role, status.licence, status.generation, status.epoch, status.disks
        );
    }
    for vote in votes {
        let _ = writeln!(
            text,
            "  Node {}'s record: generation {} held by node {} ({})",
            vote.node, vote.generation, vote.holder, vote.purpose
        );
    }
    let silent = view
        .members
        .iter()
        .filter(|node| !view.agents.contains(node));
    for node in silent {
        let _ = writeln!(
            text,
            "  Node {node} is there and its agent is not: its record is not known"
        );
    }
    if let Some(status) = here {
        let _ = writeln!(
            text,
            "  This node: {}, generation {}, epoch {}, disks {}",
            status.role, status.generation, status.epoch, status.disks
        );
        text.push_str(match (status.role, status.disks) {
            (Role::Passive, _) if status.in_sync => {
                "It goes on from the memory and disks of that epoch. What the guest did later, on \
                 another node, is lost.\n"
            }
            (_, DiskState::Copy) => {
                "The guest boots anew, from disks that are a copy as of that epoch. What was written \
                 later, on another node, is lost; so is its memory.\n"
            }
            (_, DiskState::Own) => {
                "The guest boots anew, from the disks as they were when it last ran here. What was \
                 written later, on another node, is lost; so is its memory.\n"
            }
            _ => "The guest boots anew. Its memory is lost.\n",
        });
    }
    text.push_str(
        "If it runs on a node that is cut off and not off, it runs twice from now on. Make sure that \
         the other node is off.\n",
    );
    text
}

#[cfg(test)]
mod tests {
    use super::super::overview::tests::{replica, view};
    use super::*;
    use kemari_api::Generation;

    #[test]
    fn a_person_is_told_what_every_node_says_and_what_is_lost() {
        let mut here = replica("n1", Role::Waiting, Licence::None, true);
        here.status.disks = DiskState::Copy;
        let view = view(vec![
            here,
            replica("n2", Role::Active, Licence::Solo, false),
        ]);
        let vote = Vote {
            node: "n3".parse().unwrap(),
            generation: Generation::new(4),
            holder: "n2".parse().unwrap(),
            purpose: "solo".to_owned(),
        };
        let text = told(&"web".parse().unwrap(), &view, &[vote]);
        for words in [
            "Node n2 said last: active, licence solo, generation 3, epoch 9",
            "Node n3's record: generation 4 held by node n2 (solo)",
            "Node n3 is there and its agent is not",
            "disks that are a copy as of that epoch",
            "Make sure that the other node is off",
        ] {
            assert!(text.contains(words), "{words:?} in {text}");
        }
    }
}
