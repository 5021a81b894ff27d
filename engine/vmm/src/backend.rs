// SPDX-License-Identifier: Apache-2.0
//! Back ends: where the guest's outputs leave the machine and where its inputs come in.
//!
//! A device model talks to a [`NetworkBackend`] or a [`DiskBackend`] and knows nothing of what is
//! behind. That is where replication puts its event-tap: the engine wraps a back end to hold
//! outputs back until their epoch is committed. Back ends keep no state of the guest: what is in
//! flight is drained before a cut, and a replica that takes over opens its own.

mod attached;
mod disk;
mod mac;
mod network;

pub use attached::{Backends, NetworkAttachment};
pub use disk::{DiskBackend, DiskCompletion, DiskGeometry, DiskRequest, SECTOR_BYTES, Unmap};
pub use mac::{MacAddress, MacAddressError};
pub use network::{NetworkBackend, Offloads, PACKET_BYTES_MAX, PACKET_HEADER_BYTES};
