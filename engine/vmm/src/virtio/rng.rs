// SPDX-License-Identifier: Apache-2.0
//! The entropy device (section 5.4): fills the guest's buffers from the host's random source.
//!
//! That is the kernel's. vmm-sys-util's `rand_bytes` is no such thing: it makes bytes of the
//! time-stamp counter, which whoever knows the time can guess.

use std::io::{self, Write};

use virtio_queue::Writer;

use super::queues::{QueueFault, Queues};
use super::state::{DeviceState, WrongDeviceState};
use super::{Device, DeviceFault, Kind, Progress, Wake};

const QUEUE: usize = 0;
const QUEUE_SIZE: u16 = 64;
/// Most bytes one request gets; the driver asks again for more.
const REQUEST_BYTES_MAX: usize = 4096;
/// Requests served before others get the lock.
const BATCH: usize = 16;

/// An entropy source without state: what it gave is in guest memory.
#[derive(Debug, Default)]
pub(crate) struct Rng;

impl Rng {
    fn fill(queues: &mut Queues) -> Result<Progress, DeviceFault> {
        let memory = queues.memory();
        for _ in 0..BATCH {
            let Some(chain) = queues.pop(QUEUE)? else {
                return Ok(Progress::Done);
            };
            let fault = |fault| DeviceFault::Queue {
                queue: QUEUE,
                fault,
            };
            let head = chain.head_index();
            let mut writer: Writer<'_, _> = chain
                .writer(&memory)
                .map_err(|error| fault(QueueFault::Ring(error)))?;
            let length = writer.available_bytes().min(REQUEST_BYTES_MAX);
            let mut bytes = vec![0; length];
            getrandom::fill(&mut bytes)
                .map_err(|error| DeviceFault::BackEnd(io::Error::other(error.to_string())))?;
            writer
                .write_all(&bytes)
                .map_err(|error| fault(QueueFault::Memory(error)))?;
            queues.push_used(QUEUE, head, u32::try_from(length).unwrap_or(0))?;
        }
        Ok(Progress::More)
    }
}

impl Device for Rng {
    fn kind(&self) -> Kind {
        Kind {
            name: "virtio-rng/1",
            device_type: 4,
            class: 0xff_0000,
        }
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn read_config(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, _: u64) -> Result<(), DeviceFault> {
        Ok(())
    }

    fn reset(&mut self) {}

    fn serve(&mut self, _: Wake, queues: &mut Queues) -> Result<Progress, DeviceFault> {
        Self::fill(queues)
    }

    fn save(&self) -> DeviceState {
        DeviceState::Rng
    }

    fn restore(&mut self, state: &DeviceState, _: u64) -> Result<(), WrongDeviceState> {
        match state {
            DeviceState::Rng => Ok(()),
            _ => Err(WrongDeviceState::kind(self.kind().name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::driver::Driver;

    #[test]
    fn a_driver_gets_random_bytes_and_no_more_than_it_asked_for() {
        let mut driver = Driver::start(Box::new(Rng));
        let first = driver.submit(QUEUE, &[], &[32, 32]);
        let second = driver.submit(QUEUE, &[], &[8192]);
        driver.ring(QUEUE);
        assert_eq!(driver.used(QUEUE), (first.head, 64));
        assert_eq!(driver.used(QUEUE).1, 4096);
        assert_ne!(driver.read(&first.writable[0]), [0; 32]);
        assert_eq!(driver.read(&second.writable[0])[4096..], [0; 4096]);
        assert!(driver.interrupts() >= 1);
    }

    #[test]
    fn a_paused_device_writes_nothing_and_goes_on_in_another_machine() {
        let mut driver = Driver::start(Box::new(Rng));
        driver.function().pause();
        let request = driver.submit(QUEUE, &[], &[64]);
        driver.ring(QUEUE);
        let state = driver.function().save();
        assert_eq!(driver.read(&request.writable[0]), [0; 64]);
        let mut driver = driver.move_to(Box::new(Rng), &state);
        assert_eq!(driver.used(QUEUE), (request.head, 64));
    }

    #[test]
    fn a_broken_ring_stops_the_device_until_it_is_reset() {
        let mut driver = Driver::start(Box::new(Rng));
        driver.corrupt_available(QUEUE);
        driver.ring(QUEUE);
        driver.wait_for_status(0x40);
        let mut driver = driver.restart();
        let request = driver.submit(QUEUE, &[], &[16]);
        driver.ring(QUEUE);
        assert_eq!(driver.used(QUEUE), (request.head, 16));
    }
}
