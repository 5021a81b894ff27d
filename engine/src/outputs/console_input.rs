// SPDX-License-Identifier: Apache-2.0
//! What is typed at the console, on its way to whichever machine there is now.

use std::sync::{Arc, Mutex, PoisonError};

use kemari_vmm::ConsoleInput;

use super::TypedInput;

/// The serial port of the machine that exists now; a demoted replica gets a new machine.
#[derive(Debug, Clone)]
pub struct InputSlot {
    serial: Arc<Mutex<ConsoleInput>>,
    /// Where there is a virtio console, it gets what is typed.
    virtio: Option<TypedInput>,
}

impl InputSlot {
    /// A slot that leads to this port.
    pub fn new(input: ConsoleInput, virtio: Option<TypedInput>) -> Self {
        Self {
            serial: Arc::new(Mutex::new(input)),
            virtio,
        }
    }

    /// Leads to another port from now on.
    pub fn put(&self, input: ConsoleInput) {
        *self.serial.lock().unwrap_or_else(PoisonError::into_inner) = input;
    }

    /// Types these bytes. Returns how many the port took; the rest is to be offered again.
    pub fn push(&self, bytes: &[u8]) -> usize {
        if let Some(virtio) = &self.virtio {
            return virtio.push(bytes);
        }
        self.serial
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(bytes)
    }
}
