// SPDX-License-Identifier: Apache-2.0
//! Whether the conductor makes progress, for systemd's watchdog (sd_watchdog_enabled(3)).
//!
//! It beats with every pass of its loop, at least once a second. What may rightly take longer than a
//! watchdog waits (writing a snapshot, waiting for the guest's disks, making a machine) says so
//! beforehand: to end a guest for a slow disk would be worse than to wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The conductor's side. Clones are of one pulse.
#[derive(Debug, Clone, Default)]
pub struct Pulse {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    beats: AtomicU64,
    /// How many [`LongWork`]s there are.
    long: AtomicU64,
}

impl Pulse {
    /// One more pass.
    pub fn beat(&self) {
        self.inner.beats.fetch_add(1, Ordering::Relaxed);
    }

    /// Until the value is dropped, a missing beat means nothing.
    #[must_use]
    pub fn long_work(&self) -> LongWork {
        self.inner.long.fetch_add(1, Ordering::Relaxed);
        LongWork(self.clone())
    }
}

/// Work that may take long is under way.
#[derive(Debug)]
pub struct LongWork(Pulse);

impl Drop for LongWork {
    fn drop(&mut self) {
        // The end of it is progress, too.
        self.0.beat();
        self.0.inner.long.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The watchdog's side.
#[derive(Debug)]
pub struct Lookout {
    pulse: Pulse,
    seen: Option<u64>,
}

impl Lookout {
    /// Nothing was seen yet.
    pub fn new(pulse: Pulse) -> Self {
        Self { pulse, seen: None }
    }

    /// Whether there was progress since the last look, or none is due.
    pub fn sees_progress(&mut self) -> bool {
        let long = self.pulse.inner.long.load(Ordering::Relaxed) > 0;
        let beats = self.pulse.inner.beats.load(Ordering::Relaxed);
        let before = self.seen.replace(beats);
        long || before != Some(beats)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_beat_is_progress() {
        let pulse = Pulse::default();
        let mut lookout = Lookout::new(pulse.clone());
        assert!(lookout.sees_progress(), "the first look");
        assert!(!lookout.sees_progress());
        pulse.beat();
        assert!(lookout.sees_progress());
        assert!(!lookout.sees_progress());
    }

    #[test]
    fn long_work_needs_no_beats_until_its_end() {
        let pulse = Pulse::default();
        let mut lookout = Lookout::new(pulse.clone());
        lookout.sees_progress();
        let outer = pulse.long_work();
        let inner = pulse.long_work();
        assert!(lookout.sees_progress() && lookout.sees_progress());
        drop(inner);
        assert!(lookout.sees_progress() && lookout.sees_progress());
        drop(outer);
        assert!(lookout.sees_progress(), "its end");
        assert!(!lookout.sees_progress());
    }
}
