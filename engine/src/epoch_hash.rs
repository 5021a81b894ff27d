// SPDX-License-Identifier: Apache-2.0
//! `[replication] hash_epochs`: what both replicas hold at the end of each epoch, in two numbers in their logs.
//!
//! The active replica takes them while its guest stands still for the cut, the passive one when it has merged the checkpoint. They are
//! of everything there is, not of what was sent: a page that changed and was not noticed shows.

use kemari_api::{Epoch, Generation, VmName};
use kemari_vmm::{GuestRam, PAGE_SIZE, PageIndex};
use xxhash_rust::xxh3::{Xxh3Default, xxh3_128};

/// XXH3 of 128 bits each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpochHash {
    /// All pages that are not zero, each with its number.
    memory: u128,
    /// The encoded machine state.
    state: u128,
}

impl EpochHash {
    /// Of a machine that does not run.
    pub fn of(ram: &GuestRam, state: &[u8]) -> Self {
        // Pages nobody ever touched stay so: reading would give them memory.
        let untouched = ram.untouched_pages();
        let mut hash = Xxh3Default::new();
        let mut page = [0; PAGE_SIZE];
        for index in (0..ram.page_count()).map(PageIndex) {
            if untouched.contains(index) || ram.read_page(index, &mut page).is_err() {
                continue;
            }
            if page != [0; PAGE_SIZE] {
                hash.update(&index.0.to_le_bytes());
                hash.update(&page);
            }
        }
        Self {
            memory: hash.digest128(),
            state: xxh3_128(state),
        }
    }

    /// Into the log.
    pub fn log(&self, vm: &VmName, generation: Generation, epoch: Epoch) {
        tracing::info!(
            %vm, %generation, %epoch,
            memory = format_args!("{:032x}", self.memory),
            state = format_args!("{:032x}", self.state),
            "epoch hashed"
        );
    }
}
