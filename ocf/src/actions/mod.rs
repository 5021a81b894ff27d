// SPDX-License-Identifier: Apache-2.0
//! The actions, and how each is run within its time.
//!
//! A dispatcher only: which VM an action is about, one module an action, one deadline over each.

use tokio::time::timeout;

use crate::action::Action;
use crate::description;
use crate::environment::Environment;
use crate::exit::{Code, Failure, Outcome, inform};
use crate::instance::Instance;

mod demote;
mod monitor;
mod notify;
mod promote;
pub(crate) mod shutdown;
mod start;
mod stop;

/// Runs an action other than `meta-data` to its end or to the end of its time.
///
/// # Errors
/// The OCF code and the reason.
pub(crate) async fn run(action: Action, environment: Environment) -> Outcome {
    match action {
        Action::MetaData => Ok(Code::Success),
        Action::ValidateAll => description::validate(&environment).map(|_| Code::Success),
        Action::Start => {
            let vm = description::validate(&environment)?.vm.name;
            let instance = instance_of(vm, action, environment)?;
            within_time(action, &instance).await
        }
        _ => match known_instance(action, environment)? {
            Some(instance) => within_time(action, &instance).await,
            None => Ok(without_vm(action)),
        },
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
            Action::MetaData | Action::ValidateAll => Ok(Code::Success),
        }
    };
    let Ok(outcome) = timeout(instance.budget, acting).await else {
        return Err(Failure::generic(format!(
            "{action} of VM {} took longer than {} s, waiting for {}",
            instance.vm,
            instance.budget.as_secs_f32(),
            instance.waiting_for()
        )));
    };
    outcome
}

fn known_instance(action: Action, environment: Environment) -> Result<Option<Instance>, Failure> {
    let path = description::config_path(&environment)?;
    match description::vm(path) {
        Some(vm) => instance_of(vm, action, environment).map(Some),
        None => {
            if let Err(failure) = description::load(path) {
                inform(format!("No VM of this resource can run here: {failure}"));
            }
            Ok(None)
        }
    }
}

fn instance_of(
    vm: kemari_api::VmName,
    action: Action,
    environment: Environment,
) -> Result<Instance, Failure> {
    let config = description::config_path(&environment)?.to_owned();
    let budget = environment.budget(action);
    Ok(Instance::new(vm, config, environment, budget))
}

/// Nothing was started from this description, and it names no VM: nothing runs. That must be no
/// error, or a witness without the file would keep the VM from running anywhere.
fn without_vm(action: Action) -> Code {
    match action {
        Action::Monitor | Action::Promote | Action::Demote => Code::NotRunning,
        _ => Code::Success,
    }
}
