// SPDX-License-Identifier: Apache-2.0
//! The TAP as a place where packets go and come from: one file for each queue pair.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use crate::backend::flow;
use crate::backend::ioctl;
use crate::backend::network::{Offloads, PACKET_HEADER_BYTES};

/// Shortest buffer to receive into: header and Ethernet header.
const BUFFER_BYTES_MIN: usize = PACKET_HEADER_BYTES + 14;

/// Packets that the kernel could not describe, passed over in one call.
const SKIPPED_MAX: usize = 64;

#[derive(Debug)]
pub(super) struct Queues {
    tap: String,
    files: Vec<File>,
    /// What `has_room` changes, too.
    outgoing: RefCell<Outgoing>,
    /// Readable when the queue of the pending packet takes packets again.
    room: Epoll,
}

#[derive(Debug, Default)]
struct Outgoing {
    /// The packet the kernel had no room for, and its queue.
    pending: Option<(usize, Vec<u8>)>,
    lost: u64,
}

/// What the kernel did with a packet.
enum Sent {
    /// It has it, or never will.
    Over,
    NoRoom,
}

impl Queues {
    /// At least one file, each of them non-blocking.
    pub(super) fn new(tap: String, files: Vec<File>) -> io::Result<Self> {
        Ok(Self {
            tap,
            files,
            outgoing: RefCell::default(),
            room: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
        })
    }

    pub(super) fn len(&self) -> usize {
        self.files.len()
    }

    pub(super) fn lost(&self) -> u64 {
        self.outgoing.borrow().lost
    }

    pub(super) fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        set_offloads(&self.files, offloads)
    }

    pub(super) fn transmit(&mut self, packet: &[u8]) {
        if !self.has_room() {
            // The caller did not ask before: this packet goes the way of those on a full wire.
            let error = io::ErrorKind::WouldBlock.into();
            return self.lose(&mut self.outgoing.borrow_mut(), &error);
        }
        let queue = flow::queue_of(packet, self.files.len());
        let outgoing = &mut *self.outgoing.borrow_mut();
        if let Sent::NoRoom = self.send(queue, packet, outgoing)
            && self.watch(queue)
        {
            outgoing.pending = Some((queue, packet.to_vec()));
        }
    }

    pub(super) fn has_room(&self) -> bool {
        let outgoing = &mut *self.outgoing.borrow_mut();
        let Some((queue, packet)) = outgoing.pending.take() else {
            return true;
        };
        if let Sent::NoRoom = self.send(queue, &packet, outgoing) {
            outgoing.pending = Some((queue, packet));
            return false;
        }
        if let Some(file) = self.files.get(queue) {
            // It was added, so it can be removed; if not, `room` is readable once too often.
            let _ = self.room.delete(file);
        }
        true
    }

    pub(super) fn room(&self) -> BorrowedFd<'_> {
        self.room.0.as_fd()
    }

    pub(super) fn readable(&self, pair: usize) -> BorrowedFd<'_> {
        let file = self.files.get(pair).expect("pair is less than pairs()");
        file.as_fd()
    }

    pub(super) fn receive(&self, pair: usize, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let Some(mut file) = self.files.get(pair) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        if buffer.len() < BUFFER_BYTES_MIN {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for _ in 0..SKIPPED_MAX {
            match file.read(buffer) {
                Ok(length) => {
                    set_buffer_count(buffer);
                    return Ok(Some(length));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                // Interrupted; or the packet has an offload that the header cannot tell, and the
                // kernel threw it away (tun_put_user).
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    fn send(&self, queue: usize, packet: &[u8], outgoing: &mut Outgoing) -> Sent {
        let Some(mut file) = self.files.get(queue) else {
            return Sent::Over;
        };
        loop {
            match file.write(packet) {
                Ok(_) => return Sent::Over,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Sent::NoRoom,
                Err(error) => {
                    self.lose(outgoing, &error);
                    return Sent::Over;
                }
            }
        }
    }

    /// Makes `room` tell when this queue takes packets. Without that the pending packet would be
    /// waited for in vain, so it is lost instead.
    fn watch(&self, queue: usize) -> bool {
        let Some(file) = self.files.get(queue) else {
            return false;
        };
        let event = EpollEvent::new(EpollFlags::EPOLLOUT, 0);
        self.room.add(file, event).is_ok()
    }

    /// Counts a lost packet. A guest can lose as many as it likes, so only the 1st, 2nd, 4th, 8th, …
    /// are told of.
    fn lose(&self, outgoing: &mut Outgoing, error: &io::Error) {
        outgoing.lost = outgoing.lost.saturating_add(1);
        if outgoing.lost.is_power_of_two() {
            let (tap, lost) = (&self.tap, outgoing.lost);
            tracing::warn!(tap, lost, %error, "The TAP did not take a packet of the guest");
        }
    }
}

/// `num_buffers`, the last field of the header: the driver leaves it out, and virtio-net wants a 1
/// when packets are not spread over buffers (VIRTIO 1.x, 5.1.6.4.1).
fn set_buffer_count(packet: &mut [u8]) {
    if let Some(count) = packet.get_mut(PACKET_HEADER_BYTES - 2..PACKET_HEADER_BYTES) {
        count.copy_from_slice(&1u16.to_le_bytes());
    }
}

/// Tells the driver which work packets to us may leave undone. It keeps one setting for all queues.
pub(super) fn set_offloads(files: &[File], offloads: Offloads) -> io::Result<()> {
    let first = files.first().ok_or(io::ErrorKind::InvalidInput)?;
    ioctl::tun_set_offloads(first, tun_flags(offloads))
}

/// The driver refuses offloads without those they are made of (`set_offload` in `drivers/net/tun.c`),
/// and a guest may settle on anything: what cannot be is left out.
fn tun_flags(offloads: Offloads) -> libc::c_uint {
    let names = [
        (Offloads::CHECKSUM, libc::TUN_F_CSUM),
        (Offloads::TSO4, libc::TUN_F_TSO4),
        (Offloads::TSO6, libc::TUN_F_TSO6),
        (Offloads::ECN, libc::TUN_F_TSO_ECN),
        (Offloads::USO, libc::TUN_F_USO4 | libc::TUN_F_USO6),
    ];
    let flags = names
        .iter()
        .filter(|(offload, _)| offloads.contains(*offload))
        .fold(0, |flags, (_, flag)| flags | flag);
    if flags & libc::TUN_F_CSUM == 0 {
        return 0;
    }
    if flags & (libc::TUN_F_TSO4 | libc::TUN_F_TSO6) == 0 {
        return flags & !libc::TUN_F_TSO_ECN;
    }
    flags
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixDatagram;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    fn has_news(fd: BorrowedFd<'_>) -> bool {
        poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::ZERO).unwrap() == 1
    }

    #[test]
    fn a_packet_without_room_waits_and_is_sent_first() {
        let (here, there) = UnixDatagram::pair().unwrap();
        here.set_nonblocking(true).unwrap();
        there.set_nonblocking(true).unwrap();
        let file = File::from(OwnedFd::from(here));
        let mut queues = Queues::new("test".to_owned(), vec![file]).unwrap();
        let mut sent = 0u32;
        while queues.has_room() {
            assert!(!has_news(queues.room()));
            queues.transmit(&sent.to_le_bytes());
            sent += 1;
        }
        assert!(sent > 1);
        assert!(!has_news(queues.room()));
        assert_eq!(queues.lost(), 0);
        queues.transmit(b"lost");
        assert_eq!(queues.lost(), 1);
        let mut buffer = [0; 4];
        let mut received = 0u32;
        while received < sent {
            match there.recv(&mut buffer) {
                Ok(_) => {
                    assert_eq!(u32::from_le_bytes(buffer), received);
                    received += 1;
                }
                Err(_) => {
                    assert_eq!(received, sent - 1, "one packet was pending");
                    assert!(has_news(queues.room()));
                    assert!(queues.has_room());
                    assert!(!has_news(queues.room()));
                }
            }
        }
    }

    #[test]
    fn offloads_that_cannot_be_are_left_out() {
        let csum = libc::TUN_F_CSUM;
        let with = |offloads| tun_flags(Offloads::CHECKSUM.union(offloads));
        assert_eq!(tun_flags(Offloads::ALL.difference(Offloads::CHECKSUM)), 0);
        assert_eq!(with(Offloads::ECN), csum);
        assert_eq!(
            with(Offloads::ECN.union(Offloads::TSO6)),
            csum | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN
        );
        assert_eq!(
            with(Offloads::USO),
            csum | libc::TUN_F_USO4 | libc::TUN_F_USO6
        );
    }
}
