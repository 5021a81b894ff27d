// SPDX-License-Identifier: Apache-2.0
//! Back ends: where the guest's outputs leave the machine and where its inputs come in.
//!
//! A device model talks to a [`NetworkBackend`] or a [`DiskBackend`] and knows nothing of what is
//! behind. That is where replication puts its event-tap: the engine wraps a back end to hold
//! outputs back until their epoch is committed. Back ends keep no state of the guest: what is in
//! flight is drained before a cut, and a replica that takes over opens its own.

mod announce;
mod attached;
mod console;
mod disk;
mod disk_serial;
pub(crate) mod doorbell;
mod flow;
mod ioctl;
mod mac;
#[cfg(any(test, feature = "test-support"))]
mod memory_network;
mod network;
mod tap;

pub use announce::{ANNOUNCE_AFTER, ANNOUNCEMENT_BYTES, announcement};
pub use attached::{Backends, DiskAttachment, NetworkAttachment};
pub use console::ConsoleBackend;
pub use disk::{
    DiscardPolicy, DiskBackend, DiskCompletion, DiskContent, DiskGeometry, DiskOptions,
    DiskRequest, IoEngine, OpenDiskError, RawDisk, SECTOR_BYTES, Unmap,
};
#[cfg(any(test, feature = "test-support"))]
pub use disk::{MemoryDisk, MemoryDiskControl};
pub use disk_serial::{DiskSerial, DiskSerialError};
pub use mac::{MacAddress, MacAddressError};
#[cfg(any(test, feature = "test-support"))]
pub use memory_network::MemoryNetwork;
pub use network::{NetworkBackend, Offloads, PACKET_BYTES_MAX, PACKET_HEADER_BYTES};
pub use tap::{OpenTapError, TAP_PAIRS_MAX, Tap, TapOptions, TapOrigin};
