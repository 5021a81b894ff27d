// SPDX-License-Identifier: Apache-2.0
//! State that KVM keeps per VM: both PICs, the IOAPIC, the PIT and the guest's clock.

use std::fmt;

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
    kvm_pit_state2,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

use crate::error::{RestoreError, SaveError};

/// State of the in-kernel interrupt controllers, timer and clock.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VmState {
    pic_master: Chip,
    pic_slave: Chip,
    ioapic: Chip,
    pit: kvm_pit_state2,
    /// The guest's kvmclock in nanoseconds.
    clock: u64,
}

#[derive(Clone, Serialize, Deserialize)]
struct Chip(kvm_irqchip);

impl fmt::Debug for Chip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Chip({})", self.0.chip_id)
    }
}

impl VmState {
    pub(crate) fn save(vm: &VmFd) -> Result<Self, SaveError> {
        Ok(Self {
            pic_master: Chip::save(vm, KVM_IRQCHIP_PIC_MASTER)?,
            pic_slave: Chip::save(vm, KVM_IRQCHIP_PIC_SLAVE)?,
            ioapic: Chip::save(vm, KVM_IRQCHIP_IOAPIC)?,
            pit: vm.get_pit2().map_err(SaveError::kvm("KVM_GET_PIT2"))?,
            clock: vm
                .get_clock()
                .map_err(SaveError::kvm("KVM_GET_CLOCK"))?
                .clock,
        })
    }

    /// The clock; before the vCPU's MSRs and the first run (Cloud Hypervisor #7930).
    ///
    /// Time goes on from the saved moment: the flags are zero because the two hosts' wall-clocks
    /// need not agree, and some KVMs do not report a wall-clock at all.
    pub(crate) fn restore_clock(&self, vm: &VmFd) -> Result<(), RestoreError> {
        let clock = kvm_clock_data {
            clock: self.clock,
            ..kvm_clock_data::default()
        };
        vm.set_clock(&clock)
            .map_err(RestoreError::kvm("KVM_SET_CLOCK"))
    }

    /// Timer and interrupt controllers; after the vCPUs, whose LAPICs the IOAPIC may deliver to.
    pub(crate) fn restore_chips(&self, vm: &VmFd) -> Result<(), RestoreError> {
        vm.set_pit2(&self.pit)
            .map_err(RestoreError::kvm("KVM_SET_PIT2"))?;
        self.pic_master.restore(vm, KVM_IRQCHIP_PIC_MASTER)?;
        self.pic_slave.restore(vm, KVM_IRQCHIP_PIC_SLAVE)?;
        self.ioapic.restore(vm, KVM_IRQCHIP_IOAPIC)
    }
}

impl Chip {
    fn save(vm: &VmFd, id: u32) -> Result<Self, SaveError> {
        let mut chip = kvm_irqchip {
            chip_id: id,
            ..kvm_irqchip::default()
        };
        vm.get_irqchip(&mut chip)
            .map_err(SaveError::kvm("KVM_GET_IRQCHIP"))?;
        Ok(Self(chip))
    }

    /// `id` is given again: the one inside came from outside.
    fn restore(&self, vm: &VmFd, id: u32) -> Result<(), RestoreError> {
        let mut chip = self.0;
        chip.chip_id = id;
        vm.set_irqchip(&chip)
            .map_err(RestoreError::kvm("KVM_SET_IRQCHIP"))
    }
}
