// SPDX-License-Identifier: Apache-2.0
//! A platform that keeps doorbells as KVM does: one at an address, found by its descriptor.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::errno;
use vmm_sys_util::eventfd::EventFd;

use crate::pci::Platform;
use crate::virtio::transport::VirtioFunction;

/// Where doorbells are in BAR 0.
const DOORBELLS: u64 = 0x3000;

/// The doorbells attached now, by address.
#[derive(Debug, Default)]
pub(super) struct Doorbells(Mutex<BTreeMap<u64, RawFd>>);

impl Doorbells {
    pub(super) fn new() -> Arc<Self> {
        Arc::default()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, RawFd>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every doorbell is where its device's BAR is now; where no two BARs have ever met, all are.
    pub(super) fn check(&self, functions: &[&VirtioFunction], met: Met) {
        use crate::pci::PciFunction;

        let mut expected = BTreeMap::new();
        let mut wanted = 0;
        for function in functions {
            let Some(window) = function.window() else {
                continue;
            };
            for (doorbell, at) in function.doorbells().iter().zip((0..).step_by(4)) {
                let address = window.start + DOORBELLS + at;
                expected
                    .entry(address)
                    .or_insert_with(Vec::new)
                    .push(doorbell.as_raw_fd());
                wanted += 1;
            }
        }
        let attached = self.lock();
        for (address, fd) in attached.iter() {
            let rightful = expected.get(address).is_some_and(|fds| fds.contains(fd));
            assert!(rightful, "a doorbell was left behind at {address:#x}");
        }
        if met == Met::Never {
            assert_eq!(attached.len(), wanted, "a doorbell is not attached");
        }
    }
}

/// Whether two BARs had the same address at some time. The second one's doorbells are served the
/// slow way then, until it is moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Met {
    Never,
    Once,
}

impl Platform for Doorbells {
    fn signal_msi(&self, _: u64, _: u32) {}

    fn attach_doorbell(&self, event: &EventFd, address: u64) -> Result<(), errno::Error> {
        let mut attached = self.lock();
        if attached.contains_key(&address) {
            return Err(errno::Error::new(libc::EEXIST));
        }
        attached.insert(address, event.as_raw_fd());
        Ok(())
    }

    fn detach_doorbell(&self, event: &EventFd, address: u64) -> Result<(), errno::Error> {
        let mut attached = self.lock();
        if attached.get(&address) != Some(&event.as_raw_fd()) {
            return Err(errno::Error::new(libc::ENOENT));
        }
        attached.remove(&address);
        Ok(())
    }
}
