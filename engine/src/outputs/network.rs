// SPDX-License-Identifier: Apache-2.0
//! A network interface between the guest and its TAP: what the guest sends passes the event-tap.
//!
//! The TAP outlives machines: a demoted replica gets a new machine, and its device the same TAP.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kemari_replication::NetworkPort;
use kemari_vmm::backend::{MacAddress, NetworkBackend, Offloads, announcement};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::Outputs;

/// How long a packet waits for a TAP that has no room before it is lost, as on a wire.
const ROOM_MS_MAX: u16 = 1000;

/// The outside of one interface, shared by the device, which receives, and whoever lets packets out.
pub struct Interface {
    outside: Mutex<Box<dyn NetworkBackend>>,
    readable: Vec<OwnedFd>,
    /// Readable when the device may send again.
    room: EventFd,
}

impl std::fmt::Debug for Interface {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Interface")
    }
}

impl Interface {
    /// An interface onto this outside.
    ///
    /// # Errors
    /// The process has no more file descriptors.
    pub fn new(outside: Box<dyn NetworkBackend>) -> io::Result<Self> {
        let readable = (0..outside.pairs())
            .map(|pair| outside.readable(pair).try_clone_to_owned())
            .collect::<io::Result<_>>()?;
        Ok(Self {
            outside: Mutex::new(outside),
            readable,
            room: EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Box<dyn NetworkBackend>> {
        // A back end keeps nothing that a panic elsewhere could leave half done.
        self.outside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a packet out if there is room now.
    pub(super) fn try_send(&self, packet: &[u8]) -> bool {
        let mut outside = self.lock();
        let room = outside.has_room();
        if room {
            outside.transmit(packet);
        }
        room
    }

    /// Lets a packet out; waits for room, but not for ever.
    pub fn send(&self, packet: &[u8]) {
        let mut outside = self.lock();
        if !outside.has_room()
            && let Some(room) = outside.room()
        {
            let mut wait = [PollFd::new(room, PollFlags::POLLIN)];
            let _ = poll(&mut wait, PollTimeout::from(ROOM_MS_MAX));
        }
        outside.transmit(packet);
    }

    /// Tells the network where the guest with this address is now. The kernel repeats nothing of
    /// this; switches learn from the guest's own packets too.
    pub fn announce(&self, mac: MacAddress) {
        self.send(&announcement(mac));
    }

    /// Throws away what has come in: it was meant for the replica that was active before.
    pub fn flush(&self) {
        let mut outside = self.lock();
        let mut buffer = vec![0; kemari_vmm::backend::PACKET_BYTES_MAX];
        for pair in 0..self.readable.len() {
            while let Ok(Some(_)) = outside.receive(pair, &mut buffer) {}
        }
    }

    /// The device may send again.
    pub(super) fn tell_room(&self) {
        let _ = self.room.write(1);
    }
}

/// What the device model sees of an interface.
#[derive(Debug)]
pub struct TappedNetwork {
    port: NetworkPort,
    interface: Arc<Interface>,
    outputs: Arc<Outputs>,
}

impl TappedNetwork {
    /// A back end for the device of the machine there is now.
    pub fn new(port: NetworkPort, interface: Arc<Interface>, outputs: Arc<Outputs>) -> Self {
        Self {
            port,
            interface,
            outputs,
        }
    }
}

impl NetworkBackend for TappedNetwork {
    fn offloads(&self) -> Offloads {
        self.interface.lock().offloads()
    }

    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        self.interface.lock().set_offloads(offloads)
    }

    fn transmit(&mut self, packet: &[u8]) {
        self.outputs.send_packet(self.port, packet);
    }

    fn has_room(&self) -> bool {
        self.outputs.has_room_for_packets(self.port)
    }

    fn room(&self) -> Option<BorrowedFd<'_>> {
        Some(self.interface.room.as_fd())
    }

    fn receive(&mut self, pair: usize, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        self.interface.lock().receive(pair, buffer)
    }

    fn readable(&self, pair: usize) -> BorrowedFd<'_> {
        match self.interface.readable.get(pair) {
            Some(readable) => readable.as_fd(),
            // No pair beyond `pairs` is ever asked for; the first is always there.
            None => self.interface.room.as_fd(),
        }
    }

    fn pairs(&self) -> usize {
        self.interface.readable.len()
    }
}
