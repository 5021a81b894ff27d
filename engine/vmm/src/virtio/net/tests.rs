// SPDX-License-Identifier: Apache-2.0
//! The interface between a guest's driver and a wire in memory.

mod commands;
mod hostile;
mod moves;
mod traffic;
mod wire;

use super::Net;
use crate::backend::{MacAddress, NetworkAttachment, PACKET_HEADER_BYTES};
use crate::virtio::driver::{Driver, Submitted};
use wire::Wire;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

fn own_mac() -> MacAddress {
    "52:54:00:12:34:56".parse().unwrap()
}

/// An interface at this wire.
fn net(wire: &Wire) -> Box<Net> {
    Box::new(Net::new(NetworkAttachment {
        mac: own_mac(),
        mtu: Some(1400),
        backend: Box::new(wire.plug()),
    }))
}

/// A packet with this number and this many bytes of header and frame, none like another.
fn packet(number: u32, bytes: usize) -> Vec<u8> {
    let filler = (0u32..).map(|at| (at.wrapping_mul(31) ^ number).to_le_bytes()[0]);
    [0; PACKET_HEADER_BYTES]
        .into_iter()
        .chain(number.to_le_bytes())
        .chain(filler)
        .take(bytes)
        .collect()
}

/// The packet as the guest finds it: in so many chains.
fn in_chains(mut packet: Vec<u8>, chains: u16) -> Vec<u8> {
    packet[10..12].copy_from_slice(&chains.to_le_bytes());
    packet
}

/// Waits for a packet in these chains of the queue, in their order.
fn received(driver: &mut Driver, queue: usize, chains: &[Submitted]) -> Vec<u8> {
    let mut packet = Vec::new();
    for chain in chains {
        let (head, written) = driver.used(queue);
        assert_eq!(head, chain.head);
        packet.extend(content(driver, chain, written));
    }
    packet
}

fn content(driver: &Driver, chain: &Submitted, written: u32) -> Vec<u8> {
    let parts = chain.writable.iter().flat_map(|part| driver.read(part));
    parts.take(written.try_into().unwrap()).collect()
}

/// Sends a packet in one part and waits until the device is through with it.
fn send(driver: &mut Driver, queue: usize, packet: &[u8]) {
    let sent = driver.submit(queue, &[packet], &[]);
    driver.ring(queue);
    assert_eq!(driver.used(queue), (sent.head, 0));
}

/// Gives a command in the control queue and waits for the answer.
fn command(driver: &mut Driver, queue: usize, class: u8, command: u8, data: &[u8]) -> u8 {
    let request = driver.submit(queue, &[&[class, command], data], &[1]);
    driver.ring(queue);
    assert_eq!(driver.used(queue), (request.head, 1));
    driver.read(&request.writable[0])[0]
}
