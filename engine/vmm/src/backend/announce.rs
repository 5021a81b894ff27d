// SPDX-License-Identifier: Apache-2.0
//! Telling the network that a guest lives elsewhere now.
//!
//! After a failover the switches still send the guest's packets to the old host until they see the
//! guest's address as a source. A reverse ARP request (RFC 903) is the usual harmless way to show
//! it, the one that QEMU takes: everybody gets it, nobody answers. It has no VLAN tag; a guest that
//! tags its packets is found again when it sends its next one.

use std::time::Duration;

use super::mac::MacAddress;
use super::network::PACKET_HEADER_BYTES;

/// Length in bytes of an announcement: header, and the shortest Ethernet frame without checksum.
pub const ANNOUNCEMENT_BYTES: usize = PACKET_HEADER_BYTES + 60;

/// When to announce, counted from the moment the guest runs. Several times, because a frame can be
/// lost and a switch port can need time; the pauses are QEMU's (`announce-initial` 50 ms,
/// `announce-step` 100 ms, 5 rounds).
pub const ANNOUNCE_AFTER: [Duration; 5] = [
    Duration::from_millis(0),
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_millis(450),
    Duration::from_millis(800),
];

/// A packet, ready for [`transmit`](super::NetworkBackend::transmit), that shows this address to
/// every switch.
#[must_use]
pub fn announcement(address: MacAddress) -> [u8; ANNOUNCEMENT_BYTES] {
    let address = address.octets();
    let parts: [&[u8]; 9] = [
        // virtio-net header: no offload. num_buffers is 0 in what a driver sends.
        &[0; PACKET_HEADER_BYTES],
        // Ethernet: to everybody, from the guest, EtherType RARP.
        &[0xff; 6],
        &address,
        &[0x80, 0x35],
        // Ethernet and IPv4 addresses, of 6 and 4 bytes; operation 3: "request reverse".
        &[0, 1, 8, 0, 6, 4, 0, 3],
        // Sender and target: the guest, with no IPv4 address.
        &address,
        &[0; 4],
        &address,
        &[0; 4],
    ];
    let mut packet = [0; ANNOUNCEMENT_BYTES];
    for (target, byte) in packet.iter_mut().zip(parts.concat()) {
        *target = byte;
    }
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_announcement_is_a_reverse_arp_request() {
        let packet = announcement("52:54:00:12:34:56".parse().unwrap());
        let hex = packet.map(|byte| format!("{byte:02x}")).concat();
        let expected = concat!(
            "000000000000000000000000",
            "ffffffffffff",
            "525400123456",
            "8035",
            "0001080006040003",
            "525400123456",
            "00000000",
            "525400123456",
            "00000000",
        );
        assert!(hex.starts_with(expected), "{hex}");
        assert!(hex[expected.len()..].bytes().all(|digit| digit == b'0'));
    }
}
