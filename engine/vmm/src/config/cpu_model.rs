// SPDX-License-Identifier: Apache-2.0
//! Which CPU a guest sees.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The CPU a guest sees: the host's own, or a level that hosts of different models can agree on.
///
/// The levels are those of the x86-64 psABI ("Micro-Architecture Levels") and hold nothing beyond them
/// but what a kernel needs under KVM: no AES instructions, no hardware random numbers, no
/// mitigation controls. The vendor stays the host's, because no guest can move between vendors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum CpuModel {
    /// Everything this host's CPU has that can be carried over; the other host must be alike.
    #[default]
    #[serde(rename = "host")]
    Host,
    /// As of about 2009: SSE3 to SSE4.2, POPCNT, CMPXCHG16B.
    #[serde(rename = "x86-64-v2")]
    X86_64V2,
    /// As of about 2013 (Intel) or 2015 (AMD): AVX2, BMI, FMA, F16C, MOVBE too.
    #[serde(rename = "x86-64-v3")]
    X86_64V3,
}

/// A name that is no CPU model.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[error("There is no CPU model {name:?}: choose \"host\", \"x86-64-v2\" or \"x86-64-v3\"")]
pub struct UnknownCpuModel {
    /// The refused name.
    pub name: String,
}

impl CpuModel {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Host, Self::X86_64V2, Self::X86_64V3];

    /// The name in a description.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::X86_64V2 => "x86-64-v2",
            Self::X86_64V3 => "x86-64-v3",
        }
    }
}

impl fmt::Display for CpuModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for CpuModel {
    type Err = UnknownCpuModel;

    fn from_str(name: &str) -> Result<Self, UnknownCpuModel> {
        Self::ALL
            .into_iter()
            .find(|model| model.name() == name)
            .ok_or_else(|| UnknownCpuModel {
                name: name.to_owned(),
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_to_and_fro_and_others_are_refused_with_the_choice() {
        for model in CpuModel::ALL {
            assert_eq!(model.name().parse(), Ok(model));
        }
        assert_eq!(
            "v9".parse::<CpuModel>().unwrap_err().to_string(),
            "There is no CPU model \"v9\": choose \"host\", \"x86-64-v2\" or \"x86-64-v3\""
        );
    }
}
