// SPDX-License-Identifier: Apache-2.0
//! Pages in every encoding arrive as what they were, whatever the guest writes, however often the
//! session is lost; and hostile encodings end the session before anything is acknowledged.
#![allow(
    clippy::unwrap_used,
    reason = "a test ends where something is not as it must be"
)]

mod pair;

use kemari_replication::active::ActiveEvent;
use kemari_replication::compression::{Effort, PageTally};
use kemari_replication::page::page_checksum;
use kemari_replication::passive::Replica;
use kemari_replication::protocol::ProtocolError;
use kemari_replication::wire::pages::{EncodedPage, PageReader, encode_page};
use kemari_replication::wire::{
    Begin, Commit, FrameDecoder, FrameHeader, FrameKind, FrameWriter, Hello, HelloBody, Purpose,
    TransactionDigest, WireError,
};
use kemari_replication::{Epoch, PAGE_BYTES, PageIndex};
use pair::{ActiveSide, G, Guest, PassiveSide, greeted, identity, indices, silent};
use proptest::prelude::*;

/// A page that LZ4 makes nothing of.
fn noise(seed: u64) -> [u8; PAGE_BYTES] {
    let mut state = seed | 1;
    std::array::from_fn(|_| {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_be_bytes()[0]
    })
}

/// What the guest does to one page.
#[derive(Debug, Clone)]
enum Edit {
    /// Writes what is there already.
    Silent,
    Fill(u8),
    Noise(u64),
    /// Text that compresses.
    Text(u8),
    Bytes(Vec<(usize, u8)>),
}

impl Edit {
    fn apply(&self, page: &mut [u8; PAGE_BYTES]) {
        match self {
            Self::Silent => {}
            Self::Fill(value) => page.fill(*value),
            Self::Noise(seed) => *page = noise(*seed),
            Self::Text(shift) => {
                for (byte, n) in page.iter_mut().zip(0_usize..) {
                    *byte = b"the quick brown fox "[n % 20].wrapping_add(*shift);
                }
            }
            Self::Bytes(bytes) => bytes.iter().for_each(|(at, value)| page[*at] = *value),
        }
    }
}

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        2 => Just(Edit::Silent),
        2 => (0..3_u8).prop_map(Edit::Fill),
        2 => any::<u64>().prop_map(Edit::Noise),
        2 => any::<u8>().prop_map(Edit::Text),
        4 => prop::collection::vec((0..PAGE_BYTES, any::<u8>()), 1..40).prop_map(Edit::Bytes),
    ]
}

fn effort() -> impl Strategy<Value = Effort> {
    prop::sample::select(Effort::ALL.to_vec())
}

/// One epoch: an effort, edits of pages (a page may occur twice), and what becomes of it.
#[derive(Debug, Clone)]
struct Round {
    effort: Effort,
    edits: Vec<(usize, Edit)>,
    /// The connection is lost: before anything arrives, or after all arrived.
    cut: Option<bool>,
}

fn rounds() -> impl Strategy<Value = Vec<Round>> {
    let round = (
        effort(),
        prop::collection::vec((0..8_usize, edit()), 0..10),
        prop::option::weighted(0.15, any::<bool>()),
    );
    prop::collection::vec(
        round.prop_map(|(effort, edits, cut)| Round { effort, edits, cut }),
        1..25,
    )
}

/// A pair that survives lost connections as the process does: what the peer does not hold is sent
/// again, by a session that remembers nothing.
struct Pair {
    active: ActiveSide,
    passive: PassiveSide,
    guest: Guest,
    epoch: u64,
    acked: u64,
    /// Pages written since the epoch the peer is known to hold.
    unacked: Vec<PageIndex>,
}

impl Pair {
    fn new(sent_bytes_max: usize) -> Self {
        let guest = Guest::new();
        let (mut active, passive) = greeted(&guest);
        active.session.sender().set_sent_bytes_max(sent_bytes_max);
        Self {
            active,
            passive,
            guest,
            epoch: 0,
            acked: 0,
            unacked: Vec::new(),
        }
    }

    fn round(&mut self, round: &Round) {
        let mut dirty = std::mem::take(&mut self.unacked);
        for (page, edit) in &round.edits {
            let index = indices().nth(*page).unwrap();
            edit.apply(self.guest.ram.get_mut(&index).unwrap());
            dirty.push(index);
        }
        if dirty.len() > 8 {
            // No transaction has more entries than there are pages.
            dirty.sort_unstable();
            dirty.dedup();
        }
        self.epoch += 1;
        self.active.session.sender().set_effort(round.effort);
        self.active
            .checkpoint(&silent(self.epoch), &self.guest, &dirty);
        let bytes = self.active.take_out();
        match round.cut {
            Some(false) => {
                // An unlucky half of it arrives.
                self.passive.receive(&bytes[..bytes.len() / 2]).unwrap();
                self.unacked = dirty;
                self.reconnect();
            }
            Some(true) => {
                self.passive.receive(&bytes).unwrap();
                assert_eq!(self.passive.guest, self.guest);
                self.acked = self.epoch;
                // The acknowledgement is lost.
                self.reconnect();
            }
            None => {
                self.passive.receive(&bytes).unwrap();
                let answers = std::mem::take(&mut self.passive.out);
                self.active.receive(&answers).unwrap();
                assert_eq!(
                    self.passive.guest, self.guest,
                    "RAM after epoch {}",
                    self.epoch
                );
                self.acked = self.epoch;
            }
        }
    }

    fn reconnect(&mut self) {
        let old = std::mem::replace(
            &mut self.passive,
            PassiveSide::new(Replica::new(G), Guest::new()),
        );
        self.passive = PassiveSide::new(old.session.into_replica(), old.guest);
        self.active = ActiveSide::new(self.epoch, self.active.session.acked().get());
        self.passive.receive(&self.active.take_out()).unwrap();
        let answers = std::mem::take(&mut self.passive.out);
        let events = self.active.receive(&answers).unwrap();
        let [ActiveEvent::Welcomed { held, .. }] = &events[..] else {
            panic!("{events:?}");
        };
        match held {
            Some(held) => {
                assert_eq!(held.get(), self.acked);
                self.active.build_on(*held);
            }
            None => {
                self.active.session.sender().set_effort(Effort::DeltaLz4);
                self.active.copy(&self.guest);
                self.passive.receive(&self.active.take_out()).unwrap();
                self.unacked.clear();
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn both_rams_are_equal_after_each_epoch_whatever_is_written_and_lost(
        rounds in rounds(), places in prop::sample::select(vec![0_usize, 1, 3, 8, 64]),
    ) {
        let mut pair = Pair::new(places * PAGE_BYTES);
        for round in &rounds {
            pair.round(round);
        }
    }

    #[test]
    fn a_copy_with_every_effort_arrives_as_it_was(
        edits in prop::collection::vec((0..8_usize, edit()), 0..20), effort in effort(),
    ) {
        let mut guest = Guest::new();
        for (page, edit) in &edits {
            let index = indices().nth(*page).unwrap();
            edit.apply(guest.ram.get_mut(&index).unwrap());
        }
        let (mut active, mut passive) = welcomed();
        active.session.sender().set_effort(effort);
        active.copy(&guest);
        active.checkpoint(&silent(1), &guest, &[]);
        passive.receive(&active.take_out()).unwrap();
        prop_assert_eq!(passive.guest, guest);
    }

    /// The tail of an entry is whatever it is: it is refused, or it is a page.
    #[test]
    fn any_bytes_in_any_encoding_are_refused_or_are_a_page(
        encoding in 0..6_u8, bytes in prop::collection::vec(any::<u8>(), 0..300), cut in 0..20_usize,
    ) {
        let mut payload = entry(PageIndex(1), encoding, &bytes);
        payload.truncate(payload.len() - cut.min(payload.len()));
        let (guest, mut passive) = on_epoch_one();
        let before = passive.guest.clone();
        let outcome = transaction(&mut passive, 2, &[payload]);
        if outcome.is_err() {
            prop_assert_eq!(passive.session.replica().held().unwrap().epoch, Epoch::new(1));
            prop_assert_eq!(&passive.guest, &before);
        }
        drop(guest);
    }
}

/// Both sides, greeted, nothing sent.
fn welcomed() -> (ActiveSide, PassiveSide) {
    let mut active = ActiveSide::new(0, 0);
    let mut passive = PassiveSide::new(Replica::new(G), Guest::new());
    passive.receive(&active.take_out()).unwrap();
    let answers = std::mem::take(&mut passive.out);
    active.receive(&answers).unwrap();
    (active, passive)
}

/// A guest that wrote page 1, and a passive side on that epoch that has heard four frames (Hello,
/// CopyPages, and an epoch without pages: Begin and Commit).
fn on_epoch_one() -> (Guest, PassiveSide) {
    let mut guest = Guest::new();
    **guest.ram.get_mut(&PageIndex(1)).unwrap() = noise(1);
    let (mut active, mut passive) = greeted(&guest);
    active.checkpoint(&silent(1), &guest, &[]);
    passive.receive(&active.take_out()).unwrap();
    passive.out.clear();
    (guest, passive)
}

fn entry(index: PageIndex, encoding: u8, bytes: &[u8]) -> Vec<u8> {
    let mut entry = index.0.to_le_bytes().to_vec();
    entry.extend([encoding, 0]);
    entry.extend(u16::try_from(bytes.len()).unwrap().to_le_bytes());
    entry.extend_from_slice(bytes);
    entry
}

fn lz4(bytes: &[u8]) -> Vec<u8> {
    let mut block = vec![0; lz4_flex::block::get_maximum_output_size(bytes.len())];
    let length = lz4_flex::block::compress_into(bytes, &mut block).unwrap();
    block.truncate(length);
    block
}

fn with_checksum(page: &[u8; PAGE_BYTES], body: &[u8]) -> Vec<u8> {
    [&page_checksum(page).to_le_bytes(), body].concat()
}

/// Sends entries in a transaction that is right in all else, to a side that heard four frames.
fn transaction(
    passive: &mut PassiveSide,
    epoch: u64,
    entries: &[Vec<u8>],
) -> Result<(), ProtocolError> {
    let mut writer = FrameWriter::new(G);
    let mut frames = Vec::new();
    for _ in 0..4 {
        writer.frame(&mut frames, FrameKind::Heartbeat, Epoch::new(0), |_| ());
    }
    frames.clear();
    let mut digest = TransactionDigest::default();
    let mut begin = Vec::new();
    Begin {
        delivered_up_to: Epoch::new(0),
        base: Epoch::new(epoch - 1),
        pages: entries.len() as u64,
        console_position: 0,
    }
    .encode(&mut begin);
    let pages = entries.concat();
    for (kind, payload) in [(FrameKind::Begin, begin), (FrameKind::Pages, pages)] {
        digest.add(kind, &payload);
        writer.frame(&mut frames, kind, Epoch::new(epoch), |out| {
            out.extend_from_slice(&payload);
        });
    }
    let commit = Commit {
        pages: entries.len() as u64,
        state_bytes: 0,
        outputs: 0,
        payload_bytes: digest.payload_bytes(),
        digest: digest.value(),
    };
    writer.frame(&mut frames, FrameKind::Commit, Epoch::new(epoch), |out| {
        commit.encode(out);
    });
    passive.receive(&frames)
}

/// One changed word of page 1.
const ONE_WORD: [u8; 17] = [1, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 0, 0, 0, 0, 0];

#[test]
fn a_delta_that_does_not_become_what_it_should_is_never_acknowledged() {
    let (guest, mut passive) = on_epoch_one();
    let mut changed = **guest.ram.get(&PageIndex(1)).unwrap();
    changed[0] ^= 0xff;
    // The right one is taken …
    let right = entry(PageIndex(1), 3, &with_checksum(&changed, &ONE_WORD));
    transaction(&mut passive, 2, std::slice::from_ref(&right)).unwrap();
    assert_eq!(**passive.guest.ram.get(&PageIndex(1)).unwrap(), changed);
    // … but not by a replica whose base is another, be it by one bit.
    let (_, mut passive) = on_epoch_one();
    passive.guest.ram.get_mut(&PageIndex(1)).unwrap()[4000] ^= 1;
    let refused = transaction(&mut passive, 2, &[right]);
    assert!(
        matches!(refused, Err(ProtocolError::BadDelta { .. })),
        "{refused:?}"
    );
    assert!(passive.out.is_empty(), "acknowledged");
}

#[test]
fn an_unchanged_page_is_checked_too() {
    let (guest, mut passive) = on_epoch_one();
    let page = **guest.ram.get(&PageIndex(1)).unwrap();
    let unchanged = entry(PageIndex(1), 3, &with_checksum(&page, &[]));
    assert_eq!(unchanged.len(), 16);
    transaction(&mut passive, 2, std::slice::from_ref(&unchanged)).unwrap();
    assert_eq!(passive.guest, guest);
    let (_, mut passive) = on_epoch_one();
    passive.guest.ram.get_mut(&PageIndex(1)).unwrap()[7] ^= 1;
    let refused = transaction(&mut passive, 2, &[unchanged]);
    assert!(
        matches!(refused, Err(ProtocolError::BadDelta { .. })),
        "{refused:?}"
    );
}

#[test]
fn a_delta_of_a_page_that_came_before_in_its_transaction_is_refused() {
    let (guest, mut passive) = on_epoch_one();
    let page = **guest.ram.get(&PageIndex(1)).unwrap();
    let unchanged = entry(PageIndex(1), 3, &with_checksum(&page, &[]));
    let mut raw = Vec::new();
    encode_page(&mut raw, PageIndex(1), &noise(9));
    let refused = transaction(&mut passive, 2, &[raw, unchanged]);
    assert!(
        matches!(refused, Err(ProtocolError::BadDelta { .. })),
        "{refused:?}"
    );
}

#[test]
fn a_block_that_unpacks_to_more_or_less_than_a_page_is_refused() {
    let page = noise(3);
    for length in [0, 1, PAGE_BYTES - 1, PAGE_BYTES + 1, 1 << 20] {
        let block = lz4(&vec![7; length]);
        if block.len() >= PAGE_BYTES {
            // Longer than any entry may be.
            continue;
        }
        for entry in [
            entry(PageIndex(1), 2, &block),
            entry(PageIndex(1), 4, &with_checksum(&page, &block)),
        ] {
            let (_, mut passive) = on_epoch_one();
            let refused = transaction(&mut passive, 2, &[entry]);
            // No bytes at all are an empty difference, but to another page.
            assert!(
                matches!(
                    refused,
                    Err(ProtocolError::Wire(WireError::Malformed { .. })
                        | ProtocolError::BadDelta { .. })
                ),
                "{length}: {refused:?}"
            );
            assert!(passive.out.is_empty(), "acknowledged");
        }
    }
    let (_, mut passive) = on_epoch_one();
    let block = lz4(&[7; PAGE_BYTES]);
    transaction(&mut passive, 2, &[entry(PageIndex(1), 2, &block)]).unwrap();
    assert_eq!(
        **passive.guest.ram.get(&PageIndex(1)).unwrap(),
        [7; PAGE_BYTES]
    );
}

#[test]
fn lengths_that_do_not_fit_their_encoding_are_refused() {
    for (encoding, length) in [
        (0, 1),
        (1, 0),
        (1, PAGE_BYTES - 1),
        (2, 0),
        (2, PAGE_BYTES),
        (3, 3),
        (3, PAGE_BYTES),
        (4, 3),
        (4, 4),
        (5, 4),
    ] {
        let (_, mut passive) = on_epoch_one();
        let refused = transaction(
            &mut passive,
            2,
            &[entry(PageIndex(1), encoding, &vec![0; length])],
        );
        assert!(
            matches!(refused, Err(ProtocolError::Wire(_))),
            "{encoding} with {length} bytes: {refused:?}"
        );
    }
}

#[test]
fn there_is_no_delta_in_a_copy() {
    let page = noise(1);
    for encoding in [3, 4] {
        let payload = entry(PageIndex(1), encoding, &with_checksum(&page, &ONE_WORD));
        let read = PageReader::new(FrameKind::CopyPages, 3, &payload).next();
        assert!(
            matches!(read, Some(Err(WireError::UnknownPageEncoding { .. }))),
            "{read:?}"
        );
    }
}

fn tally(active: &mut ActiveSide) -> PageTally {
    *active.session.sender().page_tally()
}

#[test]
fn each_kind_of_page_goes_in_the_encoding_that_suits_it() {
    let mut guest = Guest::new();
    let (mut active, mut passive) = greeted(&guest);
    active.session.sender().set_effort(Effort::DeltaLz4);
    let pages: Vec<_> = indices().collect();
    for index in &pages {
        **guest.ram.get_mut(index).unwrap() = noise(index.0 + 1);
    }
    guest.write(pages[0], 0);
    Edit::Text(0).apply(guest.ram.get_mut(&pages[1]).unwrap());
    active.checkpoint(&silent(1), &guest, &pages);
    let first = tally(&mut active);
    assert_eq!((first.zero, first.lz4, first.raw), (1, 1, 6), "{first:?}");

    // Page 2 stays. Page 3 changes a word, 4 a part, 5 all of it, 6 a part that compresses.
    guest.ram.get_mut(&pages[3]).unwrap()[100] ^= 1;
    guest.ram.get_mut(&pages[4]).unwrap()[..1000].copy_from_slice(&noise(88)[..1000]);
    for byte in &mut guest.ram.get_mut(&pages[6]).unwrap()[..1024] {
        *byte ^= 1;
    }
    **guest.ram.get_mut(&pages[5]).unwrap() = noise(77);
    active.checkpoint(&silent(2), &guest, &pages[2..7]);
    let second = tally(&mut active);
    assert_eq!(
        (second.unchanged, second.delta, second.delta_lz4, second.raw),
        (1, 2, 1, 1),
        "{second:?}"
    );
    passive.receive(&active.take_out()).unwrap();
    assert_eq!(passive.guest, guest);
}

#[test]
fn several_epochs_in_flight_are_differences_to_each_other() {
    let mut guest = Guest::new();
    let (mut active, mut passive) = greeted(&guest);
    active.session.sender().set_effort(Effort::Delta);
    let mut images = Vec::new();
    for epoch in 1..=4 {
        **guest.ram.get_mut(&PageIndex(2)).unwrap() = noise(5);
        guest.ram.get_mut(&PageIndex(2)).unwrap()[0] = u8::try_from(epoch).unwrap();
        active.checkpoint(&silent(epoch), &guest, &[PageIndex(2)]);
        let kept = tally(&mut active);
        assert_eq!(kept.delta, u64::from(epoch > 1), "epoch {epoch}: {kept:?}");
        images.push((active.take_out(), guest.clone()));
    }
    // Nothing was acknowledged before all were sent.
    for (bytes, image) in images {
        passive.receive(&bytes).unwrap();
        assert_eq!(passive.guest, image);
    }
}

/// A peer of version 2: it knows zero and raw pages.
#[test]
fn a_peer_of_the_version_before_gets_nothing_it_does_not_know() {
    let mut guest = Guest::new();
    let mut active = ActiveSide::new(0, 0);
    active.take_out();
    let mut welcome = Vec::new();
    let mut writer = FrameWriter::new(G);
    writer.set_version(2);
    writer.frame(&mut welcome, FrameKind::Welcome, Epoch::new(0), |payload| {
        // Postcard: the node's name, then no checkpoint.
        payload.extend_from_slice(b"\x01b\x00");
    });
    active.receive(&welcome).unwrap();
    active.session.sender().set_effort(Effort::DeltaLz4);
    Edit::Text(0).apply(guest.ram.get_mut(&PageIndex(1)).unwrap());
    active.copy(&guest);
    for epoch in 1..4 {
        active.checkpoint(&silent(epoch), &guest, &[PageIndex(1), PageIndex(2)]);
    }
    let mut decoder = FrameDecoder::new();
    let bytes = active.take_out();
    decoder.push(&bytes);
    let mut pages = 0;
    while let Some((header, payload)) = decoder.next_frame().unwrap() {
        assert_eq!(header.version, 2);
        if matches!(header.kind, FrameKind::Pages | FrameKind::CopyPages) {
            for page in PageReader::new(header.kind, 2, payload) {
                assert!(matches!(
                    page,
                    Ok((_, EncodedPage::Zero | EncodedPage::Raw(_)))
                ));
                pages += 1;
            }
        }
    }
    assert_eq!(pages, 8 + 3 * 2);
}

#[test]
fn a_session_of_the_version_before_refuses_what_that_does_not_know() {
    let mut passive = PassiveSide::new(Replica::new(G), Guest::new());
    let mut writer = FrameWriter::new(G);
    writer.set_version(2);
    let mut bytes = Vec::new();
    let body = HelloBody {
        identity: identity(),
        node: "a".parse().unwrap(),
        purpose: Purpose::Replication,
    };
    writer.frame(&mut bytes, FrameKind::Hello, Epoch::new(0), |payload| {
        let start = payload.len();
        Hello::encode(payload, &body);
        // Newest: 2.
        payload[start + 2..start + 4].copy_from_slice(&2_u16.to_le_bytes());
    });
    passive.receive(&bytes).unwrap();
    let (header, _) = only_frame(&passive.out);
    assert_eq!((header.kind, header.version), (FrameKind::Welcome, 2));
    bytes.clear();
    writer.frame(&mut bytes, FrameKind::CopyPages, Epoch::new(0), |payload| {
        let block = lz4(&[7; PAGE_BYTES]);
        payload.extend(entry(PageIndex(1), 2, &block));
    });
    let refused = passive.receive(&bytes);
    assert!(
        matches!(
            refused,
            Err(ProtocolError::Wire(WireError::UnknownPageEncoding {
                code: 2,
                ..
            }))
        ),
        "{refused:?}"
    );
}

fn only_frame(bytes: &[u8]) -> (FrameHeader, Vec<u8>) {
    let mut decoder = FrameDecoder::new();
    decoder.push(bytes);
    let (header, payload) = decoder.next_frame().unwrap().unwrap();
    (header, payload.to_vec())
}
