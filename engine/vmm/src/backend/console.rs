// SPDX-License-Identifier: Apache-2.0
//! What a virtio console of the guest needs from the outside.

use std::os::fd::BorrowedFd;

/// One console's outside. No call blocks.
pub trait ConsoleBackend: Send {
    /// Takes bytes the guest wrote, in order. Nothing is dropped.
    fn write(&mut self, bytes: &[u8]);

    /// Whether [`write`](Self::write) may be called now. After `false`, [`room`](Self::room)
    /// becomes readable when it is worth asking again.
    fn has_room(&self) -> bool;

    /// What to wait on when there is no room.
    fn room(&self) -> BorrowedFd<'_>;

    /// Moves typed bytes into `buffer` and returns how many; 0: nothing was typed.
    fn read(&mut self, buffer: &mut [u8]) -> usize;

    /// Readable when [`read`](Self::read) may return something.
    fn readable(&self) -> BorrowedFd<'_>;
}
