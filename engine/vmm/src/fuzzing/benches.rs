// SPDX-License-Identifier: Apache-2.0
//! Each device with its outside in memory.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex};

use super::guest::Request;
use super::input::Input;
use crate::backend::doorbell::Doorbell;
use crate::backend::{
    ConsoleBackend, DiskAttachment, DiskSerial, MacAddress, MemoryDisk, MemoryDiskControl,
    MemoryNetwork, NetworkAttachment, NetworkBackend, PACKET_BYTES_MAX, PACKET_HEADER_BYTES,
};
use crate::config::FreePageReporting;
use crate::ram::GuestRam;
use crate::virtio::Device;
use crate::virtio::balloon::Balloon;
use crate::virtio::block::Block;
use crate::virtio::console::Console;
use crate::virtio::net::Net;
use crate::virtio::rng::Rng;

const SECTOR: usize = 512;
const DISK_BYTES: usize = 32 * SECTOR;

/// A kind of device, and what is outside of it.
pub(super) trait Bench {
    /// A device as it is after power-on, alike each time; the last one's outside goes with it.
    fn device(&mut self, ram: &GuestRam) -> Box<dyn Device>;

    /// Something happens outside.
    fn outside(&mut self, input: &mut Input<'_>);

    /// The outside answers nothing more, where it can hold back.
    fn stall(&mut self) {}

    /// The outside takes everything, and has nothing to give.
    fn settle(&mut self) {}

    /// A request that a device in working order answers.
    fn request(&self) -> Request;
}

pub(super) fn rng(_: &mut Input<'_>) -> Box<dyn Bench> {
    Box::new(RngBench)
}

struct RngBench;

impl Bench for RngBench {
    fn device(&mut self, _: &GuestRam) -> Box<dyn Device> {
        Box::new(Rng)
    }

    fn outside(&mut self, _: &mut Input<'_>) {}

    fn request(&self) -> Request {
        Request {
            queue: 0,
            readable: Vec::new(),
            writable: 16,
            written: 16,
        }
    }
}

pub(super) fn balloon(input: &mut Input<'_>) -> Box<dyn Bench> {
    Box::new(BalloonBench(match input.below(2) {
        0 => FreePageReporting::On,
        _ => FreePageReporting::Off,
    }))
}

struct BalloonBench(FreePageReporting);

impl Bench for BalloonBench {
    fn device(&mut self, ram: &GuestRam) -> Box<dyn Device> {
        Box::new(Balloon::new(ram.clone(), self.0))
    }

    fn outside(&mut self, _: &mut Input<'_>) {}

    fn request(&self) -> Request {
        Request {
            queue: 0,
            readable: 15u32.to_le_bytes().to_vec(),
            writable: 0,
            written: 0,
        }
    }
}

pub(super) fn console(_: &mut Input<'_>) -> Box<dyn Bench> {
    Box::new(ConsoleBench(Arc::default()))
}

#[derive(Default)]
struct Line {
    typed: Vec<u8>,
    full: bool,
}

struct ConsoleBench(Arc<Mutex<Line>>);

struct Terminal {
    line: Arc<Mutex<Line>>,
    bell: Doorbell,
}

impl ConsoleBackend for Terminal {
    fn write(&mut self, _: &[u8]) {}

    fn has_room(&self) -> bool {
        !self.line.lock().expect("one thread").full
    }

    fn room(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    fn read(&mut self, buffer: &mut [u8]) -> usize {
        let typed = &mut self.line.lock().expect("one thread").typed;
        let count = typed.len().min(buffer.len());
        for (byte, value) in buffer.iter_mut().zip(typed.drain(..count)) {
            *byte = value;
        }
        count
    }

    fn readable(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

impl Bench for ConsoleBench {
    fn device(&mut self, _: &GuestRam) -> Box<dyn Device> {
        Box::new(Console::new(Box::new(Terminal {
            line: Arc::clone(&self.0),
            bell: Doorbell::new().expect("an eventfd can be made"),
        })))
    }

    fn outside(&mut self, input: &mut Input<'_>) {
        let mut line = self.0.lock().expect("one thread");
        line.full = input.below(2) == 1;
        let typed = usize::from(input.u16() % 6000);
        line.typed.resize(typed, b'x');
    }

    fn settle(&mut self) {
        let mut line = self.0.lock().expect("one thread");
        line.full = false;
        line.typed.clear();
    }

    fn request(&self) -> Request {
        Request {
            queue: 1,
            readable: b"hello".to_vec(),
            writable: 0,
            written: 0,
        }
    }
}

pub(super) fn block(input: &mut Input<'_>) -> Box<dyn Bench> {
    Box::new(BlockBench {
        read_only: input.below(2) == 1,
        control: None,
    })
}

struct BlockBench {
    read_only: bool,
    control: Option<MemoryDiskControl>,
}

impl Bench for BlockBench {
    fn device(&mut self, _: &GuestRam) -> Box<dyn Device> {
        let content = match &self.control {
            Some(control) => control.content(),
            None => vec![0x5a; DISK_BYTES],
        };
        let (disk, control) = MemoryDisk::new(content).expect("an eventfd can be made");
        self.control = Some(control);
        let disk = if self.read_only {
            disk.read_only()
        } else {
            disk
        };
        let serial: DiskSerial = "fuzz".parse().expect("a serial");
        Box::new(Block::new(DiskAttachment {
            serial,
            backend: Box::new(disk),
        }))
    }

    fn outside(&mut self, input: &mut Input<'_>) {
        let Some(control) = &self.control else {
            return;
        };
        match input.below(3) {
            0 => control.hold(),
            1 => control.release(),
            _ => control.fail_next(std::io::ErrorKind::StorageFull),
        }
    }

    fn stall(&mut self) {
        if let Some(control) = &self.control {
            control.hold();
        }
    }

    fn settle(&mut self) {
        if let Some(control) = &self.control {
            control.heal();
            control.release();
        }
    }

    /// Reads the second sector.
    fn request(&self) -> Request {
        let words = [0u32, 0, 1, 0];
        Request {
            queue: 0,
            readable: words.into_iter().flat_map(u32::to_le_bytes).collect(),
            writable: 513,
            written: 513,
        }
    }
}

pub(super) fn net(input: &mut Input<'_>) -> Box<dyn Bench> {
    Box::new(NetBench {
        pairs: usize::from(1 + input.below(2)),
        room: usize::from(1 + input.below(8)),
        peer: None,
    })
}

struct NetBench {
    pairs: usize,
    room: usize,
    peer: Option<MemoryNetwork>,
}

impl Bench for NetBench {
    fn device(&mut self, _: &GuestRam) -> Box<dyn Device> {
        let (here, there) =
            MemoryNetwork::cable_with_room(self.pairs, self.room).expect("eventfds can be made");
        self.peer = Some(there);
        let mac = MacAddress::new([0x52, 0x54, 0, 0, 0, 1]).expect("an address");
        Box::new(Net::new(NetworkAttachment {
            mac,
            mtu: Some(1500),
            backend: Box::new(here),
        }))
    }

    /// Takes packets, or sends one.
    fn outside(&mut self, input: &mut Input<'_>) {
        let Some(peer) = &mut self.peer else {
            return;
        };
        if input.below(4) == 0 {
            return self.settle();
        }
        let pair = usize::from(input.u8()) % self.pairs;
        let length = PACKET_HEADER_BYTES.max(usize::from(input.u16()));
        let mut packet = vec![0; length.min(PACKET_BYTES_MAX)];
        for (byte, value) in packet.iter_mut().zip(input.bytes(24)) {
            *byte = *value;
        }
        peer.transmit_to(pair, &packet);
    }

    fn settle(&mut self) {
        let mut packet = vec![0; PACKET_BYTES_MAX];
        if let Some(peer) = &mut self.peer {
            while let Ok(Some(_)) = peer.receive(0, &mut packet) {}
        }
    }

    /// Sends the shortest frame.
    fn request(&self) -> Request {
        Request {
            queue: 1,
            readable: vec![0; PACKET_HEADER_BYTES + 60],
            writable: 0,
            written: 0,
        }
    }
}
