// SPDX-License-Identifier: Apache-2.0
//! What a network interface of the guest needs from the outside.
//!
//! A *packet* is a 12-byte virtio-net header (VIRTIO 1.x, 5.1.6, little endian, `num_buffers`
//! included) and an Ethernet frame. The header is the guest's own, hostile or not: what carries it
//! must survive any.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;

use serde::{Deserialize, Serialize};

/// Length in bytes of the virtio-net header before each frame (`virtio_net_hdr_v1`).
pub const PACKET_HEADER_BYTES: usize = 12;

/// Longest packet either way: header, Ethernet header with two VLAN tags, and a segmentation
/// offload's payload of at most 64 KiB.
pub const PACKET_BYTES_MAX: usize = PACKET_HEADER_BYTES + 22 + 65_536;

/// One network interface's outside.
///
/// One owner calls it, from the device's worker thread; while the machine is paused nobody does.
/// No call blocks.
pub trait NetworkBackend: Send {
    /// The offloads that packets can have on their way here and from here. Asked once, before the
    /// guest runs, and the same ever after.
    fn offloads(&self) -> Offloads;

    /// The guest settled these offloads for packets that come in; they are within
    /// [`offloads`](Self::offloads). Called whenever its driver starts, and after a failover.
    ///
    /// # Errors
    /// The outside refuses them; it then keeps what it had.
    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()>;

    /// Takes a packet that the guest sent. Never drops one for want of room when
    /// [`has_room`](Self::has_room) said yes before; a packet that the outside cannot carry
    /// (malformed, or the link is down) is lost as on a wire.
    fn transmit(&mut self, packet: &[u8]);

    /// Whether [`transmit`](Self::transmit) may be called now. After `false`,
    /// [`room`](Self::room) becomes readable when it is worth asking again.
    fn has_room(&self) -> bool;

    /// What to wait on when there is no room; none if there always is.
    fn room(&self) -> Option<BorrowedFd<'_>>;

    /// Moves the next packet from outside into `buffer`, header first, and returns its length.
    /// None: nothing is there now. A packet longer than `buffer` is cut, so it should have
    /// [`PACKET_BYTES_MAX`] bytes, or what the settled offloads can fill.
    ///
    /// # Errors
    /// The outside is gone for good.
    fn receive(&mut self, pair: usize, buffer: &mut [u8]) -> io::Result<Option<usize>>;

    /// Readable when [`receive`](Self::receive) from this pair may return something. `pair` must be
    /// less than [`pairs`](Self::pairs). To be waited for level-triggered: it may stay readable after
    /// `receive` returned none.
    fn readable(&self, pair: usize) -> BorrowedFd<'_>;

    /// How many pairs of queues the outside has; at least one.
    fn pairs(&self) -> usize;
}

/// A set of work that packets leave to whoever comes after: checksums to be filled in, TCP streams
/// and UDP datagrams to be cut.
///
/// The device model translates to and from virtio-net's feature bits, the TAP back end to `TUN_F_*`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Offloads(u32);

impl Offloads {
    /// Nothing: every packet is complete.
    pub const NONE: Self = Self(0);
    /// Checksums may be missing (`VIRTIO_NET_F_CSUM`, `GUEST_CSUM`). All others need this one.
    pub const CHECKSUM: Self = Self(1);
    /// Packets may be TCP over IPv4 to be cut (`HOST_TSO4`, `GUEST_TSO4`).
    pub const TSO4: Self = Self(1 << 1);
    /// Packets may be TCP over IPv6 to be cut (`HOST_TSO6`, `GUEST_TSO6`).
    pub const TSO6: Self = Self(1 << 2);
    /// TCP packets to be cut may carry congestion marks (`HOST_ECN`, `GUEST_ECN`).
    pub const ECN: Self = Self(1 << 3);
    /// Packets may be UDP over IPv4 or IPv6 to be cut (`HOST_USO`, `GUEST_USO4` and `GUEST_USO6`).
    pub const USO: Self = Self(1 << 4);

    /// All of them.
    pub const ALL: Self = Self(0x1f);

    const NAMES: [(Self, &'static str); 5] = [
        (Self::CHECKSUM, "checksum"),
        (Self::TSO4, "TSO4"),
        (Self::TSO6, "TSO6"),
        (Self::ECN, "ECN"),
        (Self::USO, "USO"),
    ];

    /// What is in either.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What is in both.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// What is in this and not in `other`.
    #[must_use]
    pub const fn difference(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether all of `other` is in this.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl fmt::Debug for Offloads {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = Self::NAMES
            .iter()
            .filter(|(offload, _)| self.contains(*offload))
            .map(|(_, name)| name);
        formatter.write_str("Offloads")?;
        formatter.debug_set().entries(names).finish()
    }
}
