// SPDX-License-Identifier: Apache-2.0
//! What the outside world can say about a console stream: what was broken, who took over from whom,
//! and how long nothing came.
//!
//! Positions are bytes since the guest's first boot; times are nanoseconds of `CLOCK_MONOTONIC`.

use std::fmt;
use std::time::Duration;

/// The end of a stream that delivers: one connection of one engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Connections are numbered from 0 in the order they came.
    pub connection: usize,
    /// The node that its header named.
    pub node: String,
    /// The generation that its header named.
    pub generation: u64,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            connection,
            node,
            generation,
        } = self;
        write!(
            f,
            "{node} (generation {generation}, connection {connection})"
        )
    }
}

/// Something the two rules of the design forbid, as far as bytes can show it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Bytes that nobody delivered, though later ones came: a lost output.
    #[error("Bytes {from}..{to} of the console never came")]
    Gap {
        /// First missing position.
        from: u64,
        /// The position after the last missing one.
        to: u64,
    },
    /// Bytes that came after later ones. On one host that is an output released out of order; on a
    /// network with delay, the last bytes of the old active replica may be overtaken innocently.
    #[error("Bytes {from}..{to} of the console came from {by} only after later ones")]
    Late {
        /// First position that was late.
        from: u64,
        /// The position after the last one.
        to: u64,
        /// Who delivered them.
        by: Source,
    },
    /// The same positions were delivered with different bytes: the same stretch was executed twice.
    #[error("{bytes} console bytes from {from} on differ: first {first} sent them, then {second}")]
    Conflict {
        /// The first position that differs.
        from: u64,
        /// How many positions differ in this connection.
        bytes: u64,
        /// Who delivered the first of them first.
        first: Source,
        /// Who delivered it again, with another value.
        second: Source,
    },
    /// A replica released what nobody had seen, after one of a newer generation had begun, and no
    /// newer one has repeated it since. (Repeated, it was an acknowledged output of a thawed
    /// active replica that outran the replay.)
    #[error(
        "{by} released new bytes {from}..{to} of the console after generation {newer} had begun"
    )]
    OldGeneration {
        /// First such position.
        from: u64,
        /// The position after the last one.
        to: u64,
        /// Who released them.
        by: Source,
        /// The newest generation that had delivered before.
        newer: u64,
    },
    /// Two nodes used one generation.
    #[error("Both {first} and {second} act under one generation")]
    TwoNodes {
        /// Who came first.
        first: Source,
        /// Who came second.
        second: Source,
    },
    /// A connection that cannot be judged; its bytes are not part of the stream.
    #[error("Connection {connection} is not a console stream of this VM: {reason}")]
    Unreadable {
        /// Number of the connection.
        connection: usize,
        /// What is wrong with it.
        reason: String,
    },
}

/// A newer generation began to deliver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Takeover {
    /// Who delivered until then.
    pub from: Source,
    /// Who delivers now.
    pub to: Source,
    /// Where the new one began.
    pub position: u64,
    /// Bytes between there and the end of what had been seen: they were sent twice.
    pub replayed: u64,
    /// When the last byte nobody had seen before came from the old one.
    pub silent_from_ns: u64,
    /// When the first byte nobody had seen before came from the new one; `None` until it has.
    pub resumed_ns: Option<u64>,
}

impl Takeover {
    /// How long the outside saw nothing new; `None` while it still does not.
    pub fn silence(&self) -> Option<Duration> {
        let resumed = self.resumed_ns?;
        Some(Duration::from_nanos(
            resumed.saturating_sub(self.silent_from_ns),
        ))
    }
}

/// A time in which no new byte came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outage {
    /// When the last new byte before it came.
    pub from_ns: u64,
    /// When the first new byte after it came.
    pub to_ns: u64,
    /// Position of the first byte after it.
    pub position: u64,
    /// Who delivered before.
    pub before: Source,
    /// Who delivered after.
    pub after: Source,
}

impl Outage {
    /// How long it lasted.
    pub fn length(&self) -> Duration {
        Duration::from_nanos(self.to_ns.saturating_sub(self.from_ns))
    }
}

/// The last complete line, for those who watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Latest {
    /// Who delivered its end.
    pub source: Source,
    /// The line, without its newline, lossily decoded.
    pub line: String,
    /// When the last new byte came.
    pub at_ns: u64,
}

/// What happened on the sockets, in order of arrival.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A connection introduced itself.
    Opened {
        /// Who.
        source: Source,
        /// The position it starts at.
        position: u64,
        /// When its header was complete.
        at_ns: u64,
    },
    /// A connection delivered bytes. Arrivals within a millisecond are one event.
    Delivered {
        /// Number of the connection.
        connection: usize,
        /// Position of the first byte.
        position: u64,
        /// How many.
        bytes: u64,
        /// When the first of them came.
        first_ns: u64,
        /// When the last of them came.
        last_ns: u64,
    },
    /// A connection ended.
    Closed {
        /// Number of the connection.
        connection: usize,
        /// When.
        at_ns: u64,
    },
}
