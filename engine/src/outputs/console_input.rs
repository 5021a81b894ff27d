// SPDX-License-Identifier: Apache-2.0
//! What is typed at the console, on its way to whichever machine there is now.

use std::io;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use kemari_vmm::ConsoleInput;
use tokio::sync::oneshot;

use super::TypedInput;
use crate::sandbox;

/// A port that is full is offered input again after this time.
const RETRY: Duration = Duration::from_millis(10);

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

    /// Types all of these bytes, and waits while the guest does not read, as long as they are
    /// `wanted`.
    pub(super) fn push_all(&self, mut bytes: &[u8], wanted: impl Fn() -> bool) {
        while !bytes.is_empty() && wanted() {
            let taken = self.push(bytes);
            bytes = bytes.get(taken..).unwrap_or_default();
            if taken == 0 {
                thread::sleep(RETRY);
            }
        }
    }
}

/// A thread that types what attached terminals send: typing can wait for the guest, and raises
/// interrupts, neither of which the thread that serves the terminals may do.
#[derive(Debug, Clone)]
pub struct Typist {
    queue: mpsc::Sender<Typed>,
}

#[derive(Debug)]
struct Typed {
    bytes: Vec<u8>,
    done: oneshot::Sender<()>,
}

impl Typist {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system has no more threads.
    pub fn start(input: InputSlot) -> io::Result<Self> {
        let (queue, typed) = mpsc::channel::<Typed>();
        thread::Builder::new()
            .name("console-input".into())
            .spawn(move || {
                sandbox::enter(sandbox::Kind::ConsoleInput);
                while let Ok(Typed { bytes, done }) = typed.recv() {
                    input.push_all(&bytes, || !done.is_closed());
                    let _ = done.send(());
                }
            })?;
        Ok(Self { queue })
    }

    /// Types these bytes; returns when the port has taken them. Those it has not taken yet are
    /// forgotten when the caller no longer waits.
    pub async fn type_bytes(&self, bytes: Vec<u8>) {
        let (done, typed) = oneshot::channel();
        if self.queue.send(Typed { bytes, done }).is_ok() {
            let _ = typed.await;
        }
    }
}
