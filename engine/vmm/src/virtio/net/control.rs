// SPDX-License-Identifier: Apache-2.0
//! The driver's commands (section 5.1.6.5).
//!
//! A command has exactly the length it should, and its feature was negotiated, or it is refused; the
//! driver is told so and nothing changes.
//!
//! Receive modes and address tables are accepted and not acted on: filtering is best effort
//! (section 5.1.6.5.1), every driver looks at what it gets, and a filter would be state to carry and
//! work for every packet to save what the bridge outside mostly saves already.

use virtio_bindings::virtio_net as bits;

use super::features;
use super::session::{Announcement, Session};
use crate::backend::{MacAddress, NetworkBackend};

/// What the driver is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Done,
    Refused,
}

impl Answer {
    /// As the driver reads it.
    pub(super) fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Refused => 1,
        }
    }
}

/// Carries out one command: class, command, data.
pub(super) fn execute(
    request: &[u8],
    session: &mut Session,
    pairs: usize,
    backend: &mut dyn NetworkBackend,
) -> Answer {
    let [class, command, data @ ..] = request else {
        return Answer::Refused;
    };
    let done = match (u32::from(*class), u32::from(*command)) {
        (
            bits::VIRTIO_NET_CTRL_RX,
            bits::VIRTIO_NET_CTRL_RX_PROMISC | bits::VIRTIO_NET_CTRL_RX_ALLMULTI,
        ) => session.has(features::RECEIVE_MODES) && data.len() == 1,
        (bits::VIRTIO_NET_CTRL_MAC, bits::VIRTIO_NET_CTRL_MAC_TABLE_SET) => {
            session.has(features::RECEIVE_MODES) && are_tables(data)
        }
        (bits::VIRTIO_NET_CTRL_MAC, bits::VIRTIO_NET_CTRL_MAC_ADDR_SET) => set_mac(session, data),
        (bits::VIRTIO_NET_CTRL_ANNOUNCE, bits::VIRTIO_NET_CTRL_ANNOUNCE_ACK) => {
            acknowledge(session, data)
        }
        (bits::VIRTIO_NET_CTRL_MQ, bits::VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET) => {
            set_pairs(session, data, pairs)
        }
        (bits::VIRTIO_NET_CTRL_GUEST_OFFLOADS, bits::VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET) => {
            set_offloads(session, data, backend)
        }
        _ => false,
    };
    if done { Answer::Done } else { Answer::Refused }
}

/// Two tables: unicast and multicast addresses, each a count and as many addresses.
fn are_tables(data: &[u8]) -> bool {
    let after_table = |data: &[u8]| {
        let (count, _) = data.split_first_chunk()?;
        let count = usize::try_from(u32::from_le_bytes(*count)).ok()?;
        let bytes = count.checked_mul(6)?.checked_add(4)?;
        (bytes <= data.len()).then_some(bytes)
    };
    let Some(first) = after_table(data) else {
        return false;
    };
    let (_, rest) = data.split_at(first);
    after_table(rest) == Some(rest.len())
}

fn set_mac(session: &mut Session, data: &[u8]) -> bool {
    let address = <[u8; 6]>::try_from(data).ok();
    match address.map(MacAddress::new) {
        Some(Ok(address)) if session.has(features::SET_MAC) => {
            session.mac = address;
            true
        }
        _ => false,
    }
}

fn acknowledge(session: &mut Session, data: &[u8]) -> bool {
    let can = session.has(features::GUEST_ANNOUNCE) && data.is_empty();
    if can {
        session.announcement = Announcement::NotWanted;
    }
    can
}

fn set_pairs(session: &mut Session, data: &[u8], pairs: usize) -> bool {
    let wanted = <[u8; 2]>::try_from(data).map_or(0, |data| usize::from(u16::from_le_bytes(data)));
    let can = session.has(features::MULTIQUEUE) && (1..=pairs).contains(&wanted);
    if can {
        session.pairs = wanted;
    }
    can
}

fn set_offloads(session: &mut Session, data: &[u8], backend: &mut dyn NetworkBackend) -> bool {
    let Ok(wanted) = <[u8; 8]>::try_from(data).map(u64::from_le_bytes) else {
        return false;
    };
    // What was not negotiated can neither be switched on nor off.
    let can_be_set = session.features & features::incoming_bits();
    if !session.has(features::SET_OFFLOADS) || wanted & !can_be_set != 0 {
        return false;
    }
    let offloads = features::incoming(wanted);
    match backend.set_offloads(offloads) {
        Ok(()) => {
            session.offloads = offloads;
            true
        }
        Err(error) => {
            tracing::warn!(?offloads, %error, "The back end refuses the guest's offloads");
            false
        }
    }
}
