// SPDX-License-Identifier: Apache-2.0
//! The roles of a replica and the licence of an active one.

use std::fmt;

use serde::{Deserialize, Serialize};
use zbus::zvariant::Type;

/// What a replica is at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Type)]
#[serde(rename_all = "lowercase")]
#[zvariant(signature = "s")]
pub enum Role {
    /// The engine is up and holds no state it could run from.
    Waiting,
    /// It receives checkpoints; promotable when it is in sync.
    Passive,
    /// Its vCPUs run, or would run if a person had not stopped them.
    Active,
    /// It must never run again: the right to run has gone on to a newer generation.
    Outdated,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Waiting => "waiting",
            Self::Passive => "passive",
            Self::Active => "active",
            Self::Outdated => "outdated",
        })
    }
}

/// The right of an active replica to let outputs out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Type)]
#[serde(rename_all = "lowercase")]
#[zvariant(signature = "s")]
pub enum Licence {
    /// No right to run: every replica that is not active.
    None,
    /// There is no passive replica; outputs leave at once.
    Solo,
    /// Only outputs that the passive replica has committed leave.
    Paired,
    /// Paired, but the passive replica is out of reach: outputs are held until it returns or a
    /// solo licence is granted.
    Cut,
}

impl fmt::Display for Licence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Solo => "solo",
            Self::Paired => "paired",
            Self::Cut => "cut",
        })
    }
}
