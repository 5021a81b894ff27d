// SPDX-License-Identifier: Apache-2.0
//! An output: something the guest did that the outside can see.
//!
//! Console bytes carry their position in the console's stream since the VM's first boot. Whoever
//! takes them can tell a repeat from something new, so a replay after failover is harmless. Packets
//! carry their number among all packets of the VM's interfaces since this tap began; a packet that
//! is sent again after a failover is what networks do anyway.

/// Longest single output, in bytes. Longer console writes become several outputs; the longest
/// packet (a 64 KiB segment, its Ethernet header and the virtio-net header) fits.
pub const OUTPUT_BYTES_MAX: usize = 65 * 1024;

/// A network interface of a VM, by its place in the description: 0 to 7.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkPort(u8);

impl NetworkPort {
    /// Interfaces a VM can have.
    pub const COUNT: usize = 8;

    /// The interface with this number, if a VM can have so many.
    #[must_use]
    pub const fn new(number: u8) -> Option<Self> {
        if (number as usize) < Self::COUNT {
            Some(Self(number))
        } else {
            None
        }
    }

    /// Its place, from 0.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// What kind of back end the output is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OutputKind {
    /// Bytes of the serial console. Its position counts bytes since first boot.
    Console,
    /// One packet of a network interface, virtio-net header first. Never split, never joined.
    Network(NetworkPort),
}

/// Code of the first network interface on the wire.
const NETWORK_CODE: u8 = 0x10;

impl OutputKind {
    /// The number that stands for the kind on the wire.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Console => 1,
            Self::Network(port) => NETWORK_CODE + port.0,
        }
    }

    /// The kind that a number on the wire stands for.
    #[must_use]
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Console),
            NETWORK_CODE.. => match NetworkPort::new(code - NETWORK_CODE) {
                Some(port) => Some(Self::Network(port)),
                None => None,
            },
            _ => None,
        }
    }
}

impl OutputKind {
    /// Whether outputs of both kinds are counted in one stream of positions.
    #[must_use]
    pub const fn shares_stream(self, other: Self) -> bool {
        matches!(
            (self, other),
            (Self::Console, Self::Console) | (Self::Network(_), Self::Network(_))
        )
    }
}

/// One output, at most [`OUTPUT_BYTES_MAX`] long.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
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
