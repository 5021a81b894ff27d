// SPDX-License-Identifier: Apache-2.0
//! Packets between two TAPs on a bridge: well-formed ones arrive, and whatever else a guest sends does
//! no harm.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::*;
use crate::backend::network::{PACKET_BYTES_MAX, PACKET_HEADER_BYTES};

const UDP: u8 = 17;
const TCP: u8 = 6;

/// A packet of IPv4 from one host to another, with an empty virtio-net header. (The checksum of IP
/// must be right: where the kernel has br_netfilter, a bridge looks at it.)
fn ipv4(from: u8, to: u8, protocol: u8, content: &[u8]) -> Vec<u8> {
    let mac = |host: u8| [2, 0, 0, 0, 0, host];
    let mut ip = [0x45, 0].to_vec();
    ip.extend(u16::try_from(20 + content.len()).unwrap().to_be_bytes());
    ip.extend([0, 0, 0, 0, 64, protocol, 0, 0, 10, 0, 0, from, 10, 0, 0, to]);
    let sum: u32 = ip
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]))
        .sum();
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let header = [0; PACKET_HEADER_BYTES];
    [&header, &mac(to)[..], &mac(from), &[0x08, 0], &ip, content].concat()
}

/// A datagram between a host's port and another's.
fn udp(from: (u8, u16), to: (u8, u16), payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).unwrap();
    let mut datagram = [from.1, to.1, length, 0].map(u16::to_be_bytes).concat();
    datagram.extend(payload);
    ipv4(from.0, to.0, UDP, &datagram)
}

/// A stream of TCP to be cut into segments of `segment` bytes each, checksums to be filled in.
fn tcp_to_be_cut(payload: usize, segment: u16) -> Vec<u8> {
    let mut tcp = vec![0; 20 + payload];
    tcp[..4].copy_from_slice(&[0, 7, 0, 8]);
    // Header of 20 bytes, ACK; a window.
    tcp[12..16].copy_from_slice(&[0x50, 0x10, 0xff, 0xff]);
    let mut packet = ipv4(1, 2, TCP, &tcp);
    // NEEDS_CSUM, TCPV4, and where things are (VIRTIO 1.x, 5.1.6).
    packet[..2].copy_from_slice(&[1, 1]);
    let fields = [54, segment, 34, 16].map(u16::to_le_bytes).concat();
    packet[2..10].copy_from_slice(&fields);
    packet
}

/// Sends until it arrives: a port that has just come up may not forward at once.
fn passes(from: &mut Tap, to: &mut Tap, packet: &[u8]) -> usize {
    for _ in 0..PATIENCE_ROUNDS {
        assert!(from.has_room());
        from.transmit(packet);
        let mut fds = [PollFd::new(to.readable(0), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::from(100u16)).unwrap();
        let mut buffer = vec![0; PACKET_BYTES_MAX];
        for pair in 0..to.pairs() {
            while let Some(length) = to.receive(pair, &mut buffer).unwrap() {
                assert_eq!(buffer[10..12], [1, 0], "one buffer");
                if buffer[PACKET_HEADER_BYTES..length] == packet[PACKET_HEADER_BYTES..] {
                    return pair;
                }
            }
        }
    }
    panic!("nothing came through");
}

/// Lengths and kinds of segmentation of the packets of TCP that come in, until as many bytes of frames
/// are there.
fn tcp_lengths(to: &mut Tap, total: usize) -> Vec<(usize, u8)> {
    let mut seen: Vec<(usize, u8)> = Vec::new();
    let mut buffer = vec![0; PACKET_BYTES_MAX];
    for _ in 0..PATIENCE_ROUNDS {
        while let Some(length) = to.receive(0, &mut buffer).unwrap() {
            if buffer.get(PACKET_HEADER_BYTES + 23) == Some(&TCP) {
                seen.push((length - PACKET_HEADER_BYTES, buffer[1]));
            }
        }
        if seen.iter().map(|(length, _)| length).sum::<usize>() >= total {
            break;
        }
        let mut fds = [PollFd::new(to.readable(0), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::from(100u16)).unwrap();
    }
    seen
}

#[test]
fn streams_come_whole_where_that_was_settled_and_cut_where_not() {
    in_namespace(|| {
        make_bridge("br0");
        let mut a = Tap::open(&bridged("a", 1)).unwrap();
        let mut b = Tap::open(&bridged("b", 1)).unwrap();
        passes(&mut a, &mut b, &udp((1, 7), (2, 8), b"the way is open"));
        b.set_offloads(Offloads::CHECKSUM.union(Offloads::TSO4))
            .unwrap();
        a.transmit(&tcp_to_be_cut(4000, 1000));
        assert_eq!(tcp_lengths(&mut b, 4054), [(4054, 1)]);
        b.set_offloads(Offloads::NONE).unwrap();
        a.transmit(&tcp_to_be_cut(4000, 1000));
        assert_eq!(tcp_lengths(&mut b, 4 * 1054), [(1054, 0); 4]);
        assert_eq!(a.lost(), 0);
    });
}

#[test]
fn two_taps_on_a_bridge_pass_packets_and_announcements() {
    in_namespace(|| {
        make_bridge("br0");
        let mut a = Tap::open(&bridged("a", 1)).unwrap();
        let mut b = Tap::open(&bridged("b", 1)).unwrap();
        passes(&mut a, &mut b, &udp((1, 7), (2, 8), b"there"));
        passes(&mut b, &mut a, &udp((2, 8), (1, 7), b"and back"));
        let address = "52:54:00:12:34:56".parse().unwrap();
        passes(&mut a, &mut b, &crate::backend::announcement(address));
    });
}

#[test]
fn answers_come_in_on_the_queue_that_asked() {
    in_namespace(|| {
        make_bridge("br0");
        let mut many = Tap::open(&bridged("many", 4)).unwrap();
        let mut one = Tap::open(&bridged("one", 1)).unwrap();
        assert_eq!(many.pairs(), 4);
        for port in 1000..1032 {
            let question = udp((1, port), (2, 53), b"question");
            passes(&mut many, &mut one, &question);
            let pair = passes(&mut one, &mut many, &udp((2, 53), (1, port), b"answer"));
            assert_eq!(pair, crate::backend::flow::queue_of(&question, 4));
        }
    });
}

#[test]
fn packets_of_a_link_that_is_down_are_lost() {
    in_namespace(|| {
        let interfaces = make_bridge("br0");
        let mut a = Tap::open(&bridged("a", 1)).unwrap();
        let mut b = Tap::open(&bridged("b", 1)).unwrap();
        let packet = udp((1, 7), (2, 8), b"packet");
        set_up(&interfaces, "a", false);
        a.transmit(&packet);
        assert_eq!(a.lost(), 1);
        assert!(a.has_room());
        assert_eq!(a.receive(0, &mut [0; 2048]).unwrap(), None);
        set_up(&interfaces, "a", true);
        passes(&mut a, &mut b, &packet);
    });
}

#[test]
fn whatever_a_guest_sends_the_next_packet_passes() {
    in_namespace(|| {
        make_bridge("br0");
        let mut hostile = Tap::open(&bridged("hostile", 2)).unwrap();
        let mut other = Tap::open(&bridged("other", 1)).unwrap();
        hostile.set_offloads(Offloads::ALL).unwrap();
        other.set_offloads(Offloads::CHECKSUM).unwrap();
        // Flags, kind of segmentation, lengths and offsets at random or nearly right, before a frame
        // that is whole or not.
        let bytes = proptest::collection::vec(any::<u8>(), 0..40);
        let packets = (0..8u8, any::<[u8; 9]>(), any::<bool>(), bytes);
        let mut runner = TestRunner::default();
        for _ in 0..2000 {
            let tree = packets.new_tree(&mut runner).unwrap();
            let (flags, rest, whole, tail) = tree.current();
            let mut packet = udp((1, 7), (2, 8), &tail);
            packet[0] = flags;
            packet[1..10].copy_from_slice(&rest);
            if rest[0] % 2 == 0 {
                let nearly = [rest[0] % 6, rest[1] % 64, 0, rest[3], 0, 34, 0, 6, 0];
                packet[1..10].copy_from_slice(&nearly);
            }
            if !whole {
                packet.truncate(usize::from(rest[5]) % packet.len());
            }
            if hostile.has_room() {
                hostile.transmit(&packet);
            }
            let mut buffer = [0; 4096];
            while other.receive(0, &mut buffer).unwrap().is_some() {}
        }
        assert!(hostile.lost() > 0, "some were no packets");
        passes(&mut hostile, &mut other, &udp((1, 7), (2, 8), b"packet"));
    });
}
