// SPDX-License-Identifier: Apache-2.0
//! The health of this node's hardware, told to Pacemaker before something fails.
//!
//! Pacemaker knows node attributes whose names begin with `#health` and whose values are `green`, `yellow`
//! or `red`; what it does about them is its property `node-health-strategy` ("Pacemaker Explained",
//! "Tracking Node Health"), by default nothing. With `migrate-on-red` it moves resources off a red
//! node: the active replica is handed over while nothing is lost yet.
//!
//! [`edac`], [`machine_checks`], [`aer`] and [`temperature`] read what the kernel shows, [`smart`] asks disks;
//! [`counted`] and [`temperature`] judge and touch nothing, by the [`thresholds`]; [`attend`] looks once a
//! minute and tells Pacemaker.

pub mod aer;
pub mod counted;
pub mod edac;
pub mod machine_checks;
pub mod smart;
pub mod temperature;
pub mod thresholds;

use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, info, warn};

use counted::{CounterWatch, Counts};
use temperature::TemperatureWatch;
use thresholds::{Disks, Thresholds};

use crate::pacemaker;

/// Pause between two looks at what the kernel shows.
const LOOK: Duration = Duration::from_secs(60);
/// Disks are asked in every so manieth look: once an hour.
const LOOKS_PER_DISK_LOOK: u32 = 60;

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

/// What a kind of hardware of this node is like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// As Pacemaker is told.
    pub health: Health,
    /// One sentence; empty where nothing is wrong.
    pub why: String,
}

impl Judgement {
    /// Nothing is wrong.
    #[must_use]
    pub const fn green() -> Self {
        Self {
            health: Health::Green,
            why: String::new(),
        }
    }
}

/// The first of the worst; `None` of none.
fn worst(all: impl Iterator<Item = Judgement>) -> Option<Judgement> {
    all.reduce(|one, other| {
        if other.health > one.health {
            other
        } else {
            one
        }
    })
}

/// A kind of hardware, which has a node attribute of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Memory,
    Processors,
    Pcie,
    Temperature,
    Disks,
}

impl Kind {
    const fn attribute(self) -> &'static str {
        match self {
            Self::Memory => "#health-kemari-memory",
            Self::Processors => "#health-kemari-processors",
            Self::Pcie => "#health-kemari-pcie",
            Self::Temperature => "#health-kemari-temperature",
            Self::Disks => "#health-kemari-disks",
        }
    }

    const fn remedy(self) -> &'static str {
        match self {
            Self::Memory => {
                "Have the memory module replaced: ras-mc-ctl --errors (rasdaemon) and the kernel's log name it"
            }
            Self::Processors => {
                "The kernel's log and rasdaemon (ras-mc-ctl --errors) say what the machine checks were"
            }
            Self::Pcie => {
                "lspci -s ADDRESS says what it is: reseat or replace it; the kernel's log has the errors"
            }
            Self::Temperature => "Look at fans, filters and the room",
            Self::Disks => "Replace it before it fails; smartctl --xall DISK says more",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memory => "memory",
            Self::Processors => "processors",
            Self::Pcie => "PCI Express devices",
            Self::Temperature => "temperatures",
            Self::Disks => "disks",
        })
    }
}

/// What was seen and told of one kind.
#[derive(Debug)]
struct Told {
    kind: Kind,
    seen: Option<Health>,
    told: Option<Health>,
}

impl Told {
    const fn new(kind: Kind) -> Self {
        Self {
            kind,
            seen: None,
            told: None,
        }
    }

    /// Logs what is new and tells Pacemaker. Hardware that was never seen here has no attribute.
    async fn tell(&mut self, judgement: Option<Judgement>) {
        let Some(Judgement { health, why }) = judgement else {
            debug!("Nothing here tells of its {}", self.kind);
            return;
        };
        if self.seen.replace(health) != Some(health) {
            if health == Health::Green {
                info!(%health, "Nothing is wrong with this node's {}", self.kind);
            } else {
                warn!(
                    %health,
                    "{why}. {}. With node-health-strategy=migrate-on-red Pacemaker moves VMs off a red node",
                    self.kind.remedy()
                );
            }
        }
        if needs_telling(self.told, health)
            && pacemaker::tell(self.kind.attribute(), &health.to_string()).await
        {
            self.told = Some(health);
        }
    }
}

/// What the kernel shows at one time.
struct Shown {
    memory: Vec<Counts>,
    processors: Vec<Counts>,
    pcie: Vec<Counts>,
    temperatures: Vec<temperature::Reading>,
}

fn read() -> Shown {
    Shown {
        memory: edac::read(Path::new(edac::CONTROLLERS)),
        processors: machine_checks::read(Path::new(machine_checks::INTERRUPTS)),
        pcie: aer::read(Path::new(aer::DEVICES)),
        temperatures: temperature::read(Path::new(temperature::SENSORS)),
    }
}

/// Watches this node's hardware for as long as it is polled.
pub async fn attend(thresholds: Thresholds) {
    tokio::join!(attend_kernel(thresholds), attend_disks(thresholds.disks));
}

async fn attend_kernel(thresholds: Thresholds) {
    let started = Instant::now();
    let mut memory = CounterWatch::new(thresholds.memory);
    let mut processors = CounterWatch::new(thresholds.processors);
    let mut pcie = CounterWatch::new(thresholds.pcie);
    let mut temperature = TemperatureWatch::new(thresholds.temperature);
    let mut told = [
        Kind::Memory,
        Kind::Processors,
        Kind::Pcie,
        Kind::Temperature,
    ]
    .map(Told::new);
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        // A driver may ask the hardware.
        let Ok(shown) = tokio::task::spawn_blocking(read).await else {
            return;
        };
        let now = started.elapsed();
        let judged = [
            memory.look(now, &shown.memory),
            processors.look(now, &shown.processors),
            pcie.look(now, &shown.pcie),
            temperature.look(&shown.temperatures),
        ];
        for (told, judged) in told.iter_mut().zip(judged) {
            told.tell(judged).await;
        }
    }
}

/// Apart, since a disk that fails may keep whoever asks it waiting.
async fn attend_disks(disks: Disks) {
    if disks == Disks::Off {
        return;
    }
    let mut told = Told::new(Kind::Disks);
    let mut judged = None;
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for look in (0..LOOKS_PER_DISK_LOOK).cycle() {
        looks.tick().await;
        if look == 0 {
            match smart::look().await {
                Ok(answer) => judged = answer,
                Err(error) => debug!("Disks cannot be asked how they are (smartmontools): {error}"),
            }
        }
        told.tell(judged.clone()).await;
    }
}

/// Good news once. Bad news again and again, since Pacemaker forgets such attributes when it is started
/// anew; to be told what it knows costs it nothing.
fn needs_telling(told: Option<Health>, now: Health) -> bool {
    now > Health::Green || told != Some(now)
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
