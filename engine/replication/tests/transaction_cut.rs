// SPDX-License-Identifier: Apache-2.0
//! A transaction is received whole or not at all, wherever the connection ends or is damaged.

mod pair;

use std::sync::Arc;

use kemari_replication::active::{ActiveEvent, Base, BeginTransaction};
use kemari_replication::event_tap::ClosedEpoch;
use kemari_replication::passive::{PassiveAction, Replica};
use kemari_replication::protocol::ProtocolError;
use kemari_replication::wire::{
    FrameDecoder, FrameHeader, FrameKind, FrameWriter, Goodbye, HEADER_BYTES, PAYLOAD_BYTES_MAX,
};
use kemari_replication::{Epoch, NoPages, Output, OutputKind, PAGE_BYTES, PageIndex};
use pair::{ActiveSide, G, Guest, PassiveSide, greeted, silent};
use proptest::prelude::*;

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

/// The only frame of these bytes.
fn one_frame(bytes: &[u8]) -> (FrameHeader, Vec<u8>) {
    let mut decoder = FrameDecoder::new();
    decoder.push(bytes);
    let (header, payload) = decoder.next_frame().expect("valid").expect("complete");
    (header, payload.to_vec())
}

fn a_heartbeat() -> Vec<u8> {
    let mut bytes = Vec::new();
    FrameWriter::new(G).frame(&mut bytes, FrameKind::Heartbeat, Epoch::new(0), |_| ());
    bytes
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

/// The frames of a transaction in another order, numbered as if that were right: every checksum
/// fits, only the digest does not.
#[test]
fn frames_in_another_order_are_noticed_by_the_digest() {
    let (first, _, _, mut passive, bytes) = before_the_second_commit();
    let mut decoder = FrameDecoder::new();
    decoder.push(&bytes);
    let mut frames = Vec::new();
    while let Some((header, payload)) = decoder.next_frame().unwrap() {
        frames.push((header, payload.to_vec()));
    }
    let kinds: Vec<_> = frames.iter().map(|(header, _)| header.kind).collect();
    assert_eq!(kinds[1..3], [FrameKind::Pages, FrameKind::State]);
    let sequences = [frames[1].0.sequence, frames[2].0.sequence];
    frames.swap(1, 2);
    (frames[1].0.sequence, frames[2].0.sequence) = (sequences[0], sequences[1]);
    let forged: Vec<u8> = frames
        .iter()
        .flat_map(|(header, payload)| [&header.encode(), &payload[..]].concat())
        .collect();
    let refused = passive.receive(&forged);
    assert!(
        matches!(refused, Err(ProtocolError::Digest { .. })),
        "{refused:?}"
    );
    assert_eq!(passive.guest, first);
}

#[test]
fn a_newer_generation_voids_what_is_held() {
    let (_, _, _, passive, _) = before_the_second_commit();
    let replica = passive.session.into_replica();
    assert!(replica.held().is_some());
    let mut passive = PassiveSide::new(replica, passive.guest);
    let mut newer = ActiveSide::of_generation(G.next(), 0, 0);
    passive.receive(&newer.take_out()).unwrap();
    assert_eq!(passive.session.replica().held(), None);
    let events = newer.receive(&passive.out).unwrap();
    assert!(
        matches!(events[..], [ActiveEvent::Welcomed { held: None, .. }]),
        "{events:?}"
    );
}

#[test]
fn signs_of_life_inside_a_transaction_do_not_disturb_it() {
    let (_, _, mut active, mut passive, bytes) = before_the_second_commit();
    passive.receive(&bytes).unwrap();
    let begin = BeginTransaction {
        epoch: Epoch::new(3),
        base: Base::Epoch(Epoch::new(2)),
        pages: 0,
        delivered_up_to: Epoch::new(1),
        console_position: 5,
    };
    active.session.sender().begin(&mut active.out, begin);
    active.session.sender().heartbeat(&mut active.out);
    active.session.sender().state(&mut active.out, b"state");
    active
        .session
        .sender()
        .delivered(&mut active.out, Epoch::new(2));
    active.session.sender().commit(&mut active.out);
    passive.receive(&active.take_out()).unwrap();
    assert_eq!(
        passive.session.replica().held().unwrap().epoch,
        Epoch::new(3)
    );
    assert!(
        passive.session.replica().retained().is_empty(),
        "epoch 2 was delivered"
    );
}

#[test]
fn a_handover_names_the_last_committed_epoch() {
    let (_, _, mut active, mut passive, bytes) = before_the_second_commit();
    passive.receive(&bytes).unwrap();
    let goodbye = Goodbye::HandedOver {
        epoch: Epoch::new(2),
    };
    active.session.sender().goodbye(&mut active.out, goodbye);
    passive.receive(&active.take_out()).unwrap();
    assert_eq!(
        passive.session.replica().held().unwrap().epoch,
        Epoch::new(2)
    );
    assert_eq!(passive.receive(&a_heartbeat()), Err(ProtocolError::Over));
}

#[test]
fn many_pages_and_a_large_state_go_in_several_frames_within_the_limit() {
    let mut session = pair::active(0, 0);
    let mut passive = pair::passive(Replica::new(G));
    let (mut out, mut back) = (Vec::new(), Vec::new());
    session.hello(&mut out);
    let (header, payload) = one_frame(&out);
    assert!(matches!(
        passive.on_frame(&header, &payload, &NoPages),
        Ok(PassiveAction::Answer(_))
    ));
    passive.welcome(&mut back);
    let (header, payload) = one_frame(&back);
    session.on_frame(&header, &payload).unwrap();
    let page = [1; PAGE_BYTES];
    let mut pages = (0..600).map(|n| (PageIndex(n), &page));
    let mut counts = Vec::new();
    loop {
        out.clear();
        match session.sender().copy_pages(&mut out, &mut pages) {
            0 => break,
            count => counts.push(count),
        }
        assert!(out.len() <= HEADER_BYTES + PAYLOAD_BYTES_MAX);
    }
    assert_eq!(counts.iter().sum::<usize>(), 600);
    assert_eq!(counts.len(), 3);
    assert!(
        out.is_empty(),
        "nothing is sent when there is nothing to send"
    );
}
