// SPDX-License-Identifier: Apache-2.0
//! The machine: a virtual PC on KVM whose whole state can be saved and loaded again.
//!
//! It knows nothing of replication. It offers what replication needs: a guest that can be stopped
//! between two instructions within microseconds, a state that is complete, and the pages that changed.
//!
//! ```no_run
//! # use std::sync::{Arc, mpsc};
//! # use kemari_vmm::backend::Backends;
//! # use kemari_vmm::{
//! #     BootSource, ConsoleOutput, CpuModel, DirtyTracking, Machine, MachineConfig, MemoryOptions,
//! #     MemorySize, Presence, VcpuCount,
//! # };
//! # fn example(console: Arc<dyn ConsoleOutput>) -> Result<(), Box<dyn std::error::Error>> {
//! let config = MachineConfig {
//!     memory: MemorySize::from_mib(256)?,
//!     vcpus: VcpuCount::new(4)?,
//!     cpu: CpuModel::Host,
//!     rng: Presence::Present,
//!     balloon: None,
//!     memory_options: MemoryOptions::default(),
//!     dirty_tracking: DirtyTracking::Auto,
//!     boot: BootSource {
//!         kernel: "/boot/vmlinuz".into(),
//!         initrd: None,
//!         cmdline: "console=ttyS0".to_owned(),
//!     },
//! };
//! let (events, guest_ended) = mpsc::channel();
//! let mut machine = Machine::new(config, Backends::new(console), events)?;
//! machine.boot()?;
//! machine.start_dirty_tracking()?;
//! machine.resume();
//! // … copy every page, each stretch after arm_dirty_tracking, then in each epoch:
//! machine.pause()?;
//! let state = machine.save()?.encode();
//! let dirty = machine.harvest_dirty()?;
//! // … copy the dirty pages, then:
//! machine.resume();
//! # let _ = (state, dirty, guest_ended); Ok(()) }
//! ```
//!
//! # The parts
//!
//! * [`Machine`] puts them together and is the only way in. One owner calls it; [`GuestRam`],
//!   [`ConsoleInput`] and [`RunGate`] are handles for other threads.
//! * Each vCPU has a thread, which runs the guest, serves its exits and parks at the *gate*. To stop
//!   them, the controller says so at the gate and *kicks* them all, then waits for all: a kick is a
//!   signal whose handler sets `kvm_run->immediate_exit`, so that none is lost. Before parking, a thread
//!   *drains*: it lets KVM finish the last port or memory access, which otherwise would be in no state.
//!   What ends the guest on one vCPU stops the others too, and the owner hears of it when all stand.
//! * The devices (serial port, CMOS clock, keyboard controller's reset, ACPI power registers) have no
//!   threads and no timers. They are touched by exits and by their owner under one lock, and drive their
//!   interrupt lines by ioctl. Interrupt controllers and timer are KVM's.
//! * The state is read devices first, then vCPUs (each by its own thread, at the same time), then what
//!   KVM keeps per VM; dirty pages are harvested after that, because reading state may write guest
//!   memory. Loading goes: clock, vCPUs, timer and interrupt controllers, devices.
//! * Dirty pages are KVM's log joined with the writes of this program, which KVM does not see. KVM's log
//!   is a ring per vCPU on hardware, a bitmap elsewhere ([`DirtyTracking`]). A vCPU whose ring is full
//!   leaves the guest, empties it into what the next harvest gives, and goes on.
//! * The [`backend`] traits are where a disk's and a network interface's data leaves the machine and
//!   comes in: raw disks by io_uring, TAP interfaces; and where outputs can be held back.
//! * The guest's CPUID is settled when the machine is made; what is not carried over (performance
//!   counters, nested virtualisation, …) is hidden. The [`MachineFingerprint`] says what two machines
//!   must have in common.
//!
//! # Invariants
//!
//! * A paused machine changes nothing: no vCPU, not memory, not the devices, not the console.
//!   (A power button pressed and a page written by the owner are changes the owner makes.)
//! * A state is whole or refused: a register that cannot be read or written fails the save or restore.
//! * Whatever the guest does, and whatever bytes a state is decoded from, nothing here panics.
//! * A vCPU that cannot go on says so with a [`GuestEvent`]; it never just stops. (A panic in its thread
//!   becomes an event too where panics unwind; a release build aborts.)
//!
//! # Not here
//!
//! Disks and network, TSC-exact time across hosts of different
//! frequency: later issues. Outputs, epochs, transport: `kemari-replication` and `kemari-engine`.
//!
//! Unsafe code is in small modules: the ioctls that kvm-ioctls lacks (`sys`), the kick
//! (`vcpu::kick`), the handlers of SIGSYS (`forbidden`) and SIGBUS (`memory_error::signal`), where memory is placed (`memory::placement`)
//! and the two places that make promises to them (`dirty::calls`, `vcpu`); the ioctls of disks and
//! network interfaces (`backend::ioctl`) and the one place where requests enter io_uring
//! (`backend::disk::uring`).

pub mod backend;
mod boot;
mod config;
mod cpuid;
mod devices;
mod dirty;
mod dirty_log;
mod error;
mod event;
mod fingerprint;
mod forbidden;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod gate;
mod host;
mod machine;
mod memory;
mod memory_error;
mod msrs;
mod pci;
mod ram;
mod state;
mod sys;
mod thread_hook;
mod vcpu;
mod virtio;

pub use boot::{BootError, check_boot};
pub use config::{
    BootFile, BootSource, CpuModel, FreePageReporting, MachineConfig, MemorySize,
    MemorySizeOutOfRange, Presence, UnknownCpuModel, VcpuCount, VcpuCountOutOfRange,
};
pub use cpuid::CpuidLeaf;
pub use devices::serial::ConsoleInput;
pub use devices::{DevicesState, RestoreDevicesError};
pub use dirty::tracking::{DirtyTracking, TrackingMode};
pub use dirty::{DirtyPages, PAGE_SIZE, PageIndex};
pub use error::{CreateMachineError, DirtyLogError, PauseError, RestoreError, SaveError};
pub use event::{ConsoleOutput, GuestEvent};
pub use fingerprint::MachineFingerprint;
pub use forbidden::report_forbidden_calls;
pub use gate::RunGate;
pub use host::{hold_kvm, kvm_is_usable};
pub use machine::Machine;
pub use memory::{HugePages, MapMemoryError, MemoryLock, MemoryOptions, NumaNode, PoolPage};
#[cfg(any(test, feature = "test-support"))]
#[doc(hidden)]
pub use memory_error::bus_error;
pub use memory_error::{GuestPhysicalAddress, MemoryError, MemoryErrorKind, MemoryErrors};
pub use ram::{GuestRam, PageAccessError};
pub use state::{
    DecodeStateError, MAX_STATE_BYTES, MachineState, STATE_VERSION, VcpuState, VmState,
};
pub use thread_hook::{ThreadHook, ThreadKind};
pub use virtio::state::WrongDeviceState;
