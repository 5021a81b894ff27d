// SPDX-License-Identifier: Apache-2.0
//! The machine as its owner sees it: make, boot, run, pause, save, restore.

use std::ops::Range;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_enable_cap, kvm_pit_config};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use crate::backend::Backends;
use crate::boot::{self, BootError};
use crate::config::{BootSource, MachineConfig, VcpuCount, VcpuIndex};
use crate::cpuid::{self, CpuidLeaf};
use crate::devices::serial::ConsoleInput;
use crate::devices::{Devices, RestoreDevicesError};
use crate::dirty::DirtyPages;
use crate::dirty::tracking::TrackingMode;
use crate::dirty_log::DirtyLog;
use crate::error::{CreateMachineError, DirtyLogError, PauseError, RestoreError, SaveError};
use crate::event::GuestEvent;
use crate::fingerprint::MachineFingerprint;
use crate::gate::RunGate;
use crate::host::{self, Host};
use crate::memory;
use crate::pci::Platform;
use crate::pci::kvm::KvmPlatform;
use crate::ram::GuestRam;
use crate::state::{MachineState, VmState, tsc};
use crate::sys;
use crate::vcpu::set::{Outside, Vcpus};
use crate::virtio::fleet::Fleet;

/// Guest-physical home of KVM's three task-state pages, in the hole below 4 GiB.
const TSS_ADDRESS: usize = 0xfffb_d000;
/// Pages of a balloon in a MiB.
const PAGES_PER_MIB: u32 = 256;

/// A virtual machine. Dropping it ends its threads and frees everything.
///
/// All calls are for one owner; the handles it gives out ([`GuestRam`], [`RunGate`], [`ConsoleInput`])
/// may be used from any thread.
#[derive(Debug)]
pub struct Machine {
    config: MachineConfig,
    host: Arc<Host>,
    ram: GuestRam,
    dirty_log: DirtyLog,
    devices: Arc<Mutex<Devices>>,
    fleet: Fleet,
    /// The state before the first boot: what a reset goes back to.
    pristine: Option<MachineState>,
    // Closed in this order.
    vcpus: Vcpus,
    vm: Arc<VmFd>,
}

impl Machine {
    /// Makes a paused machine: VM, zeroed memory, interrupt controllers, timer, vCPUs with their
    /// threads, devices. Nothing is loaded; [`boot`](Self::boot) or [`restore`](Self::restore) follows.
    ///
    /// The guest's CPUID is settled here. The process gets a handler for `SIGRTMIN`.
    ///
    /// # Errors
    /// KVM is absent, not permitted or too old, cannot run so many vCPUs, or memory is short.
    pub fn new(
        config: MachineConfig,
        mut backends: Backends,
        events: Sender<GuestEvent>,
    ) -> Result<Self, CreateMachineError> {
        let kvm = host::open_kvm()?;
        host::check_capabilities(kvm)?;
        host::check_vcpus(kvm, config.vcpus)?;
        let cpuid = cpuid::of_host(kvm, config.cpu, config.vcpus)?;
        memory::check_address_bits(config.memory, memory::address_bits(&cpuid))?;
        let ram = GuestRam::with_options(config.memory, &config.memory_options)?;
        let vm = Arc::new(create_vm(kvm)?);
        let dirty_log = DirtyLog::new(Arc::clone(&vm), ram.clone(), config.dirty_tracking)?;
        let boot_vcpu = create_vcpu(&vm, &cpuid, VcpuIndex::BOOT)?;
        // Before the other vCPUs: the probe plays with the time-stamp counter.
        let host = Arc::new(Host::probe(kvm, &vm, &boot_vcpu, config.cpu, cpuid)?);
        let platform: Arc<dyn Platform> = Arc::new(KvmPlatform(Arc::clone(&vm)));
        let hook = backends.thread_hook.clone();
        let fleet = Fleet::new(
            backends.devices(&config, &ram),
            ram.mapping(),
            &platform,
            &hook,
        )
        .map_err(CreateMachineError::Devices)?;
        let console = backends.serial;
        let devices = Arc::new(Mutex::new(Devices::new(&vm, fleet.bus())));
        let outside = Outside {
            devices: Arc::clone(&devices),
            mmio: fleet.bus(),
            console,
            events,
            rings: dirty_log.rings(),
            hook,
        };
        let vcpus = create_all_vcpus(&vm, boot_vcpu, &host, config.vcpus)?;
        vcpus.iter().try_for_each(|vcpu| dirty_log.add_vcpu(vcpu))?;
        let mut machine = Self {
            vcpus: Vcpus::start(config.vcpus, vcpus, Arc::clone(&host), outside)?,
            config,
            host,
            ram,
            dirty_log,
            devices,
            fleet,
            pristine: None,
            vm,
        };
        let mut pristine = machine.save().map_err(CreateMachineError::FirstState)?;
        tsc::align(&mut pristine.vcpus);
        machine.pristine = Some(pristine);
        Ok(machine)
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
        self.vcpus.set_entry(&entry)
    }

    /// Says what the next [`boot`](Self::boot) loads: after a reset, a disk may hold another kernel
    /// than before.
    pub fn set_boot_source(&mut self, source: BootSource) {
        self.config.boot = source;
    }

    /// Lets the vCPUs run. Does nothing while running, and after the guest's run ended (power-off,
    /// reset, crash) until [`boot`](Self::boot) or [`restore`](Self::restore).
    pub fn resume(&mut self) {
        self.lock_devices().serial.thaw();
        self.fleet.resume();
        self.vcpus.gate().ask_run();
    }

    /// Asks the guest for so much memory that it keeps `kept_mib` MiB. Whether and when it gives it
    /// is its own affair. Does nothing without a balloon.
    pub fn set_balloon(&mut self, kept_mib: u32) {
        let lent_mib = self.config.memory.mib().saturating_sub(kept_mib);
        self.fleet
            .set_balloon(lent_mib.saturating_mul(PAGES_PER_MIB));
    }

    /// Memory in MiB that the guest shall keep and that it has kept; `None` without a balloon.
    #[must_use]
    pub fn balloon(&self) -> Option<(u32, u32)> {
        let kept = |pages: u32| {
            self.config
                .memory
                .mib()
                .saturating_sub(pages / PAGES_PER_MIB)
        };
        self.fleet
            .balloon()
            .map(|(target, actual)| (kept(target), kept(actual)))
    }

    /// Asks the guest to show the network where it is now: for a machine that took over, paused or
    /// not. A guest whose driver knows how sends gratuitous packets from every address it has;
    /// whether it does is its own affair, so the owner should announce the interfaces' addresses too.
    pub fn announce(&self) {
        self.fleet.announce();
    }

    /// Stops all vCPUs, each between two instructions with nothing half done, and holds back console
    /// input. What the host has in flight for disks is waited for and completed towards the guest, also
    /// of a machine that was only [frozen](Self::freeze). Does nothing when paused already.
    ///
    /// # Errors
    /// A vCPU does not stop; the machine must be given up then.
    pub fn pause(&mut self) -> Result<(), PauseError> {
        self.vcpus.pause()?;
        self.fleet.pause();
        self.lock_devices().serial.freeze();
        Ok(())
    }

    /// Stops the machine like [`pause`](Self::pause), but waits for no disk: requests that the host has
    /// in flight stay there. They are part of the state ([`save`](Self::save)); here they complete
    /// towards the guest when it is resumed or paused, and until then nothing writes guest memory. A
    /// machine that goes on from the state makes them again. Does nothing when stopped already.
    ///
    /// # Errors
    /// A vCPU does not stop; the machine must be given up then.
    pub fn freeze(&mut self) -> Result<(), PauseError> {
        self.vcpus.pause()?;
        self.fleet.freeze();
        self.lock_devices().serial.freeze();
        Ok(())
    }

    /// Whether all vCPUs are stopped and stay so. (One that waits for console room does not.)
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.vcpus.gate().is_paused()
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
        // they do last may interrupt the guest.
        self.fleet.freeze();
        let devices = {
            let mut devices = self.lock_devices();
            devices.serial.freeze();
            devices.save()
        };
        Ok(MachineState {
            memory: self.config.memory,
            cpuid_hash: self.host.cpuid_hash,
            vcpus: self.vcpus.save()?,
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
        self.check_fits(state)?;
        // What is in flight is of a past that is given up: it must not write memory any more.
        self.fleet.freeze();
        state.vm.restore_clock(&self.vm)?;
        self.vcpus.restore(&state.vcpus)?;
        state.vm.restore_chips(&self.vm)?;
        self.lock_devices().restore(&state.devices)?;
        self.fleet
            .restore(&state.virtio)
            .map_err(RestoreDevicesError::from)?;
        self.vcpus.tell_of_the_gap();
        self.vcpus.gate().reopen();
        Ok(())
    }

    fn check_fits(&self, state: &MachineState) -> Result<(), RestoreError> {
        if state.memory != self.config.memory {
            return Err(RestoreError::Memory {
                found: state.memory,
                expected: self.config.memory,
            });
        }
        // Before the CPUID, which depends on it.
        if u32::try_from(state.vcpus.len()) != Ok(self.config.vcpus.get()) {
            return Err(RestoreError::VcpuCount {
                found: state.vcpus.len(),
                expected: self.config.vcpus,
            });
        }
        if state.cpuid_hash != self.host.cpuid_hash {
            return Err(RestoreError::Cpuid);
        }
        state
            .vcpus
            .iter()
            .try_for_each(|vcpu| vcpu.check_fits(&self.host))
    }

    /// A handle to guest memory.
    #[must_use]
    pub fn memory(&self) -> GuestRam {
        self.ram.clone()
    }

    /// Begins to track changed pages, from now on: start this, then copy every page, each after
    /// [`arm_dirty_tracking`](Self::arm_dirty_tracking).
    ///
    /// # Errors
    /// KVM refuses.
    pub fn start_dirty_tracking(&mut self) -> Result<(), DirtyLogError> {
        self.dirty_log.start()
    }

    /// The initial copy is about to read these pages (by number). Where starting only marks all pages
    /// as dirty, this takes the marks away and begins to notice changes; so the price of starting is
    /// paid stretch by stretch while the guest runs, and not at once. Pages that were never armed are
    /// all in the next harvest, and armed by it. Elsewhere this does nothing.
    ///
    /// # Errors
    /// KVM refuses; the pages will be in a harvest then.
    pub fn arm_dirty_tracking(&mut self, pages: Range<u64>) -> Result<(), DirtyLogError> {
        self.dirty_log.arm(pages)
    }

    /// How dirty pages are tracked on this host.
    #[must_use]
    pub fn tracking_mode(&self) -> TrackingMode {
        self.dirty_log.mode()
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
        MachineFingerprint::new(&self.config, &self.host, self.fleet.labels())
    }

    /// The outside end of the serial line towards the guest.
    #[must_use]
    pub fn console_input(&self) -> ConsoleInput {
        ConsoleInput(Arc::clone(&self.devices))
    }

    /// The handle that wakes vCPUs waiting for console room.
    #[must_use]
    pub fn run_gate(&self) -> RunGate {
        RunGate(Arc::clone(self.vcpus.gate()))
    }

    #[cfg(test)]
    pub(crate) fn vcpus(&mut self) -> &mut Vcpus {
        &mut self.vcpus
    }

    fn lock_devices(&self) -> MutexGuard<'_, Devices> {
        self.devices.lock().unwrap_or_else(PoisonError::into_inner)
    }
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

/// The other vCPUs join the first one. They wait to be started by the guest.
fn create_all_vcpus(
    vm: &VmFd,
    first: VcpuFd,
    host: &Host,
    count: VcpuCount,
) -> Result<Vec<VcpuFd>, CreateMachineError> {
    let mut vcpus = vec![first];
    for index in count.indexes().skip(1) {
        vcpus.push(create_vcpu(vm, &host.cpuid, index)?);
    }
    Ok(vcpus)
}

fn create_vcpu(
    vm: &VmFd,
    cpuid: &[CpuidLeaf],
    index: VcpuIndex,
) -> Result<VcpuFd, CreateMachineError> {
    let vcpu = vm
        .create_vcpu(index.apic_id().into())
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
    vcpu.set_cpuid2(&cpuid::to_kvm(&cpuid::of_vcpu(cpuid, index))?)
        .map_err(CreateMachineError::kvm("KVM_SET_CPUID2"))?;
    Ok(vcpu)
}
