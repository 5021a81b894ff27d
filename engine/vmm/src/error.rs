// SPDX-License-Identifier: Apache-2.0
//! What can go wrong with a machine, each with the thing, the value and the remedy.

use thiserror::Error;
use vmm_sys_util::errno;

use crate::config::{CpuModel, MemorySize, VcpuCount};
use crate::devices::RestoreDevicesError;
use crate::memory::MapMemoryError;

/// A machine could not be made.
#[derive(Debug, Error)]
pub enum CreateMachineError {
    /// There is no `/dev/kvm`.
    #[error(
        "There is no /dev/kvm: load the module kvm_amd or kvm_intel, and enable virtualisation \
         in the firmware (or nested virtualisation, if this host is itself a virtual machine)"
    )]
    NoKvm,
    /// `/dev/kvm` may not be opened.
    #[error("Permission denied for /dev/kvm: run as root, or as a user in the group kvm")]
    KvmPermission,
    /// `/dev/kvm` cannot be opened for another reason.
    #[error("Cannot open /dev/kvm")]
    OpenKvm(#[source] errno::Error),
    /// The kernel's KVM is too old.
    #[error("KVM on this host lacks {capability}: run Linux 6.1 or newer")]
    MissingCapability {
        /// Name of the capability.
        capability: &'static str,
    },
    /// Guest memory could not be mapped.
    #[error("Cannot make guest memory")]
    Memory(#[from] MapMemoryError),
    /// The devices could not be set up.
    #[error("Cannot set up the virtio devices")]
    Devices(#[source] std::io::Error),
    /// KVM refused a call.
    #[error("KVM refused {call}")]
    Kvm {
        /// The ioctl's name.
        call: &'static str,
        /// Its error.
        #[source]
        source: errno::Error,
    },
    /// KVM lists a register that it cannot read and that may not be skipped.
    #[error("KVM lists MSR {index:#x} but cannot read it")]
    UnreadableMsr {
        /// Number of the register.
        index: u32,
    },
    /// The host lacks a feature of the CPU the guest shall see.
    #[error(
        "This host cannot give its guests the CPU {model}: its KVM offers no {feature}; choose a lower \
         level or \"host\", or use a host that has it"
    )]
    CpuModel {
        /// The CPU asked for.
        model: CpuModel,
        /// What is not there.
        feature: &'static str,
    },
    /// More vCPUs than KVM runs here.
    #[error("KVM on this host runs at most {limit} vCPUs in a VM, not {count}: lower their number")]
    TooManyVcpus {
        /// The number asked for.
        count: VcpuCount,
        /// KVM's limit.
        limit: usize,
    },
    /// A vCPU's dirty ring could not be mapped.
    #[error("Cannot map a vCPU's dirty ring; choose bitmaps for the tracking of dirty pages")]
    DirtyRing(#[source] std::io::Error),
    /// A vCPU thread could not be started.
    #[error("Cannot start a vCPU thread")]
    Thread(#[source] std::io::Error),
    /// A vCPU thread did not come up.
    #[error("The vCPU threads did not start")]
    Stuck(#[source] PauseError),
    /// The new machine's first state could not be read.
    #[error("Cannot read the state of the new machine")]
    FirstState(#[source] SaveError),
}

/// A vCPU did not stop.
#[derive(Debug, Error)]
pub enum PauseError {
    /// It could not be told to.
    #[error("Cannot signal a vCPU thread")]
    Kick(#[source] errno::Error),
    /// It did not park in time; the machine must be given up.
    #[error("vCPU {vcpu} did not stop within {seconds} s")]
    Stuck {
        /// The first one that did not.
        vcpu: usize,
        /// How long it was waited for.
        seconds: u64,
    },
}

/// A state could not be read. The machine itself is unchanged.
#[derive(Debug, Error)]
pub enum SaveError {
    /// The machine is not paused.
    #[error("The machine is running; pause it before saving its state")]
    NotPaused,
    /// KVM refused a call.
    #[error("KVM refused {call}")]
    Kvm {
        /// The ioctl's name.
        call: &'static str,
        /// Its error.
        #[source]
        source: errno::Error,
    },
    /// A register that belongs to the state could not be read.
    #[error("Cannot read MSR {index:#x}")]
    UnreadableMsr {
        /// Number of the register.
        index: u32,
    },
    /// A vCPU's thread did not do its part; this is a defect of this program.
    #[error("A vCPU thread failed")]
    ThreadFailed,
    /// More registers than one call can carry.
    #[error("Too many MSRs for one call")]
    TooManyMsrs,
}

/// A state could not be loaded. The machine must not run until a whole state was loaded.
#[derive(Debug, Error)]
pub enum RestoreError {
    /// The machine is not paused.
    #[error("The machine is running; pause it before loading a state")]
    NotPaused,
    /// The state is that of a machine with another memory size.
    #[error("State of a machine with {found} of memory cannot be loaded into one with {expected}")]
    Memory {
        /// The state's memory size.
        found: MemorySize,
        /// This machine's memory size.
        expected: MemorySize,
    },
    /// The state is that of a machine with another number of vCPUs.
    #[error("State of a machine with {found} vCPUs cannot be loaded into one with {expected}")]
    VcpuCount {
        /// vCPUs in the state.
        found: usize,
        /// vCPUs of this machine.
        expected: VcpuCount,
    },
    /// The state is that of a machine with another CPUID.
    #[error(
        "The state's guest saw another CPUID than this machine shows; both hosts need the same \
         CPU model and kernel, or the VM a common level such as cpu = \"x86-64-v2\""
    )]
    Cpuid,
    /// The state's XSAVE area has another size.
    #[error("XSAVE area of {found} bytes does not fit this machine's {expected}")]
    XsaveSize {
        /// Size in the state.
        found: usize,
        /// Size here.
        expected: usize,
    },
    /// The state has no TSC.
    #[error("The state or this host has no time-stamp counter")]
    NoTsc,
    /// KVM refused a call.
    #[error("KVM refused {call}")]
    Kvm {
        /// The ioctl's name.
        call: &'static str,
        /// Its error.
        #[source]
        source: errno::Error,
    },
    /// KVM refused a register's value.
    #[error("KVM refused value {value:#x} for MSR {index:#x}")]
    RefusedMsr {
        /// Number of the register.
        index: u32,
        /// The refused value.
        value: u64,
    },
    /// A vCPU's thread did not do its part; this is a defect of this program.
    #[error("A vCPU thread failed")]
    ThreadFailed,
    /// More registers than one call can carry.
    #[error("Too many MSRs for one call")]
    TooManyMsrs,
    /// A device refused its state.
    #[error("Cannot load the devices' state")]
    Devices(#[from] RestoreDevicesError),
}

/// Dirty pages could not be tracked. Treat every page as dirty.
#[derive(Debug, Error)]
pub enum DirtyLogError {
    /// Tracking was not started.
    #[error("Dirty pages are not being tracked; start tracking first")]
    NotTracking,
    /// KVM refused a call.
    #[error("KVM refused {call}")]
    Kvm {
        /// The ioctl's name.
        call: &'static str,
        /// Its error.
        #[source]
        source: errno::Error,
    },
}

macro_rules! from_kvm {
    ($error:ty) => {
        impl $error {
            /// Makes an error of this kind from a failed call's `errno`.
            pub(crate) fn kvm(call: &'static str) -> impl Fn(errno::Error) -> Self {
                move |source| Self::Kvm { call, source }
            }
        }
    };
}

from_kvm!(CreateMachineError);
from_kvm!(SaveError);
from_kvm!(RestoreError);
from_kvm!(DirtyLogError);
