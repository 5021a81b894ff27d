// SPDX-License-Identifier: Apache-2.0
//! A driver for tests: what a guest's kernel does, through the same registers and rings.

use std::sync::Arc;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use super::Device;
use super::state::FunctionState;
use super::transport::VirtioFunction;
use super::worker::Worker;
use crate::config::MemorySize;
use crate::pci::PciFunction;
use crate::pci::config_space::{COMMAND, COMMAND_MEMORY};
use crate::pci::msix::tests::Recorder;
use crate::ram::{GuestRam, Mapping};
use crate::thread_hook::ThreadHook;

const STATUS: u64 = 0x14;
const DOORBELLS: u64 = 0x3000;
const MSIX_TABLE: u64 = 0x4000;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
/// A test that waits longer has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// A stretch of guest memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Buffer {
    pub(crate) address: u64,
    pub(crate) length: usize,
}

/// A chain that was submitted.
#[derive(Debug, Clone)]
pub(crate) struct Submitted {
    pub(crate) head: u16,
    pub(crate) writable: Vec<Buffer>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Ring {
    size: u16,
    descriptors: u64,
    available: u64,
    used: u64,
    next_descriptor: u16,
    next_available: u16,
    next_used: u16,
}

/// A guest at one moment: its memory and what its driver remembers.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Moment {
    memory: Vec<u8>,
    rings: Vec<Ring>,
    next_free: u64,
}

/// A device and the guest that drives it.
pub(crate) struct Driver {
    // Ends its thread before the rest goes.
    worker: Option<Worker>,
    function: Arc<VirtioFunction>,
    recorder: Arc<Recorder>,
    memory: Arc<Mapping>,
    rings: Vec<Ring>,
    next_free: u64,
    features: u64,
}

impl Driver {
    /// Starts the device with every feature it offers.
    pub(crate) fn start(device: Box<dyn Device>) -> Self {
        Self::start_with(device, u64::MAX)
    }

    /// Starts the device with those of its features that are in `wanted`.
    pub(crate) fn start_with(device: Box<dyn Device>, wanted: u64) -> Self {
        let ram = GuestRam::new(MemorySize::from_mib(64).unwrap()).unwrap();
        Self::start_in(device, &ram, wanted)
    }

    /// Starts the device with every feature, in this memory.
    pub(crate) fn start_on(device: Box<dyn Device>, ram: &GuestRam) -> Self {
        Self::start_in(device, ram, u64::MAX)
    }

    fn start_in(device: Box<dyn Device>, ram: &GuestRam, wanted: u64) -> Self {
        let memory = Arc::new(ram.mapping().clone());
        let mut driver = Self::attach(device, memory);
        driver.function.resume();
        driver.negotiate(wanted);
        driver
    }

    fn attach(device: Box<dyn Device>, memory: Arc<Mapping>) -> Self {
        let recorder = Arc::new(Recorder::default());
        let function =
            VirtioFunction::new(device, 1, Arc::clone(&memory), recorder.clone()).unwrap();
        let function = Arc::new(function);
        let worker = Worker::start(Arc::clone(&function), ThreadHook::default()).unwrap();
        Self {
            worker: Some(worker),
            function,
            recorder,
            memory,
            rings: Vec::new(),
            next_free: 0x1_0000,
            features: 0,
        }
    }

    /// The same guest with another machine's device, which goes on from `state`.
    pub(crate) fn move_to(self, device: Box<dyn Device>, state: &FunctionState) -> Self {
        let next = self.load(device, state);
        next.function.resume();
        next
    }

    /// The same guest with another machine's device, which got `state` and stands still.
    pub(crate) fn load(self, device: Box<dyn Device>, state: &FunctionState) -> Self {
        let mut next = Self::attach(device, Arc::clone(&self.memory));
        next.rings.clone_from(&self.rings);
        next.next_free = self.next_free;
        next.features = self.features;
        next.function.restore(state).unwrap();
        next
    }

    /// The guest as it is now.
    pub(crate) fn moment(&self) -> Moment {
        let mut memory = vec![0; usize::try_from(self.next_free).unwrap()];
        self.memory
            .read_slice(&mut memory, GuestAddress(0))
            .unwrap();
        Moment {
            memory,
            rings: self.rings.clone(),
            next_free: self.next_free,
        }
    }

    /// The guest as it was, with another machine's device, which goes on from `state`; this one is
    /// lost.
    pub(crate) fn fail_over(
        mut self,
        then: &Moment,
        device: Box<dyn Device>,
        state: &FunctionState,
    ) -> Self {
        drop(self.worker.take());
        self.memory
            .write_slice(&then.memory, GuestAddress(0))
            .unwrap();
        self.rings.clone_from(&then.rings);
        self.next_free = then.next_free;
        self.move_to(device, state)
    }

    /// Resets the device and sets it up anew.
    pub(crate) fn restart(mut self) -> Self {
        self.rings.clear();
        self.negotiate(self.features);
        self
    }

    pub(crate) fn function(&self) -> &VirtioFunction {
        &self.function
    }

    /// The features negotiated.
    pub(crate) fn features(&self) -> u64 {
        self.features
    }

    fn negotiate(&mut self, wanted: u64) {
        let command = u16::try_from(COMMAND).unwrap();
        self.function
            .write_config(command, &COMMAND_MEMORY.to_le_bytes());
        self.enable_msix();
        self.set(STATUS, &[0]);
        self.set(STATUS, &[1]);
        self.set(STATUS, &[3]);
        let mut offered = 0;
        for half in [0u32, 1] {
            self.set(0x00, &half.to_le_bytes());
            offered |= u64::from(self.get_u32(0x04)) << (32 * half);
        }
        self.features = offered & (wanted | 1 << 32);
        for half in [0u32, 1] {
            self.set(0x08, &half.to_le_bytes());
            let bits = u32::try_from(self.features >> (32 * half) & 0xffff_ffff).unwrap();
            self.set(0x0c, &bits.to_le_bytes());
        }
        self.set(STATUS, &[11]);
        assert_eq!(self.status() & 8, 8, "features are accepted");
        let count = self.get_u16(0x12);
        for queue in 0..count {
            self.set_up(queue);
        }
        self.set(STATUS, &[15]);
    }

    fn enable_msix(&self) {
        // The capability is found as a guest finds it.
        let mut at = [0];
        self.function.read_config(0x34, &mut at);
        loop {
            let mut header = [0; 2];
            self.function.read_config(u16::from(at[0]), &mut header);
            if header[0] == 0x11 {
                break;
            }
            at[0] = header[1];
        }
        self.function
            .write_config(u16::from(at[0]) + 2, &0x8000u16.to_le_bytes());
        for vector in 0..64u64 {
            let entry = MSIX_TABLE + vector * 16;
            self.set(entry, &0xfee0_0000u64.to_le_bytes());
            self.set(entry + 8, &u32::try_from(vector).unwrap().to_le_bytes());
            self.set(entry + 12, &0u32.to_le_bytes());
        }
    }

    fn set_up(&mut self, queue: u16) {
        self.set(0x16, &queue.to_le_bytes());
        let size = self.get_u16(0x18);
        let mut area = |bytes: u64| {
            let at = self.next_free.next_multiple_of(4096);
            self.next_free = at + bytes;
            // A test may have had the device write here.
            let zeroes = vec![0; usize::try_from(bytes).unwrap()];
            self.memory.write_slice(&zeroes, GuestAddress(at)).unwrap();
            at
        };
        let entries = u64::from(size);
        let ring = Ring {
            size,
            descriptors: area(16 * entries),
            available: area(6 + 2 * entries),
            used: area(6 + 8 * entries),
            ..Ring::default()
        };
        for (place, address) in [
            (0x20, ring.descriptors),
            (0x28, ring.available),
            (0x30, ring.used),
        ] {
            self.set(place, &address.to_le_bytes());
        }
        self.set(0x1a, &(queue + 1).to_le_bytes());
        self.set(0x1c, &1u16.to_le_bytes());
        self.rings.push(ring);
    }

    /// A fresh stretch of memory with this content.
    pub(crate) fn put(&mut self, content: &[u8]) -> Buffer {
        let buffer = Buffer {
            address: self.next_free.next_multiple_of(16),
            length: content.len(),
        };
        self.next_free = buffer.address + content.len() as u64;
        self.memory
            .write_slice(content, GuestAddress(buffer.address))
            .unwrap();
        buffer
    }

    pub(crate) fn read(&self, buffer: &Buffer) -> Vec<u8> {
        let mut content = vec![0; buffer.length];
        self.memory
            .read_slice(&mut content, GuestAddress(buffer.address))
            .unwrap();
        content
    }

    /// Makes a chain available: buffers with this content, then writable ones of these lengths.
    pub(crate) fn submit(
        &mut self,
        queue: usize,
        readable: &[&[u8]],
        writable: &[usize],
    ) -> Submitted {
        let readable: Vec<Buffer> = readable.iter().map(|content| self.put(content)).collect();
        let writable: Vec<Buffer> = writable
            .iter()
            .map(|length| self.put(&vec![0; *length]))
            .collect();
        let all = readable
            .iter()
            .map(|buffer| (*buffer, 0))
            .chain(writable.iter().map(|buffer| (*buffer, WRITE)));
        let head = self.submit_raw(queue, &all.collect::<Vec<_>>());
        Submitted { head, writable }
    }

    /// Makes a chain of these buffers available, each with its flags (2: the device writes it).
    pub(crate) fn submit_raw(&mut self, queue: usize, chain: &[(Buffer, u16)]) -> u16 {
        let ring = &mut self.rings[queue];
        let head = ring.next_descriptor % ring.size;
        for (position, (buffer, flags)) in chain.iter().enumerate() {
            let index = ring.next_descriptor % ring.size;
            ring.next_descriptor = ring.next_descriptor.wrapping_add(1);
            let last = position + 1 == chain.len();
            let flags = flags | if last { 0 } else { NEXT };
            let mut bytes = Vec::new();
            bytes.extend(buffer.address.to_le_bytes());
            bytes.extend(u32::try_from(buffer.length).unwrap().to_le_bytes());
            bytes.extend(flags.to_le_bytes());
            bytes.extend((ring.next_descriptor % ring.size).to_le_bytes());
            let at = ring.descriptors + 16 * u64::from(index);
            self.memory.write_slice(&bytes, GuestAddress(at)).unwrap();
        }
        let slot = u64::from(ring.next_available % ring.size);
        self.memory
            .write_obj(head, GuestAddress(ring.available + 4 + 2 * slot))
            .unwrap();
        ring.next_available = ring.next_available.wrapping_add(1);
        self.memory
            .write_obj(ring.next_available, GuestAddress(ring.available + 2))
            .unwrap();
        head
    }

    /// Makes a descriptor another length.
    pub(crate) fn stretch(&mut self, queue: usize, index: u16, length: u32) {
        let at = self.rings[queue].descriptors + 16 * u64::from(index);
        self.memory.write_obj(length, GuestAddress(at + 8)).unwrap();
    }

    /// Makes a descriptor one that leads to itself.
    pub(crate) fn tie_knot(&mut self, queue: usize, index: u16) {
        let at = self.rings[queue].descriptors + 16 * u64::from(index);
        self.memory
            .write_obj([NEXT, index], GuestAddress(at + 12))
            .unwrap();
    }

    /// Makes the available ring claim more than it can hold.
    pub(crate) fn corrupt_available(&mut self, queue: usize) {
        let ring = self.rings[queue];
        self.memory
            .write_obj(
                ring.next_available.wrapping_add(ring.size + 1),
                GuestAddress(ring.available + 2),
            )
            .unwrap();
    }

    pub(crate) fn ring(&self, queue: usize) {
        let at = DOORBELLS + 4 * queue as u64;
        self.set(at, &u16::try_from(queue).unwrap().to_le_bytes());
    }

    /// The next used chain, if there is one: its head and how much was written.
    pub(crate) fn try_used(&mut self, queue: usize) -> Option<(u16, u32)> {
        let ring = &mut self.rings[queue];
        let index: u16 = self
            .memory
            .load(
                GuestAddress(ring.used + 2),
                std::sync::atomic::Ordering::Acquire,
            )
            .unwrap();
        if index == ring.next_used {
            return None;
        }
        let at = ring.used + 4 + 8 * u64::from(ring.next_used % ring.size);
        ring.next_used = ring.next_used.wrapping_add(1);
        let [head, written]: [u32; 2] = self.memory.read_obj(GuestAddress(at)).unwrap();
        Some((u16::try_from(head).unwrap(), written))
    }

    /// Waits for the next used chain.
    pub(crate) fn used(&mut self, queue: usize) -> (u16, u32) {
        let begin = Instant::now();
        loop {
            if let Some(used) = self.try_used(queue) {
                return used;
            }
            assert!(begin.elapsed() < PATIENCE, "nothing is used");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub(crate) fn status(&self) -> u8 {
        let mut status = [0];
        self.function.read_window(STATUS, &mut status);
        status[0]
    }

    /// Waits until the device shows these status bits.
    pub(crate) fn wait_for_status(&self, bits: u8) {
        let begin = Instant::now();
        while self.status() & bits != bits {
            assert!(begin.elapsed() < PATIENCE, "status {:#x}", self.status());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Interrupts so far.
    pub(crate) fn interrupts(&self) -> usize {
        self.recorder.messages.lock().unwrap().len()
    }

    /// Writes a register of BAR 0.
    pub(crate) fn set(&self, offset: u64, data: &[u8]) {
        self.function.write_window(offset, data);
    }

    /// Reads the device's own configuration.
    pub(crate) fn config(&self, offset: u64, data: &mut [u8]) {
        self.function.read_window(0x2000 + offset, data);
    }

    fn get_u16(&self, offset: u64) -> u16 {
        let mut data = [0; 2];
        self.function.read_window(offset, &mut data);
        u16::from_le_bytes(data)
    }

    fn get_u32(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.function.read_window(offset, &mut data);
        u32::from_le_bytes(data)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        drop(self.worker.take());
    }
}
