// SPDX-License-Identifier: Apache-2.0
//! The machine: a virtual PC on KVM whose whole state can be saved and loaded again.
#![deny(unsafe_op_in_unsafe_fn)]

mod boot;
mod config;
mod cpuid;
mod devices;
mod dirty;
mod dirty_log;
mod error;
mod event;
mod fingerprint;
mod gate;
mod host;
mod machine;
mod msrs;
mod ram;
mod state;
mod sys;
mod vcpu;

pub use boot::BootError;
pub use config::{BootSource, MachineConfig, MemorySize, MemorySizeOutOfRange};
pub use cpuid::CpuidLeaf;
pub use devices::serial::ConsoleInput;
pub use devices::{DevicesState, RestoreDevicesError};
pub use dirty::{DirtyPages, PAGE_SIZE, PageIndex};
pub use error::{CreateMachineError, DirtyLogError, PauseError, RestoreError, SaveError};
pub use event::{ConsoleOutput, GuestEvent};
pub use fingerprint::MachineFingerprint;
pub use gate::RunGate;
pub use host::kvm_is_usable;
pub use machine::Machine;
pub use ram::{GuestRam, MapMemoryError, PageAccessError};
pub use state::{
    DecodeStateError, MAX_STATE_BYTES, MachineState, STATE_VERSION, VcpuState, VmState,
};
