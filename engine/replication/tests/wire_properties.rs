// SPDX-License-Identifier: Apache-2.0
//! Properties of the wire format: what is written is read back, and hostile bytes neither panic
//! nor make anything grow beyond its limit.

mod pair;

use kemari_replication::passive::{PassiveAction, Replica};
use kemari_replication::wire::outputs::{decode_outputs, encode_output};
use kemari_replication::wire::pages::{EncodedPage, PageReader, encode_page};
use kemari_replication::wire::{
    Begin, FrameDecoder, FrameHeader, FrameKind, FrameWriter, HEADER_BYTES, PAYLOAD_BYTES_MAX,
    PROTOCOL_VERSION, WireError,
};
use kemari_replication::{Epoch, Generation, NoPages, Output, OutputKind, PAGE_BYTES, PageIndex};
use pair::{ActiveSide, G, Guest, PassiveSide, greeted, passive, silent};
use proptest::prelude::*;

fn kinds() -> impl Strategy<Value = FrameKind> {
    prop::sample::select(FrameKind::ALL.to_vec())
}

fn written(frames: &[(FrameKind, u64, Vec<u8>)]) -> Vec<u8> {
    numbered_from(0, frames)
}

/// Frames numbered as if `before` others had come first on the connection.
fn numbered_from(before: u64, frames: &[(FrameKind, u64, Vec<u8>)]) -> Vec<u8> {
    let mut writer = FrameWriter::new(G);
    let mut bytes = Vec::new();
    for _ in 0..before {
        writer.frame(&mut bytes, FrameKind::Heartbeat, Epoch::new(0), |_| ());
    }
    bytes.clear();
    for (kind, epoch, payload) in frames {
        writer.frame(&mut bytes, *kind, Epoch::new(*epoch), |out| {
            out.extend_from_slice(payload);
        });
    }
    bytes
}

/// A frame whose payload has a good chance to be what its kind requires.
fn plausible() -> impl Strategy<Value = (FrameKind, u64, Vec<u8>)> {
    let begin = (0..3u64, 0..3u64, 0..4u64).prop_map(|(delivered, base, pages)| {
        let mut payload = Vec::new();
        let (delivered_up_to, base) = (Epoch::new(delivered), Epoch::new(base));
        Begin {
            delivered_up_to,
            base,
            pages,
            console_position: 0,
        }
        .encode(&mut payload);
        payload
    });
    let pages = prop::collection::vec((0..6u64, 0..2u8), 0..4).prop_map(|pages| {
        let mut payload = Vec::new();
        for (index, fill) in pages {
            encode_page(&mut payload, PageIndex(index), &[fill; PAGE_BYTES]);
        }
        payload
    });
    let numbers = prop::collection::vec(0..5u8, 0..48);
    let payload = prop_oneof![Just(Vec::new()), begin, pages, numbers];
    (kinds(), 0..4u64, payload)
}

fn frames() -> impl Strategy<Value = Vec<(FrameKind, u64, Vec<u8>)>> {
    prop::collection::vec(
        (
            kinds(),
            0..1u64 << 62,
            prop::collection::vec(any::<u8>(), 0..200),
        ),
        0..6,
    )
}

proptest! {
    #[test]
    fn frames_survive_any_cutting_of_the_stream(
        frames in frames(),
        cuts in prop::collection::vec(1usize..300, 1..20),
    ) {
        let bytes = written(&frames);
        let mut decoder = FrameDecoder::new();
        let mut read = Vec::new();
        let (mut rest, mut cuts) = (bytes.as_slice(), cuts.iter().cycle());
        while !rest.is_empty() {
            let (piece, later) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
            decoder.push(piece);
            rest = later;
            while let Some((header, payload)) = decoder.next_frame().unwrap() {
                prop_assert_eq!(header.sequence, read.len() as u64);
                prop_assert_eq!(header.generation, G);
                read.push((header.kind, header.epoch.get(), payload.to_vec()));
            }
        }
        prop_assert_eq!(read, frames);
    }

    #[test]
    fn headers_round_trip(
        version: u16, kind in kinds(), payload_bytes in 0..=1_048_576_u32, payload_crc: u32,
        generation in 0..1u64 << 62, epoch in 0..1u64 << 62, sequence in 0..1u64 << 62,
    ) {
        let header = FrameHeader {
            version, kind, payload_bytes, payload_crc, sequence,
            generation: Generation::new(generation), epoch: Epoch::new(epoch),
        };
        prop_assert_eq!(FrameHeader::decode(&header.encode()), Ok(header));
    }

    #[test]
    fn one_changed_byte_is_always_noticed(
        payload in prop::collection::vec(any::<u8>(), 1..100), at: prop::sample::Index, by in 1..=255u8,
    ) {
        let mut bytes = written(&[(FrameKind::State, 7, payload)]);
        let at = at.index(bytes.len());
        bytes[at] ^= by;
        let mut decoder = FrameDecoder::new();
        decoder.push(&bytes);
        prop_assert!(decoder.next_frame().is_err());
        prop_assert!(decoder.next_frame().is_err(), "the error stays");
    }

    #[test]
    fn arbitrary_bytes_never_panic_the_decoder(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
        let mut decoder = FrameDecoder::new();
        decoder.push(&bytes);
        while let Ok(Some(_)) = decoder.next_frame() {}
        for _ in PageReader::new(FrameKind::Pages, PROTOCOL_VERSION, &bytes) {}
        let _ = decode_outputs(&bytes, &mut Vec::new());
    }

    /// Frames with right checksums and numbers, of any kind and content, in any order: what a
    /// fuzzer would reach if it knew the format.
    #[test]
    fn plausible_frames_never_panic_a_session(frames in prop::collection::vec(plausible(), 0..12)) {
        let mut fresh = PassiveSide::new(Replica::new(G), Guest::new());
        let _ = fresh.receive(&written(&frames));
        let mut side = ActiveSide::new(2, 1);
        let _ = side.receive(&written(&frames));

        let (mut active, mut passive) = greeted(&Guest::new());
        active.checkpoint(&silent(1), &Guest::new(), &[]);
        passive.receive(&active.take_out()).unwrap();
        active.receive(&passive.out).unwrap();
        // Hello, CopyPages, Begin and Commit came before; the answer was Welcome and Ack.
        let _ = passive.receive(&numbered_from(4, &frames));
        prop_assert!(passive.session.replica().held().is_some(), "nothing takes back a commit");
        let _ = active.receive(&numbered_from(2, &frames));
        prop_assert!(active.session.acked() <= Epoch::new(1), "only epoch 1 was sent");
    }

    #[test]
    fn pages_round_trip(pages in prop::collection::vec((any::<u64>(), 0..4u8), 0..40)) {
        let mut payload = Vec::new();
        for (index, fill) in &pages {
            encode_page(&mut payload, PageIndex(*index), &[*fill; PAGE_BYTES]);
        }
        let read: Vec<_> = PageReader::new(FrameKind::Pages, PROTOCOL_VERSION, &payload)
            .map(|page| page.map(|(index, page)| match page {
                EncodedPage::Raw(bytes) => (index.0, bytes[17]),
                EncodedPage::Zero => (index.0, 0),
                other => panic!("{other:?}"),
            }))
            .collect::<Result<_, _>>().unwrap();
        prop_assert_eq!(read, pages);
    }

    #[test]
    fn outputs_round_trip(
        outputs in prop::collection::vec((0..1u64 << 62, prop::collection::vec(any::<u8>(), 1..90)), 0..20)
    ) {
        let outputs: Vec<_> = outputs.into_iter()
            .map(|(position, bytes)| Output { kind: OutputKind::Console, position, bytes }).collect();
        let mut payload = Vec::new();
        for output in &outputs {
            encode_output(&mut payload, output);
        }
        let mut read = Vec::new();
        decode_outputs(&payload, &mut read).unwrap();
        prop_assert_eq!(read, outputs);
    }
}

#[test]
fn zero_pages_take_twelve_bytes() {
    let mut payload = Vec::new();
    encode_page(&mut payload, PageIndex(9), &[0; PAGE_BYTES]);
    assert_eq!(payload.len(), 12);
    let mut last = [0; PAGE_BYTES];
    last[PAGE_BYTES - 1] = 1;
    encode_page(&mut payload, PageIndex(10), &last);
    let pages: Vec<_> = PageReader::new(FrameKind::Pages, PROTOCOL_VERSION, &payload)
        .collect::<Result<_, _>>()
        .unwrap();
    assert_eq!(
        pages,
        [
            (PageIndex(9), EncodedPage::Zero),
            (PageIndex(10), EncodedPage::Raw(&last))
        ]
    );
}

#[test]
fn the_header_lies_as_documented() {
    let bytes = written(&[(FrameKind::State, 0x0102, b"abc".to_vec())]);
    assert_eq!(&bytes[..4], b"KMRI");
    assert_eq!(bytes[4..6], PROTOCOL_VERSION.to_le_bytes());
    assert_eq!(bytes[6..8], [7, 0]);
    assert_eq!(bytes[8..12], [3, 0, 0, 0]);
    assert_eq!(bytes[12..16], crc32c::crc32c(b"abc").to_le_bytes());
    assert_eq!(bytes[16..24], [3, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(bytes[24..32], [2, 1, 0, 0, 0, 0, 0, 0]);
    assert_eq!(bytes[32..44], [0; 12]);
    assert_eq!(bytes[44..48], crc32c::crc32c(&bytes[..44]).to_le_bytes());
    assert_eq!(bytes.len(), HEADER_BYTES + 3);
}

#[test]
fn another_protocol_is_named_as_such() {
    let mut decoder = FrameDecoder::new();
    decoder.push(b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n");
    assert!(matches!(
        decoder.next_frame(),
        Err(WireError::BadMagic { .. })
    ));
}

#[test]
fn a_frame_is_never_larger_than_its_limit() {
    let header = FrameHeader {
        version: PROTOCOL_VERSION,
        kind: FrameKind::Pages,
        payload_bytes: u32::try_from(PAYLOAD_BYTES_MAX).unwrap() + 1,
        payload_crc: 0,
        generation: G,
        epoch: Epoch::new(1),
        sequence: 0,
    };
    let refused = FrameHeader::decode(&header.encode());
    assert!(
        matches!(refused, Err(WireError::PayloadTooLarge { .. })),
        "{refused:?}"
    );
}

#[test]
fn an_engine_of_another_version_is_told_so_whatever_else_it_sends() {
    let hello = [9u8, 0, 12, 0, 0xff, 0xfe, 0xfd];
    let bytes = written(&[(FrameKind::Hello, 0, hello.to_vec())]);
    let mut decoder = FrameDecoder::new();
    decoder.push(&bytes);
    let (header, payload) = decoder.next_frame().unwrap().unwrap();
    let mut session = passive(Replica::new(G));
    let PassiveAction::Refuse(refusal) = session.on_frame(&header, payload, &NoPages).unwrap()
    else {
        panic!("welcomed");
    };
    assert!(
        refusal
            .to_string()
            .contains("speaks 2 to 4, the calling one 9 to 12"),
        "{refusal}"
    );
}
