// SPDX-License-Identifier: Apache-2.0
//! The speed of a link, from how long transactions took to be acknowledged.
//!
//! How fast a socket takes bytes says little: what fits its buffer goes at the speed of memory. The
//! time from handing over to the acknowledgement says what matters, the peer's work included; what
//! that time is without any bytes to speak of is taken off.

use std::time::Duration;

/// Up to so many bytes only the way there and back counts, …
const SHORT_BYTES: u64 = 16 * 1024;
/// … from so many on the bytes do.
const LONG_BYTES: u64 = 128 * 1024;
/// Weight of what is new.
const SHARE: f64 = 1.0 / 8.0;

/// Estimates the bytes a link carries in a second.
#[derive(Debug, Clone, Default)]
pub struct LinkRate {
    /// Seconds for a transaction of next to no bytes.
    empty_s: Option<f64>,
    bytes_per_second: Option<f64>,
}

impl LinkRate {
    /// So many bytes were acknowledged this long after the link was free for them.
    pub fn carried(&mut self, bytes: u64, took: Duration) {
        let took = took.as_secs_f64();
        if bytes <= SHORT_BYTES {
            let before = self.empty_s.unwrap_or(took);
            // A shorter way is believed at once, a longer one little by little.
            self.empty_s = Some(took.min(before + (took - before) / 64.0));
        } else if bytes >= LONG_BYTES && took > 0.0 {
            let rest = (took - self.empty_s.unwrap_or(0.0)).max(took / 8.0);
            let rate = bytes as f64 / rest;
            let before = self.bytes_per_second.unwrap_or(rate);
            self.bytes_per_second = Some(before + (rate - before) * SHARE);
        }
    }

    /// The estimate, once there is one.
    #[must_use]
    pub const fn bytes_per_second(&self) -> Option<f64> {
        self.bytes_per_second
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A link that takes `empty_us` and 8 ns a byte: 1 Gbit/s.
    fn gigabit(rate: &mut LinkRate, bytes: u64, empty_us: u64) {
        rate.carried(
            bytes,
            Duration::from_micros(empty_us) + Duration::from_nanos(bytes * 8),
        );
    }

    #[test]
    fn a_gigabit_link_is_recognised_whatever_the_way_takes() {
        for empty_us in [20, 200, 2000] {
            let mut rate = LinkRate::default();
            for _ in 0..50 {
                gigabit(&mut rate, 2000, empty_us);
                gigabit(&mut rate, 400_000, empty_us);
            }
            let found = rate.bytes_per_second().unwrap();
            assert!(
                (110e6..140e6).contains(&found),
                "{found} with {empty_us} us"
            );
        }
    }

    #[test]
    fn short_transactions_say_nothing_of_the_speed() {
        let mut rate = LinkRate::default();
        for bytes in [0, 100, 16_000, 60_000] {
            rate.carried(bytes, Duration::from_millis(1));
        }
        assert_eq!(rate.bytes_per_second(), None);
    }

    #[test]
    fn no_time_at_all_is_no_speed() {
        let mut rate = LinkRate::default();
        rate.carried(1 << 20, Duration::ZERO);
        assert_eq!(rate.bytes_per_second(), None);
    }
}
