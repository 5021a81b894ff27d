// SPDX-License-Identifier: Apache-2.0
//! The traps the first Kemari fell into, a test for each that concerns transactions and outputs.
//!
//! Trap 8, that nobody decides, is tested where somebody does: `simulator` (a failover without a
//! person) and `agent/tests/arbitration`.

mod pair;

use kemari_replication::active::{ActiveEvent, Base, BeginTransaction};
use kemari_replication::event_tap::{Carry, EventTap, TapConfig};
use kemari_replication::gate::OutputGate;
use kemari_replication::licence::LicenceEvent;
use kemari_replication::passive::{PassiveAction, Replica};
use kemari_replication::protocol::ProtocolError;
use kemari_replication::wire::{
    Begin, FrameDecoder, FrameHeader, FrameKind, FrameWriter, PROTOCOL_VERSION, WireError,
};
use kemari_replication::{Epoch, Generation, NetworkPort, OutputKind, PageIndex};
use pair::{ActiveSide, G, Guest, PassiveSide, greeted, silent};

fn paired_gate() -> OutputGate {
    let mut gate = OutputGate::new(EventTap::new(&TapConfig::default()));
    for event in [
        LicenceEvent::SoloGranted { generation: G },
        LicenceEvent::Hold,
        LicenceEvent::PairedRecorded,
        LicenceEvent::CommitSent,
    ] {
        gate.handle(event).expect("in this order");
    }
    let epoch = gate.close_epoch(Carry::Undelivered).epoch;
    gate.committed(epoch).expect("offered before");
    gate
}

#[test]
fn trap_1_nothing_is_acknowledged_before_the_process_accepts_the_state() {
    let (mut active, mut passive) = greeted(&Guest::new());
    active.checkpoint(&silent(1), &Guest::new(), &[]);
    passive.out.clear();
    let bytes = active.take_out();
    let mut decoder = FrameDecoder::new();
    decoder.push(&bytes);
    let mut complete = None;
    while let Some((header, payload)) = decoder.next_frame().unwrap() {
        if let PassiveAction::Complete(checkpoint) = passive
            .session
            .on_frame(&header, payload, &passive.guest)
            .unwrap()
        {
            complete = Some(checkpoint);
        }
    }
    let mut checkpoint = complete.expect("the transaction is complete");
    assert!(
        passive.out.is_empty(),
        "acknowledged before it was accepted"
    );
    assert_eq!(passive.session.replica().held(), None);
    passive.session.accept(&mut checkpoint, &mut passive.out);
    let events = active.receive(&passive.out).unwrap();
    assert_eq!(
        events,
        [ActiveEvent::Acked {
            epoch: Epoch::new(1)
        }]
    );
}

#[test]
fn trap_1_a_state_that_does_not_decode_leaves_the_checkpoint_before() {
    let (mut active, mut passive) = greeted(&Guest::new());
    active.checkpoint(&silent(1), &Guest::new(), &[]);
    passive.receive(&active.take_out()).unwrap();
    let held = passive.session.replica().held();
    active.checkpoint(&silent(2), &Guest::new(), &[]);
    let bytes = active.take_out();
    let mut decoder = FrameDecoder::new();
    decoder.push(&bytes);
    while let Some((header, payload)) = decoder.next_frame().unwrap() {
        // The process drops the checkpoint and the session with it.
        let _ = passive
            .session
            .on_frame(&header, payload, &passive.guest)
            .unwrap();
    }
    let replica = passive.session.into_replica();
    assert_eq!(replica.held(), held);
}

#[test]
fn trap_2_a_lost_connection_releases_nothing() {
    let mut gate = paired_gate();
    gate.push(OutputKind::Console, b"uncommitted");
    gate.close_epoch(Carry::Epoch);
    gate.push(OutputKind::Console, b"open");
    gate.handle(LicenceEvent::SessionLost).unwrap();
    assert_eq!(gate.next_release(), None);
    gate.handle(LicenceEvent::Rejoin).unwrap();
    assert_eq!(gate.next_release(), None);
}

/// The first Kemari kept one byte of each `outw` and `outl`, and replayed that.
#[test]
fn trap_3_outputs_of_every_width_are_replayed_whole() {
    let mut gate = paired_gate();
    let writes: [&[u8]; 5] = [&[1], &[2, 3], &[4, 5, 6, 7], &[8; 8], &[9; 3000]];
    let port = NetworkPort::new(3).expect("one of eight");
    for bytes in writes {
        gate.push(OutputKind::Console, bytes);
        gate.push(OutputKind::Network(port), bytes);
    }
    let closed = gate.close_epoch(Carry::Epoch);
    let (mut active, mut passive) = greeted(&Guest::new());
    active.checkpoint(&closed, &Guest::new(), &[]);
    passive.receive(&active.take_out()).unwrap();

    let replica = passive.session.into_replica();
    let held = replica.held().expect("a checkpoint").epoch;
    let (position, retained) = (replica.console_position(), replica.retained());
    let mut tap = EventTap::take_over(1 << 20, held, position, retained);
    tap.release_all_solo();
    let mut replayed = Vec::new();
    while let Some(release) = tap.next_release() {
        replayed.push((release.output.kind, release.output.bytes.clone()));
    }
    let made: Vec<_> = writes
        .iter()
        .flat_map(|bytes| [OutputKind::Console, OutputKind::Network(port)].map(|k| (k, *bytes)))
        .map(|(kind, bytes)| (kind, bytes.to_vec()))
        .collect();
    assert_eq!(replayed, made);
}

#[test]
fn trap_4_a_length_from_the_wire_reserves_nothing_and_is_limited() {
    let (mut active, mut passive) = greeted(&Guest::new());
    let begin = Begin {
        delivered_up_to: Epoch::new(0),
        base: Epoch::new(0),
        pages: u64::MAX,
        console_position: 0,
    };
    // A forger's frame that continues the connection: Hello and CopyPages came before.
    let mut writer = FrameWriter::new(G);
    writer.frame(&mut Vec::new(), FrameKind::Hello, Epoch::new(0), |_| ());
    writer.frame(&mut Vec::new(), FrameKind::CopyPages, Epoch::new(0), |_| ());
    let mut bytes = Vec::new();
    writer.frame(&mut bytes, FrameKind::Begin, Epoch::new(1), |payload| {
        begin.encode(payload);
    });
    let refused = passive.receive(&bytes);
    assert!(
        matches!(refused, Err(ProtocolError::TooMuch { limit: 8, .. })),
        "{refused:?}"
    );

    // More pages than announced, though each is right.
    let (_, mut passive) = greeted(&Guest::new());
    let begin = BeginTransaction {
        epoch: Epoch::new(1),
        base: Base::Copy,
        pages: 1,
        delivered_up_to: Epoch::new(0),
        console_position: 0,
    };
    active.session.sender().begin(&mut active.out, begin);
    let page = [7; 4096];
    active
        .session
        .sender()
        .pages(&mut active.out, &mut [(PageIndex(0), &page)].into_iter());
    passive.receive(&active.take_out()).unwrap();
    let mut writer = FrameWriter::new(G);
    for _ in 0..4 {
        writer.frame(&mut Vec::new(), FrameKind::Heartbeat, Epoch::new(0), |_| ());
    }
    let mut bytes = Vec::new();
    writer.frame(&mut bytes, FrameKind::Pages, Epoch::new(1), |payload| {
        kemari_replication::wire::pages::encode_page(payload, PageIndex(1), &page);
    });
    let refused = passive.receive(&bytes);
    assert!(
        matches!(refused, Err(ProtocolError::TooMuch { limit: 1, .. })),
        "{refused:?}"
    );
}

/// A passive side's frame, forged.
fn forged(generation: Generation, sequence: u64, epoch: u64) -> (FrameHeader, Vec<u8>) {
    let header = FrameHeader {
        version: PROTOCOL_VERSION,
        kind: FrameKind::Ack,
        payload_bytes: 0,
        payload_crc: crc32c::crc32c(&[]),
        generation,
        epoch: Epoch::new(epoch),
        sequence,
    };
    (header, Vec::new())
}

fn with_two_sent_and_one_acked() -> ActiveSide {
    let (mut active, mut passive) = greeted(&Guest::new());
    active.checkpoint(&silent(1), &Guest::new(), &[]);
    passive.receive(&active.take_out()).expect("right frames");
    active.receive(&passive.out).expect("right frames");
    active.checkpoint(&silent(2), &Guest::new(), &[]);
    active
}

#[test]
fn trap_5_a_stale_doubled_or_foreign_acknowledgement_is_refused() {
    type Expected = fn(&ProtocolError) -> bool;
    type Case = (&'static str, (FrameHeader, Vec<u8>), Expected);
    let cases: [Case; 5] = [
        ("doubled", forged(G, 2, 1), |e| {
            matches!(e, ProtocolError::AckNotNewer { .. })
        }),
        ("stale", forged(G, 2, 0), |e| {
            matches!(e, ProtocolError::AckNotNewer { .. })
        }),
        ("never sent", forged(G, 2, 3), |e| {
            matches!(e, ProtocolError::AckBeyondSent { .. })
        }),
        ("generation", forged(G.next(), 2, 2), |e| {
            matches!(e, ProtocolError::Generation { .. })
        }),
        ("repeated frame", forged(G, 1, 2), |e| {
            matches!(e, ProtocolError::Sequence { .. })
        }),
    ];
    for (name, (header, payload), expected) in cases {
        let mut active = with_two_sent_and_one_acked();
        let refused = active.session.on_frame(&header, &payload).unwrap_err();
        assert!(expected(&refused), "{name}: {refused:?}");
        assert_eq!(active.session.acked(), Epoch::new(1), "{name}");
        let (header, payload) = forged(G, 2, 2);
        let later = active.session.on_frame(&header, &payload);
        assert_eq!(
            later,
            Err(ProtocolError::Over),
            "{name}: the session is over"
        );
    }
}

#[test]
fn trap_5_a_header_without_its_checksum_is_refused() {
    let (header, _) = forged(G, 2, 2);
    let mut bytes = header.encode();
    bytes[24] = 3;
    let refused = FrameHeader::decode(&bytes);
    assert!(
        matches!(refused, Err(WireError::HeaderChecksum { .. })),
        "{refused:?}"
    );
}

#[test]
fn trap_6_outputs_of_many_writes_share_one_transaction() {
    let mut gate = paired_gate();
    for byte in 0..200u8 {
        let first = gate.push(OutputKind::Console, &[byte]);
        assert_eq!(
            first,
            byte == 0,
            "only the first write of an epoch asks for a checkpoint"
        );
    }
    let closed = gate.close_epoch(Carry::Epoch);
    assert_eq!(closed.outputs.len(), 1, "and they are one output");
    assert_eq!(closed.outputs[0].bytes.len(), 200);
}

#[test]
fn trap_7_after_a_lost_acknowledgement_the_next_session_says_what_was_committed() {
    let (mut active, mut passive) = greeted(&Guest::new());
    active.checkpoint(&silent(1), &Guest::new(), &[]);
    passive.receive(&active.take_out()).unwrap();
    // The acknowledgement is lost with the connection.
    let (replica, guest) = (passive.session.into_replica(), passive.guest);
    let mut active = ActiveSide::new(1, 0);
    let mut passive = PassiveSide::new(replica, guest);
    passive.receive(&active.take_out()).unwrap();
    let events = active.receive(&passive.out).unwrap();
    let held = Some(Epoch::new(1));
    assert!(matches!(&events[..], [ActiveEvent::Welcomed { held: h, .. }] if *h == held));
    assert_eq!(active.session.acked(), Epoch::new(1));
}

#[test]
fn trap_7_a_new_connection_goes_on_where_the_old_one_ended() {
    let (mut active, mut passive) = greeted(&Guest::new());
    active.checkpoint(&silent(1), &Guest::new(), &[]);
    passive.receive(&active.take_out()).unwrap();
    let (replica, guest) = (passive.session.into_replica(), passive.guest);
    let mut active = ActiveSide::new(2, 1);
    let mut passive = PassiveSide::new(replica, guest);
    passive.receive(&active.take_out()).unwrap();
    active.receive(&std::mem::take(&mut passive.out)).unwrap();
    active.build_on(Epoch::new(1));
    active.checkpoint(&silent(3), &Guest::new(), &[]);
    passive.receive(&active.take_out()).unwrap();
    assert_eq!(
        passive.session.replica().held().unwrap().epoch,
        Epoch::new(3)
    );
}

/// It tapped device models, one by one; here whatever is an output passes one gate, in one order.
/// That every back end hands its outputs to it is tested in `engine/src/outputs` and `engine/tests`.
#[test]
fn trap_9_one_gate_holds_every_kind_of_output() {
    let mut gate = paired_gate();
    let ports = (0..=u8::MAX).filter_map(NetworkPort::new);
    let kinds: Vec<_> = std::iter::once(OutputKind::Console)
        .chain(ports.map(OutputKind::Network))
        .collect();
    assert_eq!(kinds.len(), 1 + NetworkPort::COUNT);
    for code in 0..=u8::MAX {
        let known = OutputKind::from_code(code);
        assert!(known.is_none_or(|kind| kinds.contains(&kind)), "{known:?}");
    }
    for kind in &kinds {
        gate.push(*kind, b"output");
        assert_eq!(gate.next_release(), None, "{kind:?}: not committed");
    }
    let epoch = gate.close_epoch(Carry::Epoch).epoch;
    assert_eq!(gate.next_release(), None);
    gate.committed(epoch).expect("closed before");
    let released: Vec<_> = std::iter::from_fn(|| gate.next_release())
        .map(|release| release.output.kind)
        .collect();
    assert_eq!(released, kinds, "in the order they were made");
}

/// It stopped the guest until the acknowledgement. Here the next epochs go on, are closed and sent
/// meanwhile, and one acknowledgement may release several.
#[test]
fn trap_10_the_guest_goes_on_while_acknowledgements_are_under_way() {
    let mut gate = paired_gate();
    let (mut active, mut passive) = greeted(&Guest::new());
    let mut frames = Vec::new();
    for number in 0..4u8 {
        gate.push(OutputKind::Console, &[number]);
        let closed = gate.close_epoch(Carry::Epoch);
        active.checkpoint(&closed, &Guest::new(), &[]);
        frames.extend(active.take_out());
        assert_eq!(
            gate.next_release(),
            None,
            "epoch {} is under way",
            closed.epoch
        );
    }
    gate.push(OutputKind::Console, b"of the open epoch");
    passive.receive(&frames).unwrap();
    let events = active.receive(&passive.out).unwrap();
    let Some(ActiveEvent::Acked { epoch }) = events.last() else {
        panic!("{events:?}");
    };
    assert_eq!(events.len(), 4, "each was acknowledged: {events:?}");
    gate.committed(*epoch).expect("closed before");
    let released: Vec<_> = std::iter::from_fn(|| gate.next_release())
        .map(|release| release.output.bytes.clone())
        .collect();
    assert_eq!(released, [[0], [1], [2], [3]]);
}

#[test]
fn a_replica_that_knows_a_newer_generation_outdates_the_caller() {
    let mut active = ActiveSide::new(0, 0);
    let mut passive = PassiveSide::new(Replica::new(G.next()), Guest::new());
    passive.receive(&active.take_out()).unwrap();
    let events = active.receive(&passive.out).unwrap();
    let text = format!("{events:?}");
    assert!(text.contains("Outdated"), "{text}");
}
