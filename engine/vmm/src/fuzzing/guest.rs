// SPDX-License-Identifier: Apache-2.0
//! The guest's side of a device: its memory, its rings, the registers.
//!
//! Memory is small, so that it can be compared after each step, and has a hole:
//!
//! | address | content |
//! | --- | --- |
//! | 0x0000 + 0x400 n | queue n as a polite driver sets it up: descriptors, available, used |
//! | 0x2000 | wherever the input puts it |
//! | 0x8000 | what a polite driver's request says |
//! | 0xa000 | where it is answered |
//! | 0x1_0000..0x1_8000 | nothing |
//! | 0x1_8000..0x2_0000 | wherever the input puts it |

use vm_memory::bitmap::Bitmap;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::dirty::{DirtyPages, PAGE_SIZE};
use crate::pci::PciFunction;
use crate::ram::{GuestRam, Mapping};
use crate::virtio::transport::VirtioFunction;

/// The parts of memory: start and length.
const MEMORY: [(u64, usize); 2] = [(0, 64 << 10), (96 << 10, 32 << 10)];

/// Entries of a ring that a polite driver sets up.
const ENTRIES: u16 = 16;
const RING_BYTES: u64 = 0x400;
const AVAILABLE: u64 = 0x100;
const USED: u64 = 0x200;
const REQUEST: u64 = 0x8000;
const ANSWER: u64 = 0xa000;

const STATUS: u64 = 0x14;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
/// `VIRTIO_F_VERSION_1`, in the high half.
const VERSION_1: u32 = 1;

/// What a device is asked politely, and how it must answer.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) queue: u16,
    /// What the device reads.
    pub(super) readable: Vec<u8>,
    /// How much it may write.
    pub(super) writable: u32,
    /// How much it writes.
    pub(super) written: u32,
}

/// One descriptor.
#[derive(Debug, Clone, Copy)]
pub(super) struct Descriptor {
    pub(super) address: u64,
    pub(super) length: u32,
    pub(super) flags: u16,
    pub(super) next: u16,
}

/// A guest's memory, with what a driver remembers.
#[derive(Debug)]
pub(super) struct Guest {
    pub(super) ram: GuestRam,
    next_descriptor: u16,
}

/// All of memory at one moment.
#[derive(Debug)]
pub(super) struct Snapshot(Vec<Vec<u8>>);

impl Guest {
    pub(super) fn new() -> Self {
        Self {
            ram: GuestRam::of_parts(&MEMORY).expect("96 KiB can be mapped"),
            next_descriptor: 0,
        }
    }

    pub(super) fn memory(&self) -> &Mapping {
        self.ram.mapping()
    }

    /// What memory holds; from now on writes are counted anew.
    pub(super) fn snapshot(&self) -> Snapshot {
        self.ram
            .take_written(&mut DirtyPages::none(self.ram.page_count()));
        let parts = self
            .memory()
            .iter()
            .map(|region| contents(region.start_addr(), region.len(), self.memory()));
        Snapshot(parts.collect())
    }

    /// Every page that changed since the snapshot counts as written.
    pub(super) fn check_written(&self, before: &Snapshot) {
        for (region, before) in self.memory().iter().zip(&before.0) {
            let after = contents(region.start_addr(), region.len(), self.memory());
            let pages = before.chunks(PAGE_SIZE).zip(after.chunks(PAGE_SIZE));
            for (page, (before, after)) in pages.enumerate() {
                let written = (**region).bitmap().dirty_at(page * PAGE_SIZE);
                assert!(before == after || written, "page {page} changed unseen");
            }
        }
    }

    /// Nothing changed since the snapshot.
    pub(super) fn check_untouched(&self, before: &Snapshot) {
        let now = self.snapshot();
        assert!(now.0 == before.0, "a paused device wrote memory");
    }

    /// Writes what fits; a guest cannot write where it has no memory.
    pub(super) fn write(&self, address: u64, content: &[u8]) {
        // Partly written is as good.
        let _ = self.memory().write_slice(content, GuestAddress(address));
    }

    fn u16_at(&self, address: u64) -> u16 {
        self.memory().read_obj(GuestAddress(address)).unwrap_or(0)
    }

    /// Sets the device up as a driver should, with these of the features it offers.
    pub(super) fn set_up(&mut self, function: &VirtioFunction, queues: u16, wanted: u64) {
        for (status, half) in [(0u8, 0u32), (1, 0), (3, 1)] {
            function.write_window(STATUS, &[status]);
            if status == 0 {
                continue;
            }
            function.write_window(0x00, &half.to_le_bytes());
            let mut offered = [0; 4];
            function.read_window(0x04, &mut offered);
            let wanted = u32::try_from(wanted >> (32 * half) & 0xffff_ffff).unwrap_or(0);
            let wanted = wanted | if half == 1 { VERSION_1 } else { 0 };
            let accepted = u32::from_le_bytes(offered) & wanted;
            function.write_window(0x08, &half.to_le_bytes());
            function.write_window(0x0c, &accepted.to_le_bytes());
        }
        function.write_window(STATUS, &[11]);
        for queue in 0..queues {
            self.set_up_queue(function, queue);
        }
        function.write_window(STATUS, &[15]);
        self.next_descriptor = 0;
    }

    fn set_up_queue(&self, function: &VirtioFunction, queue: u16) {
        let base = ring(queue);
        self.write(base, &[0; 0x400]);
        function.write_window(0x16, &queue.to_le_bytes());
        function.write_window(0x18, &ENTRIES.to_le_bytes());
        for (register, at) in [(0x20, 0), (0x28, AVAILABLE), (0x30, USED)] {
            function.write_window(register, &(base + at).to_le_bytes());
        }
        function.write_window(0x1a, &(queue + 1).to_le_bytes());
        function.write_window(0x1c, &1u16.to_le_bytes());
    }

    /// The device's status register.
    pub(super) fn status(function: &VirtioFunction) -> u8 {
        let mut status = [0];
        function.read_window(STATUS, &mut status);
        status[0]
    }

    /// Writes a descriptor of a queue where a polite driver has them.
    pub(super) fn describe(&self, queue: u16, index: u16, descriptor: Descriptor) {
        let at = ring(queue) + 16 * u64::from(index % ENTRIES);
        self.write(at, &descriptor.bytes());
    }

    /// Puts a chain of descriptors into a queue, linked one to the next.
    pub(super) fn submit(&mut self, queue: u16, chain: &[Descriptor]) -> u16 {
        let head = self.next_descriptor % ENTRIES;
        for (left, descriptor) in (0..chain.len()).rev().zip(chain) {
            let index = self.next_descriptor % ENTRIES;
            self.next_descriptor = self.next_descriptor.wrapping_add(1);
            let mut descriptor = *descriptor;
            if left > 0 {
                descriptor.flags |= NEXT;
                descriptor.next = self.next_descriptor % ENTRIES;
            }
            self.describe(queue, index, descriptor);
        }
        self.make_available(queue, head);
        head
    }

    /// Puts a head into the available ring.
    pub(super) fn make_available(&self, queue: u16, head: u16) {
        let ring = ring(queue) + AVAILABLE;
        let index = self.u16_at(ring + 2);
        let slot = u64::from(index % ENTRIES);
        self.write(ring + 4 + 2 * slot, &head.to_le_bytes());
        self.set_available(queue, index.wrapping_add(1));
    }

    pub(super) fn set_available(&self, queue: u16, index: u16) {
        self.write(ring(queue) + AVAILABLE + 2, &index.to_le_bytes());
    }

    /// Makes a request whose content is as it should be.
    pub(super) fn ask(&mut self, request: &Request) -> u16 {
        self.write(REQUEST, &request.readable);
        self.submit(request.queue, &request.chain())
    }

    /// The only chain that was used since the queue was set up: its head and how much was written.
    pub(super) fn used(&self, queue: u16) -> Option<(u32, u32)> {
        let ring = ring(queue) + USED;
        if self.u16_at(ring + 2) == 0 {
            return None;
        }
        let [head, written]: [u32; 2] = self.memory().read_obj(GuestAddress(ring + 4)).ok()?;
        Some((head, written))
    }
}

impl Request {
    fn chain(&self) -> Vec<Descriptor> {
        let readable = u32::try_from(self.readable.len()).unwrap_or(0);
        let parts = [(REQUEST, readable, 0), (ANSWER, self.writable, WRITE)];
        parts
            .into_iter()
            .filter(|(_, length, _)| *length > 0)
            .map(|(address, length, flags)| Descriptor {
                address,
                length,
                flags,
                next: 0,
            })
            .collect()
    }
}

impl Descriptor {
    fn bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        let fields = self
            .address
            .to_le_bytes()
            .into_iter()
            .chain(self.length.to_le_bytes())
            .chain(self.flags.to_le_bytes())
            .chain(self.next.to_le_bytes());
        for (byte, value) in bytes.iter_mut().zip(fields) {
            *byte = value;
        }
        bytes
    }
}

fn ring(queue: u16) -> u64 {
    RING_BYTES * u64::from(queue % 8)
}

fn contents(start: GuestAddress, length: u64, memory: &Mapping) -> Vec<u8> {
    let mut content = vec![0; usize::try_from(length).unwrap_or(0)];
    memory
        .read_slice(&mut content, start)
        .expect("a region is in memory");
    content
}
