// SPDX-License-Identifier: Apache-2.0
//! What two machines must have in common for the state of one to run in the other.

use std::fmt::Display;

use serde::{Deserialize, Serialize};

use crate::config::MemorySize;
use crate::cpuid::CpuidLeaf;
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
    vcpus: u32,
    devices: Vec<String>,
    xsave_bytes: u64,
    sregs2: bool,
    tsc_khz: u32,
    tsc_scaling: bool,
    msrs: Vec<u32>,
    cpuid: Vec<CpuidLeaf>,
}

impl MachineFingerprint {
    pub(crate) fn new(memory: MemorySize, host: &Host, virtio: Vec<String>) -> Self {
        Self {
            state_version: STATE_VERSION,
            memory,
            vcpus: 1,
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
            .or_else(|| self.cpuid_difference(other))
            .or_else(|| differ("XSAVE size", &self.xsave_bytes, &other.xsave_bytes))
            .or_else(|| differ("KVM_CAP_SREGS2", &self.sregs2, &other.sregs2))
            .or_else(|| self.msr_difference(other))
            .or_else(|| self.tsc_difference(other))
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
            vcpus: 1,
            devices: vec![
                "serial16550/1".to_owned(),
                "virtio-blk/1@2 serial=a capacity=8192".to_owned(),
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
            with(|there| there.devices[1] = "virtio-blk/1@2 serial=a capacity=4096".to_owned())
                .unwrap(),
            "Device virtio-blk/1@2: serial=a capacity=8192 here, serial=a capacity=4096 there"
        );
        assert_eq!(
            with(|there| there.devices.truncate(1)).unwrap(),
            "Devices: serial16550/1 virtio-blk/1@2 here, serial16550/1 there"
        );
        assert_eq!(
            with(|there| there.cpuid[0].ebx = 9).unwrap(),
            "CPUID leaf 0x7.0: 0x0 0x1 0x2 0x3 here, 0x0 0x9 0x2 0x3 there"
        );
        assert_eq!(
            with(|there| there.msrs.push(0x11)).unwrap(),
            "MSR 0x11 is part of the state there, but unknown here"
        );
    }
}
