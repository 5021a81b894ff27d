// SPDX-License-Identifier: Apache-2.0
//! Random requests against a vector, with completions in any order, moves to other machines, cuts that
//! wait for nobody, and other machines that go on from such a cut.

use std::collections::HashMap;
use std::ops::Range;

use proptest::prelude::*;

use super::disk::{Pace, SECTORS, TestDisk};
use super::*;
use crate::virtio::driver::Moment;
use crate::virtio::state::FunctionState;

/// What the guest, the host and the operator do.
#[derive(Debug, Clone)]
enum Action {
    Write {
        at: Place,
        fill: u8,
        cut: usize,
    },
    Read {
        at: Place,
        cut: usize,
    },
    Zero {
        at: Place,
        discard: bool,
    },
    Flush,
    /// The host completes one of what it has.
    Complete(usize),
    /// Everything completes, and the guest goes on in another machine.
    Move,
    /// A checkpoint, which waits for nothing; the guest goes on here.
    Cut,
    /// The machine is lost, and another one goes on from the last checkpoint. Its disk has what was
    /// done at the cut, and of what was in flight then all or nothing.
    FailOver(Flown),
}

/// What a replica's disk has of the requests that were in flight at the cut.
#[derive(Debug, Clone, Copy)]
enum Flown {
    All,
    Nothing,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    sector: u64,
    sectors: u64,
}

impl Place {
    fn bytes(self) -> Range<usize> {
        let byte = |sector: u64| usize::try_from(sector).unwrap() * SECTOR;
        byte(self.sector)..byte(self.sector + self.sectors)
    }

    fn overlaps(self, other: Self) -> bool {
        self.sector < other.sector + other.sectors && other.sector < self.sector + self.sectors
    }
}

fn place() -> impl Strategy<Value = Place> {
    (0..SECTORS - 20, 1..20u64).prop_map(|(sector, sectors)| Place { sector, sectors })
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        4 => (place(), any::<u8>(), 0..600usize)
            .prop_map(|(at, fill, cut)| Action::Write { at, fill, cut }),
        4 => (place(), 0..600usize).prop_map(|(at, cut)| Action::Read { at, cut }),
        1 => (place(), any::<bool>()).prop_map(|(at, discard)| Action::Zero { at, discard }),
        1 => Just(Action::Flush),
        4 => any::<usize>().prop_map(Action::Complete),
        1 => Just(Action::Move),
        2 => Just(Action::Cut),
        1 => prop::sample::select(vec![Flown::All, Flown::Nothing]).prop_map(Action::FailOver),
    ]
}

#[derive(Clone)]
struct Pending {
    at: Option<Place>,
    writable: Vec<Buffer>,
    /// What a read must find.
    expected: Vec<u8>,
}

/// What a replica holds.
struct Checkpoint {
    guest: Moment,
    state: FunctionState,
    model: Vec<u8>,
    pending: HashMap<u16, Pending>,
    disk: TestDisk,
}

/// A guest that never has two requests in flight for the same sector, and so knows what to expect.
struct World {
    driver: Option<Driver>,
    disk: TestDisk,
    model: Vec<u8>,
    pending: HashMap<u16, Pending>,
    write_through: bool,
    checkpoint: Option<Checkpoint>,
}

impl World {
    fn new(write_through: bool) -> Self {
        let flush = if write_through { layout::F_FLUSH } else { 0 };
        let disk = TestDisk::new();
        disk.set_pace(Pace::Held);
        Self {
            driver: Some(Driver::start_with(block(&disk), !flush)),
            model: disk.content(),
            disk,
            pending: HashMap::new(),
            write_through,
            checkpoint: None,
        }
    }

    fn driver(&mut self) -> &mut Driver {
        self.driver.as_mut().unwrap()
    }

    fn act(&mut self, action: &Action) {
        match *action {
            Action::Write { at, fill, cut } => self.write(at, fill, cut),
            Action::Read { at, cut } => self.read(at, cut),
            Action::Zero { at, discard } => self.zero(at, discard),
            Action::Flush => self.submit(None, &[&header(FLUSH, 0)], &[1], Vec::new()),
            Action::Complete(which) => self.disk.complete(which),
            Action::Move => self.relocate(),
            Action::Cut => self.cut(),
            Action::FailOver(flown) => self.fail_over(flown),
        }
        self.collect();
    }

    fn write(&mut self, at: Place, fill: u8, cut: usize) {
        if self.is_busy(at) {
            return;
        }
        let data: Vec<u8> = at
            .bytes()
            .map(|i| fill.wrapping_add(u8::try_from(i % 253).unwrap()))
            .collect();
        self.model[at.bytes()].copy_from_slice(&data);
        let whole = [&header(OUT, at.sector)[..], &data].concat();
        let (first, second) = whole.split_at(cut.min(whole.len()));
        self.submit(Some(at), &[first, second], &[1], Vec::new());
    }

    fn read(&mut self, at: Place, cut: usize) {
        if self.is_busy(at) {
            return;
        }
        let expected = self.model[at.bytes()].to_vec();
        let cut = cut.min(expected.len());
        let writable = [cut, expected.len() - cut + 1];
        self.submit(Some(at), &[&header(IN, at.sector)], &writable, expected);
    }

    /// The two halves of a place, as two ranges.
    fn zero(&mut self, at: Place, discard: bool) {
        if self.is_busy(at) {
            return;
        }
        self.model[at.bytes()].fill(0);
        let half = at.sectors / 2;
        let count = |sectors: u64| u32::try_from(sectors).unwrap();
        let ranges = [
            range(at.sector, count(half), 0),
            range(at.sector + half, count(at.sectors - half), 0),
        ];
        // What is discarded is of no use, and nobody promises that it is gone for good.
        let discard = discard && !self.write_through;
        let kind = if discard { DISCARD } else { WRITE_ZEROES };
        self.submit(
            Some(at),
            &[&header(kind, 0), &ranges.concat()],
            &[1],
            Vec::new(),
        );
    }

    fn is_busy(&self, at: Place) -> bool {
        let mut places = self.pending.values().filter_map(|pending| pending.at);
        // No more in flight than descriptors.
        self.pending.len() > 60 || places.any(|other| other.overlaps(at))
    }

    fn submit(
        &mut self,
        at: Option<Place>,
        readable: &[&[u8]],
        writable: &[usize],
        expected: Vec<u8>,
    ) {
        let submitted = super::submit(self.driver(), readable, writable);
        let pending = Pending {
            at,
            writable: submitted.writable,
            expected,
        };
        let old = self.pending.insert(submitted.head, pending);
        assert!(old.is_none());
    }

    fn collect(&mut self) {
        while let Some((head, written)) = self.driver().try_used(QUEUE) {
            self.check(head, written);
        }
    }

    fn check(&mut self, head: u16, written: u32) {
        let pending = self.pending.remove(&head).expect("answered once");
        let driver = self.driver();
        let mut bytes: Vec<u8> = pending
            .writable
            .iter()
            .flat_map(|buffer| driver.read(buffer))
            .collect();
        assert_eq!(bytes.pop(), Some(OK));
        assert_eq!(usize::try_from(written).unwrap(), bytes.len() + 1);
        assert_eq!(bytes, pending.expected);
    }

    fn relocate(&mut self) {
        let driver = self.driver.take().unwrap();
        driver.function().pause();
        let state = driver.function().save();
        let content = self.disk.content();
        assert_eq!(self.disk.waiting(), 0);
        self.disk = TestDisk::with_content(content);
        self.disk.set_pace(Pace::Held);
        self.driver = Some(driver.move_to(block(&self.disk), &state));
    }

    fn cut(&mut self) {
        self.driver().function().freeze();
        // Nothing of what is answered from here on may be in it.
        self.collect();
        let driver = self.driver.as_ref().unwrap();
        let checkpoint = Checkpoint {
            guest: driver.moment(),
            state: driver.function().save(),
            model: self.model.clone(),
            pending: self.pending.clone(),
            disk: self.disk.snapshot(),
        };
        driver.function().resume();
        self.checkpoint = Some(checkpoint);
    }

    fn fail_over(&mut self, flown: Flown) {
        let Some(checkpoint) = self.checkpoint.take() else {
            return;
        };
        let driver = self.driver.take().unwrap();
        driver.function().freeze();
        if let Flown::All = flown {
            while checkpoint.disk.waiting() > 0 {
                checkpoint.disk.complete(0);
            }
        }
        self.disk = TestDisk::with_content(checkpoint.disk.content());
        self.disk.set_pace(Pace::Held);
        self.model = checkpoint.model;
        self.pending = checkpoint.pending;
        let device = block(&self.disk);
        self.driver = Some(driver.fail_over(&checkpoint.guest, device, &checkpoint.state));
    }

    /// Everything is answered, once, and the disk is what the guest made of it.
    fn finish(mut self) {
        self.disk.set_pace(Pace::AtOnce);
        while !self.pending.is_empty() {
            while self.disk.waiting() > 0 {
                self.disk.complete(0);
            }
            let (head, written) = self.driver().used(QUEUE);
            self.check(head, written);
        }
        self.driver().function().pause();
        assert_eq!(self.driver().try_used(QUEUE), None);
        assert_eq!(self.disk.content(), self.model);
        if self.write_through {
            assert_eq!(self.disk.durable(), self.model);
        }
        assert_eq!(self.driver().status(), 15);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_request_is_answered_once_and_with_the_right_content(
        actions in prop::collection::vec(action(), 1..80),
        write_through in any::<bool>(),
    ) {
        let mut world = World::new(write_through);
        for action in &actions {
            world.act(action);
        }
        world.finish();
    }
}
