// SPDX-License-Identifier: Apache-2.0
//! What the machine tells its owner: console bytes and the end of a run.

/// What ended the guest's run. One event for one run, sent when all vCPUs are parked; only
/// [`boot`](crate::Machine::boot) or [`restore`](crate::Machine::restore) make the machine runnable
/// again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestEvent {
    /// The guest switched itself off (ACPI S5).
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// A vCPU met a fault for which it has no handler, and none for that either. It resets a PC.
    TripleFault,
    /// A vCPU needs memory of the host that failed, and KVM says so itself. Mostly it sends a signal
    /// instead: [`MemoryErrors`](crate::MemoryErrors).
    MemoryFailed {
        /// Where, for the log.
        reason: String,
    },
    /// A vCPU cannot go on: KVM reported an error, or this program failed.
    Crashed {
        /// What happened, for the log.
        reason: String,
    },
}

/// Where the guest's serial output goes.
pub trait ConsoleOutput: Send + Sync {
    /// Takes bytes in the order the guest wrote them. Called on a vCPU thread, one call at a time;
    /// it must not block, and not wait for anything that the machine's owner holds.
    fn write(&self, bytes: &[u8]);

    /// Whether more output can be taken. Asked by each vCPU thread before it enters the guest, so
    /// perhaps by several at once; on `false` that vCPU parks until
    /// [`RunGate::wake`](crate::RunGate::wake). One guest instruction (`rep outsb`) of each vCPU may
    /// write up to 1,024 bytes after a `true`, so say `false` with that much for each to spare.
    fn has_room(&self) -> bool;
}
