// SPDX-License-Identifier: Apache-2.0
//! Disks over the wire: an epoch's log is applied with its commit and not before, blocks are
//! compared, and what is not within a replicated disk is refused.
#![allow(
    clippy::unwrap_used,
    reason = "a test ends where something is not as it must be"
)]

mod pair;

use kemari_replication::active::{ActiveEvent, ActiveSession, Base, BeginTransaction};
use kemari_replication::passive::Replica;
use kemari_replication::protocol::ProtocolError;
use kemari_replication::storage::{
    BLOCK_BYTES, BaseId, BlockDigest, Change, DiskChange, DiskNumber, SpaceFate, block_digest,
};
use kemari_replication::wire::{DiskChanges, FrameDecoder, NoChanges, Probe};
use kemari_replication::{Epoch, PAGE_BYTES};
use proptest::prelude::*;

use pair::{DISK_BYTES, G, Guest, PassiveSide, active, apply, indices};

const DISK: DiskNumber = DiskNumber::new(0).unwrap();

fn write(offset: u64, byte: u8, length: usize) -> DiskChange {
    DiskChange {
        disk: DISK,
        offset,
        change: Change::Write(vec![byte; length]),
    }
}

/// A welcomed session and its other side; what was sent to it.
fn welcomed() -> (ActiveSession, PassiveSide) {
    let mut active = active(0, 0);
    let mut passive = PassiveSide::new(Replica::new(G), Guest::new());
    let mut out = Vec::new();
    active.hello(&mut out);
    passive.receive(&out).unwrap();
    let events = answers(&mut active, &mut passive);
    assert!(matches!(events.as_slice(), [ActiveEvent::Welcomed { .. }]));
    (active, passive)
}

fn answers(active: &mut ActiveSession, passive: &mut PassiveSide) -> Vec<ActiveEvent> {
    let mut decoder = FrameDecoder::new();
    decoder.push(&std::mem::take(&mut passive.out));
    let mut events = Vec::new();
    while let Some((header, payload)) = decoder.next_frame().unwrap() {
        events.push(active.on_frame(&header, payload).unwrap());
    }
    events
}

fn copy_memory(active: &mut ActiveSession, out: &mut Vec<u8>) {
    let zeroes = [0; PAGE_BYTES];
    let mut pages = indices().map(|index| (index, &zeroes));
    while active.sender().copy_pages(out, &mut pages) > 0 {}
}

/// One transaction of nothing but disk changes.
fn transaction(active: &mut ActiveSession, epoch: u64, base: Base, log: &[DiskChange]) -> Vec<u8> {
    let mut out = Vec::new();
    let sender = active.sender();
    sender.begin(
        &mut out,
        BeginTransaction {
            epoch: Epoch::new(epoch),
            base,
            pages: 0,
            delivered_up_to: Epoch::new(0),
            console_position: 0,
        },
    );
    sender.disk_log(&mut out, log.iter());
    sender.commit(&mut out);
    out
}

#[test]
fn a_log_is_applied_with_its_commit_wherever_the_connection_is_cut() {
    let log = [
        write(512, 7, 1024),
        DiskChange {
            disk: DISK,
            offset: 0,
            change: Change::Flush,
        },
        write(1024, 8, 512),
        DiskChange {
            disk: DISK,
            offset: 512,
            change: Change::Zeroes {
                length: 512,
                space: SpaceFate::Freed,
            },
        },
    ];
    let mut after = vec![0; usize::try_from(DISK_BYTES).unwrap()];
    after[1024..1536].fill(8);
    let mut length = 0;
    for cut in 0.. {
        let (mut active, mut passive) = welcomed();
        let mut out = Vec::new();
        copy_memory(&mut active, &mut out);
        passive.receive(&out).unwrap();
        let first = transaction(&mut active, 1, Base::Copy, &[]);
        passive.receive(&first).unwrap();
        let frames = transaction(&mut active, 2, Base::Epoch(Epoch::new(1)), &log);
        length = frames.len().max(length);
        let before = passive.disk.clone();
        passive.receive(&frames[..frames.len().min(cut)]).unwrap();
        let committed = passive.accepted.contains(&Epoch::new(2));
        assert_eq!(committed, cut >= frames.len());
        let expected = if committed { &after } else { &before };
        assert_eq!(&passive.disk, expected, "cut at {cut}");
        if committed {
            break;
        }
    }
    assert!(length > 1536);
}

#[test]
fn blocks_that_differ_are_found_and_copied() {
    let (mut active, mut passive) = welcomed();
    passive.disk[70_000] = 1;
    let ours = vec![0; usize::try_from(DISK_BYTES).unwrap()];
    let probe = Probe {
        disk: DISK,
        offset: 0,
        digests: ours.chunks(64 * 1024).map(block_digest).collect(),
    };
    let mut out = Vec::new();
    active.sender().disk_probe(&mut out, &probe);
    passive.receive(&out).unwrap();
    let events = answers(&mut active, &mut passive);
    let [ActiveEvent::Compared(differing)] = events.as_slice() else {
        panic!("{events:?}");
    };
    assert_eq!(differing.places().collect::<Vec<_>>(), [1]);
    let block = DiskChange {
        disk: DISK,
        offset: BLOCK_BYTES,
        change: Change::Write(&ours[..64 * 1024]),
    };
    let mut out = Vec::new();
    active.sender().disk_copy(&mut out, std::iter::once(block));
    passive.receive(&out).unwrap();
    assert_eq!(passive.disk, ours);
}

#[test]
fn a_base_is_named_given_and_named_again() {
    let base = BaseId([7; 16]);
    let (mut active, mut passive) = welcomed();
    let mut out = Vec::new();
    active.sender().disk_base(&mut out, base);
    passive.receive(&out).unwrap();
    let events = answers(&mut active, &mut passive);
    let unknown = DiskChanges::Unknown(NoChanges::OtherBase);
    assert_eq!(events, [ActiveEvent::DiskChanges(unknown)]);
    let mut out = Vec::new();
    copy_memory(&mut active, &mut out);
    passive.receive(&out).unwrap();
    let mut frames = transaction(&mut active, 1, Base::Copy, &[]);
    active.sender().disk_sync(&mut frames, base);
    passive.receive(&frames).unwrap();
    let events = answers(&mut active, &mut passive);
    assert!(
        events.contains(&ActiveEvent::DisksDurable(base)),
        "{events:?}"
    );
    assert_eq!(passive.base, Some(base));
    // The next session.
    passive.changes.add(DISK, 512, 512);
    let changes = passive.changes.clone();
    let (mut active, mut again) = welcomed();
    (again.base, again.changes) = (passive.base, passive.changes);
    let mut out = Vec::new();
    active.sender().disk_base(&mut out, base);
    again.receive(&out).unwrap();
    let events = answers(&mut active, &mut again);
    let since = DiskChanges::Since(changes);
    assert_eq!(events, [ActiveEvent::DiskChanges(since)]);
}

#[test]
fn a_copy_of_disks_voids_what_was_held() {
    let (mut active, mut passive) = welcomed();
    let mut out = Vec::new();
    copy_memory(&mut active, &mut out);
    passive.receive(&out).unwrap();
    let first = transaction(&mut active, 1, Base::Copy, &[]);
    passive.receive(&first).unwrap();
    let replica = passive.session.into_replica();
    assert!(replica.held().is_some());
    let mut again = pair::active(1, 1);
    let mut passive = PassiveSide::new(replica, Guest::new());
    let mut out = Vec::new();
    again.hello(&mut out);
    passive.receive(&out).unwrap();
    answers(&mut again, &mut passive);
    let mut out = Vec::new();
    let changes = std::iter::once(write(0, 1, 512));
    again.sender().disk_copy(&mut out, changes);
    passive.receive(&out).unwrap();
    assert!(passive.session.replica().held().is_none());
}

#[test]
fn what_is_not_within_a_replicated_disk_is_refused() {
    let other = DiskNumber::new(1).unwrap();
    let outside = |change: DiskChange| {
        let (mut active, mut passive) = welcomed();
        let mut out = Vec::new();
        active.sender().disk_copy(&mut out, std::iter::once(change));
        let before = passive.disk.clone();
        let refused = passive.receive(&out).unwrap_err();
        assert!(
            matches!(refused, ProtocolError::OutsideDisk { .. }),
            "{refused}"
        );
        assert_eq!(passive.disk, before);
    };
    outside(write(DISK_BYTES, 1, 512));
    outside(write(100, 1, 512));
    outside(write(0, 1, 100));
    outside(DiskChange {
        disk: other,
        ..write(0, 1, 512)
    });
    for length in [DISK_BYTES + 512, u64::MAX] {
        outside(DiskChange {
            disk: DISK,
            offset: 512,
            change: Change::Discard { length },
        });
    }
}

#[test]
fn a_probe_beyond_the_end_is_refused() {
    for (offset, count) in [
        (0, 4),
        (3 * BLOCK_BYTES, 1),
        (u64::MAX / BLOCK_BYTES * BLOCK_BYTES, 2),
    ] {
        let (mut active, mut passive) = welcomed();
        let probe = Probe {
            disk: DISK,
            offset,
            digests: vec![BlockDigest(0); count],
        };
        let mut out = Vec::new();
        active.sender().disk_probe(&mut out, &probe);
        let refused = passive.receive(&out).unwrap_err();
        assert!(
            matches!(refused, ProtocolError::OutsideDisk { .. }),
            "{refused}"
        );
    }
}

fn change() -> impl Strategy<Value = DiskChange> {
    let sectors = DISK_BYTES / 512;
    (0..sectors, 1_u64..40, any::<u8>(), 0..5).prop_map(move |(at, count, byte, kind)| {
        let (offset, length) = (at * 512, count.min(sectors - at) * 512);
        let change = match kind {
            0 => Change::Flush,
            1 => Change::Discard { length },
            2 => Change::Zeroes {
                length,
                space: SpaceFate::Kept,
            },
            _ => Change::Write(vec![byte; usize::try_from(length).unwrap()]),
        };
        DiskChange {
            disk: DISK,
            offset: if change == Change::Flush { 0 } else { offset },
            change,
        }
    })
}

proptest! {
    #[test]
    fn both_disks_are_equal_after_each_epoch(
        epochs in proptest::collection::vec(proptest::collection::vec(change(), 0..12), 1..6),
    ) {
        let (mut active, mut passive) = welcomed();
        let mut ours = passive.disk.clone();
        let mut out = Vec::new();
        copy_memory(&mut active, &mut out);
        passive.receive(&out).unwrap();
        let mut base = Base::Copy;
        for (epoch, log) in (1..).zip(epochs) {
            let borrowed = log.iter().map(|change| DiskChange {
                disk: change.disk,
                offset: change.offset,
                change: match &change.change {
                    Change::Write(data) => Change::Write(data.as_slice()),
                    Change::Zeroes { length, space } => Change::Zeroes { length: *length, space: *space },
                    Change::Discard { length } => Change::Discard { length: *length },
                    Change::Flush => Change::Flush,
                },
            });
            apply(&mut ours, borrowed);
            let frames = transaction(&mut active, epoch, base, &log);
            passive.receive(&frames).unwrap();
            prop_assert_eq!(&passive.disk, &ours);
            base = Base::Epoch(Epoch::new(epoch));
        }
    }
}
