// SPDX-License-Identifier: Apache-2.0
//! From the description to what `kemari-vmm` builds a machine of: the only place that knows both.
//!
//! Nothing of a description is ignored in silence. What the machine cannot be given is refused by
//! name, before anything is started; [`unsupported`] lists it, and shrinks as the machine
//! grows. The devices that a description has without asking (`[rng]`, `[balloon]`) are not refused
//! while they are as they are by default.

use std::fs::File;
use std::io;
use std::sync::Arc;

use kemari_api::config::{
    BootSection, CpuModel, DirtyTracking, DiskBoot, HugePages, VmConfig, shown,
};
use kemari_bootdisk::BootDiskError;
use kemari_vmm::{
    BootFile, BootSource, FreePageReporting, MachineConfig, MemoryLock, MemoryOptions, MemorySize,
    Presence, VcpuCount,
};
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

/// Why a description does not become a machine.
#[derive(Debug, Error)]
pub enum MachineConfigError {
    /// It asks for what this engine does not have.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    /// Nothing to boot was found on its disk.
    #[error("boot.disk \"{disk}\"")]
    BootDisk {
        /// The disk in the description.
        disk: String,
        /// Why.
        #[source]
        source: BootDiskError,
    },
}

/// The machine that a description describes; what boots from a disk is read from it now.
///
/// # Errors
/// The first thing it asks for that this engine does not have, or a disk that does not boot.
pub fn machine_config(
    config: &VmConfig,
    boot_disk: BootDisk,
) -> Result<MachineConfig, MachineConfigError> {
    if let Some(first) = unsupported(config).into_iter().next() {
        return Err(first.into());
    }
    Ok(MachineConfig {
        memory: memory(config)?,
        memory_options: memory_options(config),
        dirty_tracking: dirty_tracking(config.memory.dirty_tracking),
        vcpus: vcpus(config)?,
        cpu: cpu(config.vm.cpu),
        rng: presence(config.rng.enabled),
        balloon: balloon(config),
        boot: match boot_source(config, None) {
            Err(MachineConfigError::BootDisk { disk, source })
                if boot_disk == BootDisk::MayBeEmpty && boots_from_replicated(config) =>
            {
                tracing::info!(
                    vm = %config.vm.name, %disk,
                    "nothing to boot yet, it waits for a copy: {source}"
                );
                nothing_to_boot()
            }
            source => source?,
        },
    })
}

/// What a boot disk must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootDisk {
    /// The guest is started from it.
    MustBoot,
    /// If it is replicated its content may come from the other replica.
    MayBeEmpty,
}

/// What a machine has that waits for its boot disk's content.
pub fn nothing_to_boot() -> BootSource {
    let bytes = Arc::default();
    BootSource {
        kernel: BootFile::Bytes {
            name: String::new(),
            bytes,
        },
        initrd: None,
        cmdline: String::new(),
    }
}

fn boots_from_replicated(config: &VmConfig) -> bool {
    let BootSection::Disk(boot) = &config.boot else {
        return false;
    };
    let disk = config.disk.iter().find(|disk| disk.id == boot.disk);
    disk.is_some_and(|disk| disk.is_replicated())
}

/// Where the guest starts; on a disk it may have changed since the last boot. `disk` is that disk, by
/// an engine that can no longer open it.
///
/// # Errors
/// A disk that does not boot.
pub fn boot_source(
    config: &VmConfig,
    disk: Option<&File>,
) -> Result<BootSource, MachineConfigError> {
    match &config.boot {
        BootSection::Kernel(boot) => Ok(BootSource {
            kernel: boot.kernel.clone().into(),
            initrd: boot.initrd.clone().map(Into::into),
            cmdline: boot.cmdline.clone(),
        }),
        BootSection::Disk(boot) => boot_from_disk(config, boot, disk),
    }
}

/// The disk that the guest boots from, opened for [`boot_source`].
///
/// # Errors
/// What the system said.
pub fn open_boot_disk(config: &VmConfig) -> io::Result<Option<File>> {
    let BootSection::Disk(boot) = &config.boot else {
        return Ok(None);
    };
    let disk = config.disk.iter().find(|disk| disk.id == boot.disk);
    disk.map(|disk| File::open(disk.path.as_path())).transpose()
}

fn boot_from_disk(
    config: &VmConfig,
    boot: &DiskBoot,
    opened: Option<&File>,
) -> Result<BootSource, MachineConfigError> {
    let disk = config.disk.iter().find(|disk| disk.id == boot.disk);
    let Some(disk) = disk else {
        // A description whose keys do not fit each other was refused when it was read.
        let key = "boot.disk";
        return Err(Unsupported::new(key, &boot.disk, "name the id of a [[disk]]").into());
    };
    let path = disk.path.as_path();
    let found = match opened {
        Some(file) => kemari_bootdisk::find_in_file(path, file),
        None => kemari_bootdisk::find(path),
    };
    let found = found.map_err(|source| MachineConfigError::BootDisk {
        disk: boot.disk.to_string(),
        source,
    })?;
    tracing::info!(vm = %config.vm.name, disk = %boot.disk, "{}", found.described);
    let file = |name: Option<String>, bytes: Vec<u8>| BootFile::Bytes {
        name: name.unwrap_or_default(),
        bytes: Arc::from(bytes),
    };
    let words = [found.cmdline.as_str(), boot.cmdline.as_str()];
    Ok(BootSource {
        kernel: file(Some(found.kernel_name), found.kernel),
        initrd: found.initrd.map(|bytes| file(found.initrd_name, bytes)),
        cmdline: words.join(" ").trim().to_owned(),
    })
}

fn memory(config: &VmConfig) -> Result<MemorySize, Unsupported> {
    let mib = config.vm.memory_mib;
    MemorySize::from_mib(mib.get())
        .map_err(|_| Unsupported::new("vm.memory_mib", &mib, "give the guest less memory"))
}

fn memory_options(config: &VmConfig) -> MemoryOptions {
    MemoryOptions {
        huge_pages: match config.memory.huge_pages {
            HugePages::Transparent => kemari_vmm::HugePages::Transparent,
            HugePages::Off => kemari_vmm::HugePages::Off,
            HugePages::Size2M => kemari_vmm::HugePages::Explicit2M,
            HugePages::Size1G => kemari_vmm::HugePages::Explicit1G,
        },
        lock: if config.memory.lock {
            MemoryLock::Now
        } else {
            MemoryLock::Unlocked
        },
        numa: config
            .memory
            .numa_node
            .map(|node| kemari_vmm::NumaNode(node.get())),
    }
}

fn dirty_tracking(wanted: DirtyTracking) -> kemari_vmm::DirtyTracking {
    match wanted {
        DirtyTracking::Auto => kemari_vmm::DirtyTracking::Auto,
        DirtyTracking::Ring => kemari_vmm::DirtyTracking::Ring,
        DirtyTracking::ManualBitmap => kemari_vmm::DirtyTracking::ManualBitmap,
        DirtyTracking::Bitmap => kemari_vmm::DirtyTracking::Bitmap,
    }
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

/// Everything a description asks for that this engine does not have.
//
// MAPPING POINT: a line goes when its key is mapped in `machine_config`.
pub fn unsupported(config: &VmConfig) -> Vec<Unsupported> {
    // Taken apart, so that a new section cannot be forgotten here.
    let VmConfig {
        vm: _,
        memory: _,
        boot: _,
        disk: _,
        network: _,
        console: _,
        rng: _,
        balloon: _,
        // What it asks for is about this process, not the machine.
        sandbox: _,
        replication: _,
    } = config;
    let mut found = Vec::new();
    found.extend(memory(config).err());
    found.extend(vcpus(config).err());
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
        let machine = machine_config(&config(""), BootDisk::MustBoot).unwrap();
        assert_eq!(machine.memory.mib(), 64);
        assert_eq!(
            machine.boot.kernel,
            BootFile::from(Path::new("/k").to_owned())
        );
        assert_eq!(machine.boot.cmdline, "a");
        assert_eq!(machine.memory_options, MemoryOptions::default());
    }

    #[test]
    fn memory_is_backed_as_described() {
        let more = "[memory]\nhuge_pages = \"2M\"\nlock = true\nnuma_node = 1\ndirty_tracking = \"bitmap\"\n";
        let expected = MemoryOptions {
            huge_pages: kemari_vmm::HugePages::Explicit2M,
            lock: MemoryLock::Now,
            numa: Some(kemari_vmm::NumaNode(1)),
        };
        let machine = machine_config(&config(more), BootDisk::MustBoot).unwrap();
        assert_eq!(machine.memory_options, expected);
        assert_eq!(machine.dirty_tracking, kemari_vmm::DirtyTracking::Bitmap);
    }
}
