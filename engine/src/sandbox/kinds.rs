// SPDX-License-Identifier: Apache-2.0
//! The kinds of threads the engine has, and what each may do.

use std::collections::BTreeMap;

use super::calls::{
    ACCEPT, BASE, CONNECT, DISKS_AND_TAPS, EVENTS, FAIL, FAIL_CLONE3, FILES, KVM_DEVICES, KVM_VCPU,
    LAST_WORDS, MACHINES, RUNTIME, STREAMS, THREADS,
};
use super::filter::{Call, Filter, FilterError, KVM_ALL};

/// What a thread is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Runs a virtual CPU.
    Vcpu,
    /// Serves a virtio device.
    Device,
    /// Decides; makes machines and starts most other threads.
    Conductor,
    /// Passes on the guest's events.
    Relay,
    /// Waits for memory errors of the host.
    MemoryErrors,
    /// Lets outputs out.
    Outputs,
    /// Types what comes from the console's other end or from attached terminals.
    ConsoleInput,
    /// Connects to the passive replica and reads its answers.
    Link,
    /// Writes to the passive replica.
    LinkWriter,
    /// Accepts connections of active replicas.
    Door,
    /// Finds out who has connected.
    Caller,
    /// Receives from the active replica.
    Passive,
    /// Takes memory from the host ahead of the first copy.
    Prefault,
    /// Reads and syncs replicated disks.
    Disks,
    /// Writes the record of what may differ between disks.
    Changes,
    /// The main thread: control socket, signals, systemd.
    Control,
}

impl Kind {
    /// All of them.
    pub(super) const ALL: [Self; 16] = [
        Self::Vcpu,
        Self::Device,
        Self::Conductor,
        Self::Relay,
        Self::MemoryErrors,
        Self::Outputs,
        Self::ConsoleInput,
        Self::Link,
        Self::LinkWriter,
        Self::Door,
        Self::Caller,
        Self::Passive,
        Self::Prefault,
        Self::Disks,
        Self::Changes,
        Self::Control,
    ];

    /// The groups of calls besides [`BASE`].
    fn groups(self) -> &'static [&'static [Call]] {
        match self {
            Self::Vcpu => &[KVM_VCPU, KVM_DEVICES, EVENTS, DISKS_AND_TAPS],
            // A disk starts a thread for what io_uring cannot do.
            Self::Device => &[KVM_DEVICES, EVENTS, DISKS_AND_TAPS, THREADS],
            Self::Conductor => &[
                &[KVM_ALL],
                FILES,
                MACHINES,
                THREADS,
                // What the threads it starts may do.
                EVENTS,
                DISKS_AND_TAPS,
                STREAMS,
                CONNECT,
            ],
            Self::Relay | Self::Prefault => &[],
            Self::MemoryErrors => &[LAST_WORDS],
            // What is typed may raise the serial port's interrupt.
            Self::Outputs => &[CONNECT, STREAMS, DISKS_AND_TAPS, THREADS, KVM_DEVICES],
            Self::ConsoleInput => &[STREAMS, KVM_DEVICES],
            Self::Link => &[CONNECT, STREAMS, THREADS],
            Self::LinkWriter | Self::Caller => &[STREAMS],
            Self::Door => &[ACCEPT, STREAMS, THREADS],
            // It writes the disks and their record.
            Self::Passive => &[STREAMS, DISKS_AND_TAPS, FILES],
            Self::Disks => &[DISKS_AND_TAPS],
            Self::Changes => &[FILES],
            Self::Control => &[ACCEPT, EVENTS, STREAMS, RUNTIME, THREADS],
        }
    }

    fn filter(self) -> Result<Filter, FilterError> {
        let calls = self.groups().iter().copied().flatten().chain(BASE);
        let fail = [FAIL, FAIL_CLONE3].concat();
        Filter::new(calls.copied(), &fail)
    }
}

/// The filters of all kinds.
pub(super) fn filters() -> Result<BTreeMap<Kind, Filter>, FilterError> {
    Kind::ALL
        .into_iter()
        .map(|kind| Ok((kind, kind.filter()?)))
        .collect()
}
