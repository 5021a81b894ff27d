// SPDX-License-Identifier: Apache-2.0
//! `kemarictl monitor`: the engine's monitor, one command a line.

use std::io::{IsTerminal, Write, stderr, stdin};

use kemari_api::VmName;
use kemari_api::replica::{self, ReplicaProxy};
use tokio::io::{AsyncBufReadExt, BufReader};

use super::{print, progress, refused};

const PROMPT: &[u8] = b"(kemari) ";

/// Runs one command and prints what the monitor says.
pub(super) async fn run_one(vm: &VmName, line: &str) -> anyhow::Result<()> {
    let (proxy, _) = replica::connect(vm).await?;
    tell(&proxy, line).await
}

/// Runs the commands of standard input until its end or `exit`.
pub(super) async fn converse(vm: &VmName) -> anyhow::Result<()> {
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
        never = progress::show(proxy) => match never {},
    };
    match answer {
        Ok(text) if text.is_empty() || text.ends_with('\n') => print(&text),
        Ok(text) => print(&format!("{text}\n")),
        Err(error) => Err(refused(&error)),
    }
}
