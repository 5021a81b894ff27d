// SPDX-License-Identifier: Apache-2.0
//! `kemarictl monitor`: the engine's monitor, one command a line.

use std::convert::Infallible;
use std::io::{IsTerminal, Write, stderr, stdin};

use futures_util::StreamExt as _;
use kemari_api::VmName;
use kemari_api::replica::{self, ReplicaProxy, refusal_text};
use tokio::io::{AsyncBufReadExt, BufReader};

use super::print;

const PROMPT: &[u8] = b"(kemari) ";

/// Runs one command and prints what the monitor says.
///
/// # Errors
/// When no engine of the VM runs here, or the command failed.
pub async fn run_one(vm: &VmName, line: &str) -> anyhow::Result<()> {
    let (proxy, _) = replica::connect(vm).await?;
    tell(&proxy, line).await
}

/// Runs the commands of standard input until its end or `exit`.
///
/// # Errors
/// When no engine of the VM runs here or it ended; read from a file or pipe, also when a command
/// failed.
pub async fn converse(vm: &VmName) -> anyhow::Result<()> {
    let (proxy, _) = replica::connect(vm).await?;
    let person = stdin().is_terminal();
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let mut failed = None;
    loop {
        if person {
            let mut out = stderr().lock();
            let _ = out.write_all(PROMPT).and_then(|()| out.flush());
        }
        let Some(line) = lines.next_line().await? else {
            break;
        };
        match line.trim() {
            "" => continue,
            "exit" => break,
            command => match tell(&proxy, command).await {
                Ok(()) => {}
                Err(error) if person => eprintln!("{error:#}"),
                Err(error) => {
                    eprintln!("{command}: {error:#}");
                    failed = Some(command.to_owned());
                }
            },
        }
        if line.trim() == "quit" {
            break;
        }
    }
    match failed {
        Some(command) => Err(anyhow::anyhow!("`{command}` failed")),
        None => Ok(()),
    }
}

async fn tell(proxy: &ReplicaProxy<'static>, line: &str) -> anyhow::Result<()> {
    let answer = tokio::select! {
        biased;
        answer = proxy.monitor(line) => answer,
        never = show_progress(proxy) => match never {},
    };
    match answer {
        Ok(text) if text.is_empty() || text.ends_with('\n') => print(&text),
        Ok(text) => print(&format!("{text}\n")),
        Err(error) => Err(anyhow::anyhow!(refusal_text(&error))),
    }
}

/// Shows on a terminal what the engine is at while it does what it was told, such as how far a copy is.
async fn show_progress(proxy: &ReplicaProxy<'static>) -> Infallible {
    if stderr().is_terminal()
        && let Ok(mut changes) = proxy.receive_changed().await
    {
        let mut line = Line::default();
        while let Some(change) = changes.next().await {
            if let Ok(arguments) = change.args() {
                line.show(&arguments.status.detail);
            }
        }
    }
    std::future::pending().await
}

/// A line of a terminal that is written again and again, and that is gone when this is dropped.
#[derive(Default)]
struct Line {
    shown: bool,
}

impl Line {
    fn show(&mut self, text: &str) {
        self.shown = true;
        // Who does not want to see it need not.
        let _ = write!(stderr().lock(), "\r{text}\x1b[K");
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.shown {
            self.show("");
        }
    }
}
