// SPDX-License-Identifier: Apache-2.0
//! What encoding pages costs and brings, on recorded guest memory (`record_pages`).
//!
//! `page_encoding FILE...`: sends the recorded epochs through a session for each effort, receives
//! them, compares both RAMs after each, and prints bytes and nanoseconds. The time of each epoch
//! divided by its pages is one sample; beside it copying the same pages, in the same run. The last
//! columns are what the time to encode and to carry a page would be on links of that speed.
#![allow(
    clippy::unwrap_used,
    reason = "a measurement ends where something is not as it must be"
)]

use std::fs::File;
use std::io::{BufReader, Read};
use std::time::Instant;

use kemari_replication::active::{
    ActiveConfig, ActiveSession, Base, BeginTransaction, SENT_BYTES_DEFAULT,
};
use kemari_replication::compression::{CompressionPolicy, Effort, PageTally, Spent};
use kemari_replication::passive::{PassiveAction, PassiveConfig, PassiveSession, Replica};
use kemari_replication::wire::{FrameDecoder, Purpose, VmIdentity};
use kemari_replication::{Epoch, Generation, GuestPages, PAGE_BYTES, PageIndex, RamLayout};

type Page = [u8; PAGE_BYTES];

const LINKS: [(&str, f64); 3] = [("1 G", 125e6), ("10 G", 1.25e9), ("40 G", 5e9)];

/// One epoch: which pages, and what they hold.
#[derive(Default)]
struct EpochPages {
    indices: Vec<PageIndex>,
    pages: Vec<Page>,
}

impl EpochPages {
    fn read(&mut self, file: &mut impl Read) -> bool {
        let mut number = [0; 8];
        if file.read_exact(&mut number).is_err() {
            return false;
        }
        let count = usize::try_from(u64::from_le_bytes(number)).unwrap();
        self.indices.clear();
        self.pages.resize(count, [0; PAGE_BYTES]);
        for page in &mut self.pages {
            file.read_exact(&mut number).unwrap();
            self.indices.push(PageIndex(u64::from_le_bytes(number)));
            file.read_exact(page).unwrap();
        }
        true
    }

    fn iter(&self) -> impl Iterator<Item = (PageIndex, &Page)> {
        self.indices.iter().copied().zip(&self.pages)
    }
}

struct Ram(Vec<Page>);

impl GuestPages for Ram {
    fn read(&self, index: PageIndex, page: &mut Page) -> bool {
        page.copy_from_slice(&self.0[usize::try_from(index.0).unwrap()]);
        true
    }
}

/// Both sides, welcomed and with a first checkpoint.
struct Session {
    active: ActiveSession,
    passive: PassiveSession,
    ram: Ram,
    decoder: FrameDecoder,
    epoch: Epoch,
}

impl Session {
    fn new(pages: usize, sent_bytes_max: usize) -> Self {
        let identity = VmIdentity {
            vm: "vm".parse().unwrap(),
            fingerprint: Vec::new(),
        };
        let config = PassiveConfig {
            identity: identity.clone(),
            node: "b".parse().unwrap(),
            disks: Vec::new(),
            ram: RamLayout::new(std::iter::once(0..pages as u64).collect()).unwrap(),
            difference: |_, _| None,
        };
        let generation = Generation::new(1);
        let mut session = Self {
            active: ActiveSession::new(ActiveConfig {
                identity,
                node: "a".parse().unwrap(),
                purpose: Purpose::Replication,
                generation,
                sent: Epoch::new(0),
                acked: Epoch::new(0),
            }),
            passive: PassiveSession::new(config, Replica::new(generation)),
            ram: Ram(vec![[0; PAGE_BYTES]; pages]),
            decoder: FrameDecoder::new(),
            epoch: Epoch::new(1),
        };
        let mut frames = Vec::new();
        session.active.hello(&mut frames);
        session.receive(&frames);
        let sender = session.active.sender();
        sender.set_sent_bytes_max(sent_bytes_max);
        let zero = [0; PAGE_BYTES];
        let mut all = (0..pages as u64).map(|number| (PageIndex(number), &zero));
        frames.clear();
        while sender.copy_pages(&mut frames, &mut all) > 0 {}
        session.receive(&frames);
        session.send(&EpochPages::default(), Effort::Raw);
        session
    }

    /// Gives the seconds to encode and to decode.
    fn send(&mut self, epoch: &EpochPages, effort: Effort) -> (f64, f64, PageTally) {
        let mut frames = Vec::with_capacity(epoch.pages.len() * (PAGE_BYTES + 16) + 4096);
        let sender = self.active.sender();
        sender.set_effort(effort);
        let before = Epoch::new(self.epoch.get() - 1);
        let begin = BeginTransaction {
            epoch: self.epoch,
            base: if before.get() == 0 {
                Base::Copy
            } else {
                Base::Epoch(before)
            },
            pages: epoch.pages.len() as u64,
            delivered_up_to: before,
            console_position: 0,
        };
        let start = Instant::now();
        sender.begin(&mut frames, begin);
        let mut pages = epoch.iter();
        while sender.pages(&mut frames, &mut pages) > 0 {}
        let encode = start.elapsed().as_secs_f64();
        let tally = *sender.page_tally();
        sender.commit(&mut frames);
        let decode = self.receive(&frames);
        for (index, page) in epoch.iter() {
            assert!(
                self.ram.0[usize::try_from(index.0).unwrap()] == *page,
                "page {index}"
            );
        }
        self.epoch = self.epoch.next();
        (encode, decode, tally)
    }

    fn receive(&mut self, frames: &[u8]) -> f64 {
        self.decoder.push(frames);
        let mut answer = Vec::new();
        let start = Instant::now();
        while let Some((header, payload)) = self.decoder.next_frame().unwrap() {
            match self.passive.on_frame(&header, payload, &self.ram).unwrap() {
                PassiveAction::Answer(_) => self.passive.welcome(&mut answer),
                PassiveAction::Complete(mut checkpoint) => {
                    self.passive.accept(&mut checkpoint, &mut answer);
                    for (index, content) in checkpoint.pages.iter() {
                        self.ram.0[usize::try_from(index.0).unwrap()] = *content.bytes();
                    }
                    self.passive.recycle(checkpoint);
                }
                _ => {}
            }
        }
        let decode = start.elapsed().as_secs_f64();
        let mut decoder = FrameDecoder::new();
        decoder.push(&answer);
        while let Some((header, payload)) = decoder.next_frame().unwrap() {
            self.active.on_frame(&header, payload).unwrap();
        }
        decode
    }
}

/// Median and 99th percentile of nanoseconds.
fn percentiles(seconds: &mut [f64]) -> [f64; 2] {
    seconds.sort_by(f64::total_cmp);
    let last = seconds.len() - 1;
    [seconds[last / 2] * 1e9, seconds[last * 99 / 100] * 1e9]
}

fn name(effort: Effort, sent_bytes_max: usize) -> String {
    format!("{effort}, {} MiB", sent_bytes_max >> 20)
}

fn measure(path: &str, ram_pages: usize, effort: Effort, sent_bytes_max: usize) {
    let mut file = BufReader::new(File::open(path).unwrap());
    let mut session = Session::new(ram_pages, sent_bytes_max);
    let mut epoch = EpochPages::default();
    let (mut encode, mut decode, mut total) = (Vec::new(), Vec::new(), PageTally::default());
    while epoch.read(&mut file) {
        let count = epoch.pages.len();
        if count == 0 {
            continue;
        }
        let (encoding, decoding, tally) = session.send(&epoch, effort);
        encode.push(encoding / count as f64);
        decode.push(decoding / count as f64);
        total.add(&tally);
    }
    let pages = total.pages() as f64;
    let bytes = total.wire_bytes as f64 / pages;
    let ([encode, encode_p99], [decode, decode_p99]) =
        (percentiles(&mut encode), percentiles(&mut decode));
    print!(
        "| {} | {:.3} | {encode:.0} / {encode_p99:.0} | {decode:.0} / {decode_p99:.0} |",
        name(effort, sent_bytes_max),
        bytes / PAGE_BYTES as f64
    );
    for (_, link) in LINKS {
        print!(" {:.1} |", (encode + bytes / link * 1e9) / 1e3);
    }
    println!(
        " {} / {} / {} / {} / {} / {} |",
        total.zero, total.unchanged, total.delta, total.delta_lz4, total.lz4, total.raw
    );
}

/// What the policy would do on a link of this speed.
fn choose(path: &str, ram_pages: usize, link: f64) -> String {
    let mut file = BufReader::new(File::open(path).unwrap());
    let mut session = Session::new(ram_pages, SENT_BYTES_DEFAULT);
    let mut policy = CompressionPolicy::new(None);
    policy.link(link);
    let (mut epoch, mut used) = (EpochPages::default(), [0; Effort::ALL.len()]);
    while epoch.read(&mut file) {
        let effort = policy.effort();
        let (encode, _, tally) = session.send(&epoch, effort);
        used[effort as usize] += 1;
        policy.spent(&Spent {
            tally,
            encode: std::time::Duration::from_secs_f64(encode),
        });
    }
    let used = Effort::ALL.into_iter().zip(used);
    used.map(|(effort, count)| format!("{effort} {count}"))
        .collect::<Vec<_>>()
        .join(", ")
}

fn main() {
    for path in std::env::args().skip(1) {
        let mut file = BufReader::new(File::open(&path).unwrap());
        let mut epoch = EpochPages::default();
        let (mut copy, mut counts, mut highest) = (Vec::new(), Vec::new(), 0);
        while epoch.read(&mut file) {
            let mut target = Vec::with_capacity(epoch.pages.len() * PAGE_BYTES);
            let start = Instant::now();
            for page in &epoch.pages {
                target.extend_from_slice(page);
            }
            let took = start.elapsed().as_secs_f64();
            std::hint::black_box(&target);
            if !epoch.pages.is_empty() {
                copy.push(took / epoch.pages.len() as f64);
            }
            counts.push(epoch.pages.len());
            highest = epoch
                .indices
                .iter()
                .fold(highest, |highest, index| highest.max(index.0));
        }
        counts.sort_unstable();
        let [copy, copy_p99] = percentiles(&mut copy);
        println!(
            "{path}: {} epochs, pages an epoch: median {}, most {}; copying a page takes {copy:.0} / {copy_p99:.0} ns",
            counts.len(),
            counts[counts.len() / 2],
            counts[counts.len() - 1]
        );
        println!(
            "| effort, copies kept | bytes sent per dirty byte | encode, ns a page, median / p99 | receive and merge | us a page at {} | {} | {} | zero / unchanged / delta / delta LZ4 / LZ4 / raw |",
            LINKS[0].0, LINKS[1].0, LINKS[2].0
        );
        println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |");
        let ram_pages = usize::try_from(highest + 1).unwrap();
        for (effort, kept) in [
            (Effort::Raw, SENT_BYTES_DEFAULT),
            (Effort::Delta, SENT_BYTES_DEFAULT),
            (Effort::DeltaLz4, SENT_BYTES_DEFAULT),
            (Effort::DeltaLz4, SENT_BYTES_DEFAULT / 16),
            (Effort::DeltaLz4, SENT_BYTES_DEFAULT * 4),
        ] {
            measure(&path, ram_pages, effort, kept);
        }
        for (name, link) in LINKS {
            println!("auto on {name}bit/s: {}", choose(&path, ram_pages, link));
        }
    }
}
