// SPDX-License-Identifier: Apache-2.0
//! What fuzzers and tests feed with hostile bytes: what comes over a connection.
//!
//! The bytes are a list of frames that are right from the outside (checksums, numbers), so that
//! what is in them is reached. Each begins with four bytes: what it is, its epoch, and the length of
//! what follows it; a page entry may be given the length and the checksum that fit it, and a Commit
//! the totals and the digest. docs/fuzzing.md says how it is run.

use kemari_api::{Epoch, Generation};

use crate::active::{ActiveConfig, ActiveSession, Base, BeginTransaction};
use crate::page::{GuestPages, PAGE_BYTES, PageContent, PageIndex, RamLayout, page_checksum};
use crate::passive::{PassiveAction, PassiveConfig, PassiveSession, Replica};
use crate::storage::{BLOCK_BYTES, DiskChange, DiskLayout};
use crate::wire::pages::{ENCODING_DELTA, ENCODING_DELTA_LZ4, EncodedPage, PageReader};
use crate::wire::{
    Begin, Commit, DiskChanges, FrameDecoder, FrameKind, FrameWriter, NoChanges, PROTOCOL_VERSION,
    Purpose, TransactionDigest, VmIdentity,
};

const PAGES: u64 = 6;
/// Its only disk: two blocks and a rest.
const DISK_BYTES: u64 = 2 * BLOCK_BYTES + 512;
const GENERATION: Generation = Generation::new(3);

/// Frames of a hostile active side, for a passive one that holds epoch 1; then the same bytes for
/// the decoder of the stream and for an active side.
pub fn wire_frames(data: &[u8]) {
    let mut decoder = FrameDecoder::new();
    decoder.push(data);
    while let Ok(Some(_)) = decoder.next_frame() {}

    let mut passive = Passive::on_epoch_one();
    let mut active = active();
    let mut sender = Sender::default();
    let mut rest = data;
    while let Some(([what, epoch, a, b], more)) = rest.split_first_chunk() {
        let length = usize::from(u16::from_le_bytes([*a, *b]));
        let (payload, after) = more.split_at(length.min(more.len()));
        rest = after;
        let frame = sender.frame(&passive, *what, u64::from(*epoch % 8), payload);
        passive.receive(&frame);
        let mut decoder = FrameDecoder::new();
        decoder.push(&frame);
        if let Ok(Some((header, payload))) = decoder.next_frame() {
            let _ = active.on_frame(&header, payload);
            assert_eq!(active.acked(), Epoch::default(), "nothing was sent");
        }
    }
}

fn identity() -> VmIdentity {
    VmIdentity {
        vm: "vm".parse().expect("a valid name"),
        fingerprint: Vec::new(),
    }
}

fn active() -> ActiveSession {
    ActiveSession::new(ActiveConfig {
        identity: identity(),
        node: "a".parse().expect("a valid name"),
        purpose: Purpose::Replication,
        generation: GENERATION,
        sent: Epoch::default(),
        acked: Epoch::default(),
    })
}

struct Ram(Vec<[u8; PAGE_BYTES]>);

impl Ram {
    fn page(&self, index: PageIndex) -> Option<&[u8; PAGE_BYTES]> {
        self.0.get(usize::try_from(index.0).ok()?)
    }

    fn write(&mut self, index: PageIndex, content: PageContent<'_>) {
        let page = usize::try_from(index.0).ok();
        let page = page.and_then(|page| self.0.get_mut(page));
        *page.expect("only pages of RAM are given out") = *content.bytes();
    }
}

impl GuestPages for Ram {
    fn read(&self, index: PageIndex, page: &mut [u8; PAGE_BYTES]) -> bool {
        self.page(index).map(|bytes| *page = *bytes).is_some()
    }
}

/// The passive side and its process.
struct Passive {
    session: PassiveSession,
    ram: Ram,
    out: Vec<u8>,
}

impl Passive {
    fn on_epoch_one() -> Self {
        let config = PassiveConfig {
            identity: identity(),
            node: "b".parse().expect("a valid name"),
            ram: RamLayout::new(std::iter::once(0..PAGES).collect()).expect("one range"),
            disks: vec![DiskLayout::Replicated {
                capacity_bytes: DISK_BYTES,
            }],
            difference: |_, _| None,
        };
        let mut passive = Self {
            session: PassiveSession::new(config, Replica::new(GENERATION)),
            ram: Ram(vec![
                [0; PAGE_BYTES];
                usize::try_from(PAGES).expect("a few")
            ]),
            out: Vec::new(),
        };
        let mut active = active();
        let mut frames = Vec::new();
        active.hello(&mut frames);
        passive.receive(&frames);
        let mut decoder = FrameDecoder::new();
        decoder.push(&passive.out);
        let (header, payload) = decoder.next_frame().expect("valid").expect("complete");
        active.on_frame(&header, payload).expect("a Welcome");
        frames.clear();
        let content: [u8; PAGE_BYTES] = std::array::from_fn(|n| n.to_le_bytes()[0] / 3);
        let mut pages = (0..PAGES).map(|index| (PageIndex(index), &content));
        let sender = active.sender();
        sender.copy_pages(&mut frames, &mut pages);
        sender.begin(
            &mut frames,
            BeginTransaction {
                epoch: Epoch::new(1),
                base: Base::Copy,
                pages: 0,
                delivered_up_to: Epoch::default(),
                console_position: 0,
            },
        );
        sender.commit(&mut frames);
        passive.receive(&frames);
        assert!(passive.session.replica().held().is_some());
        passive
    }

    fn receive(&mut self, frames: &[u8]) {
        let mut decoder = FrameDecoder::new();
        decoder.push(frames);
        while let Ok(Some((header, payload))) = decoder.next_frame() {
            let before = self.session.replica().held();
            let Ok(action) = self.session.on_frame(&header, payload, &self.ram) else {
                assert_eq!(
                    self.session.replica().held(),
                    before,
                    "an error changes nothing"
                );
                return;
            };
            match action {
                PassiveAction::Answer(_) => self.session.welcome(&mut self.out),
                PassiveAction::Refuse(refusal) => self.session.refuse(&mut self.out, &refusal),
                PassiveAction::Copy(pages) => {
                    let ram = &mut self.ram;
                    let _ = pages.apply(|index, content| {
                        ram.write(index, content);
                        Ok::<_, ()>(())
                    });
                }
                PassiveAction::CopyDisk(changes) => {
                    changes.for_each(|change| within_the_disk(&change));
                }
                PassiveAction::Compare(probe) => {
                    let length = probe.digests.len() as u64 * BLOCK_BYTES;
                    assert!(probe.offset + length <= DISK_BYTES.next_multiple_of(BLOCK_BYTES));
                }
                PassiveAction::TellChanges(_) => {
                    let unknown = DiskChanges::Unknown(NoChanges::NoRecord);
                    self.session.disk_changes(&unknown, &mut self.out);
                }
                PassiveAction::MakeDurable(base) => {
                    self.session.disks_durable(base, &mut self.out);
                }
                PassiveAction::Complete(mut checkpoint) => {
                    for change in &checkpoint.changes {
                        within_the_disk(&change);
                    }
                    assert!(checkpoint.pages.len() as u64 <= PAGES);
                    self.session.accept(&mut checkpoint, &mut self.out);
                    for (index, content) in checkpoint.pages.iter() {
                        self.ram.write(index, content);
                    }
                    self.session.recycle(checkpoint);
                }
                PassiveAction::Continue | PassiveAction::Alive | PassiveAction::Goodbye(_) => {}
            }
        }
    }
}

/// What is given out can be applied.
fn within_the_disk(change: &DiskChange<&[u8]>) {
    let end = change.offset.checked_add(change.length());
    assert!(end.is_some_and(|end| end <= DISK_BYTES) && change.disk.index() == 0);
}

/// Makes frames, and keeps the books of the open transaction.
struct Sender {
    writer: FrameWriter,
    digest: TransactionDigest,
    totals: Commit,
}

impl Default for Sender {
    fn default() -> Self {
        let mut writer = FrameWriter::new(GENERATION);
        // What `on_epoch_one` sent.
        for _ in 0..4 {
            writer.frame(
                &mut Vec::new(),
                FrameKind::Heartbeat,
                Epoch::default(),
                |_| (),
            );
        }
        Self {
            writer,
            digest: TransactionDigest::default(),
            totals: Commit {
                pages: 0,
                state_bytes: 0,
                outputs: 0,
                payload_bytes: 0,
                digest: 0,
            },
        }
    }
}

impl Sender {
    fn frame(&mut self, passive: &Passive, what: u8, epoch: u64, bytes: &[u8]) -> Vec<u8> {
        let fitting = what & 0x80 != 0;
        let number = usize::from(what & 0x7f) % FrameKind::ALL.len();
        let kind = FrameKind::ALL
            .get(number)
            .copied()
            .unwrap_or(FrameKind::Pages);
        let mut payload = Vec::new();
        match kind {
            FrameKind::Begin if fitting => begin(epoch, bytes, &mut payload),
            FrameKind::Pages | FrameKind::CopyPages if fitting => {
                entry(passive, kind, bytes, &mut payload);
            }
            FrameKind::Commit if fitting => {
                self.totals.payload_bytes = self.digest.payload_bytes();
                self.totals.digest = self.digest.value();
                self.totals.encode(&mut payload);
            }
            _ => payload.extend_from_slice(bytes),
        }
        self.book(kind, &payload);
        let mut frame = Vec::new();
        self.writer
            .frame(&mut frame, kind, Epoch::new(epoch), |out| {
                out.extend_from_slice(&payload);
            });
        frame
    }

    fn book(&mut self, kind: FrameKind, payload: &[u8]) {
        match kind {
            FrameKind::Begin => {
                self.digest.reset();
                (self.totals.pages, self.totals.state_bytes) = (0, 0);
            }
            FrameKind::Pages => {
                let pages = PageReader::new(kind, PROTOCOL_VERSION, payload);
                self.totals.pages += pages.count() as u64;
            }
            FrameKind::State => self.totals.state_bytes += payload.len() as u64,
            FrameKind::Outputs => {}
            _ => return,
        }
        self.digest.add(kind, payload);
    }
}

/// A Begin on the epoch before, with a number of pages.
fn begin(epoch: u64, bytes: &[u8], payload: &mut Vec<u8>) {
    Begin {
        delivered_up_to: Epoch::default(),
        base: Epoch::new(epoch.saturating_sub(1)),
        pages: u64::from(bytes.first().copied().unwrap_or(0)),
        console_position: 0,
    }
    .encode(payload);
}

/// One page entry, as long as what follows it; a delta with the checksum it leads to.
fn entry(passive: &Passive, kind: FrameKind, bytes: &[u8], payload: &mut Vec<u8>) {
    let Some(([index, encoding], body)) = bytes.split_first_chunk() else {
        return;
    };
    let index = PageIndex(u64::from(*index) % (PAGES + 1));
    let delta = matches!(*encoding, ENCODING_DELTA | ENCODING_DELTA_LZ4);
    let body = if delta {
        [&[0; 4], body].concat()
    } else {
        body.to_vec()
    };
    let Ok(length) = u16::try_from(body.len()) else {
        return;
    };
    payload.extend(index.0.to_le_bytes());
    payload.extend([*encoding, 0]);
    payload.extend(length.to_le_bytes());
    let checksum_at = payload.len();
    payload.extend(body);
    let read = PageReader::new(kind, PROTOCOL_VERSION, payload).next();
    if let (Some(Ok((_, EncodedPage::Delta(delta)))), Some(base)) = (read, passive.ram.page(index))
    {
        let mut page = *base;
        if delta.apply(kind, &mut page).is_ok()
            && let Some(place) = payload.get_mut(checksum_at..checksum_at + 4)
        {
            place.copy_from_slice(&page_checksum(&page).to_le_bytes());
        }
    }
}

#[cfg(test)]
#[path = "../../fuzz/replay.rs"]
mod replay;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn wire_frames() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let directories = [
            here.join("../fuzz/seeds/wire_frames"),
            here.join("fuzz-regressions/wire_frames"),
        ];
        replay::replay(super::wire_frames, &directories);
    }

    /// What the seeds are made of, so that they stay what they are meant to be.
    fn record(what: u8, epoch: u8, bytes: &[u8]) -> Vec<u8> {
        let length = u16::try_from(bytes.len()).unwrap().to_le_bytes();
        [&[what | 0x80, epoch, length[0], length[1]], bytes].concat()
    }

    const BEGIN: u8 = 4;
    const PAGES_FRAME: u8 = 5;
    const COMMIT: u8 = 8;

    fn entries() -> Vec<Vec<u8>> {
        let one_word = [1, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 0, 0, 0, 0, 0];
        let lz4 = |bytes: &[u8]| {
            let mut block = vec![0; lz4_flex::block::get_maximum_output_size(bytes.len())];
            let length = lz4_flex::block::compress_into(bytes, &mut block).unwrap();
            block.truncate(length);
            block
        };
        [
            (0, Vec::new()),
            (2, lz4(&[7; PAGE_BYTES])),
            (3, Vec::new()),
            (3, one_word.to_vec()),
            (4, lz4(&one_word)),
        ]
        .into_iter()
        .zip(0..)
        .map(|((encoding, body), index)| [&[index, encoding], &body[..]].concat())
        .collect()
    }

    fn seed() -> Vec<u8> {
        let entries = entries();
        let count = u8::try_from(entries.len()).unwrap();
        let mut seed = record(BEGIN, 2, &[count]);
        for entry in &entries {
            seed.extend(record(PAGES_FRAME, 2, entry));
        }
        seed.extend(record(COMMIT, 2, &[]));
        seed
    }

    /// The seed reaches what is to be fuzzed: an epoch with a page in each encoding is committed.
    #[test]
    fn the_seed_commits_an_epoch_with_every_encoding() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let path = here.join("../fuzz/seeds/wire_frames/every_encoding");
        if std::env::var_os("KEMARI_WRITE_SEEDS").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, seed()).unwrap();
        }
        assert_eq!(std::fs::read(path).unwrap(), seed());
        let (mut passive, mut sender) = (Passive::on_epoch_one(), Sender::default());
        let seed = seed();
        let mut rest = &seed[..];
        while let Some(([what, epoch, a, b], more)) = rest.split_first_chunk() {
            let (payload, after) = more.split_at(usize::from(u16::from_le_bytes([*a, *b])));
            let frame = sender.frame(&passive, *what, u64::from(*epoch), payload);
            passive.receive(&frame);
            rest = after;
        }
        let held = passive.session.replica().held().unwrap();
        assert_eq!(held.epoch, Epoch::new(2));
    }
}
