// SPDX-License-Identifier: Apache-2.0
//! Which addresses of this process are guest RAM, for a signal handler to look up.
//!
//! Registered by the owner of the memory, one at a time; read without locks.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Stretches of guest RAM that are known at a time; a machine has one or two. Of what does not fit a
/// memory error does what SIGBUS does by default: it ends the process.
const STRETCHES_MAX: usize = 64;

static STRETCHES: [Stretch; STRETCHES_MAX] = [const { Stretch::none() }; STRETCHES_MAX];
/// Held by who changes them.
static CHANGING: Mutex<()> = Mutex::new(());

/// One stretch; its length is 0 where there is none.
#[derive(Debug)]
struct Stretch {
    host: AtomicU64,
    guest: AtomicU64,
    bytes: AtomicU64,
}

impl Stretch {
    const fn none() -> Self {
        Self {
            host: AtomicU64::new(0),
            guest: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        }
    }

    /// Where this address of the process is in the guest.
    fn guest_address(&self, address: u64) -> Option<u64> {
        let bytes = self.bytes.load(Ordering::SeqCst);
        let host = self.host.load(Ordering::SeqCst);
        let guest = self.guest.load(Ordering::SeqCst);
        let offset = address.checked_sub(host).filter(|offset| *offset < bytes)?;
        // The same as before: nobody has put another stretch in its place meanwhile.
        let unchanged =
            self.bytes.load(Ordering::SeqCst) == bytes && self.host.load(Ordering::SeqCst) == host;
        unchanged.then(|| guest.wrapping_add(offset))
    }
}

/// Where this address of the process is in the guest; `None` where it is not guest RAM.
/// Async-signal-safe.
pub(super) fn guest_address(address: u64) -> Option<u64> {
    STRETCHES
        .iter()
        .find_map(|stretch| stretch.guest_address(address))
}

/// Guest RAM whose memory errors are caught. Dropping it ends that; the memory must still be mapped
/// then, or its addresses may be something else's.
#[derive(Debug)]
pub(crate) struct WatchedRam(Vec<&'static Stretch>);

impl WatchedRam {
    /// Stretches as address in this process, address in the guest, and length in bytes.
    pub(crate) fn new(stretches: impl Iterator<Item = (u64, u64, u64)>) -> Self {
        let _changing = CHANGING.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free = STRETCHES
            .iter()
            .filter(|stretch| stretch.bytes.load(Ordering::SeqCst) == 0);
        let mut taken = Vec::new();
        for (host, guest, bytes) in stretches.filter(|(_, _, bytes)| *bytes > 0) {
            let Some(stretch) = free.next() else {
                tracing::debug!("too many machines: memory errors of this one end the process");
                break;
            };
            stretch.host.store(host, Ordering::SeqCst);
            stretch.guest.store(guest, Ordering::SeqCst);
            // Last: from here on it counts.
            stretch.bytes.store(bytes, Ordering::SeqCst);
            taken.push(stretch);
        }
        Self(taken)
    }
}

impl Drop for WatchedRam {
    fn drop(&mut self) {
        let _changing = CHANGING.lock().unwrap_or_else(PoisonError::into_inner);
        for stretch in &self.0 {
            stretch.bytes.store(0, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Addresses that no process of x86-64 has.
    const NOWHERE: u64 = 0xdead_0000_0000_0000;

    #[test]
    fn addresses_are_found_while_they_are_watched() {
        let stretches = [(NOWHERE, 0, 0x2000), (NOWHERE + 0x10_0000, 4 << 30, 0x1000)];
        let watched = WatchedRam::new(stretches.into_iter());
        let found = |offset| guest_address(NOWHERE + offset);
        assert_eq!(found(0), Some(0));
        assert_eq!(found(0x1fff), Some(0x1fff));
        assert_eq!(found(0x2000), None);
        assert_eq!(guest_address(NOWHERE - 1), None);
        assert_eq!(found(0x10_0fff), Some((4 << 30) + 0xfff));
        drop(watched);
        assert_eq!(found(0), None);
    }

    #[test]
    fn guest_ram_is_watched_as_long_as_it_is_there() {
        use crate::config::MemorySize;
        use crate::ram::GuestRam;
        use vm_memory::{GuestAddress, GuestMemoryBackend};

        let ram = GuestRam::new(MemorySize::from_mib(16).unwrap()).unwrap();
        let last = ram
            .mapping()
            .get_host_address(GuestAddress((16 << 20) - 1))
            .unwrap();
        let last = last.expose_provenance() as u64;
        assert_eq!(guest_address(last), Some((16 << 20) - 1));
        let another = ram.clone();
        drop(ram);
        assert_eq!(guest_address(last), Some((16 << 20) - 1));
        let kept = another.mapping().clone();
        drop(another);
        assert_eq!(guest_address(last), None);
        drop(kept);
    }
}
