// SPDX-License-Identifier: Apache-2.0
//! Faults of single frames: what checksums, numbers and generations must find out.

use kemari_replication::wire::{FrameHeader, FrameKind, HEADER_BYTES};
use kemari_replication::{Epoch, Generation};

use super::env::Env;

/// What passed in one direction of a connection.
#[derive(Debug, Default)]
pub struct Seen {
    last_commit: Option<Epoch>,
}

impl Seen {
    pub const fn last_commit(&self) -> Option<Epoch> {
        self.last_commit
    }
}

/// The bytes that arrive when these are sent. `commit`: the last Commit that went the other way.
pub fn pass(env: &mut Env, seen: &mut Seen, commit: Option<Epoch>, buffer: &[u8]) -> Vec<u8> {
    let mut frames = split(buffer);
    for (header, _) in &frames {
        if header.kind == FrameKind::Commit {
            seen.last_commit = Some(header.epoch);
        }
    }
    let mut at = 0;
    while at < frames.len() {
        if env.fault(env.profile.frame) {
            env.counts.frames_hit += 1;
            hit(env, &mut frames, at);
        }
        at += 1;
    }
    if let (Some(epoch), Some((header, _))) = (commit, frames.first())
        && env.fault(env.profile.stale_ack)
    {
        env.counts.frames_hit += 1;
        env.line(|| format!("- an acknowledgement of {epoch} of another generation slips in"));
        let stale = stale_ack(header, epoch);
        frames.insert(0, stale);
    }
    frames.into_iter().flat_map(|(_, bytes)| bytes).collect()
}

fn split(mut buffer: &[u8]) -> Vec<(FrameHeader, Vec<u8>)> {
    let mut frames = Vec::new();
    while let Some(header) = buffer.first_chunk::<HEADER_BYTES>() {
        let header = FrameHeader::decode(header).expect("our own frame");
        let (frame, rest) = buffer.split_at(HEADER_BYTES + header.payload_len());
        frames.push((header, frame.to_vec()));
        buffer = rest;
    }
    frames
}

fn hit(env: &mut Env, frames: &mut Vec<(FrameHeader, Vec<u8>)>, at: usize) {
    let kind = frames[at].0.kind;
    let how = env.rng.u32(0..5);
    let name = ["lost", "doubled", "overtaken", "shortened", "changed"][how as usize];
    env.line(|| format!("- frame {kind:?} is {name}"));
    match how {
        0 => {
            frames.remove(at);
        }
        1 => {
            let again = frames[at].clone();
            let after = env.rng.usize(at..frames.len());
            frames.insert(after + 1, again);
        }
        2 => {
            let last = env.rng.usize(at..frames.len());
            frames.swap(at, last);
        }
        3 => {
            let length = env.rng.usize(0..frames[at].1.len());
            frames[at].1.truncate(length);
        }
        _ => {
            for _ in 0..env.rng.usize(1..4) {
                let byte = env.rng.usize(0..frames[at].1.len());
                frames[at].1[byte] ^= env.rng.u8(1..=255);
            }
        }
    }
}

/// An acknowledgement that fits in everything but its generation.
fn stale_ack(next: &FrameHeader, epoch: Epoch) -> (FrameHeader, Vec<u8>) {
    let header = FrameHeader {
        kind: FrameKind::Ack,
        payload_bytes: 0,
        payload_crc: crc32c::crc32c(&[]),
        generation: Generation::new(next.generation.get().saturating_sub(1)),
        epoch,
        ..*next
    };
    (header, header.encode().to_vec())
}
