// SPDX-License-Identifier: Apache-2.0
//! A virtio device as a PCI function (section 4.1): capabilities, registers, doorbells, MSI-X.
//!
//! BAR 0, 32 KiB of memory:
//!
//! | offset | content |
//! | --- | --- |
//! | 0x0000 | common configuration |
//! | 0x1000 | ISR status, always 0: there are no INTx interrupts |
//! | 0x2000 | device configuration |
//! | 0x3000 | doorbells, 4 bytes a queue |
//! | 0x4000 | MSI-X table |
//! | 0x7000 | MSI-X pending bits |
//!
//! One lock guards everything behind the registers. Doorbells do not take it.

use std::fmt;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::common::{self, Common, Consequence, EVENT_IDX};
use super::queues::Queues;
use super::state::{FunctionState, WrongDeviceState};
use super::worker::Hold;
use super::{Device, DeviceFault, Kind, Progress, Wake};
use crate::pci::config_space::{ConfigSpace, Identity};
use crate::pci::msix::{self, Msix};
use crate::pci::{PciFunction, Platform};
use crate::ram::Mapping;

/// Bytes of BAR 0.
pub(crate) const BAR_BYTES: u32 = 0x8000;
const COMMON: u32 = 0x0000;
const ISR: u32 = 0x1000;
const DEVICE: u32 = 0x2000;
const DOORBELLS: u32 = 0x3000;
const MSIX_TABLE: u32 = 0x4000;
const MSIX_PENDING: u32 = 0x7000;
const AREA_BYTES: u32 = 0x1000;
const DOORBELL_BYTES: u32 = 4;

const VENDOR: u16 = 0x1af4;
const DEVICE_BASE: u16 = 0x1040;
const CAPABILITY_VENDOR: u8 = 9;
const CFG_COMMON: u8 = 1;
const CFG_NOTIFY: u8 = 2;
const CFG_ISR: u8 = 3;
const CFG_DEVICE: u8 = 4;
const CFG_PCI: u8 = 5;
/// Where offset, length and data of the access capability are, from its start.
const PCI_CFG_OFFSET: usize = 8;
const PCI_CFG_LENGTH: usize = 12;
const PCI_CFG_DATA: usize = 16;

/// No BAR decodes at the end of the address space.
const NOT_DECODED: u64 = u64::MAX;

/// Everything behind the lock.
struct Core {
    config: ConfigSpace,
    msix: Msix,
    common: Common,
    queues: Queues,
    device: Box<dyn Device>,
    standing: Standing,
}

/// Whether a device stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// It does not.
    Works,
    /// It does, and the host may have something in flight, or is to be given it when it works again.
    Frozen,
    /// It does, with nothing in flight.
    Paused,
}

/// One virtio device on the bus.
pub(crate) struct VirtioFunction {
    kind: Kind,
    label: String,
    traits: String,
    platform: Arc<dyn Platform>,
    core: Mutex<Core>,
    /// Where BAR 0 is, for whoever decodes addresses without the lock.
    window: AtomicU64,
    doorbells: Vec<EventFd>,
    attention: EventFd,
    hold: Hold,
    msix_at: usize,
    access_at: usize,
}

impl VirtioFunction {
    /// A device in `slot` of the bus, paused; its BAR has an address from the start.
    ///
    /// # Errors
    /// The process has no more file descriptors.
    pub(crate) fn new(
        device: Box<dyn Device>,
        slot: u32,
        memory: Arc<Mapping>,
        platform: Arc<dyn Platform>,
    ) -> std::io::Result<Self> {
        let kind = device.kind();
        let queues = Queues::new(memory, &device.queue_sizes());
        let vectors = u16::try_from(queues.len() + 1).unwrap_or(u16::MAX);
        let msix = Msix::new(Arc::clone(&platform), vectors);
        let address = crate::pci::WINDOW_START + slot * BAR_BYTES;
        let mut config = ConfigSpace::new(&identity(kind)).with_bar0(address, BAR_BYTES);
        let access_at = add_virtio_capabilities(&mut config, queues.len());
        let (body, writable) = msix.capability(MSIX_TABLE, MSIX_PENDING);
        let msix_at = config.add_capability(msix::CAPABILITY, &body, &writable);
        let doorbells = (0..queues.len())
            .map(|_| EventFd::new(EFD_NONBLOCK))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            kind,
            label: format!("{}@{slot}", kind.name),
            traits: device.traits(),
            platform,
            core: Mutex::new(Core {
                config,
                msix,
                common: Common::new(device.features()),
                queues,
                device,
                standing: Standing::Paused,
            }),
            window: AtomicU64::new(NOT_DECODED),
            doorbells,
            attention: EventFd::new(EFD_NONBLOCK)?,
            hold: Hold::new(),
            msix_at,
            access_at,
        })
    }

    /// Kind, version and place, for logs.
    pub(crate) fn label(&self) -> &str {
        &self.label
    }

    /// What a device in another machine must have in common with this one.
    pub(crate) fn fingerprint(&self) -> String {
        if self.traits.is_empty() {
            return self.label.clone();
        }
        format!("{} {}", self.label, self.traits)
    }

    pub(crate) fn thread_name(&self) -> String {
        // The kernel keeps 15 bytes.
        let name = self.kind.name.split('/').next().unwrap_or("virtio");
        let slot = self.label.rsplit('@').next().unwrap_or_default();
        format!("{name}-{slot}")
    }

    pub(crate) fn hold(&self) -> &Hold {
        &self.hold
    }

    pub(crate) fn attention(&self) -> &EventFd {
        &self.attention
    }

    pub(crate) fn doorbells(&self) -> &[EventFd] {
        &self.doorbells
    }

    pub(crate) fn with_sources<T>(&self, watch: impl FnOnce(&[BorrowedFd<'_>]) -> T) -> T {
        watch(&self.lock().device.sources())
    }

    /// Makes the worker look at everything.
    pub(crate) fn call_worker(&self) {
        // A full counter is as readable as can be.
        let _ = self.attention.write(1);
    }

    /// Worker: serves the device once. `None`: it is paused; hold and ask again.
    pub(crate) fn serve(&self, wake: Wake) -> Option<Progress> {
        let mut core = self.lock();
        if core.standing != Standing::Works {
            return None;
        }
        Some(core.serve(wake, &self.label))
    }

    /// Stops the device between two requests, with nothing in flight at the host.
    pub(crate) fn pause(&self) {
        self.hold.hold();
        let mut core = self.lock();
        if core.standing != Standing::Paused {
            core.quiesce(&self.label);
            core.standing = Standing::Paused;
        }
    }

    /// Stops the device between two requests and waits for no host: what is in flight stays there.
    /// Does nothing to one that stands still already.
    pub(crate) fn freeze(&self) {
        self.hold.hold();
        let mut core = self.lock();
        if core.standing == Standing::Works {
            core.freeze(&self.label);
            core.standing = Standing::Frozen;
        }
    }

    /// Lets the device go on, with a look at every queue.
    pub(crate) fn resume(&self) {
        self.lock().standing = Standing::Works;
        self.hold.release();
        self.call_worker();
    }

    /// The state of a device that stands still.
    pub(crate) fn save(&self) -> FunctionState {
        let core = self.lock();
        FunctionState {
            config: core.config.save(),
            msix: core.msix.save(),
            common: core.common.save(),
            rings: core.queues.save(),
            device: core.device.save(),
        }
    }

    /// Loads a state into a device that stands still. What was in flight in the state is done when
    /// the device works again, or is paused.
    ///
    /// # Errors
    /// The state does not fit; the device must not run then.
    pub(crate) fn restore(&self, state: &FunctionState) -> Result<(), WrongDeviceState> {
        let mut core = self.lock();
        let wrong = |reason| WrongDeviceState::new(&self.label, reason);
        core.config.restore(&state.config);
        core.msix.restore(&state.msix);
        core.common.restore(&state.common).map_err(wrong)?;
        core.queues.restore(&state.rings).map_err(wrong)?;
        let features = if core.common.is_active() {
            core.common.features()
        } else {
            0
        };
        core.device.restore(&state.device, features)?;
        core.standing = Standing::Frozen;
        self.follow_bar(&core);
        Ok(())
    }

    /// Changes the device model from outside, for a device whose configuration its owner sets; the
    /// guest is told when `change` says so.
    pub(crate) fn with_device(&self, change: impl FnOnce(&mut dyn Device) -> ConfigChange) {
        let mut core = self.lock();
        let core = &mut *core;
        if change(core.device.as_mut()) == ConfigChange::Tell {
            core.common.config_changed(&mut core.msix);
        }
        self.call_worker();
    }

    fn lock(&self) -> MutexGuard<'_, Core> {
        // Whatever a panic left behind, the device is still only a device.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves the doorbells to where BAR 0 is now.
    fn follow_bar(&self, core: &Core) {
        let now = core.config.bar0().unwrap_or(NOT_DECODED);
        let before = self.window.swap(now, Ordering::SeqCst);
        if now == before {
            return;
        }
        for (event, at) in self.doorbells.iter().zip((0..).step_by(4)) {
            let place = |bar: u64| (bar != NOT_DECODED).then(|| bar + u64::from(DOORBELLS) + at);
            if let Some(address) = place(before)
                && let Err(error) = self.platform.detach_doorbell(event, address)
            {
                tracing::warn!(device = self.label, %error, "Cannot detach a doorbell");
            }
            // Without it the write ends in `ring`, which does the same more slowly.
            if let Some(address) = place(now)
                && let Err(error) = self.platform.attach_doorbell(event, address)
            {
                tracing::warn!(device = self.label, %error, "Cannot attach a doorbell");
            }
        }
    }

    fn ring(&self, offset: u64) {
        let queue = usize::try_from(offset / u64::from(DOORBELL_BYTES)).unwrap_or(usize::MAX);
        if let Some(doorbell) = self.doorbells.get(queue) {
            let _ = doorbell.write(1);
        }
    }

    /// The place in BAR 0 that the access capability points at, if `offset` is its data.
    fn accessed(&self, core: &Core, offset: usize) -> Option<(u64, usize)> {
        if offset != self.access_at + PCI_CFG_DATA {
            return None;
        }
        let at = core.config.u32_at(self.access_at + PCI_CFG_OFFSET);
        let length = core.config.u32_at(self.access_at + PCI_CFG_LENGTH);
        matches!(length, 1 | 2 | 4).then(|| (u64::from(at), usize::try_from(length).unwrap_or(0)))
    }
}

/// Whether the guest is told that a device's configuration changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConfigChange {
    Tell,
    Nothing,
}

impl Core {
    fn serve(&mut self, wake: Wake, label: &str) -> Progress {
        if !self.common.is_active() {
            return Progress::Done;
        }
        let served = self.device.serve(wake, &mut self.queues);
        let signalled = self.queues.interrupt(&mut self.msix);
        match served.and_then(|progress| signalled.map(|()| progress)) {
            Ok(progress) => progress,
            Err(fault) => {
                self.stop(&fault, label);
                Progress::Done
            }
        }
    }

    fn quiesce(&mut self, label: &str) {
        if !self.common.is_active() {
            return self.device.abandon();
        }
        let quiesced = self.device.quiesce(&mut self.queues);
        self.stands_still(quiesced, label);
    }

    fn freeze(&mut self, label: &str) {
        if !self.common.is_active() {
            return self.device.abandon();
        }
        let frozen = self.device.freeze(&mut self.queues);
        self.stands_still(frozen, label);
    }

    fn stands_still(&mut self, outcome: Result<(), DeviceFault>, label: &str) {
        let signalled = self.queues.interrupt(&mut self.msix);
        if let Err(fault) = outcome.and(signalled) {
            self.stop(&fault, label);
        }
    }

    fn stop(&mut self, fault: &DeviceFault, label: &str) {
        let cause = std::error::Error::source(fault)
            .map(|source| format!(": {source}"))
            .unwrap_or_default();
        tracing::error!(
            device = label,
            "The device stopped until the guest resets it: {fault}{cause}"
        );
        self.common.stop(&mut self.msix);
        self.device.abandon();
    }

    fn reset(&mut self, label: &str) {
        self.quiesce(label);
        self.device.reset();
        self.queues.reset();
        self.common.reset();
    }

    /// Returns whether the driver became ready.
    fn write_common(&mut self, offset: u64, data: &[u8], label: &str) -> bool {
        let Self {
            common,
            queues,
            msix,
            ..
        } = self;
        match common.write(queues, msix, offset, data) {
            Consequence::Nothing => {}
            Consequence::Reset => self.reset(label),
            Consequence::Fault(fault) => self.stop(&fault, label),
            Consequence::Activate => {
                let features = self.common.features();
                self.queues.set_event_idx(features & EVENT_IDX != 0);
                match self.device.activate(features) {
                    Ok(()) => return true,
                    Err(fault) => self.stop(&fault, label),
                }
            }
        }
        false
    }
}

impl PciFunction for VirtioFunction {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        let at = usize::from(offset);
        let core = self.lock();
        let Some((place, length)) = self.accessed(&core, at) else {
            return core.config.read(at, data);
        };
        drop(core);
        data.fill(0);
        if let Some(data) = data.get_mut(..length) {
            self.read_window(place, data);
        }
    }

    fn write_config(&self, offset: u16, data: &[u8]) {
        let at = usize::from(offset);
        let mut core = self.lock();
        let accessed = self.accessed(&core, at);
        core.config.write(at, data);
        let control = core.config.u16_at(self.msix_at + 2);
        core.msix.set_control(control);
        self.follow_bar(&core);
        drop(core);
        if let Some((place, length)) = accessed
            && let Some(data) = data.get(..length)
        {
            self.write_window(place, data);
        }
    }

    fn window(&self) -> Option<Range<u64>> {
        let start = self.window.load(Ordering::SeqCst);
        (start != NOT_DECODED).then(|| start..start + u64::from(BAR_BYTES))
    }

    fn read_window(&self, offset: u64, data: &mut [u8]) {
        let core = self.lock();
        match area(offset) {
            Some((COMMON, at)) => core.common.read(&core.queues, at, data),
            Some((DEVICE, at)) => core.device.read_config(at, data),
            Some((MSIX_TABLE, at)) => core.msix.read_table(at, data),
            Some((MSIX_PENDING, at)) => core.msix.read_pending(at, data),
            _ => data.fill(0),
        }
    }

    fn write_window(&self, offset: u64, data: &[u8]) {
        match area(offset) {
            Some((COMMON, at)) => {
                let activated = self.lock().write_common(at, data, &self.label);
                if activated {
                    self.call_worker();
                }
            }
            Some((DEVICE, at)) => {
                self.lock().device.write_config(at, data);
                self.call_worker();
            }
            Some((DOORBELLS, at)) => self.ring(at),
            Some((MSIX_TABLE, at)) => self.lock().msix.write_table(at, data),
            _ => {}
        }
    }
}

/// Which area an offset into BAR 0 is in, and where in it.
fn area(offset: u64) -> Option<(u32, u64)> {
    let within = |start: u32, bytes: u32| {
        let at = offset.checked_sub(u64::from(start))?;
        (at < u64::from(bytes)).then_some((start, at))
    };
    within(COMMON, u32::try_from(common::BYTES).unwrap_or(0))
        .or_else(|| within(ISR, AREA_BYTES))
        .or_else(|| within(DEVICE, AREA_BYTES))
        .or_else(|| within(DOORBELLS, AREA_BYTES))
        .or_else(|| within(MSIX_TABLE, MSIX_PENDING - MSIX_TABLE))
        .or_else(|| within(MSIX_PENDING, AREA_BYTES))
}

fn identity(kind: Kind) -> Identity {
    Identity {
        vendor: VENDOR,
        device: DEVICE_BASE + kind.device_type,
        subsystem_vendor: VENDOR,
        subsystem: kind.device_type,
        class: kind.class,
        revision: 1,
    }
}

/// Adds the five capabilities of section 4.1.4; returns where the access capability is.
fn add_virtio_capabilities(config: &mut ConfigSpace, queues: usize) -> usize {
    let doorbells = u32::try_from(queues).unwrap_or(0) * DOORBELL_BYTES;
    let areas = [
        (
            CFG_COMMON,
            COMMON,
            u32::try_from(common::BYTES).unwrap_or(0),
        ),
        (CFG_ISR, ISR, 1),
        (CFG_DEVICE, DEVICE, AREA_BYTES),
    ];
    for (kind, offset, length) in areas {
        config.add_capability(CAPABILITY_VENDOR, &body(kind, offset, length, &[]), &[]);
    }
    let multiplier = DOORBELL_BYTES.to_le_bytes();
    let notify = body(CFG_NOTIFY, DOORBELLS, doorbells, &multiplier);
    config.add_capability(CAPABILITY_VENDOR, &notify, &[]);
    // Its BAR number stays 0; offset, length and data may be written.
    let writable = [0, 0, 0, 0, 0, 0].into_iter().chain([0xff; 12]);
    let writable: Vec<u8> = writable.collect();
    let access = body(CFG_PCI, 0, 0, &[0; 4]);
    config.add_capability(CAPABILITY_VENDOR, &access, &writable)
}

/// A `virtio_pci_cap` behind its identifier and link: length, type, BAR 0, offset, length, rest.
fn body(kind: u8, offset: u32, length: u32, rest: &[u8]) -> Vec<u8> {
    let bytes = u8::try_from(16 + rest.len()).unwrap_or(16);
    [bytes, kind, 0, 0, 0, 0]
        .into_iter()
        .chain(offset.to_le_bytes())
        .chain(length.to_le_bytes())
        .chain(rest.iter().copied())
        .collect()
}

impl fmt::Debug for VirtioFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VirtioFunction({})", self.label)
    }
}
