// SPDX-License-Identifier: Apache-2.0
//! What kind of history a seed makes: which faults, how often, how long.
//!
//! Rates are "one in so many"; 0 is never. Each seed has some kinds of fault and lacks others, so
//! that some histories are violent and some get far.

use std::time::Duration;

use super::schedule::{MS, Nanos, US};

/// Silence after which a replica counts as out of reach, on the clock of who listens.
pub const SILENCE_MAX: Duration = Duration::from_millis(20);
/// Before the first commit silence may be this many times longer.
pub const COPY_PATIENCE: u32 = 3;
/// Between two attempts to reach a passive replica that was lost.
pub const RETRY: Duration = Duration::from_millis(5);
/// How long a demotion waits for the last commit.
pub const FINISH_PATIENCE: Duration = Duration::from_millis(60);
/// How long a peer may take to say that it let go of its state.
pub const DISSOLVE: Duration = Duration::from_millis(20);
/// The event-tap has room below this.
pub const QUEUE_BYTES: usize = 2500;
/// The longest a history may take to get well once faults have ended.
pub const RECOVERY_MAX: Nanos = 3000 * MS;

/// The faults of one history.
#[derive(Debug, Clone, Copy)]
pub struct Profile {
    /// How long faults go on.
    pub faults_for: Nanos,
    /// Of events: something happens to a host or to the network just before.
    pub upset: u32,
    /// Of frames: lost, doubled, overtaken, shortened or changed.
    pub frame: u32,
    /// Of the passive side's frames: preceded by an acknowledgement of another generation.
    pub stale_ack: u32,
    /// Of delays: a long one.
    pub long_delay: u32,
    /// Of outputs: the sink takes a part, or nothing.
    pub sink: u32,
    /// Of checkpoints: the state does not decode.
    pub undecodable: u32,
    /// Of record writes: the disk fails.
    pub disk: u32,
    /// Of agents' looks: one acts without waiting for anybody's loss, as a hasty person would.
    pub hasty: u32,
    /// Of agents' looks: the resource is to be moved.
    pub handover: u32,
    /// Of the guest's steps: it powers itself off.
    pub power_off: u32,
    /// Joining a pair takes a turn of the conductor for each of its steps, as it would with a slow
    /// disk. The licence allows it; the engine does it in one turn.
    pub slow_join: bool,
    /// The guest stands still until the acknowledgement, as in the first Kemari.
    pub synchronous: bool,
    /// Between two steps of the guest.
    pub step: Nanos,
    /// Usual delay of the network.
    pub network: Nanos,
}

impl Profile {
    pub fn draw(rng: &mut fastrand::Rng) -> Self {
        let calm = rng.u32(0..10) == 0;
        let mut rate = |one_in: u32, of_seeds: u32| {
            if calm || rng.u32(0..of_seeds) != 0 {
                0
            } else {
                rng.u32(one_in..=one_in * 6)
            }
        };
        Self {
            upset: rate(150, 1),
            frame: rate(60, 3),
            stale_ack: rate(10, 3),
            long_delay: rate(15, 2),
            sink: rate(6, 3),
            undecodable: rate(25, 5),
            disk: rate(15, 10),
            hasty: rate(8, 3),
            handover: rate(8, 3),
            power_off: rate(300, 12),
            slow_join: rng.u32(0..3) == 0,
            synchronous: rng.u32(0..8) == 0,
            faults_for: rng.u64(20 * MS..400 * MS),
            step: rng.u64(60 * US..1500 * US),
            network: rng.u64(50 * US..600 * US) * rng.u64(1..=8),
        }
    }
}
