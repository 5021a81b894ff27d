// SPDX-License-Identifier: Apache-2.0
//! Errors that the handler noticed and nobody has been told of yet.
//!
//! Written by a signal handler that may have interrupted anything, so: atomics, no locks, no memory.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{GuestPhysicalAddress, MemoryError, MemoryErrorKind};

/// Errors without haste that are kept; further ones are dropped, since the first ends or warns enough.
const FOUND_MAX: usize = 16;

/// The first page that was touched. A second one changes nothing: its thread stands still, too.
static TOUCHED: AtomicU64 = AtomicU64::new(0);
static FOUND: [AtomicU64; FOUND_MAX] = [const { AtomicU64::new(0) }; FOUND_MAX];

/// An error in one word, never 0: the page's address, whose low 12 bits are free, and there the binary
/// logarithm of its bytes (`si_addr_lsb`) and a bit that says that there is something.
const PRESENT: u64 = 1 << 11;
const SHIFT_BITS: u64 = 0x3f;
/// The smallest page.
const LEAST_SHIFT: u8 = 12;

/// The whole page that holds `address`, of `1 << shift` bytes.
fn packed(address: u64, shift: u8) -> u64 {
    let shift = u64::from(shift.clamp(LEAST_SHIFT, 63));
    address & (u64::MAX << shift) | shift | PRESENT
}

fn unpacked(word: u64, kind: MemoryErrorKind) -> Option<MemoryError> {
    (word != 0).then(|| MemoryError {
        kind,
        address: GuestPhysicalAddress(word & (u64::MAX << LEAST_SHIFT)),
        bytes: 1 << (word & SHIFT_BITS),
    })
}

/// Keeps an error. Async-signal-safe.
pub(super) fn note(kind: MemoryErrorKind, address: u64, shift: u8) {
    let word = packed(address, shift);
    let keep = |slot: &AtomicU64| {
        slot.compare_exchange(0, word, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
    };
    match kind {
        MemoryErrorKind::Touched => {
            keep(&TOUCHED);
        }
        MemoryErrorKind::Found => {
            FOUND.iter().any(keep);
        }
    }
}

/// The gravest that is left.
pub(super) fn next() -> Option<MemoryError> {
    let take = |slot: &AtomicU64, kind| unpacked(slot.swap(0, Ordering::SeqCst), kind);
    take(&TOUCHED, MemoryErrorKind::Touched).or_else(|| {
        FOUND
            .iter()
            .find_map(|slot| take(slot, MemoryErrorKind::Found))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_page_is_told() {
        let told = |address, shift| {
            let error = unpacked(packed(address, shift), MemoryErrorKind::Found).unwrap();
            (error.address.0, error.bytes)
        };
        assert_eq!(told(0, 12), (0, 4096));
        assert_eq!(told(0x1234_5678, 12), (0x1234_5000, 4096));
        assert_eq!(told(0x1_1234_5678, 21), (0x1_1220_0000, 2 << 20));
        assert_eq!(told(0x1_7234_5678, 30), (0x1_4000_0000, 1 << 30));
        // A kernel that says less than a page, or nonsense.
        assert_eq!(told(0x1fff, 0), (0x1000, 4096));
        assert_eq!(told(0x1fff, 255), (0, 1 << 63));
        assert_eq!(unpacked(0, MemoryErrorKind::Found), None);
    }
}
