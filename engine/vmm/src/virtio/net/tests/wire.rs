// SPDX-License-Identifier: Apache-2.0
//! A wire in memory that machines can be plugged into one after the other.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use crate::backend::{NetworkBackend, Offloads};

/// A test that waits longer has failed.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// Whether the wire takes the offloads that a guest settles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mood {
    Willing,
    Refusing,
}

struct State {
    arriving: Vec<VecDeque<Vec<u8>>>,
    /// Packets that the guest's side took.
    taken: usize,
    sent: Vec<Vec<u8>>,
    room: usize,
    settled: Vec<Offloads>,
    mood: Mood,
}

struct Bell(UnixStream, UnixStream);

impl Bell {
    fn new() -> Self {
        let (ring, hear) = UnixStream::pair().unwrap();
        ring.set_nonblocking(true).unwrap();
        hear.set_nonblocking(true).unwrap();
        Self(ring, hear)
    }

    fn ring(&self) {
        // Full is as readable as can be.
        let _ = (&self.0).write(&[1]);
    }

    fn silence(&self) {
        while (&self.1).read(&mut [0; 64]).is_ok_and(|bytes| bytes > 0) {}
    }
}

struct Inner {
    offloads: Offloads,
    state: Mutex<State>,
    changed: Condvar,
    arrived: Vec<Bell>,
    room: Bell,
}

#[derive(Clone)]
pub(super) struct Wire(Arc<Inner>);

/// What a machine has of a wire.
pub(super) struct Plug(Wire);

impl Wire {
    /// A wire with room for everything.
    pub(super) fn new(pairs: usize) -> Self {
        Self::with_room(pairs, usize::MAX)
    }

    /// A wire with room for so many packets.
    pub(super) fn with_room(pairs: usize, room: usize) -> Self {
        Self::with(pairs, room, all_offloads())
    }

    /// A wire that carries these offloads.
    pub(super) fn with_offloads(pairs: usize, offloads: Offloads) -> Self {
        Self::with(pairs, usize::MAX, offloads)
    }

    fn with(pairs: usize, room: usize, offloads: Offloads) -> Self {
        Self(Arc::new(Inner {
            offloads,
            state: Mutex::new(State {
                arriving: vec![VecDeque::new(); pairs],
                taken: 0,
                sent: Vec::new(),
                room,
                settled: Vec::new(),
                mood: Mood::Willing,
            }),
            changed: Condvar::new(),
            arrived: (0..pairs).map(|_| Bell::new()).collect(),
            room: Bell::new(),
        }))
    }

    pub(super) fn plug(&self) -> Plug {
        Plug(self.clone())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap()
    }

    /// A packet arrives for the guest.
    pub(super) fn arrive(&self, pair: usize, packet: &[u8]) {
        self.lock().arriving[pair].push_back(packet.to_vec());
        self.0.arrived[pair].ring();
    }

    /// Nothing arrives any more.
    pub(super) fn clear(&self) {
        self.lock().arriving.iter_mut().for_each(VecDeque::clear);
    }

    /// Packets that the guest's side took so far.
    pub(super) fn taken(&self) -> usize {
        self.lock().taken
    }

    /// There is room for so many more.
    pub(super) fn make_room(&self, packets: usize) {
        let mut state = self.lock();
        state.room = state.room.saturating_add(packets);
        drop(state);
        self.0.room.ring();
    }

    /// Everything the guest sent, when it is at least so many packets.
    pub(super) fn sent(&self, packets: usize) -> Vec<Vec<u8>> {
        let short = |state: &mut State| state.sent.len() < packets;
        let (state, waited) = self
            .0
            .changed
            .wait_timeout_while(self.lock(), PATIENCE, short)
            .unwrap();
        assert!(!waited.timed_out(), "only {} packets", state.sent.len());
        state.sent.clone()
    }

    /// The offloads settled so far.
    pub(super) fn settled(&self) -> Vec<Offloads> {
        self.lock().settled.clone()
    }

    pub(super) fn set_mood(&self, mood: Mood) {
        self.lock().mood = mood;
    }
}

pub(super) fn all_offloads() -> Offloads {
    [Offloads::TSO4, Offloads::TSO6, Offloads::ECN, Offloads::USO]
        .into_iter()
        .fold(Offloads::CHECKSUM, Offloads::union)
}

impl NetworkBackend for Plug {
    fn offloads(&self) -> Offloads {
        self.0.0.offloads
    }

    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        let mut state = self.0.lock();
        if state.mood == Mood::Refusing {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        state.settled.push(offloads);
        Ok(())
    }

    fn transmit(&mut self, packet: &[u8]) {
        let mut state = self.0.lock();
        assert!(state.room > 0, "the device asked for room before");
        state.room -= 1;
        state.sent.push(packet.to_vec());
        self.0.0.changed.notify_all();
    }

    fn has_room(&self) -> bool {
        let state = self.0.lock();
        self.0.0.room.silence();
        state.room > 0
    }

    fn room(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.0.room.1.as_fd())
    }

    fn receive(&mut self, pair: usize, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let mut state = self.0.lock();
        let Some(packet) = state.arriving[pair].pop_front() else {
            self.0.0.arrived[pair].silence();
            return Ok(None);
        };
        state.taken += 1;
        let length = packet.len().min(buffer.len());
        buffer[..length].copy_from_slice(&packet[..length]);
        Ok(Some(length))
    }

    fn readable(&self, pair: usize) -> BorrowedFd<'_> {
        self.0.0.arrived[pair].1.as_fd()
    }

    fn pairs(&self) -> usize {
        self.0.0.arrived.len()
    }
}
