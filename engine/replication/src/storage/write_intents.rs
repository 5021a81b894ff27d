// SPDX-License-Identifier: Apache-2.0
//! Which regions of this node's disks may differ from the other replica's, recorded durably before
//! the guest writes to them.
//!
//! What must hold at every instant, whatever crashes: if the records on both nodes name the same base,
//! a region that neither names is equal on both disks, also after a power cut.
//!
//! * Only the active side's guest changes disks. A region is in its record on disk before the first
//!   change of it begins ([`WriteIntents::may_start`]). What the passive side writes comes from there,
//!   so it names nothing itself.
//! * Regions are let go by a *round*. It begins at a cut: whatever began before is in the log of that
//!   epoch or an earlier one. Then this side makes its disks durable, then the other one, when it has
//!   applied that epoch. What was not written since is then equal and durable on both sides. Where the
//!   pair has no base yet, or one from before this pair, the round gives it a new one, which the
//!   passive side records first: until both have, the records do not fit.
//! * A region that is written all the time is kept: only what was not written for a whole round
//!   goes.
//! * A disk that could not be made durable once may say yes the next time and have lost what it
//!   was told: no round ends after that.

use kemari_api::Generation;

use super::{BaseId, ChangeRecord, DiskLayout, DiskNumber, DisksIdentity, REGION_BYTES, Regions};

/// A guest that writes on and on gets up to so many regions ahead recorded at once: 128 MiB.
const AHEAD_MAX: u64 = 32;

/// How a change of a disk ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeEnd {
    /// The disk did it.
    Done,
    /// It failed: the disk may hold anything there.
    Failed,
}

/// A part of a disk that is being changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    disk: DiskNumber,
    offset: u64,
    length: u64,
}

/// What is to be recorded, and what is.
#[derive(Debug, Clone)]
pub struct WriteIntents {
    identity: DisksIdentity,
    generation: Generation,
    /// Without one nothing needs to be recorded.
    base: Option<BaseId>,
    /// What the record is to name.
    named: Regions,
    /// What the record that is on disk, or may be after a crash, names; everything if there is none.
    durable: Regions,
    /// It does not say what it should.
    is_stale: bool,
    /// The base is one of the pair there is now.
    is_established: bool,
    /// Changed since the last round began, and between it and the one before.
    changed: Regions,
    changed_before: Regions,
    /// Not to be let go: what is there may be anything.
    spoilt: Regions,
    in_flight: Vec<Place>,
    round: Option<BaseId>,
    sync_failed: bool,
}

impl WriteIntents {
    /// Without a base.
    #[must_use]
    pub fn new(layouts: &[DiskLayout], identity: DisksIdentity) -> Self {
        let none = Regions::none(layouts);
        Self {
            identity,
            generation: Generation::default(),
            base: None,
            named: none.clone(),
            durable: Regions::all(layouts),
            is_stale: false,
            is_established: false,
            changed: none.clone(),
            changed_before: none.clone(),
            spoilt: none,
            in_flight: Vec::new(),
            round: None,
            sync_failed: false,
        }
    }

    /// Goes on from the record that is on disk. It must be of these disks.
    pub fn resume(&mut self, record: ChangeRecord) {
        self.base = Some(record.base);
        self.generation = record.generation;
        self.durable.clone_from(&record.regions);
        self.named = record.regions;
    }

    /// Since when is recorded what may differ.
    #[must_use]
    pub const fn base(&self) -> Option<BaseId> {
        self.base
    }

    /// Where this side's disks may differ from the base.
    #[must_use]
    pub const fn named(&self) -> &Regions {
        &self.named
    }

    /// This node knows of this generation.
    pub fn knows(&mut self, generation: Generation) {
        if generation > self.generation {
            self.generation = generation;
            self.is_stale |= self.base.is_some();
        }
    }

    /// Whether a change of these bytes may begin.
    #[must_use]
    pub fn may_start(&self, disk: DiskNumber, offset: u64, length: u64) -> bool {
        self.durable.contains(disk, offset, length)
    }

    /// These bytes are about to be changed: they are to be recorded, and what probably follows.
    pub fn want(&mut self, disk: DiskNumber, offset: u64, length: u64) {
        if self.named.contains(disk, offset, length) {
            return;
        }
        let ahead = self.named.run_before(disk, offset, AHEAD_MAX);
        let length = length.saturating_add(ahead * REGION_BYTES);
        self.named.add(disk, offset, length);
        self.is_stale |= self.base.is_some();
    }

    /// A change begins.
    pub fn starts(&mut self, disk: DiskNumber, offset: u64, length: u64) {
        // Also where the record still names more than it will.
        if !self.named.contains(disk, offset, length) {
            self.named.add(disk, offset, length);
            self.is_stale |= self.base.is_some();
        }
        self.changed.add(disk, offset, length);
        self.in_flight.push(Place {
            disk,
            offset,
            length,
        });
    }

    /// A change is over.
    pub fn ended(&mut self, disk: DiskNumber, offset: u64, length: u64, end: ChangeEnd) {
        let place = Place {
            disk,
            offset,
            length,
        };
        if let Some(begun) = self.in_flight.iter().position(|other| *other == place) {
            self.in_flight.swap_remove(begun);
        }
        if end == ChangeEnd::Failed {
            self.spoil(disk, offset, length);
        }
    }

    /// These bytes are known to differ, or may: they are named until the disks were made equal.
    pub fn spoil(&mut self, disk: DiskNumber, offset: u64, length: u64) {
        self.spoilt.add(disk, offset, length);
        self.named.add(disk, offset, length);
        self.is_stale |= self.base.is_some();
    }

    /// A disk of this side could not be made durable.
    pub const fn sync_failed(&mut self) {
        self.sync_failed = true;
    }

    /// The record to be written, if the one on disk does not say what it should. One at a time; then
    /// [`Self::written`] or [`Self::write_failed`].
    pub fn to_write(&mut self) -> Option<ChangeRecord> {
        let base = self.base.filter(|_| self.is_stale)?;
        self.is_stale = false;
        // A crash leaves either of the two.
        self.durable.intersect(&self.named);
        Some(ChangeRecord {
            base,
            generation: self.generation,
            disks: self.identity,
            regions: self.named.clone(),
        })
    }

    /// It is on disk.
    pub fn written(&mut self, record: ChangeRecord) {
        self.durable = record.regions;
    }

    /// It may be on disk or not.
    pub const fn write_failed(&mut self) {
        self.is_stale = true;
    }

    /// Whether the record on disk may say something else than it should.
    #[must_use]
    pub const fn is_stale(&self) -> bool {
        self.is_stale
    }

    /// There is no record any more.
    pub fn forgotten(&mut self) {
        self.base = None;
        self.named.clear();
        self.durable.fill();
        self.is_stale = false;
        self.is_established = false;
        self.round = None;
    }
}

/// The active side of a pair.
impl WriteIntents {
    /// The disks of both sides are equal, and nothing is in flight: from here on changes go into a log.
    pub fn pair_begins(&mut self) {
        self.abort_round();
        self.is_established = false;
        self.spoilt.clear();
    }

    /// The pair is over, or its session.
    pub fn abort_round(&mut self) {
        if self.round.take().is_some() {
            self.changed.unite(&self.changed_before);
            self.changed_before.clear();
        }
    }

    /// Whether the pair has no base yet, and a round would give it one.
    #[must_use]
    pub const fn needs_base(&self) -> bool {
        !self.is_established && self.round.is_none() && !self.sync_failed
    }

    /// Whether a round would let regions go.
    #[must_use]
    pub fn can_let_go(&self) -> bool {
        self.is_established
            && self.round.is_none()
            && !self.sync_failed
            && !self.named.are_within(&[&self.changed, &self.spoilt])
    }

    /// Begins a round, at a cut; the base that the passive side is to record, `new` if the pair has
    /// none.
    pub fn begin_round(&mut self, new: BaseId) -> BaseId {
        let known = self.base.filter(|_| self.is_established);
        let base = known.unwrap_or(new);
        self.changed_before = std::mem::replace(&mut self.changed, {
            let mut none = self.named.clone();
            none.clear();
            none
        });
        if known.is_none() {
            // The base is this instant.
            self.changed_before.clear();
        }
        for place in &self.in_flight {
            self.changed.add(place.disk, place.offset, place.length);
        }
        self.round = Some(base);
        base
    }

    /// The base of the round under way.
    #[must_use]
    pub const fn round(&self) -> Option<BaseId> {
        self.round
    }

    /// Both sides have made durable what they held when the round began. Returns how many regions
    /// went; `None` if no such round is under way.
    pub fn end_round(&mut self, base: BaseId) -> Option<u64> {
        if self.round != Some(base) || self.sync_failed {
            return None;
        }
        self.round = None;
        let before = self.named.len();
        self.named.clone_from(&self.changed);
        self.named.unite(&self.changed_before);
        self.named.unite(&self.spoilt);
        self.base = Some(base);
        self.is_established = true;
        self.is_stale = true;
        Some(before.saturating_sub(self.named.len()))
    }
}

/// The passive side of a pair.
impl WriteIntents {
    /// The disks are equal to the active side's and durable, and the active side records what changes
    /// from here on. `false`: that they are durable cannot be believed.
    pub fn adopt(&mut self, base: BaseId, generation: Generation) -> bool {
        if self.sync_failed {
            return false;
        }
        self.knows(generation);
        if self.base == Some(base) && self.named.is_empty() {
            return true;
        }
        self.base = Some(base);
        self.is_established = false;
        self.named.clear();
        self.changed.clear();
        self.spoilt.clear();
        self.is_stale = true;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: DiskNumber = DiskNumber::new(0).unwrap();

    fn intents() -> WriteIntents {
        let layouts = [DiskLayout::Replicated {
            capacity_bytes: 100 * REGION_BYTES,
        }];
        WriteIntents::new(&layouts, DisksIdentity(1))
    }

    fn record(intents: &mut WriteIntents) {
        while let Some(record) = intents.to_write() {
            intents.written(record);
        }
    }

    /// Region by region; `true` if the change had to wait for the record.
    fn write(intents: &mut WriteIntents, region: u64) -> bool {
        let offset = region * REGION_BYTES;
        let waits = !intents.may_start(DISK, offset, 512);
        if waits {
            intents.want(DISK, offset, 512);
            record(intents);
        }
        assert!(intents.may_start(DISK, offset, 512));
        intents.starts(DISK, offset, 512);
        intents.ended(DISK, offset, 512, ChangeEnd::Done);
        waits
    }

    fn paired() -> WriteIntents {
        let mut intents = intents();
        intents.pair_begins();
        assert!(intents.needs_base());
        let base = intents.begin_round(BaseId([1; 16]));
        assert_eq!(intents.end_round(base), Some(0));
        record(&mut intents);
        intents
    }

    #[test]
    fn without_a_base_nothing_waits_and_nothing_is_recorded() {
        let mut intents = intents();
        assert!(!write(&mut intents, 3));
        assert!(intents.to_write().is_none());
    }

    #[test]
    fn what_is_written_on_and_on_waits_less_and_less() {
        let mut intents = paired();
        let waits: Vec<u64> = (0..100)
            .filter(|region| write(&mut intents, *region))
            .collect();
        assert_eq!(waits, [0, 1, 3, 7, 15, 31, 63, 96]);
    }

    #[test]
    fn a_change_in_flight_when_a_round_begins_is_kept() {
        let mut intents = paired();
        write(&mut intents, 1);
        intents.want(DISK, 9 * REGION_BYTES, 512);
        record(&mut intents);
        intents.starts(DISK, 9 * REGION_BYTES, 512);
        for gone in [0, 1] {
            let base = intents.begin_round(BaseId([2; 16]));
            assert_eq!(base, BaseId([1; 16]), "the pair has one");
            assert_eq!(intents.end_round(base), Some(gone));
            record(&mut intents);
        }
        assert!(intents.may_start(DISK, 9 * REGION_BYTES, 512));
        assert!(!intents.may_start(DISK, REGION_BYTES, 512));
        assert!(!intents.can_let_go());
        intents.ended(DISK, 9 * REGION_BYTES, 512, ChangeEnd::Done);
        intents.begin_round(BaseId([2; 16]));
        intents.end_round(BaseId([1; 16]));
        assert!(intents.can_let_go());
    }

    #[test]
    fn what_failed_or_differs_is_named_until_the_disks_are_made_equal() {
        let mut intents = paired();
        write(&mut intents, 1);
        intents.starts(DISK, REGION_BYTES, 512);
        intents.ended(DISK, REGION_BYTES, 512, ChangeEnd::Failed);
        intents.spoil(DISK, 5 * REGION_BYTES, 512);
        for _ in 0..3 {
            intents.begin_round(BaseId([2; 16]));
            assert_eq!(intents.end_round(BaseId([1; 16])), Some(0));
            record(&mut intents);
        }
        assert_eq!(intents.named().len(), 2);
        intents.pair_begins();
        intents.begin_round(BaseId([3; 16]));
        assert_eq!(intents.end_round(BaseId([3; 16])), Some(2));
    }

    #[test]
    fn no_round_ends_after_a_failed_sync_or_the_loss_of_its_session() {
        let mut intents = paired();
        let base = intents.begin_round(BaseId([2; 16]));
        intents.abort_round();
        assert_eq!(intents.end_round(base), None);
        intents.begin_round(BaseId([2; 16]));
        intents.sync_failed();
        assert_eq!(intents.end_round(base), None);
        intents.abort_round();
        intents.pair_begins();
        assert!(!intents.needs_base() && !intents.can_let_go());
    }

    #[test]
    fn while_a_record_is_being_written_only_what_both_name_may_start() {
        let mut intents = paired();
        write(&mut intents, 1);
        intents.begin_round(BaseId([2; 16]));
        intents.end_round(BaseId([1; 16]));
        write(&mut intents, 2);
        intents.begin_round(BaseId([2; 16]));
        intents.end_round(BaseId([1; 16]));
        let shorter = intents.to_write().unwrap();
        assert!(!intents.may_start(DISK, REGION_BYTES, 512));
        assert!(intents.may_start(DISK, 2 * REGION_BYTES, 512));
        intents.want(DISK, 4 * REGION_BYTES, 512);
        intents.written(shorter);
        assert!(!intents.may_start(DISK, 4 * REGION_BYTES, 512));
        record(&mut intents);
        assert!(intents.may_start(DISK, 4 * REGION_BYTES, 512));
    }
}
