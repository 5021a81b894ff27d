// SPDX-License-Identifier: Apache-2.0
//! What the guest changed on its replicated disks: in the log of the open epoch while there is a
//! pair, as a set of blocks while a passive side's disks are being made equal.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};

use kemari_replication::storage::{
    BLOCK_BYTES, CHANGE_BYTES_MAX, Change, ChangedBlocks, DiskChange, DiskLayout, DiskNumber,
    SpaceFate,
};
use kemari_vmm::backend::{DiskRequest, Unmap};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::conductor::Input;

/// The open epoch ends when its log is this long, in bytes.
const EPOCH_BYTES: usize = 8 * 1024 * 1024;
/// While the logs that are not acknowledged are longer than this, in bytes, further changes wait.
const BYTES_MAX: usize = 64 * 1024 * 1024;
/// What each change is counted with besides its data.
const OVERHEAD_BYTES: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Nobody needs to know.
    Off,
    /// Changed blocks are remembered.
    Tracking,
    /// Changes go into the log.
    Logging,
}

#[derive(Debug)]
struct Inner {
    mode: Mode,
    changed: Vec<ChangedBlocks>,
    /// Changes that a disk has begun and not ended, in any mode.
    in_flight: Vec<Place>,
    open: Vec<DiskChange>,
    open_bytes: usize,
    /// Of logs that were taken and are not acknowledged.
    taken_bytes: usize,
    pressure_told: bool,
    watched: Option<Watched>,
}

/// A part of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    disk: DiskNumber,
    bytes: Range<u64>,
}

impl Place {
    /// The part that a request changes; none for one that changes nothing.
    fn changed_by(disk: DiskNumber, request: &DiskRequest) -> Option<Self> {
        let (offset, length) = request.range().filter(|_| request.changes())?;
        Some(Self::new(disk, offset, length))
    }

    fn new(disk: DiskNumber, offset: u64, length: u64) -> Self {
        Self {
            disk,
            bytes: offset..offset.saturating_add(length),
        }
    }

    fn overlaps(&self, other: &Self) -> bool {
        let (ours, theirs) = (&self.bytes, &other.bytes);
        self.disk == other.disk && ours.start < theirs.end && theirs.start < ours.end
    }
}

/// A part of a disk, and whether it was written since, or was being written.
#[derive(Debug)]
struct Watched {
    place: Place,
    touched: bool,
}

/// The log of all disks of a VM.
#[derive(Debug)]
pub struct DiskLog {
    inner: Mutex<Inner>,
    /// For each disk: readable when a change that waited may have room.
    rooms: Vec<Arc<EventFd>>,
    inputs: OnceLock<mpsc::Sender<Input>>,
}

/// The log of an epoch.
#[derive(Debug, Clone, Default)]
pub struct TakenLog {
    changes: Arc<[DiskChange]>,
    bytes: usize,
}

impl TakenLog {
    /// The changes, in the order the guest made them.
    pub fn changes(&self) -> &[DiskChange] {
        &self.changes
    }
}

impl DiskLog {
    pub(super) fn new(layouts: &[DiskLayout]) -> io::Result<Self> {
        let capacity = |layout: &DiskLayout| match layout {
            DiskLayout::Replicated { capacity_bytes } => *capacity_bytes,
            DiskLayout::Apart => 0,
        };
        let room = |_| {
            let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
            Ok(Arc::new(EventFd::from_flags(flags)?))
        };
        Ok(Self {
            inner: Mutex::new(Inner {
                mode: Mode::Off,
                changed: layouts
                    .iter()
                    .map(|layout| ChangedBlocks::none(capacity(layout)))
                    .collect(),
                in_flight: Vec::new(),
                open: Vec::new(),
                open_bytes: 0,
                taken_bytes: 0,
                pressure_told: false,
                watched: None,
            }),
            rooms: layouts.iter().map(room).collect::<io::Result<_>>()?,
            inputs: OnceLock::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whoever takes the log is told when it is long.
    pub fn tell(&self, inputs: mpsc::Sender<Input>) {
        // The first conductor is the only one.
        let _ = self.inputs.set(inputs);
    }

    pub(super) fn room(&self, disk: DiskNumber) -> Option<&Arc<EventFd>> {
        self.rooms.get(disk.index())
    }

    /// Device: whether a change may go to the disk now.
    pub(super) fn has_room(&self) -> bool {
        let inner = self.lock();
        inner.mode != Mode::Logging || inner.open_bytes + inner.taken_bytes < BYTES_MAX
    }

    /// Device: this request goes to the disk now.
    pub(super) fn starts(&self, disk: DiskNumber, request: &DiskRequest) {
        let mut inner = self.lock();
        if let Some(place) = Place::changed_by(disk, request) {
            if let Some(watched) = &mut inner.watched {
                watched.touched |= watched.place.overlaps(&place);
            }
            inner.in_flight.push(place);
        }
        if inner.mode != Mode::Logging {
            return;
        }
        append(&mut inner, disk, request);
        let long = inner.open_bytes >= EPOCH_BYTES && !inner.pressure_told;
        inner.pressure_told |= long;
        drop(inner);
        if long && let Some(inputs) = self.inputs.get() {
            let _ = inputs.send(Input::OutputQueued);
        }
    }

    /// Device: a change of this range is over, well or badly.
    pub(super) fn completed(&self, disk: DiskNumber, offset: u64, length: u64) {
        let mut inner = self.lock();
        // One that the disk refuses never began. Two that are alike are never in flight together.
        let place = Place::new(disk, offset, length);
        if let Some(begun) = inner.in_flight.iter().position(|other| *other == place) {
            inner.in_flight.swap_remove(begun);
        }
        if inner.mode == Mode::Tracking
            && let Some(changed) = inner.changed.get_mut(disk.index())
        {
            changed.add_bytes(offset, length);
        }
    }
}

impl DiskLog {
    /// Remembers changed blocks from now on, beginning with none.
    pub fn track(&self) {
        let mut inner = self.lock();
        inner.clear();
        inner.mode = Mode::Tracking;
        drop(inner);
        self.tell_room();
    }

    /// Shows the changed blocks of each disk, to be taken.
    pub fn changed(&self, mut show: impl FnMut(DiskNumber, &mut ChangedBlocks)) {
        let mut inner = self.lock();
        for (number, changed) in DiskNumber::all().zip(&mut inner.changed) {
            show(number, changed);
        }
    }

    /// How much was changed and not taken yet, in bytes.
    pub fn changed_bytes(&self) -> u64 {
        let inner = self.lock();
        inner
            .changed
            .iter()
            .map(|changed| changed.len() * BLOCK_BYTES)
            .sum()
    }

    /// Changes go into the log from now on. The guest stands still and nothing is in flight.
    pub fn log(&self) {
        let mut inner = self.lock();
        inner.clear();
        inner.mode = Mode::Logging;
    }

    /// Nobody needs to know any more.
    pub fn stop(&self) {
        let mut inner = self.lock();
        inner.clear();
        inner.mode = Mode::Off;
        drop(inner);
        self.tell_room();
    }

    /// Whether the open epoch should end for its log's sake.
    pub fn is_long(&self) -> bool {
        self.lock().open_bytes >= EPOCH_BYTES
    }

    /// Looks from now on whether this part of a disk is written. A change that is in flight counts: it
    /// is in a log already, and on the disk or not.
    pub fn watch(&self, disk: DiskNumber, bytes: Range<u64>) {
        let place = Place { disk, bytes };
        let mut inner = self.lock();
        let touched = inner.in_flight.iter().any(|other| other.overlaps(&place));
        inner.watched = Some(Watched { place, touched });
    }

    /// Whether the part that was watched last was written since, or may have been.
    pub fn was_touched(&self) -> bool {
        let inner = self.lock();
        inner.watched.as_ref().is_none_or(|watched| watched.touched)
    }

    /// Takes the log of the epoch that ends, at a cut.
    pub fn take(&self) -> TakenLog {
        let mut inner = self.lock();
        let bytes = std::mem::take(&mut inner.open_bytes);
        inner.taken_bytes += bytes;
        inner.pressure_told = false;
        TakenLog {
            changes: std::mem::take(&mut inner.open).into(),
            bytes,
        }
    }

    /// A log that was taken is not needed any more: its epoch was committed.
    pub fn committed(&self, log: &TakenLog) {
        let mut inner = self.lock();
        inner.taken_bytes = inner.taken_bytes.saturating_sub(log.bytes);
        drop(inner);
        self.tell_room();
    }

    /// Logs that were taken, oldest first, belong to the open epoch again.
    pub fn put_back(&self, logs: impl Iterator<Item = TakenLog>) {
        let mut inner = self.lock();
        if inner.mode != Mode::Logging {
            return;
        }
        let mut changes = Vec::new();
        for log in logs {
            changes.extend_from_slice(&log.changes);
            inner.open_bytes += log.bytes;
            inner.taken_bytes = inner.taken_bytes.saturating_sub(log.bytes);
        }
        changes.append(&mut inner.open);
        inner.open = changes;
    }

    pub(super) fn tell_room(&self) {
        for room in &self.rooms {
            // Full: it is readable already.
            let _ = room.write(1);
        }
    }
}

impl Inner {
    fn clear(&mut self) {
        self.open.clear();
        self.open_bytes = 0;
        self.taken_bytes = 0;
        self.pressure_told = false;
        self.watched = None;
        for changed in &mut self.changed {
            while changed.take_first(u64::MAX).is_some() {}
        }
    }
}

fn append(inner: &mut Inner, disk: DiskNumber, request: &DiskRequest) {
    let mut push = |offset, change| {
        let change = DiskChange {
            disk,
            offset,
            change,
        };
        inner.open_bytes += change.data_bytes() + OVERHEAD_BYTES;
        inner.open.push(change);
    };
    match request {
        DiskRequest::Read { .. } => {}
        DiskRequest::Write { offset, buffer } => {
            let offsets = (*offset..).step_by(CHANGE_BYTES_MAX);
            for (offset, piece) in offsets.zip(buffer.chunks(CHANGE_BYTES_MAX)) {
                push(offset, Change::Write(piece.to_vec()));
            }
        }
        DiskRequest::Flush => push(0, Change::Flush),
        DiskRequest::Discard { offset, length } => {
            push(*offset, Change::Discard { length: *length });
        }
        DiskRequest::WriteZeroes {
            offset,
            length,
            unmap,
        } => {
            let space = match unmap {
                Unmap::Forbidden => SpaceFate::Kept,
                Unmap::Allowed => SpaceFate::Freed,
            };
            let length = *length;
            push(*offset, Change::Zeroes { length, space });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: DiskNumber = DiskNumber::new(0).unwrap();

    fn log() -> DiskLog {
        let layout = DiskLayout::Replicated {
            capacity_bytes: 100 * BLOCK_BYTES,
        };
        DiskLog::new(&[layout]).unwrap()
    }

    fn write(offset: u64, bytes: usize) -> DiskRequest {
        DiskRequest::Write {
            offset,
            buffer: vec![7; bytes],
        }
    }

    #[test]
    fn long_writes_become_several_changes_in_order() {
        let log = log();
        log.log();
        log.starts(DISK, &write(512, 2 * CHANGE_BYTES_MAX + 512));
        log.starts(DISK, &DiskRequest::Flush);
        let taken = log.take();
        let offsets: Vec<_> = taken.changes().iter().map(|change| change.offset).collect();
        let step = CHANGE_BYTES_MAX as u64;
        assert_eq!(offsets, [512, 512 + step, 512 + 2 * step, 0]);
        assert_eq!(taken.changes().last().unwrap().change, Change::Flush);
    }

    #[test]
    fn logs_that_were_put_back_come_first_and_again() {
        let log = log();
        log.log();
        log.starts(DISK, &write(0, 512));
        let first = log.take();
        log.starts(DISK, &write(512, 512));
        let second = log.take();
        log.starts(DISK, &write(1024, 512));
        log.put_back([first, second].into_iter());
        let offsets: Vec<_> = log.take().changes().iter().map(|c| c.offset).collect();
        assert_eq!(offsets, [0, 512, 1024]);
    }

    #[test]
    fn changes_wait_while_too_much_is_not_acknowledged() {
        let log = log();
        log.log();
        let mut taken = Vec::new();
        while log.has_room() {
            log.starts(DISK, &write(0, 1 << 20));
            taken.push(log.take());
        }
        assert!(taken.len() >= 60);
        taken.iter().for_each(|taken| log.committed(taken));
        assert!(log.has_room());
        assert_eq!(log.lock().taken_bytes, 0);
    }

    #[test]
    fn a_change_in_flight_counts_as_one_that_comes_later() {
        let log = log();
        log.log();
        log.starts(DISK, &write(4096, 512));
        log.watch(DISK, 0..4096);
        assert!(!log.was_touched());
        log.watch(DISK, 0..8192);
        assert!(log.was_touched());
        log.completed(DISK, 4096, 512);
        log.watch(DISK, 0..8192);
        assert!(!log.was_touched());
        log.starts(
            DISK,
            &DiskRequest::Read {
                offset: 0,
                buffer: vec![0; 512],
            },
        );
        log.starts(DISK, &DiskRequest::Flush);
        assert!(!log.was_touched());
        log.starts(DISK, &write(7680, 512));
        assert!(log.was_touched());
        // What began before there was a log is in flight, too.
        log.stop();
        log.starts(DISK, &write(0, 512));
        log.log();
        log.watch(DISK, 0..512);
        assert!(log.was_touched());
    }

    #[test]
    fn nothing_is_kept_of_a_pair_that_ended() {
        let log = log();
        log.log();
        log.starts(DISK, &write(0, 512));
        log.stop();
        log.starts(DISK, &write(0, 512));
        assert!(log.take().changes().is_empty());
        log.track();
        log.completed(DISK, 0, 512);
        assert_eq!(log.changed_bytes(), BLOCK_BYTES);
    }
}
