// SPDX-License-Identifier: Apache-2.0
//! A vCPU's thread: running the guest and serving its exits.
//!
//! The thread holds its vCPU's lock only while it is in or about to enter the guest. Parked at the
//! [gate](crate::gate), it holds nothing, and the instruction whose exit it served last is complete:
//! KVM finishes a port or memory access only on the next `KVM_RUN`, and what is pending until then is
//! in no readable state (KVM API, section 5). So before parking the thread *drains*: it runs with
//! `immediate_exit` set, serves whatever that yields, until KVM says `EINTR`. A state taken without this
//! would execute the access again on the other host.
//!
//! What the guest writes to its serial line goes out in the order in which the writes reached the
//! port, whichever vCPUs made them.
//!
//! No failure stops the thread silently: errors and panics become [`GuestEvent::Crashed`].

pub(crate) mod kick;
pub(crate) mod mmio;
pub(crate) mod set;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::KVM_EXIT_DIRTY_RING_FULL;
use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::config::VcpuIndex;
use crate::devices::{Devices, PortRequest};
use crate::dirty::rings::DirtyRings;
use crate::event::{ConsoleOutput, GuestEvent};
use crate::gate::{Gate, Order, Parking};
use crate::sys;
use kick::KickTarget;
use mmio::MmioHandler;

/// A vCPU shared by its thread and its controller. The controller takes it only while the thread is
/// parked.
pub(crate) type SharedVcpu = Arc<Mutex<VcpuFd>>;

/// What all vCPU threads of a machine have in common.
pub(crate) struct Shared {
    pub(crate) gate: Arc<Gate>,
    pub(crate) devices: Arc<Mutex<Devices>>,
    pub(crate) mmio: Arc<dyn MmioHandler>,
    pub(crate) console: Arc<dyn ConsoleOutput>,
    /// Held from a port write until its output is with the console: keeps the order of the bytes
    /// that several vCPUs write. Taken before the devices' lock.
    pub(crate) console_order: Mutex<()>,
    /// Where dirty pages are tracked by rings.
    pub(crate) rings: Option<Arc<DirtyRings>>,
}

/// What one vCPU thread works with.
pub(crate) struct VcpuThread {
    pub(crate) index: VcpuIndex,
    pub(crate) vcpu: SharedVcpu,
    pub(crate) shared: Arc<Shared>,
}

/// What became of one exit.
#[derive(Debug)]
enum Served {
    /// KVM still has to finish the access.
    Pending,
    /// The guest was interrupted; nothing is pending.
    Interrupted,
    Event(GuestEvent),
}

impl VcpuThread {
    /// The thread's body; returns when told to exit.
    pub(crate) fn run(self) {
        let gate = &self.shared.gate;
        gate.take_seat(self.index);
        let mut why = Parking::Asked;
        while gate.wait(self.index, why) == Order::Run {
            why = catch_unwind(AssertUnwindSafe(|| self.run_guest()))
                .unwrap_or_else(|panic| Parking::Ended(crashed(panic_text(panic.as_ref()))));
        }
    }

    /// Runs the guest until something stops it; nothing is pending then.
    fn run_guest(&self) -> Parking {
        let mut vcpu = self.vcpu.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the vCPU is owned by the `Arc` that `self` holds, so it outlives this call, and
        // with it the value registered here.
        let kick = unsafe { KickTarget::register(&mut vcpu) };
        let mut pending = false;
        let mut output = Vec::new();
        loop {
            kick.clear();
            if self.shared.gate.must_leave() {
                return self.drained(&mut vcpu, &kick, pending, Parking::Asked);
            }
            let wakes_seen = self.shared.gate.wakes();
            if !self.shared.console.has_room() {
                return self.drained(&mut vcpu, &kick, pending, Parking::NoRoom { wakes_seen });
            }
            match self.enter(&mut vcpu, &mut output) {
                Served::Pending => pending = true,
                Served::Interrupted => pending = false,
                Served::Event(event) => return self.ended(&mut vcpu, &kick, event),
            }
        }
    }

    fn drained(
        &self,
        vcpu: &mut VcpuFd,
        kick: &KickTarget,
        pending: bool,
        why: Parking,
    ) -> Parking {
        if !pending {
            return why;
        }
        self.drain(vcpu, kick).map_or(why, Parking::Ended)
    }

    /// Ends the run with `event`. Power-off and reset by port write leave that write to be finished.
    fn ended(&self, vcpu: &mut VcpuFd, kick: &KickTarget, event: GuestEvent) -> Parking {
        // KVM would say the same again.
        if matches!(
            event,
            GuestEvent::Crashed { .. } | GuestEvent::MemoryFailed { .. }
        ) {
            return Parking::Ended(event);
        }
        match self.drain(vcpu, kick) {
            Some(crash @ GuestEvent::Crashed { .. }) => Parking::Ended(crash),
            _ => Parking::Ended(event),
        }
    }

    /// Finishes the last access without entering the guest.
    fn drain(&self, vcpu: &mut VcpuFd, kick: &KickTarget) -> Option<GuestEvent> {
        let mut output = Vec::new();
        let event = loop {
            kick.set();
            match self.enter(vcpu, &mut output) {
                // A string instruction or an access across pages continues with another exit.
                Served::Pending => {}
                Served::Interrupted => break None,
                Served::Event(event) => break Some(event),
            }
        };
        kick.clear();
        event
    }

    /// Enters the guest once and serves the exit.
    fn enter(&self, vcpu: &mut VcpuFd, output: &mut Vec<u8>) -> Served {
        let request = match vcpu.run() {
            Ok(VcpuExit::IoOut(port, data)) => self.write_port(port, data, output),
            Ok(VcpuExit::IoIn(port, data)) => {
                self.lock_devices().read_port(port, data);
                None
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                self.shared.mmio.read(address, data);
                None
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                self.shared.mmio.write(address, data);
                None
            }
            Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen) => return Served::Interrupted,
            Ok(VcpuExit::Unsupported(KVM_EXIT_DIRTY_RING_FULL)) => return self.relieve_ring(),
            Ok(VcpuExit::Shutdown) => return Served::Event(GuestEvent::TripleFault),
            Ok(exit) => {
                let exit = format!("{exit:?}");
                return Served::Event(self.crash(vcpu, &exit));
            }
            // EAGAIN: a vCPU that waited to be started was woken, perhaps by its INIT.
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                return Served::Interrupted;
            }
            // The page of the host that the guest touched is poisoned (KVM API, KVM_EXIT_MEMORY_FAULT).
            Err(error) if error.errno() == libc::EHWPOISON => {
                let what = describe(vcpu, &format!("KVM_RUN: {error}"));
                return Served::Event(GuestEvent::MemoryFailed {
                    reason: format!("vCPU {}: {what}", self.index),
                });
            }
            Err(error) => {
                return Served::Event(self.crash(vcpu, &format!("KVM_RUN: {error}")));
            }
        };
        match request {
            None => Served::Pending,
            Some(PortRequest::PowerOff) => Served::Event(GuestEvent::PowerOff),
            Some(PortRequest::Reset) => Served::Event(GuestEvent::Reset),
        }
    }

    fn write_port(&self, port: u16, data: &[u8], output: &mut Vec<u8>) -> Option<PortRequest> {
        let _order = self
            .shared
            .console_order
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut devices = self.lock_devices();
        let request = devices.write_port(port, data);
        devices.serial.take_output(output);
        drop(devices);
        if !output.is_empty() {
            self.shared.console.write(output);
            output.clear();
        }
        request
    }

    fn lock_devices(&self) -> MutexGuard<'_, Devices> {
        self.shared
            .devices
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The vCPU did not enter the guest, after KVM had finished what was pending, because its dirty
    /// ring is full. What is in it is kept for the next harvest.
    fn relieve_ring(&self) -> Served {
        let what = match self.shared.rings.as_ref().map(|rings| rings.relieve()) {
            Some(Ok(())) => return Served::Interrupted,
            Some(Err(error)) => error.to_string(),
            None => "KVM names a dirty ring that nobody made".to_owned(),
        };
        Served::Event(crashed(format!("vCPU {}: {what}", self.index)))
    }

    /// What happened and where the guest was.
    fn crash(&self, vcpu: &mut VcpuFd, exit: &str) -> GuestEvent {
        let what = describe(vcpu, exit);
        crashed(format!("vCPU {}: {what}", self.index))
    }
}

fn crashed(reason: String) -> GuestEvent {
    GuestEvent::Crashed { reason }
}

fn describe(vcpu: &mut VcpuFd, exit: &str) -> String {
    let suberror = sys::internal_error_code(vcpu);
    let place = match vcpu.get_regs() {
        Ok(regs) => format!("RIP {:#x}", regs.rip),
        Err(_) => "unknown RIP".to_owned(),
    };
    if exit == "InternalError" {
        return format!("KVM internal error {suberror} at {place}");
    }
    format!("{exit} at {place}")
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned());
    format!(
        "The vCPU thread panicked: {}",
        text.unwrap_or_else(|| "no message".to_owned())
    )
}
