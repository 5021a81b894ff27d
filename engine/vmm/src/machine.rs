// SPDX-License-Identifier: Apache-2.0
//! The machine as its owner sees it: make, boot, run, pause, save, restore.

use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_enable_cap, kvm_pit_config};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use crate::backend::Backends;
use crate::boot::{self, BootError};
use crate::config::MachineConfig;
use crate::cpuid;
use crate::devices::serial::ConsoleInput;
use crate::devices::{Devices, RestoreDevicesError};
use crate::dirty::DirtyPages;
use crate::dirty_log::DirtyLog;
use crate::error::{CreateMachineError, DirtyLogError, PauseError, RestoreError, SaveError};
use crate::event::{ConsoleOutput, GuestEvent};
use crate::fingerprint::MachineFingerprint;
use crate::gate::{Gate, RunGate};
use crate::host::{self, Host};
use crate::pci::Platform;
use crate::pci::kvm::KvmPlatform;
use crate::ram::GuestRam;
use crate::state::{MachineState, VcpuState, VmState};
use crate::sys;
use crate::vcpu::{SharedVcpu, VcpuThread, kick};
use crate::virtio::fleet::Fleet;

/// Guest-physical home of KVM's three task-state pages, in the hole below 4 GiB.
const TSS_ADDRESS: usize = 0xfffb_d000;
/// How long a vCPU may take to leave the guest before it is called stuck. Usually tens of
/// microseconds; a host that swaps may need seconds.
const PAUSE_LIMIT: Duration = Duration::from_secs(30);

/// A virtual machine with one vCPU. Dropping it ends the vCPU thread and frees everything.
///
/// All calls are for one owner; the handles it gives out ([`GuestRam`], [`RunGate`], [`ConsoleInput`])
/// may be used from any thread.
#[derive(Debug)]
pub struct Machine {
    config: MachineConfig,
    host: Host,
    ram: GuestRam,
    dirty_log: DirtyLog,
    gate: Arc<Gate>,
    devices: Arc<Mutex<Devices>>,
    fleet: Fleet,
    /// The state before the first boot: what a reset goes back to.
    pristine: Option<MachineState>,
    thread: Option<JoinHandle<()>>,
    // Closed in this order, after the thread has ended.
    vcpu: SharedVcpu,
    vm: Arc<VmFd>,
}

impl Machine {
    /// Makes a paused machine: VM, zeroed memory, interrupt controllers, timer, vCPU with its thread,
    /// devices. Nothing is loaded; [`boot`](Self::boot) or [`restore`](Self::restore) follows.
    ///
    /// The guest's CPUID is settled here. The process gets a handler for `SIGRTMIN`.
    ///
    /// # Errors
    /// KVM is absent, not permitted or too old, or memory is short.
    pub fn new(
        config: MachineConfig,
        mut backends: Backends,
        events: Sender<GuestEvent>,
    ) -> Result<Self, CreateMachineError> {
        let kvm = host::open_kvm()?;
        host::check_capabilities(&kvm)?;
        let ram = GuestRam::new(config.memory)?;
        let vm = Arc::new(create_vm(&kvm)?);
        let dirty_log = DirtyLog::new(Arc::clone(&vm), ram.clone())
            .map_err(CreateMachineError::kvm("KVM_SET_USER_MEMORY_REGION"))?;
        let cpuid = cpuid::of_host(&kvm)?;
        let vcpu = create_vcpu(&vm, &cpuid)?;
        let host = Host::probe(&kvm, &vm, &vcpu, cpuid)?;
        let platform: Arc<dyn Platform> = Arc::new(KvmPlatform(Arc::clone(&vm)));
        let fleet = Fleet::new(backends.devices(&config), ram.mapping(), &platform)
            .map_err(CreateMachineError::Devices)?;
        let devices = Arc::new(Mutex::new(Devices::new(&vm, fleet.bus())));
        let mut machine = Self {
            config,
            host,
            ram,
            dirty_log,
            gate: Arc::new(Gate::new()),
            devices,
            fleet,
            pristine: None,
            thread: None,
            vcpu: Arc::new(Mutex::new(vcpu)),
            vm,
        };
        machine.start_thread(backends.serial, events)?;
        let pristine = machine.save().map_err(CreateMachineError::FirstState)?;
        machine.pristine = Some(pristine);
        Ok(machine)
    }

    fn start_thread(
        &mut self,
        console: Arc<dyn ConsoleOutput>,
        events: Sender<GuestEvent>,
    ) -> Result<(), CreateMachineError> {
        kick::install_handler().map_err(CreateMachineError::kvm("the signal handler"))?;
        let body = VcpuThread {
            vcpu: Arc::clone(&self.vcpu),
            gate: Arc::clone(&self.gate),
            devices: Arc::clone(&self.devices),
            mmio: self.fleet.bus(),
            console,
            events,
        };
        let thread = std::thread::Builder::new()
            .name("vcpu0".to_owned())
            .spawn(|| body.run())
            .map_err(CreateMachineError::Thread)?;
        self.thread = Some(thread);
        self.gate.wait_parked(PAUSE_LIMIT);
        Ok(())
    }

    /// Puts the paused machine into its state after power-on and loads kernel, initrd, command line
    /// and ACPI tables; [`resume`](Self::resume) then starts the guest. For the first boot and after a
    /// reset. Memory that nothing is loaded to keeps its content, as on a PC.
    ///
    /// # Errors
    /// The machine runs, or the kernel or initrd cannot be used; the error says how to mend that.
    pub fn boot(&mut self) -> Result<(), BootError> {
        if !self.is_paused() {
            return Err(BootError::NotPaused);
        }
        if let Some(pristine) = self.pristine.take() {
            let reset = self.restore(&pristine);
            self.pristine = Some(pristine);
            reset.map_err(BootError::Reset)?;
        }
        let entry = boot::load(&self.ram, &self.config)?;
        let vcpu = lock(&self.vcpu);
        entry.set_registers(&vcpu)
    }

    /// Lets the vCPU run. Does nothing while running, and after the guest's run ended (power-off,
    /// reset, crash) until [`boot`](Self::boot) or [`restore`](Self::restore).
    pub fn resume(&mut self) {
        self.lock_devices().serial.thaw();
        self.fleet.resume();
        self.gate.ask_run();
    }

    /// Asks the guest to show the network where it is now: for a machine that took over, paused or
    /// not. A guest whose driver knows how sends gratuitous packets from every address it has;
    /// whether it does is its own affair, so the owner should announce the interfaces' addresses too.
    pub fn announce(&self) {
        self.fleet.announce();
    }

    /// Stops the vCPU between two instructions, with nothing half done, and holds back console input.
    /// Does nothing when paused already.
    ///
    /// # Errors
    /// The vCPU does not stop; the machine must be given up then.
    pub fn pause(&mut self) -> Result<(), PauseError> {
        if self.gate.ask_park() {
            if let Some(thread) = &self.thread {
                kick::kick(thread).map_err(PauseError::Kick)?;
            }
            if !self.gate.wait_parked(PAUSE_LIMIT) {
                return Err(PauseError::Stuck {
                    seconds: PAUSE_LIMIT.as_secs(),
                });
            }
        }
        self.fleet.pause();
        self.lock_devices().serial.freeze();
        Ok(())
    }

    /// Whether the vCPU is stopped and stays so. (A vCPU that waits for console room is not.)
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.gate.is_paused()
    }

    /// Reads the whole state but memory. Harvest dirty pages after this, not before: reading state
    /// may still write guest memory.
    ///
    /// # Errors
    /// The machine runs, or KVM refuses; the machine is unchanged.
    pub fn save(&mut self) -> Result<MachineState, SaveError> {
        if !self.is_paused() {
            return Err(SaveError::NotPaused);
        }
        // A machine whose run ended by itself was never paused. The virtio devices come first: what
        // they complete may interrupt the guest.
        self.fleet.pause();
        let mut devices = self.lock_devices();
        devices.serial.freeze();
        let devices = devices.save();
        let vcpu = VcpuState::save(&lock(&self.vcpu), &self.host)?;
        Ok(MachineState {
            memory: self.config.memory,
            cpuid_hash: self.host.cpuid_hash,
            vcpus: vec![vcpu],
            vm: VmState::save(&self.vm)?,
            devices,
            virtio: self.fleet.save(),
        })
    }

    /// Loads a whole state but memory into the paused machine. Where the host can, the guest's TSC
    /// goes on from the saved value; its kvmclock always does.
    ///
    /// # Errors
    /// The machine runs, the state is that of another kind of machine (nothing is changed then), or
    /// KVM refuses a part (the machine must not run then).
    pub fn restore(&mut self, state: &MachineState) -> Result<(), RestoreError> {
        if !self.is_paused() {
            return Err(RestoreError::NotPaused);
        }
        let vcpu_state = self.check_fits(state)?;
        self.fleet.pause();
        let vcpu = lock(&self.vcpu);
        state.vm.restore_clock(&self.vm)?;
        vcpu_state.restore(&vcpu, &self.host)?;
        state.vm.restore_chips(&self.vm)?;
        self.lock_devices().restore(&state.devices)?;
        self.fleet
            .restore(&state.virtio)
            .map_err(RestoreDevicesError::from)?;
        // Keeps the guest's watchdogs quiet about the gap. Fails while the guest has no kvmclock.
        let _ = vcpu.kvmclock_ctrl();
        drop(vcpu);
        self.gate.reopen();
        Ok(())
    }

    fn check_fits<'a>(&self, state: &'a MachineState) -> Result<&'a VcpuState, RestoreError> {
        if state.memory != self.config.memory {
            return Err(RestoreError::Memory {
                found: state.memory,
                expected: self.config.memory,
            });
        }
        if state.cpuid_hash != self.host.cpuid_hash {
            return Err(RestoreError::Cpuid);
        }
        match state.vcpus.as_slice() {
            [vcpu] => Ok(vcpu),
            more => Err(RestoreError::VcpuCount {
                found: more.len(),
                expected: 1,
            }),
        }
    }

    /// A handle to guest memory.
    #[must_use]
    pub fn memory(&self) -> GuestRam {
        self.ram.clone()
    }

    /// Begins to track changed pages, from now on: start this, then copy every page.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn start_dirty_tracking(&mut self) -> Result<(), DirtyLogError> {
        self.dirty_log.start()
    }

    /// Ends the tracking and forgets what was not harvested.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn stop_dirty_tracking(&mut self) -> Result<(), DirtyLogError> {
        self.dirty_log.stop()
    }

    /// The pages changed since the last harvest, by the guest, by KVM or by this program, and those
    /// handed back by [`mark_dirty`](Self::mark_dirty). Works while the guest runs too: a page written
    /// during the call is in this harvest or the next one.
    ///
    /// # Errors
    /// Tracking was not started, or KVM refuses; nothing is lost then.
    pub fn harvest_dirty(&mut self) -> Result<DirtyPages, DirtyLogError> {
        self.dirty_log.harvest()
    }

    /// Hands back pages whose transaction failed: they count as changed again.
    pub fn mark_dirty(&mut self, pages: &DirtyPages) {
        self.dirty_log.carry(pages);
    }

    /// Presses the (ACPI) power button.
    pub fn press_power_button(&mut self) {
        self.lock_devices().press_power_button();
    }

    /// What another machine must have in common with this one to run its state.
    #[must_use]
    pub fn fingerprint(&self) -> MachineFingerprint {
        MachineFingerprint::new(self.config.memory, &self.host, self.fleet.labels())
    }

    /// The outside end of the serial line towards the guest.
    #[must_use]
    pub fn console_input(&self) -> ConsoleInput {
        ConsoleInput(Arc::clone(&self.devices))
    }

    /// The handle that wakes a vCPU waiting for console room.
    #[must_use]
    pub fn run_gate(&self) -> RunGate {
        RunGate(Arc::clone(&self.gate))
    }

    fn lock_devices(&self) -> MutexGuard<'_, Devices> {
        self.devices.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let must_kick = self.gate.ask_exit();
        if let Some(thread) = self.thread.take() {
            if must_kick && let Err(error) = kick::kick(&thread) {
                tracing::error!(%error, "Cannot signal the vCPU thread; leaving it behind");
                return;
            }
            if thread.join().is_err() {
                tracing::error!("The vCPU thread panicked outside the guest");
            }
        }
    }
}

fn lock(vcpu: &SharedVcpu) -> MutexGuard<'_, VcpuFd> {
    vcpu.lock().unwrap_or_else(PoisonError::into_inner)
}

fn create_vm(kvm: &Kvm) -> Result<VmFd, CreateMachineError> {
    let vm = kvm
        .create_vm()
        .map_err(CreateMachineError::kvm("KVM_CREATE_VM"))?;
    vm.set_tss_address(TSS_ADDRESS)
        .map_err(CreateMachineError::kvm("KVM_SET_TSS_ADDR"))?;
    // Before the vCPUs, which get their local APICs from it.
    vm.create_irq_chip()
        .map_err(CreateMachineError::kvm("KVM_CREATE_IRQCHIP"))?;
    vm.create_pit2(kvm_pit_config {
        flags: KVM_PIT_SPEAKER_DUMMY,
        ..kvm_pit_config::default()
    })
    .map_err(CreateMachineError::kvm("KVM_CREATE_PIT2"))?;
    Ok(vm)
}

fn create_vcpu(vm: &VmFd, cpuid: &[cpuid::CpuidLeaf]) -> Result<VcpuFd, CreateMachineError> {
    let vcpu = vm
        .create_vcpu(0)
        .map_err(CreateMachineError::kvm("KVM_CREATE_VCPU"))?;
    // Makes KVM refuse the paravirtual features that the CPUID hides.
    let enforce = kvm_enable_cap {
        cap: sys::CAP_ENFORCE_PV_CPUID,
        args: [1, 0, 0, 0],
        ..kvm_enable_cap::default()
    };
    if let Err(error) = vcpu.enable_cap(&enforce) {
        tracing::debug!(%error, "KVM does not enforce the paravirtual features");
    }
    vcpu.set_cpuid2(&cpuid::to_kvm(cpuid)?)
        .map_err(CreateMachineError::kvm("KVM_SET_CPUID2"))?;
    Ok(vcpu)
}
