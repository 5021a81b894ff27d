// SPDX-License-Identifier: Apache-2.0
//! `kemarictl console`: the guest's console on this terminal.
//!
//! The engine sends pieces of the stream with their positions, so what was passed over is told, and
//! where to go on after a detachment, also on another node.

mod keyboard;
mod screen;

use std::io::{IsTerminal, Write, stdin};
use std::time::Duration;

use anyhow::{Context, bail};
use kemari_api::replica::{self, ConnectError, ReplicaProxy};
use kemari_api::{Role, VmName};
use tokio::io::{AsyncWriteExt, stderr};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::timeout;

use super::terminal::RawTerminal;
use super::{ANSWER_MAX, ask_agent, refused};
use crate::command::{Ended, Exit};
use keyboard::{Key, Keyboard};
use screen::{Screen, Shown};

/// How long a terminal that takes nothing may take for what it is being shown, at a detachment.
const LAST_PIECE: Duration = Duration::from_secs(1);

/// How to attach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Attachment {
    /// Go on at this position of the stream; otherwise with the oldest output that is kept.
    pub from: Option<u64>,
    /// What becomes of standard input.
    pub input: Input,
}

/// What becomes of standard input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Input {
    /// It is typed at the guest.
    Typed,
    /// It is not read.
    Ignored,
}

/// Why an attachment ended.
enum End {
    /// The person or the script that attached is done.
    Detached,
    /// The engine has no console any more.
    Closed,
    /// A signal.
    Killed(&'static str),
    /// Left, while what it was shown did not fit on the terminal: no more words then.
    Stuck,
}

/// Attaches to the console of a VM's active replica on this node.
///
/// # Errors
/// There is none, its output cannot be written, or a signal ended this.
pub(super) async fn attach(vm: &VmName, attachment: Attachment) -> anyhow::Result<()> {
    let (proxy, _) = match replica::connect(vm).await {
        Ok(connected) => connected,
        Err(error @ ConnectError::NotRunning { .. }) => {
            let text = match active_node(vm).await {
                Some(node) => format!("{error}: the active replica is on {node}, attach there"),
                None => format!("{error}: kemarictl status shows where it runs"),
            };
            return Err(Ended::new(Exit::NotHere, text).into());
        }
        Err(error) => return Err(error.into()),
    };
    let from = attachment.from.unwrap_or_default();
    let end = timeout(ANSWER_MAX, proxy.console(from))
        .await
        .with_context(|| format!("The engine of VM {vm} does not answer"))?
        .map_err(|error| refused(&error))?;
    let connection = connected(end.into()).context("Cannot use the console's connection")?;
    let person = attachment.input == Input::Typed && stdin().is_terminal();
    if person {
        say(&format!(
            "Attached to the console of VM {vm}. Detach with Ctrl-]."
        ));
    }
    let raw = person
        .then(RawTerminal::enter)
        .transpose()
        .context("Cannot switch the terminal to raw mode")?;
    let mut screen = Screen::new(attachment.from, person);
    let end = converse(connection, attachment.input, person, &mut screen).await;
    drop(raw);
    let again = format!("kemarictl console {vm} --from {}", screen.position());
    // The guest's last line may have no end.
    let line = if person { "\n" } else { "" };
    match end? {
        End::Detached if person || attachment.input == Input::Ignored => {
            say(&format!("{line}Detached. To go on from here: {again}"));
        }
        End::Detached | End::Stuck => {}
        End::Closed => {
            let words = after(vm, &proxy).await;
            say(&format!("{line}{words}. To go on from here: {again}"));
        }
        End::Killed(signal) => bail!("ended by {signal}; to go on from here: {again}"),
    }
    Ok(())
}

/// Words beside the console's output; that nobody hears them is no error.
fn say(words: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{words}");
}

fn connected(end: std::os::fd::OwnedFd) -> std::io::Result<UnixStream> {
    let stream = std::os::unix::net::UnixStream::from(end);
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

/// Shows and types until one of the sides ends it.
async fn converse(
    connection: UnixStream,
    input: Input,
    person: bool,
    screen: &mut Screen,
) -> anyhow::Result<End> {
    let mut signals = Signals::new().context("Cannot catch signals")?;
    let (pieces, to_guest) = connection.into_split();
    let (leave, mut leaving) = watch::channel(false);
    let showing = screen.show(pieces, &mut leaving);
    tokio::pin!(showing);
    let end = tokio::select! {
        shown = &mut showing => return Ok(match shown? {
            Shown::All if input == Input::Typed && !person => End::Detached,
            Shown::All => End::Closed,
            Shown::NobodyReads => End::Detached,
            Shown::Left => End::Detached,
        }),
        result = type_all(input, person, to_guest) => { result?; End::Detached }
        name = signals.next() => match name {
            // Ctrl-C, where it does not go to the guest.
            "SIGINT" => End::Detached,
            name => End::Killed(name),
        },
    };
    leave.send_replace(true);
    match timeout(LAST_PIECE, showing).await {
        Ok(shown) => {
            shown?;
        }
        Err(_) => return Ok(End::Stuck),
    }
    Ok(end)
}

/// Returns when the person detaches. After the end of a file the engine shows what it has and
/// closes.
async fn type_all(input: Input, person: bool, mut to_guest: OwnedWriteHalf) -> anyhow::Result<()> {
    if input == Input::Ignored {
        return std::future::pending().await;
    }
    let mut keyboard = Keyboard::start(person).context("Cannot read standard input")?;
    let (queue, mut queued) = tokio::sync::mpsc::channel::<Vec<u8>>(keyboard::QUEUE);
    // While the guest reads nothing, the escape must still be heard.
    let sending = async {
        while let Some(bytes) = queued.recv().await {
            if to_guest.write_all(&bytes).await.is_err() {
                // What the engine still has to show is read; then it is told why it closed.
                break;
            }
        }
        let _ = to_guest.shutdown().await;
        std::future::pending::<()>().await;
    };
    let reading = async move {
        loop {
            match keyboard.next().await {
                Some(Key::Detach) => return Ok(()),
                Some(Key::Bytes(bytes)) if person => {
                    if queue.try_send(bytes).is_err() {
                        // As a terminal line says that it is full.
                        tokio::spawn(async { stderr().write_all(b"\x07").await });
                    }
                }
                Some(Key::Bytes(bytes)) => {
                    if queue.send(bytes).await.is_err() {
                        return std::future::pending().await;
                    }
                }
                Some(Key::Failed(error)) => {
                    return Err(error).context("Cannot read standard input");
                }
                // A terminal that hung up; a file's end closes this direction only.
                None if person => return Ok(()),
                None => {
                    drop(queue);
                    return std::future::pending().await;
                }
            }
        }
    };
    tokio::select! {
        () = sending => Ok(()),
        result = reading => result,
    }
}

struct Signals([(&'static str, Signal); 4]);

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self([
            ("SIGINT", signal(SignalKind::interrupt())?),
            ("SIGTERM", signal(SignalKind::terminate())?),
            ("SIGHUP", signal(SignalKind::hangup())?),
            ("SIGQUIT", signal(SignalKind::quit())?),
        ]))
    }

    async fn next(&mut self) -> &'static str {
        let [int, term, hup, quit] = &mut self.0;
        tokio::select! {
            _ = int.1.recv() => int.0,
            _ = term.1.recv() => term.0,
            _ = hup.1.recv() => hup.0,
            _ = quit.1.recv() => quit.0,
        }
    }
}

/// What became of the console.
async fn after(vm: &VmName, proxy: &ReplicaProxy<'static>) -> String {
    let here = match timeout(ANSWER_MAX, proxy.status()).await {
        Ok(Ok(status)) if status.role == Role::Active => {
            return format!("The console of VM {vm} was closed");
        }
        Ok(Ok(status)) => format!("The replica of VM {vm} on this node is {} now", status.role),
        _ => format!("The engine of VM {vm} on this node has ended"),
    };
    match active_node(vm).await {
        Some(node) => format!("{here}; the active one is on {node}"),
        None => here,
    }
}

/// Where the active replica is, if an agent knows.
async fn active_node(vm: &VmName) -> Option<String> {
    let view = ask_agent().await.ok()?;
    view.replicas
        .into_iter()
        .find(|replica| {
            replica.present && replica.status.vm == *vm && replica.status.role == Role::Active
        })
        .map(|replica| replica.status.node.to_string())
}
