// SPDX-License-Identifier: Apache-2.0
//! What the journal is told of the state machine's actions.

use kemari_api::{Generation, VmName};
use tracing::{debug, info, warn};

use crate::arbitration::message::Message;
use crate::arbitration::{Action, Grounds};
use crate::journal::mono_us;

/// The journal's line for an action.
pub(super) fn tell(action: &Action) {
    let t_mono_us = mono_us();
    match action {
        Action::Promote {
            vm,
            how,
            generation,
            grounds,
        } => {
            tell_grounds(vm, *generation, *grounds);
            info!(%vm, ?how, %generation, t_mono_us, "Promotion asked of the engine");
        }
        Action::GoSolo {
            vm,
            generation,
            grounds,
        } => {
            tell_grounds(vm, *generation, *grounds);
            info!(%vm, %generation, t_mono_us, "Solo licence given to the engine");
        }
        Action::Outdate {
            vm,
            generation,
            holder,
        } => warn!(%vm, %generation, %holder, "Outdated: another node holds a newer generation"),
        Action::Protect { vm, address } => debug!(%vm, address, "Replication asked of the engine"),
        Action::WriteRecord(record) => info!(
            vm = %record.vm, generation = %record.generation, holder = %record.holder,
            purpose = ?record.purpose, t_mono_us, "Recording a claim"
        ),
        Action::Multicast(Message::Claim(claim)) => info!(
            vm = %claim.vm, generation = %claim.generation, purpose = ?claim.purpose, t_mono_us,
            "Claiming"
        ),
        Action::Answer {
            result: Err(reason),
            ..
        } => warn!(%reason, "Promotion refused"),
        Action::Note { vm, text } => warn!(%vm, "{text}"),
        Action::Multicast(_) | Action::Answer { .. } | Action::Admit => {}
    }
}

fn tell_grounds(vm: &VmName, generation: Generation, grounds: Grounds) {
    let t_mono_us = mono_us();
    match grounds {
        Grounds::Majority(votes) => {
            info!(%vm, %generation, votes, t_mono_us, "Claim recorded by majority");
        }
        Grounds::Person(votes) => {
            warn!(%vm, %generation, votes, t_mono_us, "Claim recorded because a person forces it");
        }
        Grounds::Pacemaker => {
            info!(%vm, %generation, t_mono_us, "Claim recorded on Pacemaker's word");
        }
    }
}
