// SPDX-License-Identifier: Apache-2.0
//! The console device (section 5.3): one port, `hvc0` in Linux, quicker than a serial port.
//!
//! Typed bytes stay with the back end until the guest has a buffer for them, so there is nothing to
//! save; those that were not read are lost with the host, like those on a cable.

use std::fmt;
use std::io::{Read, Write};
use std::os::fd::BorrowedFd;

use virtio_queue::{Reader, Writer};

use super::queues::{QueueFault, Queues};
use super::state::{DeviceState, WrongDeviceState};
use super::{Device, DeviceFault, Kind, Progress, Wake};
use crate::backend::ConsoleBackend;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const QUEUE_SIZE: u16 = 64;
/// Chains served in one direction before others get the lock.
const BATCH: usize = 16;
/// Bytes copied at a time, and most that is put into one chain.
const CHUNK: usize = 4096;
/// Longest write that is taken; Linux makes none longer than a page.
const CHAIN_BYTES_MAX: usize = 64 << 10;

/// A console with one port.
pub(crate) struct Console {
    outside: Box<dyn ConsoleBackend>,
    buffer: Vec<u8>,
}

impl Console {
    pub(crate) fn new(outside: Box<dyn ConsoleBackend>) -> Self {
        Self {
            outside,
            buffer: vec![0; CHUNK],
        }
    }

    fn transmit(&mut self, queues: &mut Queues) -> Result<Progress, DeviceFault> {
        let memory = queues.memory();
        for _ in 0..BATCH {
            if !self.outside.has_room() {
                return Ok(Progress::Done);
            }
            let Some(chain) = queues.pop(TRANSMIT)? else {
                return Ok(Progress::Done);
            };
            let head = chain.head_index();
            let mut reader: Reader<'_, _> = chain
                .reader(&memory)
                .map_err(|error| fault(TRANSMIT, QueueFault::Ring(error)))?;
            if reader.available_bytes() > CHAIN_BYTES_MAX {
                let shape = QueueFault::Shape("a write to the console of more than 64 KiB");
                return Err(fault(TRANSMIT, shape));
            }
            while let count @ 1.. = reader
                .read(&mut self.buffer)
                .map_err(|error| fault(TRANSMIT, QueueFault::Memory(error)))?
            {
                self.outside.write(self.buffer.get(..count).unwrap_or(&[]));
            }
            queues.push_used(TRANSMIT, head, 0)?;
        }
        Ok(Progress::More)
    }

    fn receive(&mut self, queues: &mut Queues) -> Result<Progress, DeviceFault> {
        let memory = queues.memory();
        for _ in 0..BATCH {
            let Some(chain) = queues.pop(RECEIVE)? else {
                return Ok(Progress::Done);
            };
            let head = chain.head_index();
            let mut writer: Writer<'_, _> = chain
                .writer(&memory)
                .map_err(|error| fault(RECEIVE, QueueFault::Ring(error)))?;
            let room = writer.available_bytes().min(CHUNK);
            let count = match self.buffer.get_mut(..room) {
                Some(space) => self.outside.read(space),
                None => 0,
            };
            if count == 0 {
                queues.put_back(RECEIVE);
                return Ok(Progress::Done);
            }
            writer
                .write_all(self.buffer.get(..count).unwrap_or(&[]))
                .map_err(|error| fault(RECEIVE, QueueFault::Memory(error)))?;
            queues.push_used(RECEIVE, head, u32::try_from(count).unwrap_or(0))?;
        }
        Ok(Progress::More)
    }
}

fn fault(queue: usize, fault: QueueFault) -> DeviceFault {
    DeviceFault::Queue { queue, fault }
}

impl Device for Console {
    fn kind(&self) -> Kind {
        Kind {
            name: "virtio-console/1",
            device_type: 3,
            class: 0x07_8000,
        }
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 2]
    }

    fn read_config(&self, _: u64, data: &mut [u8]) {
        // Without a size, which a guest asks the terminal for.
        data.fill(0);
    }

    fn activate(&mut self, _: u64) -> Result<(), DeviceFault> {
        Ok(())
    }

    fn reset(&mut self) {}

    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.outside.readable(), self.outside.room()]
    }

    fn serve(&mut self, _: Wake, queues: &mut Queues) -> Result<Progress, DeviceFault> {
        let sent = self.transmit(queues)?;
        let received = self.receive(queues)?;
        if sent == Progress::More || received == Progress::More {
            return Ok(Progress::More);
        }
        Ok(Progress::Done)
    }

    fn save(&self) -> DeviceState {
        DeviceState::Console
    }

    fn restore(&mut self, state: &DeviceState, _: u64) -> Result<(), WrongDeviceState> {
        match state {
            DeviceState::Console => Ok(()),
            _ => Err(WrongDeviceState::kind(self.kind().name)),
        }
    }
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Console")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::os::fd::AsFd;
    use std::sync::{Arc, Mutex};

    use nix::sys::eventfd::{EfdFlags, EventFd};

    use super::*;
    use crate::virtio::driver::Driver;

    #[derive(Debug, Default)]
    struct Shared {
        written: Vec<u8>,
        typed: VecDeque<u8>,
        full: bool,
    }

    struct Terminal {
        shared: Arc<Mutex<Shared>>,
        readable: Arc<EventFd>,
        room: Arc<EventFd>,
    }

    impl ConsoleBackend for Terminal {
        fn write(&mut self, bytes: &[u8]) {
            self.shared.lock().unwrap().written.extend(bytes);
        }

        fn has_room(&self) -> bool {
            !self.shared.lock().unwrap().full
        }

        fn room(&self) -> BorrowedFd<'_> {
            self.room.as_fd()
        }

        fn read(&mut self, buffer: &mut [u8]) -> usize {
            let mut shared = self.shared.lock().unwrap();
            let count = buffer.len().min(shared.typed.len());
            for byte in buffer.iter_mut().take(count) {
                *byte = shared.typed.pop_front().unwrap();
            }
            count
        }

        fn readable(&self) -> BorrowedFd<'_> {
            self.readable.as_fd()
        }
    }

    fn terminal() -> (Terminal, Arc<Mutex<Shared>>, Arc<EventFd>, Arc<EventFd>) {
        let event = || Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap());
        let (readable, room) = (event(), event());
        let shared = Arc::new(Mutex::new(Shared::default()));
        let terminal = Terminal {
            shared: Arc::clone(&shared),
            readable: Arc::clone(&readable),
            room: Arc::clone(&room),
        };
        (terminal, shared, readable, room)
    }

    #[test]
    fn bytes_go_both_ways_and_wait_for_room_and_for_buffers() {
        let (outside, shared, readable, room) = terminal();
        let mut driver = Driver::start(Box::new(Console::new(Box::new(outside))));
        let sent = driver.submit(TRANSMIT, &[b"hel", b"lo"], &[]);
        driver.ring(TRANSMIT);
        assert_eq!(driver.used(TRANSMIT), (sent.head, 0));
        assert_eq!(shared.lock().unwrap().written, b"hello");

        shared.lock().unwrap().full = true;
        let waiting = driver.submit(TRANSMIT, &[b"!"], &[]);
        driver.ring(TRANSMIT);
        // The doorbell of a full console does nothing; typing shows that it was served.
        shared.lock().unwrap().typed.extend(b"typed");
        readable.write(1).unwrap();
        let buffer = driver.submit(RECEIVE, &[], &[3]);
        driver.ring(RECEIVE);
        assert_eq!(driver.used(RECEIVE), (buffer.head, 3));
        assert_eq!(driver.read(&buffer.writable[0]), b"typ");
        assert_eq!(driver.try_used(TRANSMIT), None);
        shared.lock().unwrap().full = false;
        room.write(1).unwrap();
        assert_eq!(driver.used(TRANSMIT), (waiting.head, 0));

        let buffer = driver.submit(RECEIVE, &[], &[8]);
        driver.ring(RECEIVE);
        assert_eq!(driver.used(RECEIVE), (buffer.head, 2));
        assert_eq!(driver.read(&buffer.writable[0]), b"ed\0\0\0\0\0\0");
    }
}
