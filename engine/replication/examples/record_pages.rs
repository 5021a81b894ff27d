// SPDX-License-Identifier: Apache-2.0
//! Records which pages of a running QEMU guest change, epoch by epoch, for `page_encoding`.
//!
//! `record_pages MEMORY QMP OUT EPOCH_MS EPOCHS`: MEMORY is the file behind the guest's RAM
//! (`-object memory-backend-file,share=on`), QMP its control socket (`-qmp unix:QMP,server=on,wait=off`).
//! The guest runs for EPOCH_MS, stands still while its whole memory is compared with what it was,
//! and runs on. A page that was written and is the same afterwards is not seen.
//!
//! OUT: for each epoch the number of pages (8 bytes, little endian), then each page's number (8 bytes)
//! and its 4,096 bytes.
#![allow(
    clippy::unwrap_used,
    reason = "a tool for one measurement ends where something is not as it must be"
)]

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Seek, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

const PAGE: usize = 4096;
const CHUNK: usize = 1024 * 1024;

struct Guest {
    answers: BufReader<UnixStream>,
}

impl Guest {
    fn connect(path: &str) -> Self {
        let mut guest = Self {
            answers: BufReader::new(UnixStream::connect(path).unwrap()),
        };
        guest.answers.read_line(&mut String::new()).unwrap();
        guest.tell("qmp_capabilities");
        guest
    }

    fn tell(&mut self, command: &str) {
        let request = format!("{{\"execute\": \"{command}\"}}\n");
        self.answers
            .get_mut()
            .write_all(request.as_bytes())
            .unwrap();
        let mut answer = String::new();
        while !answer.contains("\"return\"") {
            answer.clear();
            assert!(
                self.answers.read_line(&mut answer).unwrap() > 0,
                "QEMU is gone"
            );
        }
    }
}

/// Makes `known` what the file holds; gives the numbers of pages that differed.
fn compare(memory: &mut File, known: &mut [u8]) -> Vec<usize> {
    memory.rewind().unwrap();
    let mut chunk = vec![0; CHUNK];
    let mut changed = Vec::new();
    for (number, known) in known.chunks_mut(CHUNK).enumerate() {
        let now = &mut chunk[..known.len()];
        memory.read_exact(now).unwrap();
        if now == known {
            continue;
        }
        for (page, (now, known)) in now.chunks(PAGE).zip(known.chunks_mut(PAGE)).enumerate() {
            if now != known {
                known.copy_from_slice(now);
                changed.push(number * (CHUNK / PAGE) + page);
            }
        }
    }
    changed
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [memory, qmp, out, epoch_ms, epochs] = &arguments[..] else {
        panic!("usage: record_pages MEMORY QMP OUT EPOCH_MS EPOCHS");
    };
    let epoch = Duration::from_millis(epoch_ms.parse().unwrap());
    let mut memory = File::open(memory).unwrap();
    let mut guest = Guest::connect(qmp);
    let mut out = BufWriter::new(File::create(out).unwrap());
    let mut known = vec![0; usize::try_from(memory.metadata().unwrap().len()).unwrap()];
    guest.tell("stop");
    compare(&mut memory, &mut known);
    for number in 0..epochs.parse().unwrap() {
        guest.tell("cont");
        thread::sleep(epoch);
        guest.tell("stop");
        let changed = compare(&mut memory, &mut known);
        println!("epoch {number}: {} pages", changed.len());
        out.write_all(&(changed.len() as u64).to_le_bytes())
            .unwrap();
        for page in changed {
            out.write_all(&(page as u64).to_le_bytes()).unwrap();
            out.write_all(&known[page * PAGE..(page + 1) * PAGE])
                .unwrap();
        }
    }
    guest.tell("cont");
    out.flush().unwrap();
}
