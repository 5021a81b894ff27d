// SPDX-License-Identifier: Apache-2.0
//! How fast a disk back end is: `disk_backend [DIRECTORY] [MIB] [OPERATIONS]`.
//!
//! Random 4 KiB reads and writes on a file made for it, by io_uring, by the plain engine, and by bare
//! `pread` and `pwrite`, which is what no back end can beat at depth 1. All in one run, each round of
//! all of them before the next, so that a busy host disturbs them alike. The latency is from submission
//! to completion seen; the plain engine does each request when it is submitted, so at depth 32 its
//! latency counts the requests of its batch that came before.

use std::error::Error;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use kemari_vmm::backend::{
    DiskBackend, DiskCompletion, DiskOptions, DiskRequest, IoEngine, RawDisk,
};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

const BLOCK: usize = 4096;
const ROUNDS: usize = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
}

/// What one way of doing it took.
#[derive(Default)]
struct Figures {
    latencies: Vec<Duration>,
    rates: Vec<f64>,
}

/// A generator of block numbers, the same for every way (SplitMix64).
struct Blocks {
    state: u64,
    count: u64,
}

impl Blocks {
    fn next_offset(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % self.count * BLOCK as u64
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().unwrap_or_else(|| "/var/tmp".to_owned());
    let mib: u64 = arguments.next().map_or(Ok(256), |text| text.parse())?;
    let operations: usize = arguments.next().map_or(Ok(4000), |text| text.parse())?;
    let file = tempfile::NamedTempFile::new_in(&directory)?;
    fill(file.as_file(), mib)?;
    println!("{mib} MiB in {directory}, {ROUNDS} rounds of {operations} operations of 4 KiB");
    println!("                                      median       99 %    operations/s (median)");
    for direct in [false, true] {
        for kind in [Kind::Read, Kind::Write] {
            for depth in [1, 32] {
                if let Err(error) = compare(file.path(), mib, operations, direct, kind, depth) {
                    println!("SKIPPED: {error}");
                }
            }
        }
    }
    Ok(())
}

fn fill(file: &File, mib: u64) -> io::Result<()> {
    let chunk = vec![0xa5; 1 << 20];
    for index in 0..mib {
        file.write_all_at(&chunk, index << 20)?;
    }
    file.sync_all()
}

fn compare(
    path: &Path,
    mib: u64,
    operations: usize,
    direct: bool,
    kind: Kind,
    depth: usize,
) -> Result<(), Box<dyn Error>> {
    let mut figures: [Figures; 3] = Default::default();
    let [by_uring, by_plain, bare] = &mut figures;
    for round in 0..ROUNDS {
        let blocks = || Blocks {
            state: u64::try_from(round).unwrap_or_default(),
            count: (mib << 20) / BLOCK as u64,
        };
        for (engine, figures) in [
            (IoEngine::Uring, &mut *by_uring),
            (IoEngine::Plain, &mut *by_plain),
        ] {
            let options = DiskOptions {
                direct,
                engine,
                ..DiskOptions::default()
            };
            let mut disk = RawDisk::open(path, options)?;
            figures.round(operations, |latencies| {
                by_backend(&mut disk, blocks(), operations, kind, depth, latencies)
            })?;
        }
        if depth == 1 && !direct {
            let file = File::options().read(true).write(true).open(path)?;
            bare.round(operations, |latencies| {
                by_bare_calls(&file, blocks(), operations, kind, latencies)
            })?;
        }
    }
    let way = if direct { "direct" } else { "cached" };
    for (name, figures) in ["io_uring", "plain", "bare calls"].iter().zip(figures) {
        figures.report(&format!("{way} {kind:?} depth {depth:2} {name}"));
    }
    Ok(())
}

impl Figures {
    fn round(
        &mut self,
        operations: usize,
        work: impl FnOnce(&mut Vec<Duration>) -> io::Result<()>,
    ) -> io::Result<()> {
        let start = Instant::now();
        work(&mut self.latencies)?;
        let count = u32::try_from(operations).unwrap_or(u32::MAX);
        self.rates
            .push(f64::from(count) / start.elapsed().as_secs_f64());
        Ok(())
    }

    fn report(mut self, name: &str) {
        if self.latencies.is_empty() {
            return;
        }
        self.latencies.sort_unstable();
        self.rates.sort_unstable_by(f64::total_cmp);
        let at = |percent: usize| {
            self.latencies
                .get((self.latencies.len() - 1) * percent / 100)
        };
        let micros = |time: Option<&Duration>| time.map_or(0.0, |time| time.as_secs_f64() * 1e6);
        let rate = self.rates.get(self.rates.len() / 2).unwrap_or(&0.0);
        println!(
            "{name:34} {:7.1} µs {:8.1} µs {rate:12.0}",
            micros(at(50)),
            micros(at(99))
        );
    }
}

fn by_backend(
    disk: &mut RawDisk,
    mut blocks: Blocks,
    operations: usize,
    kind: Kind,
    depth: usize,
    latencies: &mut Vec<Duration>,
) -> io::Result<()> {
    let mut buffers = vec![vec![0x5a; BLOCK]; depth];
    let mut started = vec![Instant::now(); depth];
    let mut tags: Vec<u32> = (0..u32::try_from(depth).unwrap_or(1)).collect();
    let (mut submitted, mut finished) = (0, 0);
    let mut done: Vec<DiskCompletion> = Vec::new();
    while finished < operations {
        while submitted < operations
            && let Some(buffer) = buffers.pop()
            && let Some(tag) = tags.pop()
        {
            if let Some(start) = started.get_mut(tag as usize) {
                *start = Instant::now();
            }
            let offset = blocks.next_offset();
            disk.submit(
                tag,
                match kind {
                    Kind::Read => DiskRequest::Read { offset, buffer },
                    Kind::Write => DiskRequest::Write { offset, buffer },
                },
            );
            submitted += 1;
        }
        wait(disk)?;
        disk.completed(&mut done);
        for completion in done.drain(..) {
            completion.result?;
            let start = started.get(completion.tag as usize);
            latencies.extend(start.map(Instant::elapsed));
            tags.push(completion.tag);
            buffers.push(completion.buffer);
            finished += 1;
        }
    }
    Ok(())
}

fn wait(disk: &RawDisk) -> io::Result<()> {
    let mut fds = [PollFd::new(disk.readable(), PollFlags::POLLIN)];
    match poll(&mut fds, PollTimeout::NONE) {
        // The kernel interrupts a sleeping thread to finish its requests.
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn by_bare_calls(
    file: &File,
    mut blocks: Blocks,
    operations: usize,
    kind: Kind,
    latencies: &mut Vec<Duration>,
) -> io::Result<()> {
    let mut buffer = vec![0x5a; BLOCK];
    for _ in 0..operations {
        let offset = blocks.next_offset();
        let start = Instant::now();
        match kind {
            Kind::Read => file.read_exact_at(&mut buffer, offset)?,
            Kind::Write => file.write_all_at(&buffer, offset)?,
        }
        latencies.push(start.elapsed());
    }
    Ok(())
}
