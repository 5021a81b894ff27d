// SPDX-License-Identifier: Apache-2.0
//! All virtio devices of a machine: on the bus, with their threads, paused and resumed together.

use std::sync::Arc;

use super::Device;
use super::state::{FunctionState, WrongDeviceState};
use super::transport::{ConfigChange, VirtioFunction};
use super::worker::Worker;
use crate::pci::{PciBus, PciFunction, Platform};
use crate::ram::Mapping;
use crate::thread_hook::ThreadHook;

/// The devices in the order of their slots, from slot 1 on.
#[derive(Debug)]
pub(crate) struct Fleet {
    functions: Vec<Arc<VirtioFunction>>,
    // Ended before the functions are gone.
    _workers: Vec<Worker>,
    bus: Arc<PciBus>,
}

impl Fleet {
    /// Puts the devices on a bus and starts their threads; they are paused.
    ///
    /// # Errors
    /// The process has no more file descriptors or threads.
    pub(crate) fn new(
        devices: Vec<Box<dyn Device>>,
        memory: &Mapping,
        platform: &Arc<dyn Platform>,
        hook: &ThreadHook,
    ) -> std::io::Result<Self> {
        let memory = Arc::new(memory.clone());
        let functions = devices
            .into_iter()
            .zip(1..)
            .map(|(device, slot)| {
                VirtioFunction::new(device, slot, Arc::clone(&memory), Arc::clone(platform))
                    .map(Arc::new)
            })
            .collect::<std::io::Result<Vec<_>>>()?;
        let workers = functions
            .iter()
            .map(|function| Worker::start(Arc::clone(function), hook.clone()))
            .collect::<std::io::Result<_>>()?;
        let on_bus = functions
            .iter()
            .map(|function| Arc::clone(function) as Arc<dyn PciFunction>);
        let bus = Arc::new(PciBus::new(on_bus));
        Ok(Self {
            functions,
            _workers: workers,
            bus,
        })
    }

    pub(crate) fn bus(&self) -> Arc<PciBus> {
        Arc::clone(&self.bus)
    }

    /// Kind, version, slot and traits of each device.
    pub(crate) fn labels(&self) -> Vec<String> {
        self.functions
            .iter()
            .map(|function| function.fingerprint())
            .collect()
    }

    /// Stops all devices with nothing in flight. The vCPUs must be paused before.
    pub(crate) fn pause(&self) {
        // All stop taking new work first, so that the waits for the host overlap.
        for function in &self.functions {
            function.hold().hold();
        }
        for function in &self.functions {
            function.pause();
        }
    }

    /// Stops all devices without waiting for the host. The vCPUs must be paused before.
    pub(crate) fn freeze(&self) {
        for function in &self.functions {
            function.hold().hold();
        }
        for function in &self.functions {
            function.freeze();
        }
    }

    /// Lets all devices go on.
    pub(crate) fn resume(&self) {
        for function in &self.functions {
            function.resume();
        }
    }

    /// Asks the guest to tell the outside where it is now.
    pub(crate) fn announce(&self) {
        for function in &self.functions {
            function.with_device(|device| device.announce());
        }
    }

    /// Asks the guest for this many pages in all, where there is a balloon.
    pub(crate) fn set_balloon(&self, pages: u32) {
        for function in &self.functions {
            function.with_device(|device| device.set_balloon(pages));
        }
    }

    /// Pages wanted from and given by the guest, where there is a balloon.
    pub(crate) fn balloon(&self) -> Option<(u32, u32)> {
        self.functions.iter().find_map(|function| {
            let mut pages = None;
            function.with_device(|device| {
                pages = device.balloon();
                ConfigChange::Nothing
            });
            pages
        })
    }

    pub(crate) fn save(&self) -> Vec<FunctionState> {
        self.functions
            .iter()
            .map(|function| function.save())
            .collect()
    }

    /// Loads the states into the paused devices.
    ///
    /// # Errors
    /// One does not fit; none may run then.
    pub(crate) fn restore(&self, states: &[FunctionState]) -> Result<(), WrongDeviceState> {
        if states.len() != self.functions.len() {
            let reason = format!(
                "the state has {} virtio devices, this machine {}",
                states.len(),
                self.functions.len()
            );
            return Err(WrongDeviceState::new("the PCI bus", &reason));
        }
        self.functions
            .iter()
            .zip(states)
            .try_for_each(|(function, state)| function.restore(state))
    }
}
