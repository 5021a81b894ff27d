// SPDX-License-Identifier: Apache-2.0
//! From the description to what `kemari-vmm` builds a machine of: the only place that knows both.
//!
//! Nothing of a description is ignored in silence. What the machine cannot be given is refused by
//! name, before anything is started; [`unsupported`] lists it, and shrinks as the machine
//! grows. The devices that a description has without asking (`[rng]`, `[balloon]`, `[sandbox]`) are
//! not refused while they are as they are by default.

use kemari_api::config::{
    BootSection, CpuModel, DirtyTracking, HugePages, NumaNode, UserName, VmConfig, shown,
};
use kemari_vmm::{BootSource, MachineConfig, MemorySize};
use thiserror::Error;

/// A description that is right but asks for what this engine does not have.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{}: {told}", shown(.key), told = told(value, remedy))]
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

    /// What it says without the key.
    pub fn told(&self) -> String {
        told(&self.value, self.remedy)
    }
}

fn told(value: &str, remedy: &str) -> String {
    format!("this release cannot do that ({value}); {remedy}")
}

/// The machine that a description describes.
///
/// # Errors
/// The first thing it asks for that this engine does not have.
pub fn machine_config(config: &VmConfig) -> Result<MachineConfig, Unsupported> {
    if let Some(first) = unsupported(config).into_iter().next() {
        return Err(first);
    }
    Ok(MachineConfig {
        memory: memory(config)?,
        boot: boot(&config.boot)?,
    })
}

fn memory(config: &VmConfig) -> Result<MemorySize, Unsupported> {
    let mib = config.vm.memory_mib;
    MemorySize::from_mib(mib.get())
        .map_err(|_| Unsupported::new("vm.memory_mib", &mib, "give the guest less memory"))
}

fn boot(boot: &BootSection) -> Result<BootSource, Unsupported> {
    match boot {
        BootSection::Kernel(boot) => Ok(BootSource {
            kernel: boot.kernel.clone(),
            initrd: boot.initrd.clone(),
            cmdline: boot.cmdline.clone(),
        }),
        BootSection::Disk(boot) => Err(Unsupported::new(
            "boot.disk",
            &boot.disk,
            "give boot.kernel",
        )),
    }
}

/// Everything a description asks for that this engine does not have.
//
// MAPPING POINT: a line goes when its key is mapped in `machine_config`.
pub fn unsupported(config: &VmConfig) -> Vec<Unsupported> {
    // Taken apart, so that a new section cannot be forgotten here.
    let VmConfig {
        vm,
        memory: ram,
        boot: start,
        disk: disks,
        network: networks,
        console,
        rng,
        balloon,
        sandbox,
        replication: _,
    } = config;
    let mut found = Vec::new();
    found.extend(memory(config).err());
    found.extend(boot(start).err());
    let mut refuse = |asked: bool, key, value: &dyn ToString, remedy| {
        if asked {
            found.push(Unsupported::new(key, value, remedy));
        }
    };
    let out = "leave it out";
    refuse(vm.vcpus.get() != 1, "vm.vcpus", &vm.vcpus, "give 1");
    refuse(vm.cpu != CpuModel::Host, "vm.cpu", &vm.cpu, out);
    let pages = ram.huge_pages;
    refuse(
        pages != HugePages::Transparent,
        "memory.huge_pages",
        &pages,
        out,
    );
    refuse(ram.lock, "memory.lock", &"true", out);
    let node = ram.numa_node.map(NumaNode::get).unwrap_or_default();
    refuse(ram.numa_node.is_some(), "memory.numa_node", &node, out);
    let tracking = ram.dirty_tracking;
    refuse(
        tracking != DirtyTracking::Auto,
        "memory.dirty_tracking",
        &tracking,
        out,
    );
    let number = |number| format!("{number} described");
    refuse(
        !disks.is_empty(),
        "disk[0]",
        &number(disks.len()),
        "remove it",
    );
    refuse(
        !networks.is_empty(),
        "network[0]",
        &number(networks.len()),
        "remove it",
    );
    refuse(console.virtio, "console.virtio", &"true", out);
    refuse(!rng.enabled, "rng.enabled", &"false", out);
    refuse(!balloon.enabled, "balloon.enabled", &"false", out);
    let key = "balloon.free_page_reporting";
    refuse(!balloon.free_page_reporting, key, &"false", out);
    // sandbox.enabled = false is what this engine does anyway.
    refuse(
        sandbox.user != UserName::default(),
        "sandbox.user",
        &sandbox.user,
        out,
    );
    found
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
            ("[rng]\nenabled = false\n", "rng.enabled"),
            ("[sandbox]\nuser = \"guests\"\n", "sandbox.user"),
            ("[[disk]]\nid = \"a\"\npath = \"/a\"\n", "disk"),
            ("[[network]]\nid = \"a\"\ntap = \"a\"\n", "network"),
        ] {
            let told = machine_config(&config(more)).unwrap_err().to_string();
            let begin = format!("{key}: this release cannot do that (");
            assert!(told.starts_with(&begin), "{told}");
        }
    }
}
