// SPDX-License-Identifier: Apache-2.0
//! What the driver and the device agreed on, and what a state keeps of an interface.

use serde::{Deserialize, Serialize};

use super::features;
use crate::backend::{MacAddress, Offloads, PACKET_BYTES_MAX, PACKET_HEADER_BYTES};

/// Whether the guest shall show the network where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Announcement {
    /// It was not asked, or has done it.
    NotWanted,
    /// It was asked and has not said that it did.
    Wanted,
}

/// What is agreed from one reset to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Session {
    /// Features negotiated; none while the driver is not ready.
    pub(super) features: u64,
    pub(super) mac: MacAddress,
    /// Queue pairs in use.
    pub(super) pairs: usize,
    /// Offloads of packets to the guest.
    pub(super) offloads: Offloads,
    pub(super) announcement: Announcement,
}

impl Session {
    /// A driver with these features has just become ready.
    pub(super) fn new(features: u64, mac: MacAddress) -> Self {
        Self {
            features,
            mac,
            pairs: 1,
            offloads: features::incoming(features),
            announcement: Announcement::NotWanted,
        }
    }

    pub(super) fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }
}

/// A packet that was taken from outside and that the guest has had no room for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PendingPacket {
    pair: u16,
    packet: Vec<u8>,
}

/// State of an interface beside its rings. Features are the transport's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NetState {
    mac: [u8; 6],
    pairs: u16,
    offloads: Offloads,
    announcement: Announcement,
    pending: Vec<PendingPacket>,
}

impl NetState {
    /// The state of a session, with the packet that waits in each pair.
    pub(super) fn new<'a>(
        session: &Session,
        pending: impl Iterator<Item = Option<&'a [u8]>>,
    ) -> Self {
        let pending = pending
            .zip(0..)
            .filter_map(|(packet, pair)| {
                packet.map(|packet| PendingPacket {
                    pair,
                    packet: packet.to_vec(),
                })
            })
            .collect();
        Self {
            mac: session.mac.octets(),
            pairs: u16::try_from(session.pairs).unwrap_or(1),
            offloads: session.offloads,
            announcement: session.announcement,
            pending,
        }
    }

    /// The session, with a driver of these features, in a device with so many pairs.
    pub(super) fn session(&self, features: u64, pairs: usize) -> Result<Session, &'static str> {
        let mac = MacAddress::new(self.mac).map_err(|_| "a MAC address that is none")?;
        let in_use = usize::from(self.pairs);
        if !(1..=pairs).contains(&in_use) {
            return Err("more queue pairs than there are");
        }
        // A device that stopped keeps what was agreed, but nothing holds until it is reset.
        let offloads = if features == 0 {
            Offloads::NONE
        } else {
            self.offloads
        };
        if !features::incoming(features).contains(offloads) {
            return Err("offloads that were not negotiated");
        }
        Ok(Session {
            features,
            mac,
            pairs: in_use,
            offloads,
            announcement: self.announcement,
        })
    }

    /// Each packet that waits, with its pair, in a device with so many pairs.
    pub(super) fn pending(
        &self,
        pairs: usize,
    ) -> impl Iterator<Item = Result<(usize, &[u8]), &'static str>> {
        self.pending.iter().map(move |pending| {
            let pair = usize::from(pending.pair);
            if pair >= pairs {
                return Err("a packet in a queue pair that is not there");
            }
            if !(PACKET_HEADER_BYTES..=PACKET_BYTES_MAX).contains(&pending.packet.len()) {
                return Err("a packet that is none");
            }
            Ok((pair, pending.packet.as_slice()))
        })
    }
}
