// SPDX-License-Identifier: Apache-2.0
//! From the description to what `kemari-vmm` builds a machine of: the only place that knows both.
//!
//! Nothing of a description is ignored in silence. What the machine cannot be given is refused by
//! name, before anything is started; [`refuse_unsupported`] lists it, and shrinks as the machine
//! grows. The devices that a description has without asking (`[rng]`, `[balloon]`, `[sandbox]`) are
//! not refused while they are as they are by default.

use kemari_api::config::{BootSection, CpuModel, DirtyTracking, HugePages, KernelBoot, VmConfig};
use kemari_vmm::{BootSource, FreePageReporting, MachineConfig, MemorySize, Presence, VcpuCount};
use thiserror::Error;

/// A description that is right but asks for what this engine does not have.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{}: this release cannot do that ({value}): {remedy}", kemari_api::config::shown(.key))]
pub struct Unsupported {
    /// The path of the key, as [`kemari_api::config::KeyLines`] knows it.
    pub key: &'static str,
    value: String,
    remedy: &'static str,
}

impl Unsupported {
    fn new(key: &'static str, value: &dyn ToString, remedy: &'static str) -> Self {
        let value = value.to_string();
        Self { key, value, remedy }
    }
}

/// The machine that a description describes.
///
/// # Errors
/// The first thing it asks for that this engine does not have.
pub fn machine_config(config: &VmConfig) -> Result<MachineConfig, Unsupported> {
    refuse_unsupported(config)?;
    Ok(MachineConfig {
        memory: memory(config)?,
        vcpus: vcpus(config)?,
        cpu: cpu(config.vm.cpu),
        rng: presence(config.rng.enabled),
        balloon: balloon(config),
        boot: boot(&config.boot)?,
    })
}

fn memory(config: &VmConfig) -> Result<MemorySize, Unsupported> {
    let mib = config.vm.memory_mib;
    MemorySize::from_mib(mib.get())
        .map_err(|_| Unsupported::new("vm.memory_mib", &mib, "give the guest less memory"))
}

fn vcpus(config: &VmConfig) -> Result<VcpuCount, Unsupported> {
    let vcpus = config.vm.vcpus;
    VcpuCount::new(vcpus.get())
        .map_err(|_| Unsupported::new("vm.vcpus", &vcpus, "give the guest fewer"))
}

fn cpu(model: CpuModel) -> kemari_vmm::CpuModel {
    match model {
        CpuModel::Host => kemari_vmm::CpuModel::Host,
        CpuModel::X86_64V2 => kemari_vmm::CpuModel::X86_64V2,
        CpuModel::X86_64V3 => kemari_vmm::CpuModel::X86_64V3,
    }
}

fn presence(enabled: bool) -> Presence {
    if enabled {
        Presence::Present
    } else {
        Presence::Absent
    }
}

fn balloon(config: &VmConfig) -> Option<FreePageReporting> {
    let reporting = if config.balloon.free_page_reporting {
        FreePageReporting::On
    } else {
        FreePageReporting::Off
    };
    config.balloon.enabled.then_some(reporting)
}

fn boot(boot: &BootSection) -> Result<BootSource, Unsupported> {
    match boot {
        BootSection::Kernel(KernelBoot {
            kernel,
            initrd,
            cmdline,
        }) => Ok(BootSource {
            kernel: kernel.clone(),
            initrd: initrd.clone(),
            cmdline: cmdline.clone(),
        }),
        BootSection::Disk(boot) => Err(Unsupported::new(
            "boot.disk",
            &boot.disk,
            "give boot.kernel",
        )),
    }
}

// MAPPING POINT: everything below is what kemari-vmm could not be given when this was written. A
// line goes when its key is mapped above.
fn refuse_unsupported(config: &VmConfig) -> Result<(), Unsupported> {
    let refuse = |asked: bool, key, value: &dyn ToString, remedy| {
        if asked {
            Err(Unsupported::new(key, value, remedy))
        } else {
            Ok(())
        }
    };
    let VmConfig {
        vm: _,
        memory,
        boot: _,
        disk: _,
        network: _,
        console: _,
        rng: _,
        balloon: _,
        sandbox,
        replication: _,
    } = config;
    let pages = memory.huge_pages;
    let wrong = pages != HugePages::Transparent;
    refuse(wrong, "memory.huge_pages", &pages, "give \"transparent\"")?;
    refuse(memory.lock, "memory.lock", &"true", "leave it out")?;
    if let Some(node) = memory.numa_node {
        refuse(true, "memory.numa_node", &node, "leave it out")?;
    }
    let tracking = memory.dirty_tracking;
    let wrong = tracking != DirtyTracking::Auto;
    refuse(wrong, "memory.dirty_tracking", &tracking, "give \"auto\"")?;
    // Turning it off is what this engine does anyway.
    let user = sandbox.user != Default::default();
    refuse(user, "sandbox.user", &sandbox.user, "leave it out")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn config(more: &str) -> VmConfig {
        let text = format!(
            "[vm]\nname = \"vm\"\nmemory_mib = 64\n[boot]\nkernel = \"/k\"\ncmdline = \"a\"\n{more}"
        );
        VmConfig::parse(Path::new("vm.toml"), &text).unwrap()
    }

    #[test]
    fn a_description_becomes_a_machine() {
        let machine = machine_config(&config("")).unwrap();
        assert_eq!(machine.memory.mib(), 64);
        assert_eq!(machine.boot.kernel, Path::new("/k"));
        assert_eq!(machine.boot.cmdline, "a");
    }

    #[test]
    fn what_the_machine_lacks_is_refused_by_name() {
        for (more, key) in [
            ("[memory]\nlock = true\n", "memory.lock"),
            ("[memory]\nhuge_pages = \"2M\"\n", "memory.huge_pages"),
            ("[sandbox]\nuser = \"guests\"\n", "sandbox.user"),
        ] {
            let told = machine_config(&config(more)).unwrap_err().to_string();
            let begin = format!("{key}: this release cannot do that (");
            assert!(told.starts_with(&begin), "{told}");
        }
    }
}
