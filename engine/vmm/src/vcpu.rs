// SPDX-License-Identifier: Apache-2.0
//! The vCPU and its thread.
//!
//! The thread holds the vCPU's lock only while it is in or about to enter the guest. Parked at the
//! [gate](crate::gate), it holds nothing, and the instruction whose exit it served last is complete:
//! KVM finishes a port or memory access only on the next `KVM_RUN`, and what is pending until then is
//! in no readable state (KVM API, section 5). So before parking the thread *drains*: it runs with
//! `immediate_exit` set, serves whatever that yields, until KVM says `EINTR`. A state taken without this
//! would execute the access again on the other host.
//!
//! No failure stops the thread silently: errors and panics become [`GuestEvent::Crashed`].

pub(crate) mod kick;
pub(crate) mod mmio;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};

use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::devices::{Devices, PortRequest};
use crate::event::{ConsoleOutput, GuestEvent};
use crate::gate::{Gate, Order, Parking};
use crate::sys;
use kick::KickTarget;
use mmio::MmioHandler;

/// A vCPU shared by its thread and its controller. The controller takes it only while the thread is
/// parked.
pub(crate) type SharedVcpu = Arc<Mutex<VcpuFd>>;

/// What the vCPU thread works with.
pub(crate) struct VcpuThread {
    pub(crate) vcpu: SharedVcpu,
    pub(crate) gate: Arc<Gate>,
    pub(crate) devices: Arc<Mutex<Devices>>,
    pub(crate) mmio: Arc<dyn MmioHandler>,
    pub(crate) console: Arc<dyn ConsoleOutput>,
    pub(crate) events: Sender<GuestEvent>,
}

/// Why the vCPU left the guest for good, or for now.
#[derive(Debug)]
enum Stop {
    Parking(Parking),
    Event(GuestEvent),
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
        let mut stop = Stop::Parking(Parking::Asked);
        while self.park(stop) == Order::Run {
            stop = catch_unwind(AssertUnwindSafe(|| self.run_guest()))
                .unwrap_or_else(|panic| Stop::Event(crashed(panic_text(panic.as_ref()))));
        }
    }

    fn park(&self, stop: Stop) -> Order {
        match stop {
            Stop::Parking(why) => self.gate.wait(why, || {}),
            Stop::Event(event) => self.gate.wait(Parking::Ended, || {
                // The owner may be gone already; then nobody needs to know.
                let _ = self.events.send(event);
            }),
        }
    }

    /// Runs the guest until something stops it; nothing is pending then.
    fn run_guest(&self) -> Stop {
        let mut vcpu = self.vcpu.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the vCPU is owned by the `Arc` that `self` holds, so it outlives this call, and
        // with it the value registered here.
        let kick = unsafe { KickTarget::register(&mut vcpu) };
        let mut pending = false;
        let mut output = Vec::new();
        loop {
            kick.clear();
            if self.gate.must_leave() {
                return self.drained(&mut vcpu, &kick, pending, Parking::Asked);
            }
            let wakes_seen = self.gate.wakes();
            if !self.console.has_room() {
                return self.drained(&mut vcpu, &kick, pending, Parking::NoRoom { wakes_seen });
            }
            match self.enter(&mut vcpu, &mut output) {
                Served::Pending => pending = true,
                Served::Interrupted => pending = false,
                Served::Event(event) => return self.ended(&mut vcpu, &kick, event),
            }
        }
    }

    fn drained(&self, vcpu: &mut VcpuFd, kick: &KickTarget, pending: bool, why: Parking) -> Stop {
        if !pending {
            return Stop::Parking(why);
        }
        match self.drain(vcpu, kick) {
            None => Stop::Parking(why),
            Some(event) => Stop::Event(event),
        }
    }

    /// Ends the run with `event`. Power-off and reset by port write leave that write to be finished.
    fn ended(&self, vcpu: &mut VcpuFd, kick: &KickTarget, event: GuestEvent) -> Stop {
        if matches!(event, GuestEvent::Crashed { .. }) {
            return Stop::Event(event);
        }
        match self.drain(vcpu, kick) {
            Some(crash @ GuestEvent::Crashed { .. }) => Stop::Event(crash),
            _ => Stop::Event(event),
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
            Ok(VcpuExit::IoOut(port, data)) => {
                let mut devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
                let request = devices.write_port(port, data);
                devices.serial.take_output(output);
                request
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                let mut devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
                devices.read_port(port, data);
                None
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                self.mmio.read(address, data);
                None
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                self.mmio.write(address, data);
                None
            }
            Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen) => return Served::Interrupted,
            // A PC resets on a triple fault.
            Ok(VcpuExit::Shutdown) => return Served::Event(GuestEvent::Reset),
            Ok(exit) => {
                let exit = format!("{exit:?}");
                return Served::Event(crashed(describe(vcpu, &exit)));
            }
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                return Served::Interrupted;
            }
            Err(error) => {
                return Served::Event(crashed(describe(vcpu, &format!("KVM_RUN: {error}"))));
            }
        };
        if !output.is_empty() {
            self.console.write(output);
            output.clear();
        }
        match request {
            None => Served::Pending,
            Some(PortRequest::PowerOff) => Served::Event(GuestEvent::PowerOff),
            Some(PortRequest::Reset) => Served::Event(GuestEvent::Reset),
        }
    }
}

fn crashed(reason: String) -> GuestEvent {
    GuestEvent::Crashed { reason }
}

/// What happened and where the guest was.
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
