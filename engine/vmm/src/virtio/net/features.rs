// SPDX-License-Identifier: Apache-2.0
//! Feature bits of the network device (section 5.1.3), and what they say about offloads.
//!
//! Offloads come from the back end. A driver may accept bits that make no sense without others
//! (section 5.1.3.1); such bits count for nothing, so that the back end never hears of them.

use virtio_bindings::virtio_net as bits;

use crate::backend::{NetworkAttachment, Offloads};

pub(super) const MERGEABLE_BUFFERS: u64 = 1 << bits::VIRTIO_NET_F_MRG_RXBUF;
pub(super) const STATUS: u64 = 1 << bits::VIRTIO_NET_F_STATUS;
pub(super) const CONTROL_QUEUE: u64 = 1 << bits::VIRTIO_NET_F_CTRL_VQ;
pub(super) const RECEIVE_MODES: u64 = 1 << bits::VIRTIO_NET_F_CTRL_RX;
pub(super) const GUEST_ANNOUNCE: u64 = 1 << bits::VIRTIO_NET_F_GUEST_ANNOUNCE;
pub(super) const MULTIQUEUE: u64 = 1 << bits::VIRTIO_NET_F_MQ;
pub(super) const SET_MAC: u64 = 1 << bits::VIRTIO_NET_F_CTRL_MAC_ADDR;
pub(super) const SET_OFFLOADS: u64 = 1 << bits::VIRTIO_NET_F_CTRL_GUEST_OFFLOADS;
pub(super) const MTU: u64 = 1 << bits::VIRTIO_NET_F_MTU;
const MAC: u64 = 1 << bits::VIRTIO_NET_F_MAC;

/// What every interface offers.
const ALWAYS: u64 = MAC
    | MERGEABLE_BUFFERS
    | STATUS
    | CONTROL_QUEUE
    | RECEIVE_MODES
    | GUEST_ANNOUNCE
    | SET_MAC
    | SET_OFFLOADS;

/// Offloads of packets that the guest sends.
const OUTGOING: [(Offloads, u64); 5] = [
    (Offloads::CHECKSUM, 1 << bits::VIRTIO_NET_F_CSUM),
    (Offloads::TSO4, 1 << bits::VIRTIO_NET_F_HOST_TSO4),
    (Offloads::TSO6, 1 << bits::VIRTIO_NET_F_HOST_TSO6),
    (Offloads::ECN, 1 << bits::VIRTIO_NET_F_HOST_ECN),
    (Offloads::USO, 1 << bits::VIRTIO_NET_F_HOST_USO),
];

/// Offloads of packets that the guest receives.
const INCOMING: [(Offloads, u64); 5] = [
    (Offloads::CHECKSUM, 1 << bits::VIRTIO_NET_F_GUEST_CSUM),
    (Offloads::TSO4, 1 << bits::VIRTIO_NET_F_GUEST_TSO4),
    (Offloads::TSO6, 1 << bits::VIRTIO_NET_F_GUEST_TSO6),
    (Offloads::ECN, 1 << bits::VIRTIO_NET_F_GUEST_ECN),
    (
        Offloads::USO,
        1 << bits::VIRTIO_NET_F_GUEST_USO4 | 1 << bits::VIRTIO_NET_F_GUEST_USO6,
    ),
];

/// The features of an interface with such an outside.
pub(super) fn offered(offloads: Offloads, pairs: usize, mtu: Option<u16>) -> u64 {
    let carried = |table: [(Offloads, u64); 5]| {
        table
            .into_iter()
            .filter(|(offload, _)| offloads.contains(offload.union(Offloads::CHECKSUM)))
            .fold(0, |all, (_, bits)| all | bits)
    };
    let multiqueue = if pairs > 1 { MULTIQUEUE } else { 0 };
    let mtu = mtu.map_or(0, |_| MTU);
    ALWAYS | multiqueue | mtu | carried(OUTGOING) | carried(INCOMING)
}

/// The MTU, where a device may name it.
pub(super) fn mtu_to_tell(attachment: &NetworkAttachment) -> Option<u16> {
    attachment
        .mtu
        .filter(|mtu| *mtu >= NetworkAttachment::MTU_MIN)
}

/// The offloads that packets may have on their way to a driver with these features.
pub(super) fn incoming(features: u64) -> Offloads {
    let has = |offload: Offloads| {
        INCOMING
            .iter()
            .any(|(candidate, bits)| *candidate == offload && features & bits == *bits)
    };
    if !has(Offloads::CHECKSUM) {
        return Offloads::NONE;
    }
    let streams = has(Offloads::TSO4) || has(Offloads::TSO6);
    INCOMING
        .into_iter()
        .map(|(offload, _)| offload)
        .filter(|offload| has(*offload) && (streams || *offload != Offloads::ECN))
        .fold(Offloads::NONE, Offloads::union)
}

/// All bits that say something about packets to the guest.
pub(super) fn incoming_bits() -> u64 {
    INCOMING.iter().fold(0, |all, (_, bits)| all | bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_back_end_without_offloads_offers_none() {
        let offered = offered(Offloads::NONE, 1, None);
        assert_eq!(offered & incoming_bits(), 0);
        assert_eq!(offered & (MTU | MULTIQUEUE | 1), 0);
        // TSO needs checksums.
        assert_eq!(super::offered(Offloads::TSO4, 1, None), offered);
    }

    #[test]
    fn bits_without_those_they_need_count_for_nothing() {
        let all = incoming_bits();
        let checksum = 1 << bits::VIRTIO_NET_F_GUEST_CSUM;
        let ecn = 1 << bits::VIRTIO_NET_F_GUEST_ECN;
        assert_eq!(incoming(all & !checksum), Offloads::NONE);
        assert_eq!(incoming(checksum | ecn), Offloads::CHECKSUM);
        let one_of_two = checksum | 1 << bits::VIRTIO_NET_F_GUEST_USO4;
        assert_eq!(incoming(one_of_two), Offloads::CHECKSUM);
        for (offload, _) in INCOMING {
            assert!(incoming(all).contains(offload));
        }
    }
}
