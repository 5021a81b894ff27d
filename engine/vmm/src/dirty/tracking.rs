// SPDX-License-Identifier: Apache-2.0
//! Which of KVM's ways of tracking dirty pages a machine uses. Settled before its vCPUs are made.
//!
//! | way | a harvest costs | starting costs |
//! | --- | --- | --- |
//! | ring | by dirty page | by page of memory, in one call |
//! | manual bitmap | a bit per page of memory, and by dirty page | nothing; the initial copy pays by and by |
//! | bitmap | a bit per page of memory, and by dirty page | by page of memory, in one call |
//!
//! The ring is trusted only to KVM on hardware. On the software KVM of kvm_pvm it was seen to list
//! pages twice, to overrun, and then to be full for ever.

use std::fs;
use std::path::Path;

use kvm_bindings::{
    KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
    KVM_DIRTY_LOG_INITIALLY_SET, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, kvm_enable_cap,
};
use kvm_ioctls::VmFd;

use super::bitmap::Clearing;
use super::ring::ENTRY_BYTES;
use crate::dirty::PAGE_SIZE;
use crate::error::CreateMachineError;

/// How dirty pages shall be tracked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DirtyTracking {
    /// The best this host does safely: the ring on hardware, else the manual bitmap.
    #[default]
    Auto,
    /// `KVM_CAP_DIRTY_LOG_RING`, even where it is not known to be safe.
    Ring,
    /// `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`.
    ManualBitmap,
    /// Plain `KVM_GET_DIRTY_LOG`, which every KVM has.
    Bitmap,
}

/// How dirty pages are tracked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrackingMode {
    /// By a ring per vCPU.
    Ring,
    /// By a bitmap that is cleared on its own.
    ManualBitmap,
    /// By a bitmap that reading clears.
    Bitmap,
}

/// The same with what is needed to use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    Ring { capability: u32, bytes: usize },
    Bitmap(Clearing),
}

/// Entries of a ring, unless KVM offers fewer: 1 MiB a vCPU, for 256 MiB of memory dirtied in an
/// epoch before the vCPU has to stop.
const RING_ENTRIES: usize = 65_536;

/// What this host has for tracking dirty pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Offer {
    /// The ring's capability and its largest size in bytes.
    ring: Option<(u32, usize)>,
    /// Flags of the manual bitmap; 0 when there is none.
    manual: u32,
    /// Whether this KVM uses the CPU's virtualisation.
    hardware: bool,
}

impl Offer {
    pub(crate) fn of_host(vm: &VmFd) -> Self {
        let ask = |capability: u32| {
            let value = vm.check_extension_raw(capability.into());
            u32::try_from(value).unwrap_or(0)
        };
        let ring = [KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_DIRTY_LOG_RING]
            .into_iter()
            .map(|capability| (capability, usize::try_from(ask(capability)).unwrap_or(0)))
            .find(|(_, bytes)| *bytes >= PAGE_SIZE);
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self {
            ring,
            manual: ask(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2),
            hardware: is_hardware(&cpuinfo, |module| {
                Path::new("/sys/module").join(module).exists()
            }),
        }
    }

    /// What is used when `wanted` is wanted.
    pub(crate) fn choose(self, wanted: DirtyTracking) -> Result<Method, CreateMachineError> {
        let ring = self.ring.map(|(capability, most)| Method::Ring {
            capability,
            bytes: most.min(RING_ENTRIES * ENTRY_BYTES),
        });
        let manual = if self.manual & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE == 0 {
            None
        } else if self.manual & KVM_DIRTY_LOG_INITIALLY_SET == 0 {
            Some(Method::Bitmap(Clearing::Manual))
        } else {
            Some(Method::Bitmap(Clearing::ManualInitiallySet))
        };
        let plain = Method::Bitmap(Clearing::Plain);
        let missing = |capability| CreateMachineError::MissingCapability { capability };
        match wanted {
            DirtyTracking::Auto => {
                let ring = ring.filter(|_| self.hardware);
                Ok(ring.or(manual).unwrap_or(plain))
            }
            DirtyTracking::Ring => {
                if !self.hardware {
                    tracing::warn!(
                        "the dirty ring is not safe on a KVM without hardware; let the tracking of \
                         dirty pages be chosen by itself"
                    );
                }
                ring.ok_or_else(|| missing("KVM_CAP_DIRTY_LOG_RING"))
            }
            DirtyTracking::ManualBitmap => {
                manual.ok_or_else(|| missing("KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2"))
            }
            DirtyTracking::Bitmap => Ok(plain),
        }
    }
}

impl Method {
    pub(crate) fn mode(self) -> TrackingMode {
        match self {
            Self::Ring { .. } => TrackingMode::Ring,
            Self::Bitmap(Clearing::Plain) => TrackingMode::Bitmap,
            Self::Bitmap(Clearing::Manual | Clearing::ManualInitiallySet) => {
                TrackingMode::ManualBitmap
            }
        }
    }

    /// Tells the VM, which must have no vCPU yet.
    pub(crate) fn enable(self, vm: &VmFd) -> Result<(), CreateMachineError> {
        let (capability, argument) = match self {
            Self::Ring { capability, bytes } => (capability, bytes as u64),
            Self::Bitmap(Clearing::Plain) => return Ok(()),
            // Never together with the ring: pages that are not protected are never written down.
            Self::Bitmap(clearing) => {
                let set = match clearing {
                    Clearing::ManualInitiallySet => KVM_DIRTY_LOG_INITIALLY_SET,
                    Clearing::Manual | Clearing::Plain => 0,
                };
                let flags = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | set;
                (KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, u64::from(flags))
            }
        };
        let enabled = kvm_enable_cap {
            cap: capability,
            args: [argument, 0, 0, 0],
            ..kvm_enable_cap::default()
        };
        vm.enable_cap(&enabled)
            .map_err(CreateMachineError::kvm("KVM_ENABLE_CAP for dirty tracking"))
    }
}

/// Whether KVM runs guests by the CPU's own virtualisation.
fn is_hardware(cpuinfo: &str, has_module: impl Fn(&str) -> bool) -> bool {
    let flag = cpuinfo
        .lines()
        .filter(|line| line.starts_with("flags"))
        .flat_map(str::split_whitespace)
        .any(|flag| matches!(flag, "vmx" | "svm"));
    let module = has_module("kvm_intel") || has_module("kvm_amd");
    flag && module && !has_module("kvm_pvm")
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: Offer = Offer {
        ring: Some((223, 1 << 20)),
        manual: 3,
        hardware: true,
    };

    fn mode(offer: Offer, wanted: DirtyTracking) -> Option<TrackingMode> {
        offer.choose(wanted).ok().map(Method::mode)
    }

    #[test]
    fn the_ring_is_chosen_on_hardware_only() {
        assert_eq!(mode(FULL, DirtyTracking::Auto), Some(TrackingMode::Ring));
        let software = Offer {
            hardware: false,
            ..FULL
        };
        assert_eq!(
            mode(software, DirtyTracking::Auto),
            Some(TrackingMode::ManualBitmap)
        );
        assert_eq!(
            mode(software, DirtyTracking::Ring),
            Some(TrackingMode::Ring)
        );
    }

    #[test]
    fn what_is_missing_is_replaced_or_refused() {
        let bare = Offer {
            ring: None,
            manual: 0,
            hardware: true,
        };
        assert_eq!(mode(bare, DirtyTracking::Auto), Some(TrackingMode::Bitmap));
        let said = |wanted| bare.choose(wanted).unwrap_err().to_string();
        assert!(said(DirtyTracking::Ring).contains("KVM_CAP_DIRTY_LOG_RING"));
        assert!(said(DirtyTracking::ManualBitmap).contains("KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2"));
        let old = Offer { manual: 1, ..bare };
        assert_eq!(
            old.choose(DirtyTracking::Auto).unwrap(),
            Method::Bitmap(Clearing::Manual)
        );
    }

    #[test]
    fn a_ring_is_no_larger_than_wanted_or_offered() {
        for (offered, used) in [(1 << 30, 1 << 20), (1 << 16, 1 << 16)] {
            let offer = Offer {
                ring: Some((192, offered)),
                ..FULL
            };
            let expected = Method::Ring {
                capability: 192,
                bytes: used,
            };
            assert_eq!(offer.choose(DirtyTracking::Ring).unwrap(), expected);
        }
    }

    #[test]
    fn hardware_is_a_flag_and_a_module_and_no_software_kvm() {
        let amd = "processor\t: 0\nflags\t\t: fpu svm sse2\nbogomips\t: 1\n";
        let none = "processor\t: 0\nflags\t\t: fpu sse2\nmodel name\t: svm\n";
        assert!(is_hardware(amd, |module| module == "kvm_amd"));
        assert!(!is_hardware(none, |module| module == "kvm_amd"));
        assert!(!is_hardware(amd, |_| false));
        assert!(!is_hardware(amd, |_| true));
    }
}
