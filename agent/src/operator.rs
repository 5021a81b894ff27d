// SPDX-License-Identifier: Apache-2.0
//! What `kemarictl` does: questions and requests to the agent, to the engines of this node and to
//! Pacemaker. It decides nothing.

mod compare;
mod console;
mod doctor;
mod force;
mod keygen;
mod monitor;
mod overview;
mod pacemaker;
mod paint;
mod pair;
mod place_of;
mod progress;
mod report;
mod roles;
mod status;
mod table;
mod terminal;
mod top;

use std::io::{self, Write};
use std::time::Duration;

use anyhow::Context;
use kemari_api::VmName;
use kemari_api::agent::{AgentProxy, ClusterView};
use kemari_api::replica::{ReplicaProxy, ReplicaStatus, refusal_text};
use serde::Serialize;
use tokio::time::timeout;

use crate::command::{Command, Ended, Exit};
use console::{Attachment, Input};
pub use keygen::Keygen;
#[cfg(test)]
pub(crate) use overview::tests;
pub(crate) use overview::why_unprotected;
pub(crate) use place_of::successor;

/// How long an agent or an engine may take to answer a question.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// How often is looked whether something has come about: Pacemaker tells nobody when it is done.
const LOOK: Duration = Duration::from_millis(200);

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Text,
    Json,
}

impl Form {
    const fn of(json: bool) -> Self {
        if json { Self::Json } else { Self::Text }
    }
}

/// Does one command.
///
/// # Errors
/// When it is not done; [`crate::command::exit_of`] tells with which exit status.
pub async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Status { vm, json, check } => {
            let need = if check {
                status::Need::Protected
            } else {
                status::Need::Nothing
            };
            status::status(vm.as_ref(), Form::of(json), need).await
        }
        Command::Top => top::top().await,
        Command::List { json } => status::list(Form::of(json)).await,
        Command::Console {
            vm,
            from,
            read_only,
        } => {
            let input = if read_only {
                Input::Ignored
            } else {
                Input::Typed
            };
            console::attach(&vm, Attachment { from, input }).await
        }
        Command::Monitor { vm, command } if command.is_empty() => monitor::converse(&vm).await,
        Command::Monitor { vm, command } => monitor::run_one(&vm, &command.join(" ")).await,
        Command::Protect { vm, address } => pair::protect(&vm, address.as_deref()).await,
        Command::Unprotect { vm } => pair::unprotect(&vm).await,
        Command::Handover { vm, wait } => {
            roles::handover(&vm, Duration::from_secs(wait.into())).await
        }
        Command::Failover { vm } => roles::failover(&vm).await,
        Command::Resync { vm } => pair::resync(&vm).await,
        Command::Outdate { vm } => roles::outdate(&vm).await,
        Command::Verify { vm, json } => compare::verify(&vm, Form::of(json)).await,
        Command::ForceActive { vm, yes_i_lose } => force::force(&vm, yes_i_lose.as_deref()).await,
        Command::Doctor { json } => doctor::doctor(Form::of(json)).await,
        Command::Keygen(keygen) => print(&keygen.run()?),
        Command::Report { file } => report::report(file.as_deref()).await,
    }
}

/// The agent of this node.
async fn agent() -> anyhow::Result<AgentProxy<'static>> {
    let connect = async {
        let bus = zbus::Connection::system().await?;
        AgentProxy::new(&bus).await
    };
    timeout(ANSWER_MAX, connect)
        .await
        .map_err(|_| no_agent("the system bus does not answer"))?
        .map_err(|error| no_agent(&refusal_text(&error)).into())
}

fn no_agent(why: &str) -> Ended {
    Ended::new(
        Exit::NoAnswer,
        format!("No answer from kemari-agent ({why}): is kemari-agent.service running?"),
    )
}

async fn ask_agent() -> anyhow::Result<ClusterView> {
    let agent = agent().await?;
    timeout(ANSWER_MAX, agent.status())
        .await
        .map_err(|_| no_agent(&format!("none within {} s", ANSWER_MAX.as_secs())))?
        .map_err(|error| no_agent(&refusal_text(&error)).into())
}

/// What an engine says of itself.
async fn status_of(vm: &VmName, proxy: &ReplicaProxy<'static>) -> anyhow::Result<ReplicaStatus> {
    let answer = timeout(ANSWER_MAX, proxy.status()).await;
    let silent = || {
        Ended::new(
            Exit::NoAnswer,
            format!("The engine of VM {vm} does not answer"),
        )
    };
    Ok(answer.map_err(|_| silent())?.map_err(|_| silent())?)
}

/// The refusal of an agent or an engine, in its words.
fn refused(error: &zbus::Error) -> anyhow::Error {
    Ended::refused(refusal_text(error)).into()
}

fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(value).context("Cannot write JSON")?;
    print(&format!("{text}\n"))
}

/// Prints; that nobody reads any more is no error.
fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("Cannot write to standard output"),
    }
}
