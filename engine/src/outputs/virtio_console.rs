// SPDX-License-Identifier: Apache-2.0
//! The virtio console: what the guest writes joins the console's stream, what is typed goes to it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kemari_vmm::ConsoleOutput;
use kemari_vmm::backend::ConsoleBackend;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::Outputs;

/// Typed bytes that wait for the guest at most.
const TYPED_BYTES_MAX: usize = 4096;

/// What was typed and not yet read by the guest.
#[derive(Debug, Clone)]
pub struct TypedInput {
    bytes: Arc<Mutex<VecDeque<u8>>>,
    readable: Arc<EventFd>,
}

impl TypedInput {
    /// Nothing typed.
    ///
    /// # Errors
    /// The process has no more file descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            bytes: Arc::default(),
            readable: Arc::new(event()?),
        })
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Types these bytes. Returns how many there was room for.
    pub fn push(&self, bytes: &[u8]) -> usize {
        let mut typed = self.lock();
        let room = TYPED_BYTES_MAX.saturating_sub(typed.len());
        let taken = bytes.get(..room).unwrap_or(bytes);
        typed.extend(taken);
        let _ = self.readable.write(1);
        taken.len()
    }

    fn take(&self, buffer: &mut [u8]) -> usize {
        let mut typed = self.lock();
        let count = buffer.len().min(typed.len());
        for (place, byte) in buffer.iter_mut().zip(typed.drain(..count)) {
            *place = byte;
        }
        count
    }
}

fn event() -> io::Result<EventFd> {
    EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).map_err(io::Error::from)
}

/// What the device sees.
#[derive(Debug)]
pub struct TappedConsole {
    outputs: Arc<Outputs>,
    typed: TypedInput,
    room: Arc<EventFd>,
}

impl TappedConsole {
    /// A back end for the console of the machine there is now.
    ///
    /// # Errors
    /// The process has no more file descriptors.
    pub fn new(outputs: Arc<Outputs>, typed: TypedInput) -> io::Result<Self> {
        let room = Arc::new(event()?);
        Ok(Self {
            outputs,
            typed,
            room,
        })
    }
}

impl ConsoleBackend for TappedConsole {
    fn write(&mut self, bytes: &[u8]) {
        ConsoleOutput::write(&*self.outputs, bytes);
    }

    fn has_room(&self) -> bool {
        self.outputs.has_room_for_console(&self.room)
    }

    fn room(&self) -> BorrowedFd<'_> {
        self.room.as_fd()
    }

    fn read(&mut self, buffer: &mut [u8]) -> usize {
        self.typed.take(buffer)
    }

    fn readable(&self) -> BorrowedFd<'_> {
        self.typed.readable.as_fd()
    }
}
