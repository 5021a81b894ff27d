// SPDX-License-Identifier: Apache-2.0
//! The outside world: it sees the console of a VM, whichever engine sends it, and never forgets.
//!
//! Every engine connects to the observer when it releases output, says who it is ([`Header`]) and
//! sends console bytes. One thread takes them all, older connections first, so that what an old
//! active replica sent before the new one connected is also judged before. [`Splice`] judges.
//!
//! The observer answers nothing and refuses nobody: it is a witness, not a party.

mod header;
mod splice;
mod verdict;

use std::io::{self, ErrorKind, Read};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::time::{ClockId, clock_gettime};

pub use header::{Header, HeaderError, MAX_HEADER};
pub use splice::{RESOLUTION_NS, Splice};
pub use verdict::{Event, Latest, Outage, Source, Takeover, Violation};

/// How much is taken from one connection before the others have their turn. More than a socket
/// buffers, so a connection is empty when the next, newer one is read.
const TURN: usize = 8 << 20;

/// Now, in the time base of all observations: nanoseconds of `CLOCK_MONOTONIC`, which every
/// process of this host shares.
pub fn monotonic_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |now| {
        let seconds = u64::try_from(now.tv_sec()).unwrap_or(0);
        seconds * 1_000_000_000 + u64::try_from(now.tv_nsec()).unwrap_or(0)
    })
}

/// What was waited for did not come in time.
#[derive(Debug, thiserror::Error)]
#[error(
    "Nothing of what was awaited within {waited:?}; {bytes} console bytes so far, the last line {latest:?}"
)]
pub struct Silent {
    waited: Duration,
    bytes: usize,
    latest: Option<Latest>,
}

/// What an observer has seen so far, and will see.
#[derive(Debug, Clone)]
pub struct ObservedText(Arc<Shared>);

impl ObservedText {
    /// The spliced stream; see [`Splice::bytes`].
    pub fn bytes(&self) -> Vec<u8> {
        self.0.splice().bytes().to_vec()
    }
}

/// A listening witness. Dropping it closes the listener and all connections.
#[derive(Debug)]
pub struct Observer {
    shared: Arc<Shared>,
    /// Closing this end stops the thread.
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    splice: Mutex<Splice>,
    changed: Condvar,
}

impl Shared {
    /// A panic under the lock is a bug of the checker, and must not hide what was seen until then.
    fn splice(&self) -> MutexGuard<'_, Splice> {
        self.splice.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer {
    /// Observes what connects to a TCP socket.
    pub fn over(listener: TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Self::start(Listener::Tcp(listener))
    }

    /// Observes what connects to a unix socket.
    pub fn over_unix(listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Self::start(Listener::Unix(listener))
    }

    fn start(listener: Listener) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let (stop, stopped) = UnixStream::pair()?;
        let witness = Witness {
            shared: Arc::clone(&shared),
            listener,
            stopped,
            streams: Vec::new(),
            buffer: vec![0; 64 << 10],
        };
        let thread = std::thread::Builder::new().name("observer".into());
        let thread = thread.spawn(move || witness.run())?;
        Ok(Self {
            shared,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Asks anything of what was seen until now. The thread waits meanwhile, so be brief.
    pub fn with<T>(&self, ask: impl FnOnce(&Splice) -> T) -> T {
        ask(&self.shared.splice())
    }

    /// The spliced stream for somebody who does not own the observer.
    pub fn text(&self) -> ObservedText {
        ObservedText(Arc::clone(&self.shared))
    }

    /// The spliced stream; see [`Splice::bytes`].
    pub fn bytes(&self) -> Vec<u8> {
        self.with(|splice| splice.bytes().to_vec())
    }

    /// See [`Splice::violations`].
    pub fn violations(&self) -> Vec<Violation> {
        self.with(Splice::violations)
    }

    /// See [`Splice::takeovers`].
    pub fn takeovers(&self) -> Vec<Takeover> {
        self.with(|splice| splice.takeovers().to_vec())
    }

    /// Silences of at least this length (not below a millisecond); see [`Splice::outages`].
    pub fn outages(&self, at_least: Duration) -> Vec<Outage> {
        let long = |outage: &&Outage| outage.length() >= at_least;
        self.with(|splice| splice.outages().iter().filter(long).cloned().collect())
    }

    /// See [`Splice::latest`].
    pub fn latest(&self) -> Option<Latest> {
        self.with(Splice::latest)
    }

    /// See [`Splice::events`].
    pub fn events(&self) -> Vec<Event> {
        self.with(|splice| splice.events().to_vec())
    }

    /// Waits until the question has an answer, asking again after every arrival.
    pub fn wait_for<T>(
        &self,
        timeout: Duration,
        mut ask: impl FnMut(&Splice) -> Option<T>,
    ) -> Result<T, Silent> {
        let until = Instant::now() + timeout;
        let mut splice = self.shared.splice();
        loop {
            if let Some(answer) = ask(&splice) {
                return Ok(answer);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let (bytes, latest) = (splice.bytes().len(), splice.latest());
                return Err(Silent {
                    waited: timeout,
                    bytes,
                    latest,
                });
            }
            let waited = self.shared.changed.wait_timeout(splice, left);
            splice = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until the stream is at least this long.
    pub fn wait_for_bytes(&self, length: usize, timeout: Duration) -> Result<(), Silent> {
        self.wait_for(timeout, |splice| {
            (splice.bytes().len() >= length).then_some(())
        })
    }

    /// Waits for this many more bytes than there are now.
    pub fn wait_for_more(&self, bytes: usize, timeout: Duration) -> Result<(), Silent> {
        let now = self.with(|splice| splice.bytes().len());
        self.wait_for_bytes(now + bytes, timeout)
    }

    /// Waits until this generation or a newer one has delivered a byte that nobody had seen.
    pub fn wait_for_generation(&self, generation: u64, timeout: Duration) -> Result<(), Silent> {
        self.wait_for(timeout, |splice| {
            let reached = splice.newest_generation()? >= generation;
            let resumed = splice
                .takeovers()
                .last()
                .is_none_or(|last| last.resumed_ns.is_some());
            (reached && resumed).then_some(())
        })
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported by the panic hook already.
            let _ = thread.join();
        }
    }
}

#[derive(Debug)]
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener) => listener.as_fd(),
        }
    }

    fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                Ok(Stream::Tcp(stream))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                Ok(Stream::Unix(stream))
            }
        }
    }
}

impl Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }
}

/// The thread's side: the sockets and their numbers in the splice, oldest first.
#[derive(Debug)]
struct Witness {
    shared: Arc<Shared>,
    listener: Listener,
    stopped: UnixStream,
    streams: Vec<(usize, Stream)>,
    buffer: Vec<u8>,
}

impl Witness {
    fn run(mut self) {
        while self.wait() {
            let mut streams = std::mem::take(&mut self.streams);
            streams.retain_mut(|(number, stream)| self.drain(*number, stream));
            self.streams = streams;
            self.accept();
            self.shared.changed.notify_all();
        }
    }

    /// Sleeps until something comes; `false` when the observer was dropped.
    fn wait(&self) -> bool {
        let mut fds = vec![
            PollFd::new(self.stopped.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
        ];
        let streams = self.streams.iter();
        fds.extend(streams.map(|(_, stream)| PollFd::new(stream.as_fd(), PollFlags::POLLIN)));
        // Interrupted: everything is non-blocking, so looking in vain does no harm.
        let _ = poll(&mut fds, PollTimeout::NONE);
        !fds.first().and_then(PollFd::any).unwrap_or(false)
    }

    /// Reads what is there; `false` when the connection ended.
    fn drain(&mut self, number: usize, stream: &mut Stream) -> bool {
        let mut taken = 0;
        while taken < TURN {
            match stream.read(&mut self.buffer) {
                Ok(0) => return self.close(number),
                Ok(length) => {
                    taken += length;
                    let bytes = self.buffer.get(..length).unwrap_or_default();
                    self.shared.splice().receive(number, bytes, monotonic_ns());
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return self.close(number),
            }
        }
        true
    }

    fn close(&self, number: usize) -> bool {
        self.shared.splice().close(number, monotonic_ns());
        false
    }

    fn accept(&mut self) {
        // An error other than "nobody there" concerns one peer that went away again.
        while let Ok(stream) = self.listener.accept() {
            let number = self.shared.splice().open();
            self.streams.push((number, stream));
        }
    }
}

#[cfg(test)]
mod tests;
