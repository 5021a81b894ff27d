// SPDX-License-Identifier: Apache-2.0
//! A cable in memory, for tests and fuzzing: what one end transmits, the other receives.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::doorbell::Doorbell;
use super::network::{NetworkBackend, Offloads};

/// Packets a direction of the cable holds, over all its queues, unless said otherwise.
const ROOM_PACKETS: usize = 256;

/// One end of a cable.
#[derive(Debug)]
pub struct MemoryNetwork {
    offloads: Offloads,
    settled: Offloads,
    to_peer: Arc<Direction>,
    from_peer: Arc<Direction>,
}

#[derive(Debug)]
struct Direction {
    queues: Mutex<Queues>,
    arrived: Vec<Doorbell>,
    room: Doorbell,
    room_packets: usize,
}

#[derive(Debug)]
struct Queues {
    pairs: Vec<VecDeque<Vec<u8>>>,
    packets: usize,
}

impl MemoryNetwork {
    /// Both ends of a cable with this many queue pairs (at least one).
    ///
    /// # Errors
    /// No eventfd can be made.
    pub fn cable(pairs: usize) -> io::Result<(Self, Self)> {
        Self::cable_with_room(pairs, ROOM_PACKETS)
    }

    /// The same, holding no more than `room_packets` in each direction.
    ///
    /// # Errors
    /// No eventfd can be made.
    pub fn cable_with_room(pairs: usize, room_packets: usize) -> io::Result<(Self, Self)> {
        let there = Arc::new(Direction::new(pairs.max(1), room_packets)?);
        let back = Arc::new(Direction::new(pairs.max(1), room_packets)?);
        let end = |to_peer: &Arc<Direction>, from_peer: &Arc<Direction>| Self {
            offloads: Offloads::ALL,
            settled: Offloads::NONE,
            to_peer: Arc::clone(to_peer),
            from_peer: Arc::clone(from_peer),
        };
        Ok((end(&there, &back), end(&back, &there)))
    }

    /// The same end, offering only these offloads.
    #[must_use]
    pub fn with_offloads(mut self, offloads: Offloads) -> Self {
        self.offloads = offloads;
        self
    }

    /// What was last settled for packets that come in.
    #[must_use]
    pub fn settled_offloads(&self) -> Offloads {
        self.settled
    }

    /// Like `transmit`, but into this queue pair of the other end (which has as many as this one).
    pub fn transmit_to(&self, pair: usize, packet: &[u8]) {
        self.to_peer.push(pair, packet);
    }
}

impl Direction {
    fn new(pairs: usize, room_packets: usize) -> io::Result<Self> {
        Ok(Self {
            queues: Mutex::new(Queues {
                pairs: vec![VecDeque::new(); pairs],
                packets: 0,
            }),
            arrived: (0..pairs)
                .map(|_| Doorbell::new())
                .collect::<Result<_, _>>()?,
            room: Doorbell::new()?,
            room_packets,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, pair: usize, packet: &[u8]) {
        let mut queues = self.lock();
        if queues.packets >= self.room_packets {
            return;
        }
        if let (Some(queue), Some(bell)) = (queues.pairs.get_mut(pair), self.arrived.get(pair)) {
            queue.push_back(packet.to_vec());
            queues.packets += 1;
            bell.ring();
        }
    }

    fn pop(&self, pair: usize) -> Option<Vec<u8>> {
        let mut queues = self.lock();
        let packet = queues.pairs.get_mut(pair)?.pop_front();
        match &packet {
            None => self.arrived.get(pair)?.silence(),
            Some(_) => {
                queues.packets -= 1;
                self.room.ring();
            }
        }
        packet
    }

    fn has_room(&self) -> bool {
        let queues = self.lock();
        self.room.silence();
        queues.packets < self.room_packets
    }
}

impl NetworkBackend for MemoryNetwork {
    fn offloads(&self) -> Offloads {
        self.offloads
    }

    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        if !self.offloads.contains(offloads) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.settled = offloads;
        Ok(())
    }

    fn transmit(&mut self, packet: &[u8]) {
        self.to_peer.push(0, packet);
    }

    fn has_room(&self) -> bool {
        self.to_peer.has_room()
    }

    fn room(&self) -> Option<BorrowedFd<'_>> {
        Some(self.to_peer.room.as_fd())
    }

    fn receive(&mut self, pair: usize, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let Some(packet) = self.from_peer.pop(pair) else {
            return Ok(None);
        };
        let length = packet.len().min(buffer.len());
        let (target, _) = buffer.split_at_mut(length);
        let (source, _) = packet.split_at(length);
        target.copy_from_slice(source);
        Ok(Some(length))
    }

    fn readable(&self, pair: usize) -> BorrowedFd<'_> {
        let bells = &self.from_peer.arrived;
        bells.get(pair).expect("pair is less than pairs()").as_fd()
    }

    fn pairs(&self) -> usize {
        self.from_peer.arrived.len()
    }
}

#[cfg(test)]
mod tests {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    fn is_readable(fd: BorrowedFd<'_>) -> bool {
        poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::ZERO).unwrap() == 1
    }

    #[test]
    fn a_packet_crosses_and_the_bells_ring() {
        let (mut here, mut there) = MemoryNetwork::cable_with_room(2, 1).unwrap();
        let mut buffer = [0; 8];
        assert!(here.has_room());
        assert!(!is_readable(there.readable(0)));
        here.transmit(&[1, 2, 3]);
        assert!(!here.has_room());
        assert!(!is_readable(here.room().unwrap()));
        assert!(is_readable(there.readable(0)));
        assert!(!is_readable(there.readable(1)));
        assert_eq!(there.receive(0, &mut buffer).unwrap(), Some(3));
        assert_eq!(buffer[..3], [1, 2, 3]);
        assert!(is_readable(here.room().unwrap()));
        assert!(here.has_room());
        assert_eq!(there.receive(0, &mut buffer).unwrap(), None);
        assert!(!is_readable(there.readable(0)));
        here.transmit_to(1, &[7; 20]);
        assert_eq!(there.receive(1, &mut buffer).unwrap(), Some(8));
    }
}
