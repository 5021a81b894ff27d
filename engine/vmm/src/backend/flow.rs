// SPDX-License-Identifier: Apache-2.0
//! Which queue pair a packet goes through.
//!
//! The kernel's TAP driver steers packets that come in to the queue that last *sent* in the same
//! flow. So the queue a packet is sent through decides where its answers arrive: flows are spread
//! over the queues by a hash of their addresses and ports, and a flow stays on its queue, so that
//! its packets keep their order. Whatever the packet holds, the answer is a queue.

use xxhash_rust::xxh3::xxh3_64;

use super::network::PACKET_HEADER_BYTES;

const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];

/// The queue, less than `queues` (which is at least one), for a packet.
pub(super) fn queue_of(packet: &[u8], queues: usize) -> usize {
    if queues <= 1 {
        return 0;
    }
    let frame = packet.get(PACKET_HEADER_BYTES..).unwrap_or_default();
    let hash = xxh3_64(flow(frame));
    let queues = u64::try_from(queues).unwrap_or(1);
    usize::try_from(hash % queues).unwrap_or(0)
}

/// The bytes that are the same in all packets of a flow: addresses and ports of IP, or else the
/// Ethernet addresses.
fn flow(frame: &[u8]) -> &[u8] {
    let range = match frame.get(12..14) {
        // Addresses from byte 12 of the IPv4 header; the ports follow if it has no options and the
        // packet is no fragment (byte 0; flags and offset in bytes 6 and 7, RFC 791).
        Some(kind) if kind == IPV4 => match frame.get(14..22) {
            Some([0x45, _, _, _, _, _, flags, offset]) if flags & 0x3f == 0 && *offset == 0 => {
                26..38
            }
            _ => 26..34,
        },
        // Addresses from byte 8 of the IPv6 header; the ports follow if the next header is TCP or UDP.
        Some(kind) if kind == IPV6 => match frame.get(20) {
            Some(6 | 17) => 22..58,
            _ => 22..54,
        },
        _ => 0..12,
    };
    frame.get(range).unwrap_or(frame)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn udp(source_port: u16, payload: u8) -> Vec<u8> {
        let mut packet = vec![0; PACKET_HEADER_BYTES + 14 + 28];
        packet[PACKET_HEADER_BYTES + 12..][..2].copy_from_slice(&IPV4);
        let ip = &mut packet[PACKET_HEADER_BYTES + 14..];
        ip[0] = 0x45;
        ip[4] = payload;
        ip[20..22].copy_from_slice(&source_port.to_be_bytes());
        packet.push(payload);
        packet
    }

    #[test]
    fn a_flow_keeps_its_queue_and_flows_are_spread() {
        let queues: Vec<usize> = (0..64).map(|port| queue_of(&udp(port, 0), 4)).collect();
        assert_eq!(
            queues,
            (0..64)
                .map(|port| queue_of(&udp(port, 9), 4))
                .collect::<Vec<_>>()
        );
        assert!((0..4).all(|queue| queues.contains(&queue)), "{queues:?}");
    }

    proptest! {
        #[test]
        fn any_packet_has_a_queue(packet: Vec<u8>, queues in 1usize..300) {
            prop_assert!(queue_of(&packet, queues) < queues);
        }
    }
}
