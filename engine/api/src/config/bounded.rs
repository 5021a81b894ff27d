// SPDX-License-Identifier: Apache-2.0
//! Numbers of the description, each with its range; a value outside is refused when it is read.

use std::fmt;

use serde::Deserialize;
use thiserror::Error;

/// A number outside its range.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{value} is out of range: give {min} to {max} ({meaning})")]
pub struct OutOfRange {
    value: i64,
    min: u32,
    max: u32,
    meaning: &'static str,
}

macro_rules! bounded {
    ($(#[$doc:meta])* $name:ident, $min:literal ..= $max:literal, $default:literal, $meaning:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
        #[serde(try_from = "i64")]
        pub struct $name(u32);

        impl $name {
            /// The bare number, in the unit of the type's name.
            #[must_use]
            pub const fn get(self) -> u32 {
                self.0
            }
        }

        impl TryFrom<i64> for $name {
            type Error = OutOfRange;

            fn try_from(value: i64) -> Result<Self, OutOfRange> {
                match u32::try_from(value) {
                    Ok(number) if ($min..=$max).contains(&number) => Ok(Self(number)),
                    _ => Err(OutOfRange { value, min: $min, max: $max, meaning: $meaning }),
                }
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self($default)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

bounded! {
    /// RAM of the guest in MiB; the default is never used, the key is required.
    MemoryMib, 16..=3072, 256, "MiB of RAM for the guest"
}
bounded! {
    /// Virtual CPUs.
    Vcpus, 1..=1, 1, "this release runs guests with one virtual CPU"
}
bounded! {
    /// The longest epoch, in milliseconds.
    EpochMsMax, 1..=10_000, 25, "milliseconds between checkpoints at most"
}
bounded! {
    /// How long the first queued output waits for company, in microseconds.
    GatherUs, 0..=1_000_000, 500, "microseconds an output waits for others before a checkpoint"
}
bounded! {
    /// Output that may wait for commit, in KiB.
    QueueKib, 4..=32_768, 4096, "KiB of output that may wait for commit"
}
bounded! {
    /// Silence after which the peer counts as out of reach, in milliseconds.
    PeerTimeoutMs, 50..=60_000, 1000, "milliseconds of silence from the other replica"
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn only_values_in_range_are_accepted(value: i64) {
            prop_assert_eq!(MemoryMib::try_from(value).is_ok(), (16..=3072).contains(&value));
        }
    }

    #[test]
    fn the_message_names_value_range_and_meaning() {
        let text = PeerTimeoutMs::try_from(3).unwrap_err().to_string();
        assert_eq!(
            text,
            "3 is out of range: give 50 to 60000 (milliseconds of silence from the other replica)"
        );
    }
}
