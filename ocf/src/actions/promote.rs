// SPDX-License-Identifier: Apache-2.0
//! `promote`: the agent of the node makes the replica active, or found it so already.
//!
//! It returns when the replica says itself that it is active.

use std::time::Duration;

use kemari_api::{Assigned, Role};
use tokio::time::{Instant, sleep, timeout};

use crate::cluster::{self, Answer};
use crate::engine::{self, Engine};
use crate::exit::{Code, Failure, Outcome, warn};
use crate::instance::Instance;

/// How often an absent agent is looked for.
const BETWEEN_QUESTIONS: Duration = Duration::from_millis(200);

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
    let active = make_active(instance, status.role).await?;
    instance.remember(Assigned::Promoted)?;
    instance.refresh_score(&active).await;
    Ok(Code::Success)
}

/// Has the agent make a replica of this role active, and waits until it says so itself.
///
/// # Errors
/// `OCF_ERR_GENERIC`: what stands against it.
pub(super) async fn make_active(instance: &Instance, role: Role) -> Result<Engine, Failure> {
    match ask(instance, role).await {
        Answer::Done => {}
        Answer::Absent(remedy) if role == Role::Active => warn(remedy),
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
    Ok(Engine::Answers(Box::new(status)))
}

/// An agent that is away may be on its way: started with the node, restarted by an upgrade.
async fn ask(instance: &Instance, role: Role) -> Answer {
    instance.waits_for(format!("kemari-agent to promote VM {}", instance.vm));
    let patience = Instant::now() + instance.budget / 4;
    loop {
        let answer = match role {
            // The work is done; an agent that hangs must not undo it.
            Role::Active => timeout(instance.left() / 2, cluster::promote(&instance.vm))
                .await
                .unwrap_or_else(|_| Answer::Absent(cluster::MISSING.to_owned())),
            _ => cluster::promote(&instance.vm).await,
        };
        let absent = matches!(answer, Answer::Absent(_));
        if !absent || role == Role::Active || Instant::now() >= patience {
            return answer;
        }
        sleep(BETWEEN_QUESTIONS).await;
    }
}
