// SPDX-License-Identifier: Apache-2.0
//! What becomes of this replica when the host's memory fails under the guest.
//!
//! A thread of its own waits for the machine's word, because every other one, the conductor too, may be the
//! one that touched the page and stands still for ever. So it asks nobody: it reads the status that was
//! published last, says one line, and ends the process, as if it had been killed. What the outside has
//! not got by then, the passive replica lets out.
//!
//! Only an active replica that nobody can continue, and whose lost page nobody has touched, goes on: the
//! guest may never need it, and can be shut down in good order. The conductor hears of it.

use std::io;
use std::sync::mpsc;

use kemari_api::replica::ReplicaStatus;
use kemari_api::{Licence, Role};
use kemari_vmm::{MemoryError, MemoryErrorKind, MemoryErrors};
use tokio::sync::watch;

use crate::clock;
use crate::conductor::Input;
use crate::exit::{Failure, FailureKind};
use crate::sandbox;

/// What to do about it, whatever the replica was.
const REMEDY: &str = "Have the memory module replaced: the kernel's log and ras-mc-ctl --errors (rasdaemon) name it; \
     see \"The host's memory fails\" in the runbook";

/// Starts the thread that ends the process when the host's memory fails under the guest.
///
/// # Errors
/// The thread cannot be started.
pub fn start(
    errors: MemoryErrors,
    status: watch::Receiver<ReplicaStatus>,
    inputs: mpsc::Sender<Input>,
) -> io::Result<()> {
    std::thread::Builder::new()
        .name("memory-errors".into())
        .spawn(move || {
            sandbox::enter(sandbox::Kind::MemoryErrors);
            attend(&errors, &status, &inputs);
        })
        .map(drop)
}

fn attend(
    errors: &MemoryErrors,
    status: &watch::Receiver<ReplicaStatus>,
    inputs: &mpsc::Sender<Input>,
) {
    loop {
        let error = match errors.wait() {
            Ok(error) => error,
            Err(error) => {
                tracing::error!(
                    "Cannot wait for memory errors, which end this engine by SIGBUS or not at all: {error}"
                );
                return;
            }
        };
        let status = status.borrow().clone();
        match sequel(error.kind, &status) {
            Sequel::End => end(error, &status),
            Sequel::GoOn => {
                tracing::warn!(
                    vm = %status.vm, role = %status.role, generation = %status.generation,
                    t_mono_us = clock::now_us(), "{}", warning(error)
                );
                // A conductor that has ended needs no news.
                let _ = inputs.send(Input::MemoryError(error));
            }
        }
    }
}

/// Whether the replica lives on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sequel {
    End,
    GoOn,
}

fn sequel(kind: MemoryErrorKind, status: &ReplicaStatus) -> Sequel {
    match (kind, status.role) {
        (MemoryErrorKind::Found, Role::Active) if !status.in_sync => Sequel::GoOn,
        _ => Sequel::End,
    }
}

/// Ends the process at once: other threads may stand still with anything locked.
fn end(error: MemoryError, status: &ReplicaStatus) -> ! {
    let failure = failure(error, status);
    tracing::error!(
        vm = %status.vm, role = %status.role, generation = %status.generation,
        t_mono_us = clock::now_us(), "{failure}"
    );
    failure.tell_systemd();
    #[allow(
        clippy::exit,
        reason = "the main thread may be the one that stands still"
    )]
    std::process::exit(i32::from(failure.status()));
}

/// Why this replica ends.
pub fn failure(error: MemoryError, status: &ReplicaStatus) -> Failure {
    let text = format!("{}. {}. {REMEDY}", what(error), consequence(status));
    Failure::told(FailureKind::Memory, text)
}

fn warning(error: MemoryError) -> String {
    format!(
        "{}. There is no passive replica that could continue, so the guest goes on; if it touches the \
         page, it is lost. It cannot be protected, saved or migrated: shut it down when you can and \
         start it anew. {REMEDY}",
        what(error)
    )
}

fn what(error: MemoryError) -> String {
    let touched = match error.kind {
        MemoryErrorKind::Touched => "and was needed",
        MemoryErrorKind::Found => "and nobody has touched it since",
    };
    format!(
        "This host's memory failed under the guest: the page at guest-physical address {} ({} KiB) cannot \
         be read any more, {touched}",
        error.address,
        error.bytes >> 10
    )
}

fn consequence(status: &ReplicaStatus) -> String {
    match (status.role, status.licence) {
        (Role::Active, _) if status.in_sync => format!(
            "This active replica ends, and the passive one on {} continues from the last commit",
            status.peer
        ),
        (Role::Active, Licence::Cut) => format!(
            "This active replica ends; the passive one on {}, which is out of reach, continues if it \
             holds the last commit",
            status.peer
        ),
        (Role::Active, _) => {
            "This active replica ends, and nobody can continue: what the guest had in \
             memory is lost, and it is booted anew"
                .to_owned()
        }
        (Role::Passive, _) => format!(
            "This passive replica ends, and what it held is gone: the guest goes on on {}, unprotected \
             until this replica is started again, in other memory",
            status.peer
        ),
        (Role::Waiting | Role::Outdated, _) => {
            "This replica ends; it held no guest. Started again, it uses other memory".to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kemari_api::replica::{DiskState, FailoverPolicy};
    use kemari_api::{Epoch, Generation};
    use kemari_vmm::GuestPhysicalAddress;

    fn status(role: Role, licence: Licence, in_sync: bool) -> ReplicaStatus {
        ReplicaStatus {
            vm: "vm".parse().unwrap(),
            node: "a".parse().unwrap(),
            pid: 1,
            role,
            licence,
            in_sync,
            running: role == Role::Active,
            generation: Generation::new(3),
            epoch: Epoch::default(),
            disks: DiskState::None,
            failover: FailoverPolicy::Auto,
            peer: "node2".into(),
            listen: String::new(),
            detail: String::new(),
        }
    }

    #[test]
    fn only_an_active_replica_that_nobody_continues_lives_with_an_error_it_did_not_touch() {
        let mut living_on = Vec::new();
        for kind in [MemoryErrorKind::Touched, MemoryErrorKind::Found] {
            for role in [Role::Active, Role::Passive, Role::Waiting, Role::Outdated] {
                for in_sync in [false, true] {
                    let status = status(role, Licence::None, in_sync);
                    if sequel(kind, &status) == Sequel::GoOn {
                        living_on.push((kind, role, in_sync));
                    }
                }
            }
        }
        let one = (MemoryErrorKind::Found, Role::Active, false);
        assert_eq!(living_on, [one]);
    }

    #[test]
    fn the_line_says_where_what_and_what_to_do() {
        let error = MemoryError {
            kind: MemoryErrorKind::Touched,
            address: GuestPhysicalAddress(0x1_2345_6000),
            bytes: 4096,
        };
        let text =
            |role, licence, in_sync| failure(error, &status(role, licence, in_sync)).to_string();
        let paired = text(Role::Active, Licence::Paired, true);
        assert!(paired.contains("0x123456000 (4 KiB)"), "{paired}");
        assert!(
            paired.contains("the passive one on node2 continues"),
            "{paired}"
        );
        assert!(paired.contains("memory module"), "{paired}");
        let solo = text(Role::Active, Licence::Solo, false);
        assert!(solo.contains("nobody can continue"), "{solo}");
        let cut = text(Role::Active, Licence::Cut, false);
        assert!(cut.contains("continues if it holds"), "{cut}");
        let passive = text(Role::Passive, Licence::None, true);
        assert!(passive.contains("what it held is gone"), "{passive}");
        assert!(text(Role::Waiting, Licence::None, false).contains("held no guest"));
    }
}
