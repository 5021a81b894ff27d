// SPDX-License-Identifier: Apache-2.0
//! Numbers of the description, each with its range; a value outside is refused when it is read.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserializer, Unexpected, Visitor};
use serde::{Deserialize, Serialize};
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

/// Reads an integer, and says the range where something else stands in its place.
struct Number {
    min: u32,
    max: u32,
    meaning: &'static str,
}

impl Visitor<'_> for Number {
    type Value = u32;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { min, max, meaning } = self;
        write!(
            f,
            "a number from {min} to {max} ({meaning}), without quotes"
        )
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<u32, E> {
        let Self { min, max, meaning } = self;
        let fits = u32::try_from(value).ok();
        let fits = fits.filter(|number| (min..=max).contains(number));
        fits.ok_or_else(|| {
            E::custom(OutOfRange {
                value,
                min,
                max,
                meaning,
            })
        })
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<u32, E> {
        // TOML's integers are signed; only other formats come here.
        match i64::try_from(value) {
            Ok(value) => self.visit_i64(value),
            Err(_) => Err(E::invalid_value(Unexpected::Unsigned(value), &self)),
        }
    }
}

macro_rules! bounded {
    ($(#[$doc:meta])* $name:ident, $min:literal ..= $max:literal, default $default:literal, $meaning:literal) => {
        bounded! { $(#[$doc])* $name, $min..=$max, $meaning }

        impl Default for $name {
            fn default() -> Self {
                Self($default)
            }
        }
    };
    ($(#[$doc:meta])* $name:ident, $min:literal ..= $max:literal, $meaning:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
        #[serde(transparent)]
        pub struct $name(u32);

        impl $name {
            /// The least value accepted.
            pub const MIN: u32 = $min;
            /// The greatest value accepted.
            pub const MAX: u32 = $max;

            const READER: Number = Number { min: $min, max: $max, meaning: $meaning };

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

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                from.deserialize_i64(Self::READER).map(Self)
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "integer", "minimum": $min, "maximum": $max })
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
    /// RAM of the guest in MiB.
    MemoryMib, 16..=524_288, "MiB of RAM for the guest"
}
bounded! {
    /// Virtual CPUs. 254: what a local APIC of the first kind can number, less the broadcast.
    Vcpus, 1..=254, default 1, "virtual CPUs"
}
bounded! {
    /// A NUMA node of the host.
    NumaNode, 0..=1023, "a NUMA node of the host"
}
bounded! {
    /// Queue pairs of a network interface.
    QueuePairs, 1..=8, default 1, "queue pairs of a network interface"
}
bounded! {
    /// Bytes of the longest packet. 68: RFC 791; 65521: what TAP devices take.
    Mtu, 68..=65_521, "bytes of the longest packet on the interface"
}
bounded! {
    /// A TCP port.
    Port, 1..=65_535, default 4444, "a TCP port"
}
bounded! {
    /// The longest epoch, in milliseconds.
    EpochMsMax, 1..=10_000, default 25, "milliseconds between checkpoints at most"
}
bounded! {
    /// How long the first queued output waits for company, in microseconds.
    GatherUs, 0..=1_000_000, default 500,
    "microseconds an output waits for others before a checkpoint"
}
bounded! {
    /// Output that may wait for commit, in KiB.
    QueueKib, 4..=32_768, default 4096, "KiB of output that may wait for commit"
}
bounded! {
    /// Copies of pages kept to send differences to them, in MiB.
    DeltaCacheMib, 0..=65_536, default 64, "MiB of copies of pages sent last"
}
bounded! {
    /// Silence after which the peer counts as out of reach, in milliseconds.
    PeerTimeoutMs, 50..=60_000, default 1000, "milliseconds of silence from the other replica"
}

bounded! {
    /// How fast disks are made equal, in MiB per second.
    ResyncMib, 1..=100_000, "MiB per second that a disk copy may take of disks and link"
}

impl Port {
    /// The number, as sockets take it.
    #[must_use]
    pub fn number(self) -> u16 {
        u16::try_from(self.0).expect("the range of ports is that of u16")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Deserialize)]
    struct One {
        number: MemoryMib,
    }

    fn read(text: &str) -> Result<u32, String> {
        let one: Result<One, _> = toml::from_str(&format!("number = {text}"));
        one.map(|one| one.number.get())
            .map_err(|error| error.message().to_owned())
    }

    proptest! {
        #[test]
        fn only_values_in_range_are_accepted(value: i64) {
            let right = (16..=524_288).contains(&value);
            prop_assert_eq!(MemoryMib::try_from(value).is_ok(), right);
            prop_assert_eq!(read(&value.to_string()).is_ok(), right);
        }

        #[test]
        fn every_value_in_range_reads_as_itself(value in 16_u32..=524_288) {
            prop_assert_eq!(read(&value.to_string()), Ok(value));
        }
    }

    #[test]
    fn the_message_names_value_range_and_meaning() {
        let text = PeerTimeoutMs::try_from(3).unwrap_err().to_string();
        assert_eq!(
            text,
            "3 is out of range: give 50 to 60000 (milliseconds of silence from the other replica)"
        );
        assert_eq!(
            read("1").unwrap_err(),
            "1 is out of range: give 16 to 524288 (MiB of RAM for the guest)"
        );
    }

    #[test]
    fn a_value_that_is_no_number_is_told_what_would_be_one() {
        let text = read("\"256\"").unwrap_err();
        assert!(
            text.contains("\"256\"") && text.contains("16 to 524288"),
            "{text}"
        );
    }
}
