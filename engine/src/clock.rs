// SPDX-License-Identifier: Apache-2.0
//! CLOCK_MONOTONIC as plain numbers.
//!
//! The protocol is handed its time as a `Duration` since an arbitrary start; log lines carry the
//! same clock in microseconds, so that lines of all processes of a node can be put in order.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Time since the node's clock began.
pub fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}

/// The same in microseconds, for the field `t_mono_us`.
pub fn now_us() -> u128 {
    now().as_micros()
}
