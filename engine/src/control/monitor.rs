// SPDX-License-Identifier: Apache-2.0
//! The monitor: the words of the first Kemari, one command a line.

use std::fmt::Write;
use std::time::Duration;

use kemari_api::config::LinkAddresses;
use kemari_api::replica::{LinkView, ReplicaStatus};
use kemari_api::{Licence, Role};
use thiserror::Error;
use tokio::sync::oneshot;

use crate::clock;
use crate::conductor::{ConductorHandle, Refusal, Request};

const HELP: &str = "\
migrate [-d] kemari:tcp:HOST:PORT  replicate this guest to a waiting engine (-d: return at once);
                                   also kemari:tls:HOST:PORT, kemari:unix:/PATH; several links
                                   with commas between them, the preferred one first
migrate tcp:HOST:PORT              move this guest to an engine that waits with --incoming tcp:...
verify                             compare the disks of both replicas while the guest runs
info status                        role, licence, generation, epoch and links
info migrate                       the replication in figures
balloon MIB                        ask the guest to do with so much memory
info balloon                       how much it shall keep and has kept
stop                               stop the guest's CPU
cont                               let the guest go on
system_powerdown                   press the guest's power button
quit                               end this engine
help                               this list
";

/// Why a line did nothing.
#[derive(Debug, Error)]
pub enum MonitorError {
    /// No such command.
    #[error("Unknown command {0:?}; 'help' lists the commands")]
    Unknown(String),
    /// The command is known, its words are not.
    #[error("Usage: {0}")]
    Usage(&'static str),
    /// The replica refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A migration that was waited for did not succeed.
    #[error("Replication did not come about: {0}")]
    Migration(String),
}

/// Runs one line and returns what it prints.
pub async fn run(conductor: &ConductorHandle, line: &str) -> Result<String, MonitorError> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let request = match words.as_slice() {
        [] => return Ok(String::new()),
        ["help" | "?"] => return Ok(HELP.to_owned()),
        ["info", "status"] => {
            let links = conductor.links().await?;
            return Ok(status(&conductor.status()) + &shown(&links));
        }
        ["info", "migrate"] => return Ok(migration(conductor)),
        ["info", "balloon"] => return balloon(conductor).await,
        ["balloon", mib] => match mib.parse() {
            Ok(mib) => Request::SetBalloon(mib),
            Err(_) => return Err(MonitorError::Usage("balloon MIB")),
        },
        ["balloon", ..] => return Err(MonitorError::Usage("balloon MIB")),
        ["info", ..] => {
            return Err(MonitorError::Usage(
                "info status | info migrate | info balloon",
            ));
        }
        ["migrate", address]
            if ["tcp:", "tls:", "unix:"]
                .iter()
                .any(|transport| address.starts_with(transport)) =>
        {
            let begun = clock::now();
            let address = format!("kemari:{address}")
                .parse()
                .map_err(Refusal::Address)?;
            conductor.ask(Request::Migrate(address)).await?;
            return Ok(migrated(conductor, clock::now().saturating_sub(begun)));
        }
        ["migrate", "-d", address] => Request::Protect(parse(address)?),
        ["migrate", address] if !address.starts_with('-') => {
            return migrate_and_wait(conductor, parse(address)?).await;
        }
        ["migrate", ..] => {
            return Err(MonitorError::Usage(
                "migrate [-d] kemari:tcp:HOST:PORT | migrate tcp:HOST:PORT",
            ));
        }
        ["verify"] => {
            conductor.ask(Request::Verify).await?;
            return Ok("the disks of both replicas are equal\n".to_owned());
        }
        ["stop"] => Request::Stop,
        ["cont"] => Request::Continue,
        ["system_powerdown"] => Request::PowerButton,
        ["quit" | "q"] => Request::Quit,
        ["verify" | "stop" | "cont" | "system_powerdown" | "quit", ..] => {
            return Err(MonitorError::Usage("the command takes no arguments"));
        }
        [other, ..] => return Err(MonitorError::Unknown((*other).to_owned())),
    };
    conductor.ask(request).await?;
    Ok(String::new())
}

fn parse(addresses: &str) -> Result<LinkAddresses, Refusal> {
    Ok(addresses.parse()?)
}

/// `migrate` without `-d`: returns when the peer is in sync.
async fn migrate_and_wait(
    conductor: &ConductorHandle,
    addresses: LinkAddresses,
) -> Result<String, MonitorError> {
    let mut changes = conductor.watch();
    changes.mark_unchanged();
    conductor.ask(Request::Protect(addresses)).await?;
    loop {
        {
            let status = changes.borrow_and_update();
            if status.licence == Licence::Paired && status.in_sync {
                return Ok(String::new());
            }
        }
        if let Some(failure) = conductor.statistics().last_link_failure() {
            return Err(MonitorError::Migration(failure));
        }
        changes.changed().await.map_err(|_| Refusal::Ending)?;
    }
}

/// `info status`, in the form of the first Kemari's monitor with our words behind it.
fn status(status: &ReplicaStatus) -> String {
    let state = match (status.role, status.running) {
        (Role::Active, true) => "running",
        (Role::Active, false) => "paused",
        (Role::Waiting | Role::Passive, _) => "inmigrate",
        (Role::Outdated, _) => "shutdown",
    };
    format!(
        "VM status: {state}\nrole: {}\nlicence: {}\nin sync: {}\ngeneration: {}\nepoch: {}\n\
         peer: {}\ndetail: {}\n",
        status.role,
        status.licence,
        if status.in_sync { "yes" } else { "no" },
        status.generation,
        status.epoch,
        if status.peer.is_empty() {
            "none"
        } else {
            &status.peer
        },
        status.detail,
    )
}

/// A line for each link.
fn shown(links: &[LinkView]) -> String {
    links.iter().map(|link| format!("link: {link}\n")).collect()
}

async fn balloon(conductor: &ConductorHandle) -> Result<String, MonitorError> {
    let (tell, told) = oneshot::channel();
    conductor.ask(Request::Balloon(tell)).await?;
    Ok(match told.await {
        Ok(Some((target, actual))) => {
            format!("balloon: the guest keeps {actual} MiB, it shall keep {target} MiB\n")
        }
        _ => "balloon: none\n".to_owned(),
    })
}

/// What a migration took, for whoever waited for it.
fn migrated(conductor: &ConductorHandle, took: Duration) -> String {
    let figures = conductor.statistics().figures();
    let stopped = figures.blackout;
    format!(
        "migrated in {} ms; {} KiB sent; the guest stood still for {} ms until its right was handed \
         over\n",
        took.as_millis(),
        figures.sent_bytes / 1024,
        stopped.as_millis()
    )
}

fn migration(conductor: &ConductorHandle) -> String {
    let status = conductor.status();
    let figures = conductor.statistics().figures();
    let state = match (status.role, status.licence, status.in_sync) {
        (Role::Active, Licence::Paired, _) => "active (continuous)",
        (Role::Active, Licence::Cut, _) => "cut off: outputs are held",
        (Role::Active, _, _) if figures.copying => "copying",
        (Role::Active, _, _) => "none",
        (_, _, true) => "receiving",
        _ => "waiting",
    };
    let mut text = format!("Migration status: {state}\n");
    for (name, value) in figures.lines() {
        let _ = writeln!(text, "{name}: {value}");
    }
    if let Some(failure) = conductor.statistics().last_link_failure() {
        let _ = writeln!(text, "last failure: {failure}");
    }
    text
}
