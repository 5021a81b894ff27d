// SPDX-License-Identifier: Apache-2.0
//! The actions, and how each is run within its time.
//!
//! A dispatcher only: which VM an action is about, one module an action, one deadline over each.
//! Files that Pacemaker's parameters name may lie on storage that hangs, so they are read on a thread
//! that is left behind when time is up.

use std::time::Duration;

use kemari_api::VmName;
use tokio::time::{Instant, timeout, timeout_at};

use crate::action::Action;
use crate::description;
use crate::environment::Environment;
use crate::exit::{Code, Failure, Outcome, inform};
use crate::instance::Instance;

mod demote;
mod liveness;
mod monitor;
mod notify;
mod plain;
mod promote;
mod reload;
pub(crate) mod shutdown;
mod start;
mod stop;

/// Runs an action other than `meta-data` to its end or to the end of its time.
///
/// # Errors
/// The OCF code and the reason.
pub(crate) async fn run(action: Action, environment: Environment) -> Outcome {
    let begun = Instant::now();
    let budget = environment.budget(action);
    let instance = match action {
        Action::MetaData => return Ok(Code::Success),
        Action::ReloadAgent => return reload::run(&environment),
        Action::ValidateAll => {
            return on_files(action, begun, budget, move || {
                description::validate(&environment, environment.check).map(|()| Code::Success)
            })
            .await;
        }
        Action::Start => {
            let known = known_instance(action, environment.clone(), budget, begun).await?;
            match known {
                // What runs needs nothing that may be missing meanwhile.
                Some(known) if known.answers().await => Some(known),
                _ => {
                    let read = environment.clone();
                    let startable = move || description::startable(&read);
                    let vm = on_files(action, begun, budget, startable).await?;
                    Some(instance_of(vm, environment, budget, begun)?)
                }
            }
        }
        _ => known_instance(action, environment, budget, begun).await?,
    };
    match instance {
        Some(instance) => within_time(action, &instance).await,
        None => Ok(without_vm(action)),
    }
}

/// Reads files by `read`, for no longer than the action may take.
async fn on_files<T: Send + 'static>(
    action: Action,
    begun: Instant,
    budget: Duration,
    read: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    match timeout_at(begun + budget, tokio::task::spawn_blocking(read)).await {
        Ok(Ok(result)) => result,
        Ok(Err(error)) => Err(Failure::generic(format!("{action} broke off: {error}"))),
        Err(_) => Err(Failure::generic(format!(
            "{action} took longer than {} s, waiting for the description of the VM or a file it \
             names to be opened: look at the storage they lie on",
            budget.as_secs_f32()
        ))),
    }
}

async fn within_time(action: Action, instance: &Instance) -> Outcome {
    let acting = async {
        match action {
            Action::Start => start::run(instance).await,
            Action::Stop => stop::run(instance).await,
            Action::Monitor => monitor::run(instance).await,
            Action::Promote => promote::run(instance).await,
            Action::Demote => demote::run(instance).await,
            Action::Notify => notify::run(instance).await,
            Action::MigrateTo => plain::migrate_to(instance).await,
            Action::MigrateFrom => plain::migrate_from(instance).await,
            Action::MetaData | Action::ReloadAgent | Action::ValidateAll => Ok(Code::Success),
        }
    };
    let Ok(outcome) = timeout(instance.left(), acting).await else {
        return Err(Failure::generic(format!(
            "{action} of VM {} took longer than {} s, waiting for {}",
            instance.vm,
            instance.budget.as_secs_f32(),
            instance.waiting_for()
        )));
    };
    outcome
}

async fn known_instance(
    action: Action,
    environment: Environment,
    budget: Duration,
    begun: Instant,
) -> Result<Option<Instance>, Failure> {
    let path = description::config_path(&environment)?.to_owned();
    let vm = on_files(action, begun, budget, move || {
        let vm = description::vm(&path);
        if vm.is_none()
            && action != Action::Start
            && let Err(failure) = description::load(&path)
        {
            inform(format!("No VM of this resource can run here: {failure}"));
        }
        Ok(vm)
    })
    .await?;
    vm.map(|vm| instance_of(vm, environment, budget, begun))
        .transpose()
}

fn instance_of(
    vm: VmName,
    environment: Environment,
    budget: Duration,
    begun: Instant,
) -> Result<Instance, Failure> {
    let config = description::config_path(&environment)?.to_owned();
    Ok(Instance::new(vm, config, environment, budget, begun))
}

/// Nothing was started from this description, and it names no VM: nothing runs. That must be no
/// error, or a witness without the file would keep the VM from running anywhere.
fn without_vm(action: Action) -> Code {
    match action {
        Action::Monitor
        | Action::Promote
        | Action::Demote
        | Action::MigrateTo
        | Action::MigrateFrom => Code::NotRunning,
        _ => Code::Success,
    }
}
