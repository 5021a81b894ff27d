// SPDX-License-Identifier: Apache-2.0
//! Virtual time: a queue of events, and two hosts' clocks that run at different rates.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::time::Duration;

/// True time since the history began, in nanoseconds. No host knows it.
pub type Nanos = u64;

pub const US: Nanos = 1_000;
pub const MS: Nanos = 1_000_000;

/// Events in the order of their times; those of one time in the order in which they were put in.
#[derive(Debug)]
pub struct Queue<E> {
    now: Nanos,
    order: u64,
    waiting: BinaryHeap<Entry<E>>,
}

#[derive(Debug)]
struct Entry<E> {
    at: Nanos,
    order: u64,
    event: E,
}

impl<E> Queue<E> {
    pub const fn new() -> Self {
        Self {
            now: 0,
            order: 0,
            waiting: BinaryHeap::new(),
        }
    }

    pub const fn now(&self) -> Nanos {
        self.now
    }

    pub fn put(&mut self, delay: Nanos, event: E) {
        self.put_at(self.now + delay, event);
    }

    pub fn put_at(&mut self, at: Nanos, event: E) {
        let entry = Entry {
            at: at.max(self.now),
            order: self.order,
            event,
        };
        self.order += 1;
        self.waiting.push(entry);
    }

    /// The next event; time goes on to it.
    pub fn next(&mut self) -> Option<E> {
        let entry = self.waiting.pop()?;
        self.now = entry.at;
        Some(entry.event)
    }
}

// The greatest of the heap is the earliest.
impl<E> Ord for Entry<E> {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<E> Eq for Entry<E> {}

/// A host's clock: monotonic, and too fast or too slow. It also runs while the host is frozen.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// How far it goes while a thousand nanoseconds pass.
    pub permille: u64,
}

impl Clock {
    pub const fn reads(self, at: Nanos) -> Duration {
        Duration::from_nanos(at * self.permille / 1000)
    }

    /// The true time at which it reads this.
    pub fn when(self, reads: Duration) -> Nanos {
        let nanos = u64::try_from(reads.as_nanos()).expect("a short history");
        nanos.saturating_mul(1000) / self.permille + 1
    }
}
