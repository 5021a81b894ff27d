// SPDX-License-Identifier: Apache-2.0
//! The health of this node's hardware, told to Pacemaker before something fails.
//!
//! Pacemaker knows node attributes whose names begin with `#health` and whose values are `green`, `yellow`
//! or `red`; what it does about them is its property `node-health-strategy` ("Pacemaker Explained",
//! "Tracking Node Health"), by default nothing. With `migrate-on-red` it moves resources off a red
//! node: the active replica is handed over while nothing is lost yet.
//!
//! [`edac`] reads, [`memory`] judges and touches nothing, [`attend`] looks once a minute and tells.

pub mod edac;
pub mod memory;

use std::fmt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::process::Command;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{debug, info, warn};

use memory::{Judgement, MemoryWatch};

/// The node attribute.
const ATTRIBUTE: &str = "#health-kemari-memory";
/// Pause between two looks.
const LOOK: Duration = Duration::from_secs(60);
/// Longest wait for Pacemaker's command.
const TELL_MAX: Duration = Duration::from_secs(10);

/// A node's health in Pacemaker's colours, the best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    /// Nothing is wrong.
    Green,
    /// Something should be looked at.
    Yellow,
    /// Nothing should run here.
    Red,
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Green => "green",
            Self::Yellow => "yellow",
            Self::Red => "red",
        })
    }
}

/// Watches this node's memory for as long as it is polled.
pub async fn attend() {
    let started = Instant::now();
    let mut watch = MemoryWatch::default();
    let mut told = None;
    let mut seen = None;
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        // A driver may ask the hardware.
        let read = tokio::task::spawn_blocking(|| edac::read(Path::new(edac::CONTROLLERS)));
        let Ok(counts) = read.await else { return };
        let Some(judgement) = watch.look(started.elapsed(), &counts) else {
            debug!("No memory controller reports errors here (EDAC)");
            continue;
        };
        if seen.replace(judgement.health) != Some(judgement.health) {
            log(&judgement);
        }
        if needs_telling(told, judgement.health) && tell(judgement.health).await {
            told = Some(judgement.health);
        }
    }
}

/// Good news once. Bad news again and again, since Pacemaker forgets such attributes when it is started
/// anew; to be told what it knows costs it nothing.
fn needs_telling(told: Option<Health>, now: Health) -> bool {
    now > Health::Green || told != Some(now)
}

fn log(judgement: &Judgement) {
    let Judgement { health, why } = judgement;
    if *health == Health::Green {
        info!(%health, "This node's memory is sound");
    } else {
        warn!(
            %health,
            "{why}. Have the memory module replaced: ras-mc-ctl --errors (rasdaemon) and the kernel's log \
             name it. With node-health-strategy=migrate-on-red Pacemaker moves VMs off a red node"
        );
    }
}

/// Whether Pacemaker has heard it.
async fn tell(health: Health) -> bool {
    let mut command = Command::new("attrd_updater");
    command
        .args(["--name", ATTRIBUTE, "--update", &health.to_string()])
        .stdin(Stdio::null())
        .kill_on_drop(true);
    match timeout(TELL_MAX, command.output()).await {
        Ok(Ok(output)) if output.status.success() => true,
        Ok(Ok(output)) => {
            let said = String::from_utf8_lossy(&output.stderr);
            debug!(%health, "Pacemaker does not take {ATTRIBUTE} yet: {}", said.trim());
            false
        }
        Ok(Err(error)) => {
            debug!(%health, "Cannot run attrd_updater: {error}");
            false
        }
        Err(_) => {
            debug!(%health, "attrd_updater took too long");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_news_is_told_once_and_bad_news_until_it_is_over() {
        use Health::{Green, Red, Yellow};
        assert!(needs_telling(None, Green));
        assert!(!needs_telling(Some(Green), Green));
        assert!(needs_telling(Some(Green), Yellow));
        assert!(needs_telling(Some(Red), Red));
        assert!(needs_telling(Some(Red), Green));
    }
}
