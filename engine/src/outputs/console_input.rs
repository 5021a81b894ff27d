// SPDX-License-Identifier: Apache-2.0
//! What is typed at the console, on its way to whichever machine there is now.

use std::sync::{Arc, Mutex, PoisonError};

use kemari_vmm::ConsoleInput;

/// The serial port of the machine that exists now; a demoted replica gets a new machine.
#[derive(Debug, Clone)]
pub struct InputSlot(Arc<Mutex<ConsoleInput>>);

impl InputSlot {
    /// A slot that leads to this port.
    pub fn new(input: ConsoleInput) -> Self {
        Self(Arc::new(Mutex::new(input)))
    }

    /// Leads to another port from now on.
    pub fn put(&self, input: ConsoleInput) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = input;
    }

    /// Types these bytes. Returns how many the port took; the rest is to be offered again.
    pub fn push(&self, bytes: &[u8]) -> usize {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(bytes)
    }
}
