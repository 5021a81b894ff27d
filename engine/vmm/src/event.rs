// SPDX-License-Identifier: Apache-2.0
//! What the machine tells its owner: console bytes and the end of a run.

/// What ended the guest's run. Sent by the vCPU thread, which has parked itself when the event
/// arrives or parks right after; only [`boot`](crate::Machine::boot) or
/// [`restore`](crate::Machine::restore) make the machine runnable again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestEvent {
    /// The guest switched itself off (ACPI S5).
    PowerOff,
    /// The guest asked for a reset, or died of a triple fault, which resets a PC.
    Reset,
    /// The vCPU cannot go on: KVM reported an error, or this program failed.
    Crashed {
        /// What happened, for the log.
        reason: String,
    },
}

/// Where the guest's serial output goes.
pub trait ConsoleOutput: Send + Sync {
    /// Takes bytes in the order the guest wrote them. Called on the vCPU thread, with no lock
    /// of the machine held; it must not block.
    fn write(&self, bytes: &[u8]);

    /// Whether more output can be taken. Asked before the guest is entered; on `false` the vCPU
    /// parks until [`RunGate::wake`](crate::RunGate::wake). One guest instruction (`rep outsb`) may
    /// write up to 1,024 bytes after a `true`, so say `false` with at least that much to spare.
    fn has_room(&self) -> bool;
}
