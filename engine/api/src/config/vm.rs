// SPDX-License-Identifier: Apache-2.0
//! `[vm]`: what the machine is.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{MemoryMib, Vcpus};
use crate::VmName;

/// What the machine is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VmSection {
    /// The name of the machine, unique in the cluster. It names the control socket and the systemd
    /// unit `kemari-vm@NAME`. 1 to 63 letters, digits, dots, dashes and underscores, beginning with
    /// a letter or digit. Required.
    pub name: VmName,
    /// RAM of the guest in MiB, 16 to 524288. Required. What the guest never touches takes no
    /// memory of the host, unless `memory.lock` is set.
    pub memory_mib: MemoryMib,
    /// Virtual CPUs, 1 to 254; default 1. Each is a thread of the engine. A checkpoint stops all of
    /// them, so every CPU makes the pause a little longer.
    #[serde(default)]
    pub vcpus: Vcpus,
    /// What the guest sees of the CPU: `host` (the default), all that Kemari can carry over and the
    /// other host must have as well; or the baseline `x86-64-v2` or `x86-64-v3`, for hosts whose
    /// CPUs differ.
    #[serde(default)]
    pub cpu: CpuModel,
}

/// What the guest sees of the CPU. The levels are those of the x86-64 psABI, "Micro-architecture
/// levels".
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum CpuModel {
    /// The host's, less what cannot be carried over.
    #[default]
    #[serde(rename = "host")]
    Host,
    /// Up to SSE4.2 and POPCNT: CPUs since about 2009.
    #[serde(rename = "x86-64-v2")]
    X86_64V2,
    /// Also AVX2, BMI, FMA: CPUs since about 2013.
    #[serde(rename = "x86-64-v3")]
    X86_64V3,
}

impl fmt::Display for CpuModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "host",
            Self::X86_64V2 => "x86-64-v2",
            Self::X86_64V3 => "x86-64-v3",
        })
    }
}
