// SPDX-License-Identifier: Apache-2.0
//! `[console]`, `[rng]` and `[balloon]`: devices with nothing to configure but whether they are
//! there and where they lead.

use schemars::JsonSchema;
use serde::Deserialize;

use super::ConsoleSink;

/// Where the serial console goes, and whether there is a second console.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ConsoleSection {
    /// Where what the guest prints goes: `none` (the default); `file:/PATH`, appended to a file;
    /// `unix:/PATH` or `tcp:HOST:PORT`, a listener on a stream socket that speaks the console
    /// stream protocol. It is an output: it leaves when the other replica holds what caused it.
    pub output: ConsoleSink,
    /// Give the guest a virtio console as well, `hvc0`; default false. It is faster than the serial
    /// port, which stays `ttyS0`.
    pub virtio: bool,
}

/// Random numbers of the host for the guest.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RngSection {
    /// Give the guest a virtio random number generator; default true. Without it a guest may wait
    /// long for its first random numbers.
    pub enabled: bool,
}

impl Default for RngSection {
    fn default() -> Self {
        Self { enabled: true }
    }
}

/// Memory that the guest gives back to the host.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BalloonSection {
    /// Give the guest a virtio balloon, by which it can be asked to give memory back; default true.
    pub enabled: bool,
    /// Let the guest report memory it has no use for, which goes back to the host by itself and
    /// need not be copied to the other replica; default true. It costs page faults when the guest
    /// takes the memory into use again.
    pub free_page_reporting: bool,
}

impl Default for BalloonSection {
    fn default() -> Self {
        Self {
            enabled: true,
            free_page_reporting: true,
        }
    }
}
