// SPDX-License-Identifier: Apache-2.0
//! A session that was recorded in a file: a snapshot.

use kemari_replication::passive::{PassiveAction, PassiveSession, Replica};
use kemari_replication::wire::Purpose;
use kemari_vmm::MachineState;

use super::passive::{Held, Receiving, Shadow, merge, merge_page};
use super::{FrameReader, LinkError};

/// Reads a recorded session to its end and merges it into RAM, as if it had come over a link.
///
/// # Errors
/// It is of another VM or machine, damaged, or not complete. RAM may hold a part of it then.
pub fn receive_recorded(file: std::fs::File, receiving: Receiving) -> Result<Held, LinkError> {
    let mut reader = FrameReader::of(file);
    let mut session = PassiveSession::new(receiving.config, Replica::default());
    let mut state = None;
    // Nobody reads the answers.
    let mut answers = Vec::new();
    loop {
        let (header, payload) = reader.next()?;
        match session.on_frame(&header, payload, &Shadow(&receiving.ram))? {
            PassiveAction::Continue | PassiveAction::Alive => {}
            PassiveAction::Answer(call) if call.purpose != Purpose::Snapshot => {
                return Err(LinkError::Ended("it is no snapshot"));
            }
            PassiveAction::Answer(_) => session.welcome(&mut answers),
            PassiveAction::Refuse(refusal) => return Err(LinkError::Refused(refusal)),
            PassiveAction::Copy(pages) => {
                pages.apply(|index, content| merge_page(&receiving.ram, index, content))?;
            }
            PassiveAction::CopyDisk(_)
            | PassiveAction::Compare(_)
            | PassiveAction::TellChanges(_)
            | PassiveAction::MakeDurable(_) => {
                return Err(LinkError::Ended("a snapshot holds no disk"));
            }
            PassiveAction::Complete(mut checkpoint) => {
                let decoded = MachineState::decode(&checkpoint.state)
                    .map_err(|error| LinkError::State(error.to_string()))?;
                session.accept(&mut checkpoint, &mut answers);
                merge(&receiving.ram, checkpoint.pages.iter())?;
                state = Some(decoded);
            }
            PassiveAction::Goodbye(_) => break,
        }
        answers.clear();
    }
    Ok(Held {
        replica: session.into_replica(),
        state,
    })
}
