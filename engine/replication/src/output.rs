// SPDX-License-Identifier: Apache-2.0
//! An output: something the guest did that the outside can see.
//!
//! Console bytes carry their position in the console's stream since the VM's first boot. Whoever
//! takes them can tell a repeat from something new, so a replay after failover is harmless.

/// Longest single output, in bytes. Longer writes become several outputs.
pub const OUTPUT_BYTES_MAX: usize = 64 * 1024;

/// What kind of back end the output is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OutputKind {
    /// Bytes of the serial console. Its position counts bytes since first boot.
    Console,
}

impl OutputKind {
    /// The number that stands for the kind on the wire.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Console => 1,
        }
    }

    /// The kind that a number on the wire stands for.
    #[must_use]
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Console),
            _ => None,
        }
    }
}

/// One output, at most [`OUTPUT_BYTES_MAX`] long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Which back end it is for.
    pub kind: OutputKind,
    /// Where its first byte stands in its stream.
    pub position: u64,
    /// What goes out.
    pub bytes: Vec<u8>,
}

impl Output {
    /// Position just after the last byte.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.position.saturating_add(self.bytes.len() as u64)
    }
}
