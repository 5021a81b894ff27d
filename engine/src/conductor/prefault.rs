// SPDX-License-Identifier: Apache-2.0
//! Memory that is made ready while a replica waits, so that the first copy finds it there.
//!
//! A thread of its own takes it from the host, a piece at a time. It changes no content, so whatever
//! is received meanwhile may be written beside it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use kemari_api::VmName;
use kemari_vmm::GuestRam;

use super::Conductor;
use crate::clock;
use crate::sandbox;

/// Pages taken at a time: 16 MiB. Whoever ends it waits for no more.
const PIECE_PAGES: u64 = 4096;

/// Memory being made ready. Dropping it ends that.
#[derive(Debug)]
pub struct Prefault {
    wanted: Arc<AtomicBool>,
}

impl Prefault {
    /// Begins.
    pub fn start(vm: VmName, ram: GuestRam) -> io::Result<Self> {
        let wanted = Arc::new(AtomicBool::new(true));
        let still_wanted = Arc::clone(&wanted);
        thread::Builder::new()
            .name("prefault".into())
            .spawn(move || {
                sandbox::enter(sandbox::Kind::Prefault);
                let begun = clock::now();
                match take(&ram, &still_wanted) {
                    Ok(0) => {}
                    Ok(pages) => tracing::info!(
                        %vm, mib = pages / 256, took_ms = (clock::now() - begun).as_millis(),
                        "the guest's memory is ready for the first copy"
                    ),
                    Err(error) => tracing::warn!(
                        %vm,
                        "not all of the guest's memory could be taken ahead of the first copy \
                         (memory.prefault): {error}; the copy takes the rest"
                    ),
                }
            })?;
        Ok(Self { wanted })
    }
}

impl Drop for Prefault {
    fn drop(&mut self) {
        self.wanted.store(false, Ordering::Relaxed);
    }
}

impl Conductor {
    /// Takes the machine's memory from the host before somebody waits for it, where that is wanted.
    pub(super) fn make_memory_ready(&mut self) {
        if !self.config.memory.prefault {
            return;
        }
        let vm = self.config.vm.name.clone();
        match Prefault::start(vm, self.machine.memory()) {
            Ok(prefault) => self.prefault = Some(prefault),
            Err(error) => {
                tracing::warn!(vm = %self.config.vm.name, "memory.prefault: no thread for it: {error}");
            }
        }
    }
}

/// Takes all of it, or as much as is wanted; 0 if that was not all.
fn take(ram: &GuestRam, wanted: &AtomicBool) -> io::Result<u64> {
    let all = ram.page_count();
    let mut next = 0;
    while next < all {
        if !wanted.load(Ordering::Relaxed) {
            return Ok(0);
        }
        let end = all.min(next + PIECE_PAGES);
        ram.populate(kemari_vmm::PageIndex(next)..kemari_vmm::PageIndex(end))?;
        next = end;
    }
    Ok(all)
}
