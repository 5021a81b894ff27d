// SPDX-License-Identifier: Apache-2.0
//! `promote`: the agent of the node makes the replica active, or found it so already.
//!
//! It returns when the replica says itself that it is active.

use kemari_api::Role;

use crate::assigned::Assigned;
use crate::cluster::{self, Answer};
use crate::engine::{self, Engine};
use crate::exit::{Code, Failure, Outcome, warn};
use crate::instance::Instance;

/// Promotes through the agent and checks.
pub(super) async fn run(instance: &Instance) -> Outcome {
    let status = match instance.observe().await {
        Engine::Answers(status) => status,
        Engine::Stopped => {
            let text = format!("The engine of VM {} is not running", instance.vm);
            return Err(Failure::new(Code::NotRunning, text));
        }
        Engine::Dead(reason) | Engine::Mute(reason) => return Err(Failure::generic(reason)),
    };
    instance.waits_for(format!("kemari-agent to promote VM {}", instance.vm));
    match cluster::promote(&instance.vm).await {
        Answer::Done => {}
        Answer::Absent(remedy) if status.role == Role::Active => warn(remedy),
        Answer::Absent(remedy) => return Err(Failure::generic(remedy)),
        Answer::Refused(reason) => {
            return Err(Failure::generic(format!(
                "VM {} is not promoted: {reason}",
                instance.vm
            )));
        }
    }
    instance.waits_for("the replica to be active");
    let status = engine::until(&instance.vm, |status| status.role == Role::Active).await;
    instance.remember(Assigned::Promoted)?;
    let engine = Engine::Answers(Box::new(status));
    instance.refresh_score(&engine).await;
    Ok(Code::Success)
}
