// SPDX-License-Identifier: Apache-2.0
//! A hostile driver: the input says what it writes to registers, rings and memory, and when the
//! device is served, paused, saved and loaded elsewhere.
//!
//! What must hold, besides that nothing panics or is written outside guest memory:
//! * a page that the device writes counts as written, and a paused device writes none;
//! * a state can be encoded, decoded and loaded into an alike device, which then has that state;
//! * whatever was done to it, a device that is reset and set up works.

use std::sync::Arc;

use super::benches::Bench;
use super::guest::{Descriptor, Guest};
use super::input::Input;
use super::platform::{Doorbells, Met};
use crate::pci::PciFunction;
use crate::pci::config_space::{COMMAND, COMMAND_MEMORY};
use crate::virtio::state::FunctionState;
use crate::virtio::transport::VirtioFunction;
use crate::virtio::{Progress, Wake};

/// Steps of one input; more would only be slow.
const STEPS_MAX: usize = 128;
/// Batches served for one wake-up. A device that feeds itself could go on for ever, as could one
/// that is rung for ever; each batch is bounded.
const BATCHES_MAX: usize = 40;
const NEEDS_RESET: u8 = 0x40;
const DRIVER_OK: u8 = 4;

struct Drive {
    guest: Guest,
    bench: Box<dyn Bench>,
    function: VirtioFunction,
    doorbells: Arc<Doorbells>,
    queues: u16,
    paused: bool,
    /// Times it was stopped for a state.
    moves: u32,
}

/// Drives a device as the bytes say, and then politely.
pub(super) fn drive(data: &[u8], bench: fn(&mut Input<'_>) -> Box<dyn Bench>) {
    let mut input = Input::new(data);
    let mut drive = Drive::new(bench(&mut input));
    let features = u64::from(input.u32()) | u64::from(input.u8()) << 32;
    drive.set_up(features);
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        drive.step(&mut input);
    }
    drive.finish();
}

impl Drive {
    fn new(mut bench: Box<dyn Bench>) -> Self {
        let guest = Guest::new();
        let doorbells = Doorbells::new();
        let function = function(bench.as_mut(), &guest, &doorbells);
        function.resume();
        let queues = u16::try_from(function.doorbells().len()).expect("a few queues");
        let command = u16::try_from(COMMAND).expect("an offset");
        function.write_config(command, &COMMAND_MEMORY.to_le_bytes());
        Self {
            guest,
            bench,
            function,
            doorbells,
            queues,
            paused: false,
            moves: 0,
        }
    }

    fn set_up(&mut self, features: u64) {
        self.guest.set_up(&self.function, self.queues, features);
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.below(16) {
            0 | 1 => self.serve_queue(input),
            2 => self.serve(Wake::All),
            3 => {
                let sources = self.function.with_sources(|sources| sources.len());
                let source = usize::from(input.u8());
                self.serve(Wake::Source(source.checked_rem(sources).unwrap_or(0)));
            }
            4 => self.bench.outside(input),
            5 | 6 => self.submit(input),
            7 => self.ask(input),
            8 => self.describe(input),
            9 => self.make_available(input),
            10 => {
                let address = u64::from(input.u16()) << input.below(2);
                let count = usize::from(input.u8());
                self.guest.write(address, input.bytes(count));
            }
            11 => {
                let offset = u64::from(input.u8() & 0x3f);
                self.write_window(offset, &input.access());
            }
            12 => self.access(input),
            13 => self.pause_or_resume(),
            14 => self.move_elsewhere(),
            _ => {
                let features = input.u64();
                self.set_up(features);
            }
        }
    }

    /// Serves the device as its thread does.
    fn serve(&mut self, wake: Wake) {
        let before = self.guest.snapshot();
        for _ in 0..BATCHES_MAX {
            match self.function.serve(wake) {
                Some(Progress::More) => {}
                Some(Progress::Done) => break,
                None => return self.guest.check_untouched(&before),
            }
        }
        self.guest.check_written(&before);
    }

    fn serve_queue(&mut self, input: &mut Input<'_>) {
        let queue = self.queue(input);
        self.serve(Wake::Queue(usize::from(queue)));
    }

    fn queue(&self, input: &mut Input<'_>) -> u16 {
        u16::from(input.u8()) % self.queues
    }

    /// A register write; a reset completes what is in flight, which writes memory.
    fn write_window(&mut self, offset: u64, data: &[u8]) {
        let before = self.guest.snapshot();
        self.function.write_window(offset, data);
        self.guest.check_written(&before);
    }

    fn submit(&mut self, input: &mut Input<'_>) {
        let queue = self.queue(input);
        let count = 1 + input.below(6);
        let chain: Vec<Descriptor> = (0..count).map(|_| descriptor(input)).collect();
        self.guest.submit(queue, &chain);
    }

    /// A request like a polite driver's, changed a little.
    fn ask(&mut self, input: &mut Input<'_>) {
        let mut request = self.bench.request();
        request.writable = request.writable.wrapping_add(u32::from(input.u16()));
        input_into(&mut request.readable, input);
        self.guest.ask(&request);
    }

    fn describe(&mut self, input: &mut Input<'_>) {
        let queue = self.queue(input);
        let index = input.u16();
        let descriptor = descriptor(input);
        self.guest.describe(queue, index, descriptor);
    }

    fn make_available(&mut self, input: &mut Input<'_>) {
        let queue = self.queue(input);
        let value = input.u16();
        match input.below(4) {
            0 => self.guest.set_available(queue, value),
            _ => self.guest.make_available(queue, value),
        }
    }

    /// Any register, read or written.
    fn access(&mut self, input: &mut Input<'_>) {
        let offset = u64::from(input.u16());
        let mut data = input.access();
        match input.below(4) {
            0 => self.function.read_window(offset, &mut data),
            1 => self.write_window(offset, &data),
            2 => self.function.read_config(input.u16() & 0xfff, &mut data),
            _ => {
                let before = self.guest.snapshot();
                self.function.write_config(input.u16() & 0xff, &data);
                self.guest.check_written(&before);
            }
        }
        self.doorbells.check(&[&self.function], Met::Never);
    }

    fn pause_or_resume(&mut self) {
        if self.paused {
            self.resume();
        } else {
            self.pause();
        }
    }

    fn pause(&mut self) {
        let before = self.guest.snapshot();
        self.function.pause();
        self.guest.check_written(&before);
        self.paused = true;
    }

    fn resume(&mut self) {
        self.function.resume();
        self.paused = false;
        self.serve(Wake::All);
    }

    fn freeze(&mut self) {
        let before = self.guest.snapshot();
        self.function.freeze();
        self.guest.check_written(&before);
        self.paused = true;
    }

    /// The machine goes on with another device that gets this one's state: in turn with nothing in
    /// flight, and with what happens to be.
    fn move_elsewhere(&mut self) {
        self.moves += 1;
        if self.moves.is_multiple_of(2) {
            self.freeze();
        } else {
            self.pause();
        }
        let state = self.function.save();
        let bytes = postcard::to_stdvec(&state).expect("plain data can be encoded");
        let decoded: FunctionState = postcard::from_bytes(&bytes).expect("a state can be decoded");
        assert_eq!(decoded, state);
        let doorbells = Doorbells::new();
        let function = function(self.bench.as_mut(), &self.guest, &doorbells);
        function
            .restore(&decoded)
            .expect("the state of an alike device fits");
        let mut loaded = function.save();
        // What was agreed holds for an active device only.
        if Guest::status(&function) & (DRIVER_OK | NEEDS_RESET) != DRIVER_OK {
            loaded.device = state.device.clone();
        }
        assert_eq!(loaded, state);
        doorbells.check(&[&function], Met::Never);
        self.function = function;
        self.doorbells = doorbells;
        self.resume();
    }

    /// Resets the device and uses it as a driver should.
    fn finish(&mut self) {
        self.bench.settle();
        self.resume();
        self.set_up(0);
        let status = Guest::status(&self.function);
        assert_eq!(status, 15, "a device that was reset can be set up");
        self.bench.settle();
        let request = self.bench.request();
        let head = self.guest.ask(&request);
        self.serve(Wake::Queue(usize::from(request.queue)));
        assert_eq!(
            self.guest.used(request.queue),
            Some((u32::from(head), request.written)),
            "a device that was reset works"
        );
    }
}

fn function(bench: &mut dyn Bench, guest: &Guest, doorbells: &Arc<Doorbells>) -> VirtioFunction {
    let memory = Arc::new(guest.memory().clone());
    let platform = Arc::clone(doorbells);
    VirtioFunction::new(bench.device(&guest.ram), 1, memory, platform)
        .expect("eventfds can be made")
}

/// Mostly in memory; sometimes anywhere.
fn descriptor(input: &mut Input<'_>) -> Descriptor {
    let kind = input.u8();
    let address = match kind >> 4 {
        0 => input.u64(),
        1 => u64::MAX - u64::from(input.u16()),
        2 => u64::from(input.u16()) << 1,
        _ => u64::from(input.u16()),
    };
    let length = match kind >> 2 & 3 {
        0 => u32::from(input.u8()),
        1 => input.u32(),
        _ => u32::from(input.u16()),
    };
    Descriptor {
        address,
        length,
        // Write and indirect; the link is the chain's.
        flags: u16::from(kind & 3) << 1,
        next: u16::from(kind >> 4),
    }
}

/// Overwrites some of `content`.
fn input_into(content: &mut [u8], input: &mut Input<'_>) {
    for _ in 0..input.below(4) {
        let at = usize::from(input.u8());
        for (byte, value) in content.iter_mut().skip(at).zip(input.access()) {
            *byte = value;
        }
    }
}
