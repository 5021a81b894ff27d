// SPDX-License-Identifier: Apache-2.0
//! What two machines must have in common for the state of one to run in the other.

use std::fmt::Display;

use serde::{Deserialize, Serialize};

use crate::config::{CpuModel, MachineConfig, MemorySize, VcpuCount};
use crate::cpuid::{CpuidLeaf, vendor};
use crate::devices::DEVICES;
use crate::host::Host;
use crate::state::STATE_VERSION;
use crate::state::processor::deviation_ppm;

/// TSC frequencies may differ by this much, in parts per million, when neither host can scale. The
/// guest keeps time by kvmclock, which is exact on every host; only busy-waits and timer distances
/// computed before the move deviate by it.
const UNSCALED_TSC_TOLERANCE_PPM: u64 = 10_000;

/// What two replicas must agree on before one may hold the other's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineFingerprint {
    state_version: u32,
    memory: MemorySize,
    vcpus: VcpuCount,
    cpu: CpuModel,
    devices: Vec<String>,
    xsave_bytes: u64,
    sregs2: bool,
    tsc_khz: u32,
    tsc_scaling: bool,
    msrs: Vec<u32>,
    cpuid: Vec<CpuidLeaf>,
}

impl MachineFingerprint {
    pub(crate) fn new(config: &MachineConfig, host: &Host, virtio: Vec<String>) -> Self {
        Self {
            state_version: STATE_VERSION,
            memory: config.memory,
            vcpus: config.vcpus,
            cpu: config.cpu,
            devices: DEVICES
                .iter()
                .map(|&device| device.to_owned())
                .chain(virtio)
                .collect(),
            xsave_bytes: host.xsave_bytes as u64,
            sregs2: host.sregs2,
            tsc_khz: host.tsc_khz,
            tsc_scaling: host.tsc_scaling,
            msrs: host.msrs.clone(),
            cpuid: host.cpuid.clone(),
        }
    }

    /// The first thing that keeps a machine with fingerprint `other` from running this one's state
    /// and the other way round, in words for a person (`self` is "here"); `None` when nothing does.
    ///
    /// Small deviations of the TSC frequency are not a difference, so two fingerprints that are not
    /// equal may still have none.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Option<String> {
        differ("State version", &self.state_version, &other.state_version)
            .or_else(|| differ("Memory", &self.memory, &other.memory))
            .or_else(|| differ("Number of vCPUs", &self.vcpus, &other.vcpus))
            .or_else(|| self.device_difference(other))
            .or_else(|| differ("CPU model", &self.cpu, &other.cpu))
            .or_else(|| self.vendor_difference(other))
            .or_else(|| {
                self.cpuid_difference(other)
                    .map(|what| self.with_remedy(&what))
            })
            .or_else(|| differ("XSAVE size", &self.xsave_bytes, &other.xsave_bytes))
            .or_else(|| differ("KVM_CAP_SREGS2", &self.sregs2, &other.sregs2))
            .or_else(|| {
                self.msr_difference(other)
                    .map(|what| self.with_remedy(&what))
            })
            .or_else(|| self.tsc_difference(other))
    }

    fn vendor_difference(&self, other: &Self) -> Option<String> {
        let name = |from: &Self| vendor::name(&from.cpuid);
        differ("CPU vendor", &name(self), &name(other)).map(|what| {
            format!("{what}; a guest cannot move between vendors: use two hosts of one vendor")
        })
    }

    /// The CPUs as the guest would see them differ; what can be done.
    fn with_remedy(&self, what: &str) -> String {
        match self.cpu {
            CpuModel::Host => format!(
                "{what}; use two hosts with the same CPU model and kernel, or give the VM a level \
                 that both have, such as cpu = \"{}\"",
                CpuModel::X86_64V2
            ),
            // The levels look alike on all CPUs, so it is KVM that differs.
            CpuModel::X86_64V2 | CpuModel::X86_64V3 => {
                format!("{what}; run the same kernel and the same version of Kemari on both hosts")
            }
        }
    }

    /// Devices are told apart by their first word; what follows are traits.
    fn device_difference(&self, other: &Self) -> Option<String> {
        let words = |device: &String| {
            let (name, traits) = device.split_once(' ').unwrap_or((device, ""));
            (name.to_owned(), traits.to_owned())
        };
        let here: Vec<_> = self.devices.iter().map(words).collect();
        let there: Vec<_> = other.devices.iter().map(words).collect();
        let names = |devices: &[(String, String)]| {
            let names: Vec<_> = devices.iter().map(|(name, _)| name.as_str()).collect();
            names.join(" ")
        };
        differ("Devices", &names(&here), &names(&there)).or_else(|| {
            here.iter()
                .zip(&there)
                .find_map(|((name, here), (_, there))| {
                    differ(&format!("Device {name}"), here, there)
                })
        })
    }

    fn cpuid_difference(&self, other: &Self) -> Option<String> {
        let find = |leaves: &[CpuidLeaf], wanted: &CpuidLeaf| {
            leaves
                .iter()
                .copied()
                .find(|leaf| (leaf.function, leaf.index) == (wanted.function, wanted.index))
        };
        let name = |leaf: &CpuidLeaf| format!("CPUID leaf {:#x}.{}", leaf.function, leaf.index);
        for mine in &self.cpuid {
            match find(&other.cpuid, mine) {
                None => return Some(format!("{} exists only here", name(mine))),
                Some(theirs) if theirs != *mine => {
                    let show = |leaf: &CpuidLeaf| {
                        format!(
                            "{:#x} {:#x} {:#x} {:#x}",
                            leaf.eax, leaf.ebx, leaf.ecx, leaf.edx
                        )
                    };
                    return differ(&name(mine), &show(mine), &show(&theirs));
                }
                Some(_) => {}
            }
        }
        other
            .cpuid
            .iter()
            .find(|theirs| find(&self.cpuid, theirs).is_none())
            .map(|theirs| format!("{} exists only there", name(theirs)))
    }

    fn msr_difference(&self, other: &Self) -> Option<String> {
        let only = |from: &[u32], to: &[u32]| from.iter().copied().find(|msr| !to.contains(msr));
        let here = only(&self.msrs, &other.msrs)
            .map(|msr| format!("MSR {msr:#x} is part of the state here, but unknown there"));
        here.or_else(|| {
            only(&other.msrs, &self.msrs)
                .map(|msr| format!("MSR {msr:#x} is part of the state there, but unknown here"))
        })
    }

    fn tsc_difference(&self, other: &Self) -> Option<String> {
        let scales = self.tsc_scaling && other.tsc_scaling;
        let far = deviation_ppm(self.tsc_khz, other.tsc_khz) > UNSCALED_TSC_TOLERANCE_PPM;
        if scales || !far {
            return None;
        }
        differ("TSC frequency in kHz", &self.tsc_khz, &other.tsc_khz)
    }
}

fn differ<T: PartialEq + Display>(name: &str, here: &T, there: &T) -> Option<String> {
    (here != there).then(|| format!("{name}: {here} here, {there} there"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fingerprint() -> MachineFingerprint {
        MachineFingerprint {
            state_version: 1,
            memory: MemorySize::from_mib(64).unwrap(),
            vcpus: VcpuCount::ONE,
            cpu: CpuModel::Host,
            devices: vec![
                "serial16550/1".to_owned(),
                "virtio-blk/2@2 serial=a capacity=8192".to_owned(),
            ],
            xsave_bytes: 4096,
            sregs2: true,
            tsc_khz: 2_000_000,
            tsc_scaling: false,
            msrs: vec![0x10],
            cpuid: vec![CpuidLeaf {
                function: 7,
                index: 0,
                flags: 1,
                eax: 0,
                ebx: 1,
                ecx: 2,
                edx: 3,
            }],
        }
    }

    #[test]
    fn differences_are_told_in_words() {
        let here = fingerprint();
        let with = |change: fn(&mut MachineFingerprint)| {
            let mut there = fingerprint();
            change(&mut there);
            here.difference(&there)
        };
        assert_eq!(with(|_| {}), None);
        assert_eq!(with(|there| there.tsc_khz = 2_001_000), None);
        assert_eq!(
            with(|there| there.tsc_khz = 2_100_000).unwrap(),
            "TSC frequency in kHz: 2000000 here, 2100000 there"
        );
        assert_eq!(
            with(|there| there.memory = MemorySize::from_mib(65).unwrap()).unwrap(),
            "Memory: 64 MiB here, 65 MiB there"
        );
        assert_eq!(
            with(|there| there.cpu = CpuModel::X86_64V3).unwrap(),
            "CPU model: host here, x86-64-v3 there"
        );
        assert_eq!(
            with(|there| there.devices[1] = "virtio-blk/2@2 serial=a capacity=4096".to_owned())
                .unwrap(),
            "Device virtio-blk/2@2: serial=a capacity=8192 here, serial=a capacity=4096 there"
        );
        assert_eq!(
            with(|there| there.devices.truncate(1)).unwrap(),
            "Devices: serial16550/1 virtio-blk/2@2 here, serial16550/1 there"
        );
    }

    #[test]
    fn a_difference_of_cpus_comes_with_the_remedy() {
        let remedy = "; use two hosts with the same CPU model and kernel, or give the VM a level \
                      that both have, such as cpu = \"x86-64-v2\"";
        let here = fingerprint();
        let mut there = fingerprint();
        there.cpuid[0].ebx = 9;
        assert_eq!(
            here.difference(&there).unwrap(),
            format!("CPUID leaf 0x7.0: 0x0 0x1 0x2 0x3 here, 0x0 0x9 0x2 0x3 there{remedy}")
        );
        let mut there = fingerprint();
        there.msrs.push(0x11);
        assert_eq!(
            here.difference(&there).unwrap(),
            format!("MSR 0x11 is part of the state there, but unknown here{remedy}")
        );
        let with_level = |mut one: MachineFingerprint| {
            one.cpu = CpuModel::X86_64V2;
            one
        };
        let said = with_level(here.clone()).difference(&with_level(there));
        assert!(
            said.unwrap()
                .ends_with("run the same kernel and the same version of Kemari on both hosts")
        );
    }

    #[test]
    fn another_vendor_is_named() {
        let of = |[a, b, c]: [&[u8; 4]; 3]| {
            let [ebx, edx, ecx] = [a, b, c].map(|part| u32::from_le_bytes(*part));
            let mut fingerprint = fingerprint();
            fingerprint.cpuid.push(CpuidLeaf {
                function: 0,
                ebx,
                ecx,
                edx,
                ..fingerprint.cpuid[0]
            });
            fingerprint
        };
        let intel = of([b"Genu", b"ineI", b"ntel"]);
        let amd = of([b"Auth", b"enti", b"cAMD"]);
        assert_eq!(
            intel.difference(&amd).unwrap(),
            "CPU vendor: GenuineIntel here, AuthenticAMD there; a guest cannot move between \
             vendors: use two hosts of one vendor"
        );
    }
}
