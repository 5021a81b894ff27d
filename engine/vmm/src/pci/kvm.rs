// SPDX-License-Identifier: Apache-2.0
//! The platform of a machine on KVM.

use std::fmt;
use std::sync::Arc;

use kvm_bindings::kvm_msi;
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::errno;
use vmm_sys_util::eventfd::EventFd;

use super::Platform;

/// Interrupts and doorbells by KVM (KVM API, sections 4.71 and 4.59).
pub(crate) struct KvmPlatform(pub(crate) Arc<VmFd>);

impl Platform for KvmPlatform {
    fn signal_msi(&self, address: u64, data: u32) {
        let [a0, a1, a2, a3, h0, h1, h2, h3] = address.to_le_bytes();
        let message = kvm_msi {
            address_lo: u32::from_le_bytes([a0, a1, a2, a3]),
            address_hi: u32::from_le_bytes([h0, h1, h2, h3]),
            data,
            ..kvm_msi::default()
        };
        // The guest chose address and data; one that reaches nobody is the guest's loss.
        if let Err(error) = self.0.signal_msi(message) {
            tracing::debug!(address = format!("{address:#x}"), data, %error, "MSI is not deliverable");
        }
    }

    fn attach_doorbell(&self, event: &EventFd, address: u64) -> Result<(), errno::Error> {
        let address = IoEventAddress::Mmio(address);
        self.0.register_ioevent(event, &address, NoDatamatch)
    }

    fn detach_doorbell(&self, event: &EventFd, address: u64) -> Result<(), errno::Error> {
        let address = IoEventAddress::Mmio(address);
        self.0.unregister_ioevent(event, &address, NoDatamatch)
    }
}

impl fmt::Debug for KvmPlatform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KvmPlatform")
    }
}
