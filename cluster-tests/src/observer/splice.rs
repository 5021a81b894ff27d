// SPDX-License-Identifier: Apache-2.0
//! Puts the console streams of all engines of a VM together, and judges them.
//!
//! A pure state machine: bytes and arrival times are handed in, nothing is read from anywhere.
//!
//! What is accepted and what is not, position by position:
//!
//! - The next position that nobody has delivered: the stream grows. If a newer generation has
//!   delivered already, the byte stands under suspicion ([`Violation::OldGeneration`]) until a newer
//!   generation repeats it with the same value. A thawed active replica may release outputs that
//!   were acknowledged before it froze; those are part of the state the new one runs from, so the
//!   new one replays them, byte for byte. Anything else it releases is never repeated, or differs.
//! - A position that was delivered: the values must be equal ([`Violation::Conflict`]). The guests
//!   write time stamps, so a stretch that was executed twice differs.
//! - A position further on: what lies between is missing ([`Violation::Gap`]), and late when it
//!   comes after all ([`Violation::Late`]).
//!
//! Bytes alone cannot show that a replica went back further than its last commit, if it then
//! replayed the same bytes; [`Takeover::replayed`] says how far each went back.

use std::collections::BTreeMap;
use std::ops::Range;

use super::header::{Header, MAX_HEADER};
use super::verdict::{Event, Outage, Source, Takeover, Violation};

mod answers;
mod suspicion;

use suspicion::Suspicions;

/// Silences shorter than this are not kept, and arrivals closer than this are one event (1 ms).
pub const RESOLUTION_NS: u64 = 1_000_000;

/// A header that starts further ahead than this is taken for nonsense (16 MiB).
const MAX_GAP: usize = 16 << 20;

#[derive(Debug, Default)]
struct Connection {
    /// What came of the header so far, while there is none.
    introduction: Vec<u8>,
    header: Option<Header>,
    refused: bool,
    /// Everything after the header.
    raw: Vec<u8>,
    /// How many of those nobody had delivered before.
    new: u64,
    /// Where in `violations` this connection's conflict stands.
    conflict: Option<usize>,
}

/// The spliced console stream of one VM, and everything that can be said about it.
#[derive(Debug, Default)]
pub struct Splice {
    connections: Vec<Connection>,
    /// By position; zero where nothing came yet.
    stream: Vec<u8>,
    holes: Vec<Range<usize>>,
    /// First position of each run, and the connection that delivered it first.
    origins: BTreeMap<usize, usize>,
    suspicions: Suspicions,
    violations: Vec<Violation>,
    takeovers: Vec<Takeover>,
    outages: Vec<Outage>,
    events: Vec<Event>,
    /// The connection of the newest generation that has delivered.
    newest: Option<usize>,
    /// When the last new byte came, and on which connection.
    last_new: Option<(u64, usize)>,
    /// The positions of the last complete line, newline excluded, and who ended it.
    last_line: Option<(Range<usize>, usize)>,
}

impl Splice {
    /// A new connection; the answer is its number.
    pub fn open(&mut self) -> usize {
        self.connections.push(Connection::default());
        self.connections.len() - 1
    }

    /// Bytes of a connection, in order; cuts may be anywhere. `at_ns` never decreases.
    pub fn receive(&mut self, connection: usize, bytes: &[u8], at_ns: u64) {
        let Some(here) = self.connections.get_mut(connection) else {
            return;
        };
        if here.refused {
            return;
        }
        if here.header.is_some() {
            return self.deliver(connection, bytes, at_ns);
        }
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let (head, rest) = bytes.split_at(end.map_or(bytes.len(), |end| end + 1));
        here.introduction.extend_from_slice(head);
        if here.introduction.len() > MAX_HEADER {
            self.refuse(connection, format!("no header within {MAX_HEADER} bytes"));
        } else if end.is_some() {
            let line = String::from_utf8_lossy(&here.introduction).into_owned();
            self.introduce(connection, &line, at_ns);
            if !rest.is_empty() {
                self.receive(connection, rest, at_ns);
            }
        }
    }

    /// The connection ended, in whichever way.
    pub fn close(&mut self, connection: usize, at_ns: u64) {
        self.events.push(Event::Closed { connection, at_ns });
    }

    fn refuse(&mut self, connection: usize, reason: String) {
        if let Some(here) = self.connections.get_mut(connection) {
            here.refused = true;
        }
        self.violations
            .push(Violation::Unreadable { connection, reason });
    }

    fn introduce(&mut self, connection: usize, line: &str, at_ns: u64) {
        let header: Header = match line.parse() {
            Ok(header) => header,
            Err(error) => return self.refuse(connection, error.to_string()),
        };
        let limit = (self.stream.len() + MAX_GAP) as u64;
        if header.position > limit {
            let reason = format!("it starts at {}, beyond {limit}", header.position);
            return self.refuse(connection, reason);
        }
        let mut others = self
            .connections
            .iter()
            .filter_map(|other| other.header.as_ref());
        if let Some(other) = others.find(|other| other.vm != header.vm) {
            let reason = format!("it is of VM {}, the others are of {}", header.vm, other.vm);
            return self.refuse(connection, reason);
        }
        let rival = self.connections.iter().position(|other| {
            let same = |other: &Header| other.generation == header.generation;
            other
                .header
                .as_ref()
                .is_some_and(|other| same(other) && other.node != header.node)
        });
        let position = header.position;
        if let Some(here) = self.connections.get_mut(connection) {
            here.header = Some(header);
        }
        let source = self.source(connection);
        if let Some(rival) = rival {
            let first = self.source(rival);
            self.violations.push(Violation::TwoNodes {
                first,
                second: source.clone(),
            });
        }
        self.events.push(Event::Opened {
            source,
            position,
            at_ns,
        });
    }

    fn deliver(&mut self, connection: usize, bytes: &[u8], at_ns: u64) {
        let Some(here) = self.connections.get_mut(connection) else {
            return;
        };
        let start = here.header.as_ref().map_or(0, |header| header.position);
        // Refused above when it does not fit: see `introduce`.
        let from = usize::try_from(start)
            .unwrap_or(usize::MAX)
            .saturating_add(here.raw.len());
        if bytes.is_empty() {
            return;
        }
        here.raw.extend_from_slice(bytes);
        self.record(connection, from, bytes.len(), at_ns);
        self.note_takeover(connection, from, at_ns);
        let seen = self.stream.len().saturating_sub(from).min(bytes.len());
        let (again, new) = bytes.split_at(seen);
        self.compare(connection, from, again);
        if !new.is_empty() {
            self.extend(connection, from + seen, new, at_ns);
        }
    }

    fn record(&mut self, connection: usize, from: usize, length: usize, at_ns: u64) {
        if let Some(Event::Delivered {
            connection: last,
            bytes,
            first_ns,
            last_ns,
            ..
        }) = self.events.last_mut()
            && *last == connection
            && at_ns.saturating_sub(*first_ns) < RESOLUTION_NS
        {
            *bytes += length as u64;
            *last_ns = at_ns;
            return;
        }
        let (position, bytes) = (from as u64, length as u64);
        let (first_ns, last_ns) = (at_ns, at_ns);
        self.events.push(Event::Delivered {
            connection,
            position,
            bytes,
            first_ns,
            last_ns,
        });
    }

    fn note_takeover(&mut self, connection: usize, from: usize, at_ns: u64) {
        let Some(newest) = self.newest else {
            self.newest = Some(connection);
            return;
        };
        if self.generation(connection) <= self.generation(newest) {
            return;
        }
        self.newest = Some(connection);
        self.takeovers.push(Takeover {
            from: self.source(newest),
            to: self.source(connection),
            position: from as u64,
            replayed: self.stream.len().saturating_sub(from) as u64,
            silent_from_ns: self.last_new.map_or(at_ns, |(last, _)| last),
            resumed_ns: None,
        });
    }

    /// Positions that have been passed already: equal, or in conflict, or filling a hole late.
    fn compare(&mut self, connection: usize, from: usize, again: &[u8]) {
        let range = from..from + again.len();
        let Some(seen) = self.stream.get_mut(range.clone()) else {
            return;
        };
        let touched = |hole: &&Range<usize>| hole.start < range.end && range.start < hole.end;
        if self.holes.iter().find(touched).is_none() && seen == again {
            return self.note_repeated(connection, &range);
        }
        let mut differing = Vec::new();
        for (position, (seen, again)) in range.clone().zip(seen.iter_mut().zip(again)) {
            if self.holes.iter().any(|hole| hole.contains(&position)) {
                *seen = *again;
            } else if seen != again {
                differing.push(position);
            }
        }
        self.fill_holes(connection, &range);
        match differing.first() {
            Some(first) => self.note_conflict(connection, *first, differing.len()),
            None => self.note_repeated(connection, &range),
        }
    }

    fn fill_holes(&mut self, connection: usize, range: &Range<usize>) {
        let by = self.source(connection);
        let mut left = Vec::new();
        for hole in std::mem::take(&mut self.holes) {
            let filled = hole.start.max(range.start)..hole.end.min(range.end);
            if filled.is_empty() {
                left.push(hole);
                continue;
            }
            let (from, to) = (filled.start as u64, filled.end as u64);
            self.violations.push(Violation::Late {
                from,
                to,
                by: by.clone(),
            });
            let around = [hole.start..filled.start, filled.end..hole.end];
            left.extend(around.into_iter().filter(|part| !part.is_empty()));
        }
        self.holes = left;
    }

    fn note_conflict(&mut self, connection: usize, from: usize, count: usize) {
        let known = self
            .connections
            .get(connection)
            .and_then(|here| here.conflict);
        if let Some(Violation::Conflict { bytes, .. }) =
            known.and_then(|index| self.violations.get_mut(index))
        {
            *bytes += count as u64;
            return;
        }
        let origin = self
            .origins
            .range(..=from)
            .next_back()
            .map_or(connection, |(_, who)| *who);
        let (first, second) = (self.source(origin), self.source(connection));
        let index = self.violations.len();
        if let Some(here) = self.connections.get_mut(connection) {
            here.conflict = Some(index);
        }
        let (from, bytes) = (from as u64, count as u64);
        self.violations.push(Violation::Conflict {
            from,
            bytes,
            first,
            second,
        });
    }

    fn note_repeated(&mut self, connection: usize, range: &Range<usize>) {
        let generation = self.generation(connection);
        self.suspicions.repeated(generation, range);
    }

    /// Positions that nobody has delivered.
    fn extend(&mut self, connection: usize, from: usize, new: &[u8], at_ns: u64) {
        let end = self.stream.len();
        if from > end {
            self.holes.push(end..from);
            self.stream.resize(from, 0);
        }
        self.suspect(connection, from..from + new.len());
        if self.last_new.is_none_or(|(_, last)| last != connection) || from > end {
            self.origins.insert(from, connection);
        }
        self.stream.extend_from_slice(new);
        if let Some(here) = self.connections.get_mut(connection) {
            here.new += new.len() as u64;
        }
        self.find_last_line(connection, from, new);
        self.measure_silence(connection, from, at_ns);
        self.last_new = Some((at_ns, connection));
    }

    fn suspect(&mut self, connection: usize, range: Range<usize>) {
        let newest = self.newest.map(|newest| self.generation(newest));
        if let Some(newer) = newest.filter(|newest| *newest > self.generation(connection)) {
            let by = self.source(connection);
            self.suspicions.add(by, range, newer);
        }
    }

    fn find_last_line(&mut self, connection: usize, from: usize, new: &[u8]) {
        let Some(newline) = new.iter().rposition(|byte| *byte == b'\n') else {
            return;
        };
        let end = from + newline;
        let before = self.stream.get(..end).unwrap_or_default();
        let start = before
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |at| at + 1);
        self.last_line = Some((start..end, connection));
    }

    fn measure_silence(&mut self, connection: usize, from: usize, at_ns: u64) {
        let generation = self.generation(connection);
        if let Some(takeover) = self.takeovers.last_mut()
            && takeover.to.generation == generation
        {
            takeover.resumed_ns.get_or_insert(at_ns);
        }
        let Some((from_ns, before)) = self.last_new else {
            return;
        };
        if at_ns.saturating_sub(from_ns) >= RESOLUTION_NS {
            let (before, after) = (self.source(before), self.source(connection));
            let position = from as u64;
            self.outages.push(Outage {
                from_ns,
                to_ns: at_ns,
                position,
                before,
                after,
            });
        }
    }

    fn generation(&self, connection: usize) -> u64 {
        let header = self
            .connections
            .get(connection)
            .and_then(|here| here.header.as_ref());
        header.map_or(0, |header| header.generation)
    }

    fn source(&self, connection: usize) -> Source {
        let header = self
            .connections
            .get(connection)
            .and_then(|here| here.header.as_ref());
        let (node, generation) = header.map_or_else(Default::default, |header| {
            (header.node.clone(), header.generation)
        });
        Source {
            connection,
            node,
            generation,
        }
    }
}
