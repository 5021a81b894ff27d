// SPDX-License-Identifier: Apache-2.0
//! A guest's serial console as the outside sees it: everything it said, and a way to wait for words.
//!
//! [`Listening`] takes a VMM that connects and sends plain bytes, as QEMU does. Kemari's engines send a stream of their own,
//! which [`crate::observer::Observer`] puts together. Scenarios take either as a [`ConsoleText`].

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::observer::{ObservedText, Observer};

/// No guest's console says more in a test.
const LARGEST: usize = 64 << 20;

/// Everything a console said.
pub trait ConsoleText: Send + Sync + std::fmt::Debug {
    /// All bytes since the guest's first boot.
    fn bytes(&self) -> Vec<u8>;

    /// Waits until the text that came after `from` bytes contains one of these words, and gives the number of bytes then.
    ///
    /// # Errors
    /// When it did not within `patience`; the error shows the last words.
    fn wait_for(&self, words: &[&str], from: usize, patience: Duration) -> Result<usize> {
        let begin = Instant::now();
        loop {
            let bytes = self.bytes();
            let text = String::from_utf8_lossy(bytes.get(from..).unwrap_or_default()).into_owned();
            if words.iter().any(|word| text.contains(word)) {
                return Ok(bytes.len());
            }
            if begin.elapsed() > patience {
                bail!(
                    "The console did not say any of {words:?} within {} s; its last words:\n{}",
                    patience.as_secs(),
                    tail(&text)
                );
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// The last lines of a text.
pub(crate) fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines
        .get(lines.len().saturating_sub(25)..)
        .unwrap_or_default()
        .join("\n")
}

impl ConsoleText for ObservedText {
    fn bytes(&self) -> Vec<u8> {
        ObservedText::bytes(self)
    }
}

impl ConsoleText for Observer {
    fn bytes(&self) -> Vec<u8> {
        Observer::bytes(self)
    }
}

/// A listener that a VMM's serial port connects to. A second connection goes on where the first ended.
#[derive(Debug)]
pub struct Listening {
    shared: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    said: Vec<u8>,
    speaker: Option<TcpStream>,
}

impl Listening {
    /// Listens until the listener's owner, a bed's network, is gone.
    pub fn on(listener: TcpListener) -> Self {
        let shared = Arc::new(Mutex::new(State::default()));
        let listens = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = take(&listens, stream);
            }
        });
        Self { shared }
    }

    /// Types on the console.
    ///
    /// # Errors
    /// When no VMM is connected.
    pub fn send(&self, text: &str) -> Result<()> {
        let speaker = lock(&self.shared)
            .speaker
            .as_ref()
            .map(TcpStream::try_clone);
        speaker
            .context("No VMM has connected its console")??
            .write_all(text.as_bytes())
            .context("Cannot type on the console")
    }
}

impl ConsoleText for Listening {
    fn bytes(&self) -> Vec<u8> {
        lock(&self.shared).said.clone()
    }
}

fn take(shared: &Mutex<State>, mut stream: TcpStream) -> std::io::Result<()> {
    lock(shared).speaker = Some(stream.try_clone()?);
    let mut buffer = [0; 4096];
    loop {
        let count = stream.read(&mut buffer)?;
        let mut state = lock(shared);
        if count == 0 || state.said.len() > LARGEST {
            return Ok(());
        }
        state
            .said
            .extend_from_slice(buffer.get(..count).unwrap_or_default());
    }
}

fn lock(shared: &Mutex<State>) -> MutexGuard<'_, State> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    use super::{ConsoleText, Listening};

    #[test]
    fn words_are_found_and_typed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut vmm = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let console = Listening::on(listener);
        vmm.write_all(b"booting\nserver login: ").unwrap();
        let patience = Duration::from_secs(20);
        let said = console.wait_for(&["login:"], 0, patience).unwrap();
        assert!(console.wait_for(&["login:"], said, Duration::ZERO).is_err());
        console.send("root\n").unwrap();
        let mut typed = [0; 5];
        std::io::Read::read_exact(&mut vmm, &mut typed).unwrap();
        assert_eq!(&typed, b"root\n");
    }
}
