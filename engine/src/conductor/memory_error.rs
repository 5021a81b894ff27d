// SPDX-License-Identifier: Apache-2.0
//! The active replica lives with a page that the host has lost and that nobody has touched.
//!
//! Whatever reads all of the guest's memory would touch it, and that ends the guest: nothing that does so is
//! begun any more, and what is under way is given up. Only the guest itself may still come across it.

use kemari_vmm::MemoryError;

use super::{Answer, Conductor, End, Refusal};
use crate::link::LinkError;
use crate::memory_errors;
use kemari_api::Role;
use kemari_replication::licence::Licence;

impl Conductor {
    /// The host lost this page; it was reported while nobody could continue.
    pub(super) fn memory_error(&mut self, error: MemoryError) {
        if self.role != Role::Active || self.in_sync {
            // Meanwhile somebody can, or there is no guest here.
            let failure = memory_errors::failure(error, &self.current_status());
            self.end = Some(End::Memory(failure));
            return;
        }
        self.lost_page = Some(error);
        // A passive replica that holds a state needs no copy, and continues if one ends this.
        if !matches!(self.licence(), Licence::Cut { .. }) {
            self.link_lost(&LinkError::Ended(
                "the host's memory failed under the guest",
            ));
            self.detail = self.unreadable(error);
        }
    }

    /// Whether all of the guest's memory can be read.
    pub(super) fn needs_sound_memory(&self) -> Answer {
        match self.lost_page {
            Some(error) => Err(Refusal::Failed(self.unreadable(error))),
            None => Ok(()),
        }
    }

    fn unreadable(&self, error: MemoryError) -> String {
        format!(
            "This host's memory failed under the guest (page at {}): the guest cannot be copied. Shut it \
             down and start it anew; see \"The host's memory fails\" in the runbook",
            error.address
        )
    }
}
