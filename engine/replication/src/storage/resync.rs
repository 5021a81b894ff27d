// SPDX-License-Identifier: Apache-2.0
//! Making the passive side's disks equal to ours while the guest runs.
//!
//! ```text
//! every block, once:  probe (digests) ──▶ answer: these differ ──▶ copy those
//! blocks changed since:  ──────────────────────────────────────▶ copy
//! ```
//! Whatever the other disk held before, only what differs is copied. The plan ends when every block
//! was compared, every answer has come and nothing changed is left; the caller ends it earlier when
//! so little is left that it can be copied while the guest stands still.
//!
//! Where both sides have a record of what may differ, every block of those regions is compared, and
//! some others: the first ones, the last one and some between. If one of those differs, something is
//! not as the records say (a disk was put in another's place, say), and everything is compared.
//!
//! The caller reads a block after it asked for the step, and reports a block as changed after the
//! change has completed: so a change that a read may have missed is always copied later.

use std::collections::VecDeque;

use thiserror::Error;

use super::{BLOCK_BYTES, BlockRange, ChangedBlocks, DiskLayout, DiskNumber, Regions};

/// Most blocks compared by one probe: 2 MiB.
pub const PROBE_BLOCKS_MAX: u64 = 32;
/// Most blocks copied by one step: 1 MiB.
const COPY_BLOCKS_MAX: u64 = 16;
/// Probes whose answer may be outstanding.
const PROBES_OUT_MAX: usize = 16;
/// Blocks at the beginning of a disk that are compared whatever the records say: 1 MiB, where boot
/// records, partition tables and the first superblock lie.
const FIRST_BLOCKS: u64 = 16;
/// Blocks of a disk, evenly spread, that are compared whatever the records say.
const SPREAD_BLOCKS: u64 = 64;

/// What is to be done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Send the digests of these blocks.
    Probe(DiskNumber, BlockRange),
    /// Send the content of these blocks.
    Copy(DiskNumber, BlockRange),
    /// Nothing, until an answer has come.
    Wait,
    /// Nothing: the disks are equal but for what is being changed.
    Done,
}

/// How far it is, in blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Compared.
    pub compared: u64,
    /// To be compared in all.
    pub blocks: u64,
    /// Copied, some perhaps more than once.
    pub copied: u64,
    /// Known to differ and not yet copied.
    pub left: u64,
}

/// An answer to a question that was not asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("Peer compared blocks of disk {disk} at {offset} that it was not asked about")]
pub struct UnexpectedAnswer {
    /// The disk it names.
    pub disk: DiskNumber,
    /// Where the blocks begin, in bytes.
    pub offset: u64,
}

#[derive(Debug)]
struct Disk {
    number: DiskNumber,
    capacity_bytes: u64,
    /// To be asked about.
    unprobed: ChangedBlocks,
    differing: ChangedBlocks,
}

impl Disk {
    fn new(number: DiskNumber, capacity_bytes: u64) -> Self {
        Self {
            number,
            capacity_bytes,
            unprobed: ChangedBlocks::none(capacity_bytes),
            differing: ChangedBlocks::none(capacity_bytes),
        }
    }

    fn blocks(&self) -> u64 {
        self.capacity_bytes.div_ceil(BLOCK_BYTES)
    }

    fn plan_everything(&mut self) {
        self.unprobed.add_range(BlockRange {
            first: 0,
            count: self.blocks(),
        });
    }

    fn plan(&mut self, regions: &Regions) {
        for bytes in regions.of_disk(self.number) {
            self.unprobed
                .add_bytes(bytes.start, bytes.end - bytes.start);
        }
        let blocks = self.blocks();
        for block in 0..FIRST_BLOCKS {
            self.unprobed.add(block);
        }
        self.unprobed.add(blocks.saturating_sub(1));
        for step in (0..blocks).step_by(step(blocks)) {
            self.unprobed.add(step);
        }
    }
}

fn step(blocks: u64) -> usize {
    usize::try_from((blocks / SPREAD_BLOCKS).max(1)).unwrap_or(usize::MAX)
}

/// The plan.
#[derive(Debug)]
pub struct Resync {
    disks: Vec<Disk>,
    asked: VecDeque<(DiskNumber, BlockRange)>,
    progress: Progress,
    /// Blocks elsewhere are equal, if the records are right.
    recorded: Option<Regions>,
    was_surprised: bool,
}

impl Resync {
    /// A plan that compares these disks, by number, from their first block to the last.
    #[must_use]
    pub fn new(layouts: &[DiskLayout]) -> Self {
        let mut plan = Self::of_nothing(layouts);
        plan.disks.iter_mut().for_each(Disk::plan_everything);
        plan.count_blocks();
        plan
    }

    /// A plan that compares these regions of disks, outside which they are known to be equal.
    #[must_use]
    pub fn of_regions(layouts: &[DiskLayout], regions: Regions) -> Self {
        let mut plan = Self::of_nothing(layouts);
        for disk in &mut plan.disks {
            disk.plan(&regions);
        }
        plan.count_blocks();
        plan.recorded = Some(regions);
        plan
    }

    fn of_nothing(layouts: &[DiskLayout]) -> Self {
        let disks = DiskNumber::all()
            .zip(layouts)
            .filter_map(|(number, layout)| match *layout {
                DiskLayout::Replicated { capacity_bytes } => {
                    Some(Disk::new(number, capacity_bytes))
                }
                DiskLayout::Apart => None,
            });
        Self {
            disks: disks.collect(),
            asked: VecDeque::new(),
            progress: Progress::default(),
            recorded: None,
            was_surprised: false,
        }
    }

    fn count_blocks(&mut self) {
        self.progress.blocks = self.disks.iter().map(|disk| disk.unprobed.len()).sum();
    }

    /// These blocks of a disk were changed since this was last called.
    pub fn changed(&mut self, disk: DiskNumber, blocks: &mut ChangedBlocks) {
        if let Some(disk) = self.disk(disk) {
            disk.differing.take_from(blocks);
        }
    }

    /// The other side has compared the blocks it was asked about next: these, by their place in the
    /// probe, differ. `named` is where this side may have changed its disks until now.
    ///
    /// # Errors
    /// It was not asked about them.
    pub fn answered(
        &mut self,
        disk: DiskNumber,
        offset: u64,
        differing: impl Iterator<Item = u64>,
        named: &Regions,
    ) -> Result<(), UnexpectedAnswer> {
        let expected = self.asked.front().copied();
        let Some((_, range)) =
            expected.filter(|(asked, range)| *asked == disk && range.first * BLOCK_BYTES == offset)
        else {
            return Err(UnexpectedAnswer { disk, offset });
        };
        self.asked.pop_front();
        self.progress.compared += range.count;
        let mut surprise = false;
        for place in differing.filter(|place| *place < range.count) {
            let block = range.first + place;
            let offset = block * BLOCK_BYTES;
            let is_in = |regions: &Regions| regions.contains(disk, offset, BLOCK_BYTES);
            let recorded = self.recorded.as_ref();
            surprise |= recorded.is_some_and(|recorded| !is_in(recorded)) && !is_in(named);
            if let Some(disk) = self.disk(disk) {
                disk.differing.add(block);
            }
        }
        if surprise {
            self.compare_everything();
        }
        Ok(())
    }

    /// Blocks differ that, by the records, are equal.
    fn compare_everything(&mut self) {
        self.recorded = None;
        self.was_surprised = true;
        self.disks.iter_mut().for_each(Disk::plan_everything);
        // What was compared is compared again.
        let asked: u64 = self.asked.iter().map(|(_, range)| range.count).sum();
        self.count_blocks();
        self.progress.blocks += self.progress.compared + asked;
    }

    /// Whether the records were wrong, and everything is compared for that.
    #[must_use]
    pub const fn was_surprised(&self) -> bool {
        self.was_surprised
    }

    /// What is to be done next. What it names counts as done.
    pub fn step(&mut self) -> Step {
        // What is known to differ first, so that it does not pile up behind the comparison.
        for disk in &mut self.disks {
            if let Some(range) = disk.differing.take_first(COPY_BLOCKS_MAX) {
                self.progress.copied += range.count;
                return Step::Copy(disk.number, range);
            }
        }
        if self.asked.len() >= PROBES_OUT_MAX {
            return Step::Wait;
        }
        for disk in &mut self.disks {
            if let Some(range) = disk.unprobed.take_first(PROBE_BLOCKS_MAX) {
                self.asked.push_back((disk.number, range));
                return Step::Probe(disk.number, range);
            }
        }
        if self.asked.is_empty() {
            Step::Done
        } else {
            Step::Wait
        }
    }

    /// Whether every block was compared.
    #[must_use]
    pub fn has_compared_all(&self) -> bool {
        self.progress.compared == self.progress.blocks
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        Progress {
            left: self.disks.iter().map(|disk| disk.differing.len()).sum(),
            ..self.progress
        }
    }

    fn disk(&mut self, number: DiskNumber) -> Option<&mut Disk> {
        self.disks.iter_mut().find(|disk| disk.number == number)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn disk(number: u8) -> DiskNumber {
        DiskNumber::new(number).unwrap()
    }

    #[test]
    fn disks_that_are_apart_are_left_alone() {
        let mut resync = Resync::new(&[DiskLayout::Apart, DiskLayout::Apart]);
        assert_eq!(resync.step(), Step::Done);
        assert!(resync.has_compared_all());
    }

    #[test]
    fn an_answer_nobody_asked_for_is_refused() {
        let mut resync = Resync::new(&[DiskLayout::Replicated {
            capacity_bytes: 100 * BLOCK_BYTES,
        }]);
        assert!(
            resync
                .answered(disk(0), 0, [].into_iter(), &Regions::default())
                .is_err()
        );
        assert!(matches!(resync.step(), Step::Probe(..)));
        let wrong = resync.answered(disk(0), BLOCK_BYTES, [].into_iter(), &Regions::default());
        assert_eq!(
            wrong,
            Err(UnexpectedAnswer {
                disk: disk(0),
                offset: BLOCK_BYTES
            })
        );
        assert!(
            resync
                .answered(disk(0), 0, [].into_iter(), &Regions::default())
                .is_ok()
        );
    }

    /// Does everything a plan asks for; which blocks were compared.
    fn carry_out(resync: &mut Resync, named: &Regions, differing: &[u64]) -> Vec<u64> {
        let mut compared = Vec::new();
        loop {
            match resync.step() {
                Step::Probe(disk, range) => {
                    compared.extend(range.first..range.first + range.count);
                    let differs = differing
                        .iter()
                        .filter_map(|block| block.checked_sub(range.first));
                    let offset = range.first * BLOCK_BYTES;
                    resync.answered(disk, offset, differs, named).unwrap();
                }
                Step::Copy(..) => {}
                Step::Wait => unreachable!("every answer comes at once"),
                Step::Done => return compared,
            }
        }
    }

    #[test]
    fn by_the_records_only_what_may_differ_is_compared_and_some_more() {
        let blocks = 1 << 20;
        let layouts = [DiskLayout::Replicated {
            capacity_bytes: blocks * BLOCK_BYTES,
        }];
        let named = Regions::none(&layouts);
        let mut regions = named.clone();
        let written = blocks / 3 * BLOCK_BYTES;
        regions.add(disk(0), written, 512);
        let mut resync = Resync::of_regions(&layouts, regions.clone());
        let planned = resync.progress().blocks;
        assert!(planned < 64 + FIRST_BLOCKS + SPREAD_BLOCKS + 2, "{planned}");
        let compared = carry_out(&mut resync, &named, &[blocks / 3]);
        assert_eq!(compared.len() as u64, planned);
        for block in [0, FIRST_BLOCKS - 1, blocks / 3, blocks - 1] {
            assert!(compared.contains(&block), "{block}");
        }
        assert!(!resync.was_surprised() && resync.has_compared_all());
        assert_eq!(resync.progress().copied, 1);
        // Another disk in its place.
        let mut resync = Resync::of_regions(&layouts, regions);
        let compared = carry_out(&mut resync, &named, &[blocks - 1, 12345]);
        assert!(resync.was_surprised() && resync.has_compared_all());
        assert!(compared.len() as u64 >= blocks);
        assert!(resync.progress().copied >= 2);
    }

    /// A guest that writes at any moment, a reader that sees a block before or after, a peer with
    /// another content: in the end the disks are equal.
    #[derive(Debug, Clone)]
    enum Event {
        Write { block: usize, value: u8 },
        Complete,
        Step,
        Answer,
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            2 => (0_usize..100, any::<u8>()).prop_map(|(block, value)| Event::Write { block, value }),
            2 => Just(Event::Complete),
            3 => Just(Event::Step),
            2 => Just(Event::Answer),
        ]
    }

    struct World {
        ours: Vec<u8>,
        theirs: Vec<u8>,
        changed: ChangedBlocks,
        writing: VecDeque<(usize, u8)>,
        probes: VecDeque<(BlockRange, Vec<u8>)>,
        resync: Resync,
    }

    impl World {
        fn complete(&mut self) {
            if let Some((block, value)) = self.writing.pop_front() {
                self.ours[block] = value;
                self.changed.add(block as u64);
            }
        }

        fn answer(&mut self) {
            let Some((range, digests)) = self.probes.pop_front() else {
                return;
            };
            let first = usize::try_from(range.first).unwrap();
            let differing: Vec<u64> = digests
                .iter()
                .enumerate()
                .filter(|(place, digest)| self.theirs[first + place] != **digest)
                .map(|(place, _)| place as u64)
                .collect();
            let offset = range.first * BLOCK_BYTES;
            let answer =
                self.resync
                    .answered(disk(0), offset, differing.into_iter(), &Regions::default());
            answer.unwrap();
        }

        fn step(&mut self) -> bool {
            self.resync.changed(disk(0), &mut self.changed);
            let bounds = |range: BlockRange| {
                let first = usize::try_from(range.first).unwrap();
                first..first + usize::try_from(range.count).unwrap()
            };
            match self.resync.step() {
                Step::Probe(_, range) => {
                    let digests = self.ours[bounds(range)].to_vec();
                    self.probes.push_back((range, digests));
                }
                Step::Copy(_, range) => {
                    let bounds = bounds(range);
                    self.theirs[bounds.clone()].copy_from_slice(&self.ours[bounds]);
                }
                Step::Wait => {}
                Step::Done => return true,
            }
            false
        }
    }

    proptest! {
        #[test]
        fn disks_are_equal_in_the_end_whatever_the_guest_writes_meanwhile(
            ours in proptest::collection::vec(0_u8..3, 100),
            theirs in proptest::collection::vec(0_u8..3, 100),
            events in proptest::collection::vec(event(), 0..400),
        ) {
            let capacity_bytes = 100 * BLOCK_BYTES;
            let mut world = World {
                ours,
                theirs,
                changed: ChangedBlocks::none(capacity_bytes),
                writing: VecDeque::new(),
                probes: VecDeque::new(),
                resync: Resync::new(&[DiskLayout::Replicated { capacity_bytes }]),
            };
            for event in events {
                match event {
                    Event::Write { block, value } => world.writing.push_back((block, value)),
                    Event::Complete => world.complete(),
                    Event::Step => {
                        world.step();
                    }
                    Event::Answer => world.answer(),
                }
            }
            while !world.writing.is_empty() {
                world.complete();
            }
            for _ in 0..1000 {
                if world.step() {
                    break;
                }
                world.answer();
            }
            prop_assert!(world.step());
            prop_assert!(world.resync.has_compared_all());
            prop_assert_eq!(world.ours, world.theirs);
        }
    }
}
