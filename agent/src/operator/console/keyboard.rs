// SPDX-License-Identifier: Apache-2.0
//! Standard input, read by a thread of its own, which the end of the program does not wait for.

use std::io::{self, Read};
use std::thread;

use tokio::sync::mpsc;

/// Reads that may wait for the guest.
pub(super) const QUEUE: usize = 64;
/// Ctrl-], as telnet has it.
const ESCAPE: u8 = 0x1d;

/// What came in.
#[derive(Debug)]
pub(super) enum Key {
    /// Bytes for the guest.
    Bytes(Vec<u8>),
    /// The person wants to leave.
    Detach,
    /// Standard input cannot be read.
    Failed(io::Error),
}

/// What comes in.
pub(super) struct Keyboard(mpsc::Receiver<Key>);

impl Keyboard {
    /// Starts to read. Only a person's escape means something.
    pub(super) fn start(person: bool) -> io::Result<Self> {
        let (keys, typed) = mpsc::channel(1);
        thread::Builder::new()
            .name("keyboard".into())
            .spawn(move || {
                read(io::stdin().lock(), person, |key| {
                    keys.blocking_send(key).is_ok()
                });
            })?;
        Ok(Self(typed))
    }

    /// The next; `None` at the end.
    pub(super) async fn next(&mut self) -> Option<Key> {
        self.0.recv().await
    }
}

fn read(mut input: impl Read, person: bool, tell: impl Fn(Key) -> bool) {
    let mut buffer = [0; 1024];
    loop {
        let bytes = match input.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                tell(Key::Failed(error));
                return;
            }
            Ok(count) => buffer.get(..count).unwrap_or_default(),
        };
        let escape = bytes.iter().position(|byte| person && *byte == ESCAPE);
        let typed = bytes
            .get(..escape.unwrap_or(bytes.len()))
            .unwrap_or_default();
        let heard = typed.is_empty() || tell(Key::Bytes(typed.to_owned()));
        if escape.is_some() {
            tell(Key::Detach);
        }
        if bytes.is_empty() || escape.is_some() || !heard {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn keys(input: &[u8], person: bool) -> (Vec<u8>, bool) {
        let told = RefCell::new((Vec::new(), false));
        read(input, person, |key| {
            match key {
                Key::Bytes(bytes) => told.borrow_mut().0.extend(bytes),
                Key::Detach => told.borrow_mut().1 = true,
                Key::Failed(error) => panic!("{error}"),
            }
            true
        });
        told.into_inner()
    }

    #[test]
    fn a_persons_escape_detaches_and_what_was_typed_before_is_typed() {
        assert_eq!(keys(b"ls\r\x1dnot this", true), (b"ls\r".to_vec(), true));
        assert_eq!(keys(b"\x1d", true), (Vec::new(), true));
        assert_eq!(keys(b"root\r", true), (b"root\r".to_vec(), false));
    }

    #[test]
    fn a_file_is_copied_as_it_is() {
        let input: Vec<u8> = (0..=255).cycle().take(5000).collect();
        assert_eq!(keys(&input, false), (input, false));
    }
}
