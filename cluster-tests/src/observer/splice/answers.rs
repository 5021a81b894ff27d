// SPDX-License-Identifier: Apache-2.0
//! What can be asked of a splice at any time. Nothing here changes it.

use std::collections::BTreeMap;

use super::super::header::Header;
use super::super::verdict::{Event, Latest, Outage, Takeover, Violation};
use super::Splice;

impl Splice {
    /// The stream, each position once, as first delivered; zero bytes where something is missing.
    pub fn bytes(&self) -> &[u8] {
        &self.stream
    }

    /// Everything that was broken until now. A [`Violation::OldGeneration`] may still be withdrawn
    /// and a [`Violation::Gap`] may still turn into [`Violation::Late`]; ask at the end of a test.
    pub fn violations(&self) -> Vec<Violation> {
        let gaps = self.holes.iter().map(|hole| {
            let (from, to) = (hole.start as u64, hole.end as u64);
            Violation::Gap { from, to }
        });
        self.violations
            .iter()
            .cloned()
            .chain(gaps)
            .chain(self.suspicions.violations())
            .collect()
    }

    /// Every change of hands, in order.
    pub fn takeovers(&self) -> &[Takeover] {
        &self.takeovers
    }

    /// Every time of at least [`RESOLUTION_NS`](super::RESOLUTION_NS) in which no new byte came,
    /// in order. The present one is not among them until it ends; see [`Splice::last_new_ns`].
    pub fn outages(&self) -> &[Outage] {
        &self.outages
    }

    /// When the last new byte came.
    pub fn last_new_ns(&self) -> Option<u64> {
        self.last_new.map(|(at_ns, _)| at_ns)
    }

    /// What happened on the sockets.
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// The newest generation that has delivered bytes.
    pub fn newest_generation(&self) -> Option<u64> {
        self.newest.map(|newest| self.generation(newest))
    }

    /// The last complete line and who delivered its end.
    pub fn latest(&self) -> Option<Latest> {
        let (range, connection) = self.last_line.clone()?;
        let line = String::from_utf8_lossy(self.stream.get(range)?).into_owned();
        let at_ns = self.last_new_ns()?;
        Some(Latest {
            source: self.source(connection),
            line,
            at_ns,
        })
    }

    /// Bytes delivered by each node: all of them, and those that nobody had delivered before.
    pub fn bytes_by_node(&self) -> BTreeMap<String, (u64, u64)> {
        let mut counts = BTreeMap::new();
        for here in &self.connections {
            if let Some(header) = &here.header {
                let (all, new) = counts.entry(header.node.clone()).or_insert((0, 0));
                *all += here.raw.len() as u64;
                *new += here.new;
            }
        }
        counts
    }

    /// The same with the connections' numbers.
    pub fn raw_by_connection(&self) -> impl Iterator<Item = (usize, &Header, &[u8])> {
        let all = self.connections.iter().enumerate();
        all.filter_map(|(number, here)| Some((number, here.header.as_ref()?, &here.raw[..])))
    }

    /// Every connection that introduced itself, with everything it delivered.
    pub fn raw(&self) -> impl Iterator<Item = (&Header, &[u8])> {
        self.connections
            .iter()
            .filter_map(|here| Some((here.header.as_ref()?, &here.raw[..])))
    }
}
