// SPDX-License-Identifier: Apache-2.0
//! `[sandbox]`: what the engine keeps of its rights once the machine is set up.

use schemars::JsonSchema;
use serde::Deserialize;

use super::UserName;

/// What the engine keeps of its rights once the machine is set up.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SandboxSection {
    /// Give up what the engine does not need while the guest runs: root, capabilities, most system
    /// calls, files it did not open; default true. Set it to false for debugging only: the engine
    /// logs a warning, and a guest that breaks out is root on the host.
    pub enabled: bool,
    /// The user of the host that the engine becomes, used for nothing else and not root; default
    /// `kemari`, which the package makes.
    pub user: UserName,
}

impl Default for SandboxSection {
    fn default() -> Self {
        Self {
            enabled: true,
            user: UserName::default(),
        }
    }
}
