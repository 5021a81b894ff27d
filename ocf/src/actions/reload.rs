// SPDX-License-Identifier: Apache-2.0
//! `reload-agent`: a parameter changed that needs no restart.
//!
//! Nothing is kept of such parameters: Pacemaker hands them to each action anew, so the next one
//! uses the new value. What is left to do is to say what it means. A wrong value does not fail: Pacemaker
//! would stop the VM for it, everywhere.

use super::shutdown;
use crate::environment::Environment;
use crate::exit::{Code, Outcome, inform, warn};

/// Says what holds from now on.
pub(super) fn run(environment: &Environment) -> Outcome {
    let limit = shutdown::timeout_or_default(environment);
    inform(format!(
        "A guest that is stopped for good has {} s to shut down from now on",
        limit.as_secs()
    ));
    if let Err(failure) = crate::description::config_path(environment) {
        warn(failure);
    }
    Ok(Code::Success)
}
