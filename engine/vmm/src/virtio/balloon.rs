// SPDX-License-Identifier: Apache-2.0
//! The balloon (section 5.5): memory that the guest lends back to the host, and free page reporting.
//!
//! A page that the guest gives back reads as zeroes from then on and counts as written, so that the
//! passive replica drops its copy too. The number of pages in the balloon is the guest's word and
//! only shown.

use std::io::Read;

use serde::{Deserialize, Serialize};
use virtio_queue::Reader;
use vm_memory::{Address, GuestAddress};

use super::queues::{Chain, QueueFault, Queues};
use super::state::{DeviceState, WrongDeviceState};
use super::transport::ConfigChange;
use super::{Device, DeviceFault, Kind, Progress, Wake, read_from};
use crate::config::FreePageReporting;
use crate::dirty::PAGE_SIZE;
use crate::ram::GuestRam;

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const REPORTING: usize = 2;
const QUEUE_SIZE: u16 = 128;
/// Chains served before others get the lock; one names up to 256 pages or 32 ranges.
const BATCH: usize = 8;
/// Page numbers taken from one chain at most, what Linux puts into one.
const NUMBERS_MAX: usize = 256;
/// Ranges taken from one chain at most, what Linux puts into one (`PAGE_REPORTING_CAPACITY`).
const RANGES_MAX: usize = 32;

const DEFLATE_ON_OOM: u64 = 1 << 2;
const PAGE_REPORTING: u64 = 1 << 5;
/// Where the guest writes how many pages it gave.
const ACTUAL_AT: u64 = 4;

/// What the balloon remembers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct BalloonState {
    /// Pages the host wants.
    target: u32,
    /// Pages the guest says it gave.
    actual: u32,
}

#[derive(Debug)]
pub(crate) struct Balloon {
    ram: GuestRam,
    reporting: FreePageReporting,
    state: BalloonState,
    /// Giving memory back failed once, and was told.
    refused: bool,
}

impl Balloon {
    pub(crate) fn new(ram: GuestRam, reporting: FreePageReporting) -> Self {
        Self {
            ram,
            reporting,
            state: BalloonState::default(),
            refused: false,
        }
    }

    /// The guest named pages by their number.
    fn inflate(&mut self, chain: Chain, queues: &Queues) -> Result<(), QueueFault> {
        let memory = queues.memory();
        let mut reader: Reader<'_, _> = chain.reader(&memory)?;
        for _ in 0..NUMBERS_MAX {
            let mut number = [0; 4];
            if reader.available_bytes() < number.len() {
                break;
            }
            reader.read_exact(&mut number).map_err(QueueFault::Memory)?;
            let address = u64::from(u32::from_le_bytes(number)) * PAGE_SIZE as u64;
            self.give_back(GuestAddress(address), PAGE_SIZE as u64);
        }
        Ok(())
    }

    /// The guest's descriptors are the free ranges themselves. Each byte of memory is free once, so a
    /// chain that says more is not obeyed to its end: that could take for ever.
    fn report(&mut self, chain: Chain) {
        let mut left = self.ram.page_count() * PAGE_SIZE as u64;
        for range in chain.take(RANGES_MAX) {
            let length = u64::from(range.len()).min(left);
            self.give_back(range.addr(), length);
            left -= length;
        }
    }

    /// Only whole pages inside guest memory; anything else the guest names is none of its own.
    fn give_back(&mut self, address: GuestAddress, length: u64) {
        let page = PAGE_SIZE as u64;
        let Some(start) = address.raw_value().checked_next_multiple_of(page) else {
            return;
        };
        let end = address.raw_value().saturating_add(length) / page * page;
        if start >= end {
            return;
        }
        if let Err(error) = self.ram.discard(GuestAddress(start), end - start)
            && !std::mem::replace(&mut self.refused, true)
        {
            tracing::warn!(%error, "The host keeps memory that the guest gave back");
        }
    }

    fn serve_queue(&mut self, queue: usize, queues: &mut Queues) -> Result<Progress, DeviceFault> {
        for _ in 0..BATCH {
            let Some(chain) = queues.pop(queue)? else {
                return Ok(Progress::Done);
            };
            let head = chain.head_index();
            match queue {
                INFLATE => self
                    .inflate(chain, queues)
                    .map_err(|fault| DeviceFault::Queue { queue, fault })?,
                REPORTING => self.report(chain),
                // Taking memory back needs nothing: it is there when it is touched.
                _ => {}
            }
            queues.push_used(queue, head, 0)?;
        }
        Ok(Progress::More)
    }
}

impl Device for Balloon {
    fn kind(&self) -> Kind {
        Kind {
            name: "virtio-balloon/1",
            device_type: 5,
            class: 0xff_0000,
        }
    }

    fn features(&self) -> u64 {
        match self.reporting {
            FreePageReporting::On => DEFLATE_ON_OOM | PAGE_REPORTING,
            FreePageReporting::Off => DEFLATE_ON_OOM,
        }
    }

    fn queue_sizes(&self) -> Vec<u16> {
        match self.reporting {
            FreePageReporting::On => vec![QUEUE_SIZE; 3],
            FreePageReporting::Off => vec![QUEUE_SIZE; 2],
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let [t0, t1, t2, t3] = self.state.target.to_le_bytes();
        let [a0, a1, a2, a3] = self.state.actual.to_le_bytes();
        read_from(&[t0, t1, t2, t3, a0, a1, a2, a3], offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (ACTUAL_AT, Ok(value)) = (offset, <[u8; 4]>::try_from(data)) {
            self.state.actual = u32::from_le_bytes(value);
        }
    }

    fn activate(&mut self, _: u64) -> Result<(), DeviceFault> {
        Ok(())
    }

    fn reset(&mut self) {
        self.state.actual = 0;
    }

    fn serve(&mut self, wake: Wake, queues: &mut Queues) -> Result<Progress, DeviceFault> {
        let wanted = match wake {
            Wake::Queue(queue) => queue..queue + 1,
            Wake::All | Wake::Source(_) => INFLATE..queues.len(),
        };
        let mut progress = Progress::Done;
        for queue in wanted {
            if self.serve_queue(queue, queues)? == Progress::More {
                progress = Progress::More;
            }
        }
        Ok(progress)
    }

    fn set_balloon(&mut self, pages: u32) -> ConfigChange {
        self.state.target = pages;
        ConfigChange::Tell
    }

    fn balloon(&self) -> Option<(u32, u32)> {
        Some((self.state.target, self.state.actual))
    }

    fn save(&self) -> DeviceState {
        DeviceState::Balloon(self.state)
    }

    fn restore(&mut self, state: &DeviceState, _: u64) -> Result<(), WrongDeviceState> {
        match state {
            DeviceState::Balloon(state) => {
                self.state = *state;
                Ok(())
            }
            _ => Err(WrongDeviceState::kind(self.kind().name)),
        }
    }
}

const _: () = assert!(DEFLATE == INFLATE + 1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::MemorySize;
    use crate::dirty::{DirtyPages, PageIndex};
    use crate::virtio::driver::{Buffer, Driver};

    fn start() -> (Driver, GuestRam) {
        let ram = GuestRam::new(MemorySize::from_mib(64).unwrap()).unwrap();
        let balloon = Balloon::new(ram.clone(), FreePageReporting::On);
        (Driver::start_on(Box::new(balloon), &ram), ram)
    }

    #[test]
    fn pages_given_back_read_zero_and_count_as_written() {
        let (mut driver, ram) = start();
        let page = PageIndex(9000);
        ram.write_page(page, &[0xaa; PAGE_SIZE]).unwrap();
        ram.take_written(&mut DirtyPages::none(ram.page_count()));
        let numbers = [9000u32, u32::MAX, 16_384].map(u32::to_le_bytes).concat();
        let request = driver.submit(INFLATE, &[&numbers], &[]);
        driver.ring(INFLATE);
        assert_eq!(driver.used(INFLATE), (request.head, 0));
        let mut content = [1; PAGE_SIZE];
        ram.read_page(page, &mut content).unwrap();
        assert_eq!(content, [0; PAGE_SIZE]);
        let mut written = DirtyPages::none(ram.page_count());
        ram.take_written(&mut written);
        assert!(written.contains(page));
    }

    #[test]
    fn reported_ranges_are_given_back_as_far_as_they_are_whole_pages_of_memory() {
        let (mut driver, ram) = start();
        for page in 10_000..10_004 {
            ram.write_page(PageIndex(page), &[0xbb; PAGE_SIZE]).unwrap();
        }
        let range = |address: u64, length| (Buffer { address, length }, 2);
        let odd = range(10_000 * 4096 + 1, 3 * 4096);
        let outside = range(u64::MAX - 4096, 4096);
        let beyond = range(64 << 20, 1 << 20);
        let last = range(u64::MAX - 100, 50);
        let head = driver.submit_raw(REPORTING, &[odd, outside, beyond, last]);
        driver.ring(REPORTING);
        assert_eq!(driver.used(REPORTING), (head, 0));
        let first = |page| {
            let mut content = [0; PAGE_SIZE];
            ram.read_page(PageIndex(page), &mut content).unwrap();
            content[0]
        };
        assert_eq!(
            [10_000, 10_001, 10_002, 10_003].map(first),
            [0xbb, 0, 0, 0xbb]
        );
    }

    #[test]
    fn the_guest_reads_the_target_and_tells_what_it_gave() {
        let (driver, _) = start();
        // The vector of configuration changes.
        driver.set(0x10, &0u16.to_le_bytes());
        driver
            .function()
            .with_device(|device| device.set_balloon(300));
        driver.set(0x2004, &77u32.to_le_bytes());
        let mut config = [0; 8];
        driver.config(0, &mut config);
        assert_eq!(config, [44, 1, 0, 0, 77, 0, 0, 0]);
        assert!(driver.interrupts() >= 1, "the guest is told");
    }
}
