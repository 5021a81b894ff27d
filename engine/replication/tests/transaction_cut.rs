// SPDX-License-Identifier: Apache-2.0
//! A transaction is received whole or not at all, wherever the connection ends or is damaged.

mod pair;

use kemari_replication::event_tap::ClosedEpoch;
use kemari_replication::passive::Replica;
use kemari_replication::{Epoch, Output, OutputKind, PageIndex};
use pair::{ActiveSide, Guest, PassiveSide, greeted, silent};
use proptest::prelude::*;
use std::sync::Arc;

/// Epoch 2, with everything a transaction can carry.
fn second_epoch() -> ClosedEpoch {
    let output = Output {
        kind: OutputKind::Console,
        position: 0,
        bytes: b"hello".to_vec(),
    };
    ClosedEpoch {
        outputs: vec![Arc::new(output)],
        console_position: 5,
        ..silent(2)
    }
}

/// A pair on epoch 1, the active guest at epoch 2, and the bytes that would bring it over.
fn before_the_second_commit() -> (Guest, Guest, ActiveSide, PassiveSide, Vec<u8>) {
    let mut guest = Guest::new();
    guest.write(PageIndex(1), 11);
    guest.state = b"state of epoch 1".to_vec();
    let (mut active, mut passive) = greeted(&guest);
    active.checkpoint(&silent(1), &guest, &[PageIndex(1)]);
    passive.receive(&active.take_out()).expect("right frames");
    let first = guest.clone();
    assert_eq!(passive.guest, first);
    guest.write(PageIndex(1), 0);
    guest.write(PageIndex(17), 22);
    guest.state = b"state of epoch 2, longer".to_vec();
    active.checkpoint(&second_epoch(), &guest, &[PageIndex(1), PageIndex(17)]);
    let bytes = active.take_out();
    (first, guest, active, passive, bytes)
}

#[test]
fn a_transaction_cut_at_any_byte_leaves_the_checkpoint_before() {
    let (_, second, _, _, bytes) = before_the_second_commit();
    for cut in 0..bytes.len() {
        let (first, _, _, mut passive, _) = before_the_second_commit();
        passive.out.clear();
        passive.receive(&bytes[..cut]).unwrap();
        assert!(
            passive.out.is_empty(),
            "acknowledged after {cut} of {} bytes",
            bytes.len()
        );
        assert_eq!(passive.guest, first, "cut after {cut} bytes");
        let replica = passive.session.into_replica();
        assert_eq!(
            replica.held().unwrap().epoch,
            Epoch::new(1),
            "cut after {cut} bytes"
        );
        assert!(replica.retained().is_empty(), "cut after {cut} bytes");
    }
    let (_, _, _, mut passive, _) = before_the_second_commit();
    passive.receive(&bytes).unwrap();
    assert_eq!(passive.guest, second);
    let replica = passive.session.into_replica();
    assert_eq!(replica.held().unwrap().epoch, Epoch::new(2));
    assert_eq!(replica.console_position(), 5);
    assert_eq!(replica.retained().replay().count(), 1);
}

proptest! {
    #[test]
    fn a_transaction_damaged_at_any_byte_leaves_the_checkpoint_before(
        at: prop::sample::Index, by in 1..=255u8,
    ) {
        let (first, _, _, mut passive, mut bytes) = before_the_second_commit();
        passive.out.clear();
        let at = at.index(bytes.len());
        bytes[at] ^= by;
        prop_assert!(passive.receive(&bytes).is_err());
        prop_assert!(passive.out.is_empty());
        prop_assert_eq!(&passive.guest, &first);
        prop_assert_eq!(passive.session.replica().held().unwrap().epoch, Epoch::new(1));
    }

    #[test]
    fn a_transaction_with_a_stretch_left_out_leaves_the_checkpoint_before(
        from: prop::sample::Index, to: prop::sample::Index,
    ) {
        let (first, _, _, mut passive, mut bytes) = before_the_second_commit();
        let (from, to) = (from.index(bytes.len()), to.index(bytes.len() + 1));
        prop_assume!(from < to);
        bytes.drain(from..to);
        let _ = passive.receive(&bytes);
        prop_assert_eq!(&passive.guest, &first);
        prop_assert_eq!(passive.session.replica().held().unwrap().epoch, Epoch::new(1));
    }
}

#[test]
fn the_initial_copy_makes_the_replica_unfit_until_its_first_commit() {
    let (mut active, mut passive) = greeted(&Guest::new());
    active.checkpoint(&silent(1), &Guest::new(), &[]);
    passive.receive(&active.take_out()).unwrap();
    let (replica, guest) = (passive.session.into_replica(), passive.guest);
    assert!(replica.held().is_some());

    let mut active = ActiveSide::new(1, 1);
    let mut passive = PassiveSide::new(replica, guest);
    passive.receive(&active.take_out()).unwrap();
    active.receive(&std::mem::take(&mut passive.out)).unwrap();
    assert!(
        passive.session.replica().held().is_some(),
        "the greeting alone changes nothing"
    );
    active.copy(&Guest::new());
    passive.receive(&active.take_out()).unwrap();
    assert_eq!(passive.session.replica().held(), None);
    active.checkpoint(&silent(2), &Guest::new(), &[]);
    passive.receive(&active.take_out()).unwrap();
    assert_eq!(
        passive.session.replica().held().unwrap().epoch,
        Epoch::new(2)
    );
}

#[test]
fn a_copy_that_left_a_page_out_is_never_built_on() {
    let mut active = ActiveSide::new(0, 0);
    let mut passive = PassiveSide::new(Replica::default(), Guest::new());
    passive.receive(&active.take_out()).unwrap();
    active.receive(&std::mem::take(&mut passive.out)).unwrap();
    let mut partial = Guest::new();
    partial.ram.remove(&PageIndex(18));
    active.copy(&partial);
    active.checkpoint(&silent(1), &partial, &[]);
    let refused = passive.receive(&active.take_out()).unwrap_err();
    assert!(
        refused.to_string().contains("1 pages of RAM never sent"),
        "{refused}"
    );
}
