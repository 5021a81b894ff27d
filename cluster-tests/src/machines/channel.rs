// SPDX-License-Identifier: Apache-2.0
//! The owner's end of a node's command port; `node-agent.py` describes the frames.
//!
//! Any number of threads may have requests under way; each waits for its own answer. When the machine loses its
//! power or its agent starts again, every request under way ends with an error. Nothing is sent twice.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::bed::Finished;

/// The port's name inside the machine.
pub(crate) const PORT: &str = "bed.exec";

/// Nothing longer is accepted from a node: two outputs of 32 MiB, with room.
const LONGEST_FRAME: usize = 80 << 20;
/// A node that was stalled may answer this much later than its command's own limit.
const GRACE: Duration = Duration::from_secs(60);

/// A connection to one power cycle of a node.
#[derive(Debug)]
pub(crate) struct Channel {
    sending: Mutex<UnixStream>,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    table: Mutex<Table>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    waiting: HashMap<u64, Sender<Finished>>,
    greeted: bool,
    closed: bool,
}

impl Channel {
    /// Takes over the connection that QEMU made.
    pub(crate) fn new(stream: UnixStream, node: &str) -> Result<Self> {
        let state = Arc::new(State::default());
        let (receiving, receiver_state) = (stream.try_clone()?, Arc::clone(&state));
        std::thread::Builder::new()
            .name(format!("{node} answers"))
            .spawn(move || {
                if let Err(error) = receiver_state.receive(receiving) {
                    // The end of QEMU; a broken frame is told to whoever waits, as silence.
                    let _ = error;
                }
                receiver_state.close();
            })
            .context("Cannot start a thread")?;
        Ok(Self {
            sending: Mutex::new(stream),
            state,
        })
    }

    /// Waits until the node's agent said hello: the node has booted. `false` when it did not within `limit`.
    ///
    /// # Errors
    /// When the machine ended instead.
    pub(crate) fn wait_for_hello(&self, limit: Duration) -> Result<bool> {
        let (table, _) = self
            .state
            .changed
            .wait_timeout_while(self.state.lock(), limit, |table| {
                !table.greeted && !table.closed
            })
            .unwrap_or_else(PoisonError::into_inner);
        ensure!(!table.closed, "The machine ended while it booted");
        Ok(table.greeted)
    }

    /// Runs a command; the node kills it after `limit` and answers status 124.
    pub(crate) fn execute(&self, command: &[&str], limit: Duration) -> Result<Finished> {
        ensure!(!command.is_empty(), "There is no command to run");
        let limit_ms = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
        let mut body = limit_ms.to_be_bytes().to_vec();
        for word in command {
            ensure!(
                !word.contains('\0'),
                "The argument {word:?} contains a zero byte"
            );
            body.extend_from_slice(word.as_bytes());
            body.push(0);
        }
        self.request(b'X', &body, limit)
    }

    /// Writes a file: to a new name first, then renamed.
    pub(crate) fn write(&self, path: &str, contents: &[u8], mode: u32) -> Result<()> {
        let length = u32::try_from(path.len()).context("The path is too long")?;
        let mut body = mode.to_be_bytes().to_vec();
        body.extend_from_slice(&length.to_be_bytes());
        body.extend_from_slice(path.as_bytes());
        body.extend_from_slice(contents);
        let answer = self.request(b'W', &body, Duration::from_secs(300))?;
        ensure!(answer.status == 0, "Cannot write {path}: {}", answer.stderr);
        Ok(())
    }

    fn request(&self, kind: u8, body: &[u8], limit: Duration) -> Result<Finished> {
        let (number, answer) = self.state.expect_answer()?;
        let sent = self.send(number, kind, body);
        let result = sent
            .context("The machine takes no commands any more")
            .and_then(|()| await_answer(&answer, limit + GRACE));
        self.state.lock().waiting.remove(&number);
        result
    }

    fn send(&self, number: u64, kind: u8, body: &[u8]) -> Result<()> {
        let length = u32::try_from(body.len() + 9).context("The request is too long")?;
        let mut frame = length.to_be_bytes().to_vec();
        frame.extend_from_slice(&number.to_be_bytes());
        frame.push(kind);
        frame.extend_from_slice(body);
        self.sending
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write_all(&frame)?;
        Ok(())
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        let stream = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = stream.shutdown(std::net::Shutdown::Both);
    }
}

fn await_answer(answer: &Receiver<Finished>, limit: Duration) -> Result<Finished> {
    let begin = Instant::now();
    match answer.recv_timeout(limit) {
        Ok(finished) => Ok(finished),
        Err(RecvTimeoutError::Timeout) => {
            bail!("The machine did not answer within {} s", limit.as_secs())
        }
        Err(RecvTimeoutError::Disconnected) => bail!(
            "The machine lost its power {} ms into the command",
            begin.elapsed().as_millis()
        ),
    }
}

impl State {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn expect_answer(&self) -> Result<(u64, Receiver<Finished>)> {
        let mut table = self.lock();
        ensure!(!table.closed, "The machine has no power");
        ensure!(table.greeted, "The machine has not booted");
        table.next += 1;
        let number = table.next;
        let (sender, receiver) = channel();
        table.waiting.insert(number, sender);
        Ok((number, receiver))
    }

    fn close(&self) {
        let mut table = self.lock();
        table.closed = true;
        table.waiting.clear();
        self.changed.notify_all();
    }

    /// Hands answers to who waits for them until the connection ends.
    fn receive(&self, mut stream: UnixStream) -> io::Result<()> {
        loop {
            let mut length = [0; 4];
            stream.read_exact(&mut length)?;
            let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
            if length > LONGEST_FRAME {
                return Err(io::Error::other("A frame from the node is too long"));
            }
            let mut frame = vec![0; length];
            stream.read_exact(&mut frame)?;
            let Some((number, kind, body)) = split(&frame) else {
                return Err(io::Error::other("A frame from the node is too short"));
            };
            let mut table = self.lock();
            match kind {
                b'H' => {
                    // A new agent knows nothing of what its predecessor was asked.
                    table.waiting.clear();
                    table.greeted = true;
                    self.changed.notify_all();
                }
                b'R' => {
                    if let (Some(sender), Some(answer)) =
                        (table.waiting.remove(&number), decode(body))
                    {
                        let _ = sender.send(answer);
                    }
                }
                _ => return Err(io::Error::other("A frame from the node is of unknown kind")),
            }
        }
    }
}

fn split(frame: &[u8]) -> Option<(u64, u8, &[u8])> {
    let (number, rest) = frame.split_first_chunk::<8>()?;
    let (kind, body) = rest.split_first()?;
    Some((u64::from_be_bytes(*number), *kind, body))
}

fn decode(body: &[u8]) -> Option<Finished> {
    let (status, rest) = body.split_first_chunk::<4>()?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    let (output, errors) = rest.split_at_checked(length)?;
    Some(Finished {
        status: i32::try_from(u32::from_be_bytes(*status)).ok()?,
        stdout: String::from_utf8_lossy(output).into_owned(),
        stderr: String::from_utf8_lossy(errors).into_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(number: u64, kind: u8, body: &[u8]) -> Vec<u8> {
        let mut frame = u32::try_from(body.len() + 9)
            .unwrap()
            .to_be_bytes()
            .to_vec();
        frame.extend_from_slice(&number.to_be_bytes());
        frame.push(kind);
        frame.extend_from_slice(body);
        frame
    }

    fn answer(text: &str) -> Vec<u8> {
        let length = u32::try_from(text.len()).unwrap().to_be_bytes();
        [&[0; 4], length.as_slice(), text.as_bytes(), b"err"].concat()
    }

    #[test]
    fn answers_find_who_asked_in_any_order() {
        let (ours, mut node) = UnixStream::pair().unwrap();
        let channel = Channel::new(ours, "node1").unwrap();
        assert!(channel.execute(&["true"], Duration::ZERO).is_err());
        node.write_all(&frame(0, b'H', b"")).unwrap();
        assert!(channel.wait_for_hello(Duration::from_secs(10)).unwrap());
        std::thread::scope(|scope| {
            let asked = ["one", "two"].map(|word| {
                scope.spawn({
                    let channel = &channel;
                    move || channel.execute(&[word], Duration::from_secs(10)).unwrap()
                })
            });
            let mut requests = Vec::new();
            for _ in 0..2 {
                let mut request = [0; 4 + 9 + 4 + 4];
                node.read_exact(&mut request).unwrap();
                let number = u64::from_be_bytes(request[4..12].try_into().unwrap());
                let word = String::from_utf8(request[17..20].to_vec()).unwrap();
                requests.push((number, word));
            }
            for (number, word) in requests.iter().rev() {
                node.write_all(&frame(*number, b'R', &answer(word)))
                    .unwrap();
            }
            let outputs = asked.map(|thread| thread.join().unwrap().stdout);
            assert_eq!(outputs, ["one", "two"]);
        });
    }

    #[test]
    fn a_power_cut_ends_what_is_under_way() {
        let (ours, mut node) = UnixStream::pair().unwrap();
        let channel = Channel::new(ours, "node1").unwrap();
        node.write_all(&frame(0, b'H', b"")).unwrap();
        assert!(channel.wait_for_hello(Duration::from_secs(10)).unwrap());
        std::thread::scope(|scope| {
            let asking = scope.spawn(|| channel.execute(&["x"], Duration::from_secs(10)));
            let mut request = [0; 4 + 9 + 4 + 2];
            node.read_exact(&mut request).unwrap();
            drop(node);
            let error = asking.join().unwrap().unwrap_err();
            assert!(error.to_string().contains("lost its power"), "{error}");
        });
    }
}
