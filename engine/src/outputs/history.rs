// SPDX-License-Identifier: Apache-2.0
//! The console's recent past: the last bytes that were let out, for terminals that attach.
//!
//! It is a view. Only the carrier adds to it, after the outside has taken the bytes, and nobody waits
//! for its readers: a slow one finds itself skipped ahead.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// How much is kept.
const BYTES_MAX: usize = 256 * 1024;

/// The last bytes of the stream that this replica let out since it became active.
#[derive(Debug)]
pub struct History {
    ring: Mutex<Ring>,
    changed: watch::Sender<()>,
}

/// How far somebody has read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    stream: u64,
    position: u64,
}

/// What somebody reads next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// These bytes of the stream. If they begin after the cursor, what was between is gone.
    Bytes {
        /// Where they begin.
        position: u64,
        /// At least one.
        bytes: Vec<u8>,
    },
    /// Nothing, yet.
    Nothing,
    /// This stream has ended; another one may have begun.
    Ended,
}

impl Cursor {
    /// Up to where in the stream.
    pub fn position(&self) -> u64 {
        self.position
    }
}

impl History {
    /// Nothing was let out yet.
    pub fn new() -> Self {
        Self {
            ring: Mutex::new(Ring::new(BYTES_MAX)),
            changed: watch::Sender::new(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        // The ring has no state that a panic could leave half done.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This replica becomes active: the next byte to leave is at `first`, and what was let out by
    /// whomever was active before reaches no further than `reach`.
    pub fn begin(&self, first: u64, reach: u64) {
        self.lock().begin(first, reach);
        self.changed.send_replace(());
    }

    /// These bytes have left. Repeated ones change nothing.
    pub fn record(&self, position: u64, bytes: &[u8]) {
        self.lock().record(position, bytes);
        self.changed.send_replace(());
    }

    /// A cursor at this position or, if that is no longer kept or was never reached, at the oldest
    /// byte.
    pub fn cursor(&self, from: u64) -> Cursor {
        self.lock().cursor(from)
    }

    /// What follows, at most this many bytes.
    pub fn next(&self, cursor: &mut Cursor, bytes_max: usize) -> Next {
        self.lock().next(cursor, bytes_max)
    }

    /// Where the stream ends now.
    pub fn end(&self) -> u64 {
        self.lock().end()
    }

    /// Changes whenever there may be more to read.
    pub fn watch(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }
}

#[derive(Debug)]
struct Ring {
    bytes_max: usize,
    /// Counts the streams there have been: a guest that boots anew begins at 0 again.
    stream: u64,
    /// Position of the first byte kept.
    start: u64,
    bytes: VecDeque<u8>,
    /// Who has read up to here elsewhere reads on here.
    reach: u64,
}

impl Ring {
    fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            stream: 0,
            start: 0,
            bytes: VecDeque::new(),
            reach: 0,
        }
    }

    fn begin(&mut self, first: u64, reach: u64) {
        self.stream += 1;
        self.bytes.clear();
        self.start = first;
        self.reach = reach;
    }

    fn end(&self) -> u64 {
        self.start.saturating_add(self.bytes.len() as u64)
    }

    fn record(&mut self, position: u64, bytes: &[u8]) {
        let end = self.end();
        if position > end {
            // The carrier lets out every byte in order, so this does not happen; if it did, readers
            // would see the gap.
            self.bytes.clear();
            self.start = position;
        }
        let known = usize::try_from(end.saturating_sub(position)).unwrap_or(usize::MAX);
        self.bytes.extend(bytes.get(known..).unwrap_or_default());
        let excess = self.bytes.len().saturating_sub(self.bytes_max);
        self.bytes.drain(..excess);
        self.start = self.start.saturating_add(excess as u64);
    }

    fn cursor(&self, from: u64) -> Cursor {
        let reached = (self.start..=self.end().max(self.reach)).contains(&from);
        Cursor {
            stream: self.stream,
            position: if reached { from } else { self.start },
        }
    }

    fn next(&self, cursor: &mut Cursor, bytes_max: usize) -> Next {
        if cursor.stream != self.stream {
            return Next::Ended;
        }
        let position = cursor.position.max(self.start);
        let skipped = usize::try_from(position - self.start).unwrap_or(usize::MAX);
        let bytes: Vec<u8> = match self.bytes.len().checked_sub(skipped) {
            None | Some(0) => return Next::Nothing,
            Some(left) => {
                let end = skipped + left.min(bytes_max);
                self.bytes.range(skipped..end).copied().collect()
            }
        };
        cursor.position = position + bytes.len() as u64;
        Next::Bytes { position, bytes }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SMALL: usize = 64;

    /// The stream's byte at a position; no two neighbourhoods are alike.
    fn byte(position: u64) -> u8 {
        position.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[0]
    }

    fn stretch(position: u64, length: usize) -> Vec<u8> {
        (position..).take(length).map(byte).collect()
    }

    #[derive(Debug, Clone)]
    enum Step {
        /// So many bytes leave, the first so many of which are a repetition.
        Record { length: usize, repeated: usize },
        /// One of the readers reads at most so much.
        Read { reader: usize, bytes_max: usize },
        /// One of the readers detaches, and attaches again where it was.
        Again { reader: usize },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (1..100_usize, 0..20_usize)
                .prop_map(|(length, repeated)| Step::Record { length, repeated }),
            (0..3_usize, 1..50_usize)
                .prop_map(|(reader, bytes_max)| Step::Read { reader, bytes_max }),
            (0..3_usize).prop_map(|reader| Step::Again { reader }),
        ]
    }

    proptest! {
        #[test]
        fn every_reader_sees_every_byte_that_is_kept_once_and_in_order(
            first in 0..1000_u64,
            steps in proptest::collection::vec(step(), 1..200),
        ) {
            let mut ring = Ring::new(SMALL);
            ring.begin(first, first);
            let mut readers: Vec<Cursor> = (0..3).map(|_| ring.cursor(first)).collect();
            let mut end = first;
            for step in steps {
                match step {
                    Step::Record { length, repeated } => {
                        let position = (end - first.min(end)).min(repeated as u64);
                        let position = end - position;
                        ring.record(position, &stretch(position, length));
                        end = end.max(position + length as u64);
                        prop_assert_eq!(ring.end(), end);
                        prop_assert!(ring.bytes.len() <= SMALL);
                    }
                    Step::Read { reader, bytes_max } => {
                        let before = readers[reader].position();
                        match ring.next(&mut readers[reader], bytes_max) {
                            Next::Bytes { position, bytes } => {
                                prop_assert!(!bytes.is_empty() && bytes.len() <= bytes_max);
                                prop_assert_eq!(&bytes, &stretch(position, bytes.len()));
                                // Passed over is only what the ring does not hold any more.
                                let kept = end.saturating_sub(SMALL as u64);
                                prop_assert_eq!(position, before.max(kept));
                                let after = position + bytes.len() as u64;
                                prop_assert_eq!(readers[reader].position(), after);
                            }
                            Next::Nothing => prop_assert_eq!(before, end),
                            Next::Ended => prop_assert!(false, "the stream goes on"),
                        }
                    }
                    Step::Again { reader } => {
                        readers[reader] = ring.cursor(readers[reader].position());
                    }
                }
            }
        }
    }

    #[test]
    fn a_reader_of_another_replica_goes_on_where_it_was() {
        let mut ring = Ring::new(SMALL);
        // 90 to 100 are replayed; the terminal may have seen them.
        ring.begin(90, 100);
        let mut cursor = ring.cursor(97);
        assert_eq!(ring.next(&mut cursor, 10), Next::Nothing);
        ring.record(90, &stretch(90, 10));
        let bytes = stretch(97, 3);
        let position = 97;
        assert_eq!(ring.next(&mut cursor, 10), Next::Bytes { position, bytes });
    }

    #[test]
    fn a_position_that_was_never_reached_begins_with_the_oldest_byte() {
        let mut ring = Ring::new(SMALL);
        ring.begin(0, 0);
        ring.record(0, &stretch(0, 10));
        assert_eq!(ring.cursor(11).position(), 0);
        assert_eq!(ring.cursor(10).position(), 10);
    }

    #[test]
    fn a_guest_that_boots_anew_ends_the_stream() {
        let mut ring = Ring::new(SMALL);
        ring.record(0, &stretch(0, 10));
        let mut cursor = ring.cursor(0);
        ring.begin(0, 0);
        ring.record(0, b"again");
        assert_eq!(ring.next(&mut cursor, 10), Next::Ended);
    }
}
