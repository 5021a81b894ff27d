// SPDX-License-Identifier: Apache-2.0
//! The output gate: the event-tap behind the licence.
//!
//! The process keeps this under one lock. Every change of the licence and every release go through
//! it, so there is no moment at which an output could leave under a licence that is gone.
//!
//! Asserted: what is handed out under a paired licence belongs to an acknowledged epoch.

use kemari_api::Epoch;

use crate::event_tap::{Carry, ClosedEpoch, EventTap, Release, Waiting};
use crate::licence::{Licence, LicenceError, LicenceEvent, Permission};
use crate::output::OutputKind;

/// The event-tap and the licence it obeys.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct OutputGate {
    licence: Licence,
    tap: EventTap,
}

impl OutputGate {
    /// A gate through which nothing leaves until a licence is granted.
    #[must_use]
    pub fn new(mut tap: EventTap) -> Self {
        tap.hold();
        Self {
            licence: Licence::None,
            tap,
        }
    }

    /// The licence.
    #[must_use]
    pub const fn licence(&self) -> Licence {
        self.licence
    }

    /// The tap, to look at.
    #[must_use]
    pub const fn tap(&self) -> &EventTap {
        &self.tap
    }

    /// Takes an event of the licence. Returns the licence after it.
    ///
    /// # Errors
    /// When the event does not fit; licence and outputs are as before.
    ///
    /// # Panics
    /// On [`LicenceEvent::Committed`]: that one comes with its epoch, see [`Self::committed`].
    pub fn handle(&mut self, event: LicenceEvent) -> Result<Licence, LicenceError> {
        assert_ne!(event, LicenceEvent::Committed, "a commit names its epoch");
        self.apply(event)
    }

    /// The passive side acknowledged everything up to this epoch.
    ///
    /// # Errors
    /// When the licence is not in a state in which anything can be acknowledged.
    pub fn committed(&mut self, epoch: Epoch) -> Result<Licence, LicenceError> {
        let licence = self.apply(LicenceEvent::Committed)?;
        self.tap.commit(epoch);
        Ok(licence)
    }

    fn apply(&mut self, event: LicenceEvent) -> Result<Licence, LicenceError> {
        self.licence = self.licence.after(event)?;
        if self.licence.permission() == Permission::All {
            self.tap.release_all_solo();
        } else {
            self.tap.hold();
        }
        Ok(self.licence)
    }

    /// Queues an output; see [`EventTap::push`].
    pub fn push(&mut self, kind: OutputKind, bytes: &[u8]) -> bool {
        self.tap.push(kind, bytes)
    }

    /// Something that is kept elsewhere shall leave now. `None`: it may; else it waits, see
    /// [`EventTap::wait_for_commit`].
    pub fn ask_to_leave(&mut self) -> Option<Waiting> {
        match self.licence.permission() {
            Permission::All => None,
            Permission::Nothing | Permission::Committed => Some(self.tap.wait_for_commit()),
        }
    }

    /// Whether what waited for the commit of this epoch may leave now.
    #[must_use]
    pub fn may_leave(&self, epoch: Epoch) -> bool {
        match self.licence.permission() {
            Permission::Nothing => false,
            Permission::All => true,
            Permission::Committed => epoch <= self.tap.committed(),
        }
    }

    /// Ends the open epoch; see [`EventTap::close_epoch`].
    pub fn close_epoch(&mut self, carry: Carry) -> ClosedEpoch {
        self.tap.close_epoch(carry)
    }

    /// The next output that may leave under the licence held now.
    pub fn next_release(&mut self) -> Option<Release> {
        match self.licence.permission() {
            Permission::Nothing => None,
            Permission::All => self.tap.next_release(),
            Permission::Committed => {
                let release = self.tap.next_release()?;
                let committed = self.tap.committed();
                assert!(
                    release.epoch <= committed,
                    "{} released, {committed} acked",
                    release.epoch
                );
                Some(release)
            }
        }
    }

    /// The outside has taken the oldest output that was handed out; see [`EventTap::taken`].
    pub fn taken(&mut self) {
        self.tap.taken();
    }

    /// Hands out again what was not taken; see [`EventTap::hand_out_again`].
    pub const fn hand_out_again(&mut self) {
        self.tap.hand_out_again();
    }
}

#[cfg(test)]
mod tests {
    use kemari_api::Generation;

    use super::*;
    use crate::event_tap::TapConfig;

    #[test]
    fn what_is_kept_elsewhere_leaves_with_its_commit_or_under_a_solo_licence() {
        let mut gate = OutputGate::new(EventTap::new(&TapConfig::default()));
        let generation = Generation::new(1);
        gate.handle(LicenceEvent::SoloGranted { generation })
            .unwrap();
        assert_eq!(gate.ask_to_leave(), None);
        gate.handle(LicenceEvent::Hold).unwrap();
        gate.handle(LicenceEvent::PairedRecorded).unwrap();
        let epoch = Epoch::new(1);
        let waiting = |first| Some(Waiting { epoch, first });
        assert_eq!(gate.ask_to_leave(), waiting(true));
        assert_eq!(gate.ask_to_leave(), waiting(false));
        assert!(gate.tap().has_pending() && !gate.may_leave(epoch));
        gate.close_epoch(Carry::Epoch);
        gate.handle(LicenceEvent::CommitSent).unwrap();
        assert!(!gate.may_leave(epoch));
        gate.committed(epoch).unwrap();
        assert!(gate.may_leave(epoch) && !gate.may_leave(epoch.next()));
        gate.handle(LicenceEvent::SessionLost).unwrap();
        assert!(!gate.may_leave(epoch), "a replica that is cut off");
    }
}
