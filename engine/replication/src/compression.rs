// SPDX-License-Identifier: Apache-2.0
//! How much work is put into making pages short, and what that brings.
//!
//! A checkpoint is committed when its pages are encoded *and* carried over, one after the other. So
//! the best [`Effort`] is that with the least `encode time + bytes / speed of the link` a page. On a
//! fast link that is to send pages as they are, on a slow one to compress what can be compressed,
//! and where the two meet depends on what the guest writes. [`CompressionPolicy`] is told what each
//! checkpoint cost and decides for the next; [`LinkRate`] makes a speed of what is acknowledged.
//! Neither has a clock: durations are handed in.

mod link_rate;
mod policy;

use std::fmt;

pub use link_rate::LinkRate;
pub use policy::{CompressionPolicy, Spent};

/// How much work is put into making pages short.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Effort {
    /// Pages of zeros are recognised, all others go as they are.
    #[default]
    Raw,
    /// Pages sent before go as the difference to what was sent last.
    Delta,
    /// And what is still long is compressed with LZ4.
    DeltaLz4,
}

impl Effort {
    /// Every effort, least first.
    pub const ALL: [Self; 3] = [Self::Raw, Self::Delta, Self::DeltaLz4];
}

impl fmt::Display for Effort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Delta => "delta",
            Self::DeltaLz4 => "delta and LZ4",
        })
    }
}

/// Pages by the encoding they went in, and the bytes that took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PageTally {
    /// All zeros.
    pub zero: u64,
    /// The same as last time.
    pub unchanged: u64,
    /// The difference to last time.
    pub delta: u64,
    /// That, compressed.
    pub delta_lz4: u64,
    /// Compressed.
    pub lz4: u64,
    /// As they are.
    pub raw: u64,
    /// Bytes of all their entries on the wire.
    pub wire_bytes: u64,
}

impl PageTally {
    /// How many pages there were.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        self.zero + self.unchanged + self.delta + self.delta_lz4 + self.lz4 + self.raw
    }

    /// Adds what another checkpoint had.
    pub const fn add(&mut self, other: &Self) {
        self.zero += other.zero;
        self.unchanged += other.unchanged;
        self.delta += other.delta;
        self.delta_lz4 += other.delta_lz4;
        self.lz4 += other.lz4;
        self.raw += other.raw;
        self.wire_bytes += other.wire_bytes;
    }
}
