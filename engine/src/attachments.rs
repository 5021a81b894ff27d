// SPDX-License-Identifier: Apache-2.0
//! What the guest is connected to on this host: TAP devices and disks, opened once for the life of
//! the engine, so that a new machine after a demotion finds them as they were.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::sync::Arc;

use kemari_api::VmName;
use kemari_api::config::{DiskIo, DiskSection, DiskStorage, NetworkSection, VmConfig};
use kemari_replication::NetworkPort;
use kemari_replication::storage::DiskNumber;
use kemari_vmm::backend::{
    Backends, DiscardPolicy, DiskAttachment, DiskBackend, DiskGeometry, DiskOptions, DiskSerial,
    DiskSerialError, IoEngine, MacAddress, MacAddressError, NetworkAttachment, OpenDiskError,
    OpenTapError, RawDisk, Tap, TapOptions,
};
use thiserror::Error;

use crate::disk::SharedDisk;
use crate::machine_config::open_boot_disk;
use crate::outputs::{Interface, Outputs, TappedConsole, TappedNetwork, TypedInput};
use crate::storage::{HeldDisk, Storage};

/// Something the description names could not be opened.
#[derive(Debug, Error)]
pub enum AttachError {
    /// A network interface's TAP.
    #[error("Network \"{id}\"")]
    Tap {
        /// The interface in the description.
        id: String,
        /// Why.
        #[source]
        source: OpenTapError,
    },
    /// A disk.
    #[error("Disk \"{id}\"")]
    Disk {
        /// The disk in the description.
        id: String,
        /// Why.
        #[source]
        source: OpenDiskError,
    },
    /// An address that no interface can have.
    #[error("Network \"{id}\"")]
    Mac {
        /// The interface in the description.
        id: String,
        /// Why.
        #[source]
        source: MacAddressError,
    },
    /// A serial number that no disk can have.
    #[error("Disk \"{id}\"")]
    Serial {
        /// The disk in the description.
        id: String,
        /// Why.
        #[source]
        source: DiskSerialError,
    },
    /// The process has no more file descriptors.
    #[error("Cannot attach \"{id}\"")]
    Descriptors {
        /// The device in the description.
        id: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// One network interface.
#[derive(Debug)]
struct Plug {
    port: NetworkPort,
    mac: MacAddress,
    mtu: Option<u16>,
    interface: Arc<Interface>,
}

/// One disk.
#[derive(Debug)]
struct Platter {
    /// In the description.
    id: String,
    serial: DiskSerial,
    disk: SharedDisk,
    access: Access,
}

/// Whose a disk is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Access {
    /// This host's, or nobody writes to it.
    Apart,
    /// Both hosts', and the guest writes to it.
    Shared {
        /// What keeps the guest from being protected with it.
        trouble: Option<&'static str>,
    },
}

/// Everything that was opened.
#[derive(Debug)]
pub struct Attachments {
    plugs: Vec<Plug>,
    platters: Vec<Platter>,
    storage: Storage,
    console: Option<TypedInput>,
    boot_disk: Option<File>,
}

impl Attachments {
    /// Opens what the description names.
    ///
    /// # Errors
    /// Something is not there, not permitted, or in use.
    pub fn open(config: &VmConfig) -> Result<Self, AttachError> {
        let plugs = config
            .network
            .iter()
            .zip(0..)
            .filter_map(|(section, number)| Some((section, NetworkPort::new(number)?)))
            .map(|(section, port)| plug(&config.vm.name, section, port))
            .collect::<Result<_, _>>()?;
        let (platters, storage) = disks(&config.disk)?;
        let console = config
            .console
            .virtio
            .then(TypedInput::new)
            .transpose()
            .map_err(|source| AttachError::Descriptors {
                id: "console".to_owned(),
                source,
            })?;
        let boot_disk = open_boot_disk(config).map_err(|source| AttachError::Descriptors {
            id: "boot.disk".to_owned(),
            source,
        })?;
        Ok(Self {
            plugs,
            platters,
            storage,
            console,
            boot_disk,
        })
    }

    /// The interfaces, by port.
    pub fn interfaces(&self) -> Vec<Arc<Interface>> {
        self.plugs
            .iter()
            .map(|plug| Arc::clone(&plug.interface))
            .collect()
    }

    /// Where typed bytes go when there is a virtio console.
    pub fn console(&self) -> Option<&TypedInput> {
        self.console.as_ref()
    }

    /// The disk that the guest boots from, to look for its kernel.
    pub fn boot_disk(&self) -> Option<&File> {
        self.boot_disk.as_ref()
    }

    /// The disks that are replicated.
    pub fn storage(&self) -> &Storage {
        &self.storage
    }

    /// The back ends for a machine, each network behind the event-tap.
    ///
    /// # Errors
    /// The process has no more file descriptors.
    pub fn backends(&self, outputs: &Arc<Outputs>) -> io::Result<Backends> {
        let serial: Arc<Outputs> = Arc::clone(outputs);
        let mut backends = Backends::new(serial);
        if let Some(typed) = &self.console {
            let console = TappedConsole::new(Arc::clone(outputs), typed.clone())?;
            backends.console = Some(Box::new(console));
        }
        for plug in &self.plugs {
            let interface = Arc::clone(&plug.interface);
            backends.networks.push(NetworkAttachment {
                mac: plug.mac,
                mtu: plug.mtu,
                backend: Box::new(TappedNetwork::new(
                    plug.port,
                    interface,
                    Arc::clone(outputs),
                )),
            });
        }
        for platter in &self.platters {
            let disk = Box::new(platter.disk.clone());
            let backend: Box<dyn DiskBackend> = match platter.access {
                Access::Apart => disk,
                Access::Shared { .. } => Box::new(HeldDisk::new(disk, Arc::clone(outputs))?),
            };
            backends.disks.push(DiskAttachment {
                serial: platter.serial.clone(),
                backend,
            });
        }
        Ok(backends)
    }

    /// Whether the guest writes to a disk that both hosts see.
    pub fn writes_shared_disks(&self) -> bool {
        self.platters
            .iter()
            .any(|platter| platter.access != Access::Apart)
    }

    /// The first shared disk with which the guest cannot be protected, and why.
    pub fn trouble_with_shared_disks(&self) -> Option<(&str, &'static str)> {
        self.platters
            .iter()
            .find_map(|platter| match platter.access {
                Access::Shared { trouble } => Some((platter.id.as_str(), trouble?)),
                Access::Apart => None,
            })
    }

    /// This replica becomes the active one: what came in before was for another, and the network
    /// learns where the guest is now.
    pub fn take_over(&self) {
        for plug in &self.plugs {
            plug.interface.flush();
            plug.interface.announce(plug.mac);
        }
    }
}

fn plug(vm: &VmName, section: &NetworkSection, port: NetworkPort) -> Result<Plug, AttachError> {
    let id = || section.id.to_string();
    let pairs = usize::try_from(section.queues.get()).unwrap_or(1);
    let mtu = section.mtu.map(kemari_api::config::Mtu::get);
    let tap = Tap::open(&TapOptions {
        name: section.tap(vm).to_string(),
        pairs,
        mtu,
        bridge: section.bridge().map(ToString::to_string),
    })
    .map_err(|source| AttachError::Tap { id: id(), source })?;
    let mac = section
        .mac(vm)
        .to_string()
        .parse::<MacAddress>()
        .map_err(|source| AttachError::Mac { id: id(), source })?;
    let interface = Interface::new(Box::new(tap))
        .map_err(|source| AttachError::Descriptors { id: id(), source })?;
    Ok(Plug {
        port,
        mac,
        mtu: mtu.and_then(|mtu| u16::try_from(mtu).ok()),
        interface: Arc::new(interface),
    })
}

/// Opens all disks; those that are replicated get their back end through the log.
fn disks(sections: &[DiskSection]) -> Result<(Vec<Platter>, Storage), AttachError> {
    let opened: Vec<_> = sections.iter().map(open_disk).collect::<Result<_, _>>()?;
    let contents = sections
        .iter()
        .zip(&opened)
        .map(|(section, disk)| section.is_replicated().then(|| disk.content()))
        .collect();
    let descriptors = |id: String| move |source| AttachError::Descriptors { id, source };
    let storage = Storage::new(contents).map_err(descriptors("disk".to_owned()))?;
    let mut platters = Vec::new();
    for ((section, disk), number) in sections.iter().zip(opened).zip(DiskNumber::all()) {
        let access = access(section, &disk.geometry());
        let id = section.id.to_string();
        let backend: Box<dyn DiskBackend> = if section.is_replicated() {
            Box::new(storage.tap(number, disk).map_err(descriptors(id.clone()))?)
        } else {
            Box::new(disk)
        };
        let disk = SharedDisk::new(backend).map_err(descriptors(id.clone()))?;
        let serial = section
            .serial()
            .as_str()
            .parse::<DiskSerial>()
            .map_err(|source| AttachError::Serial {
                id: id.clone(),
                source,
            })?;
        platters.push(Platter {
            id,
            serial,
            disk,
            access,
        });
    }
    Ok((platters, storage))
}

/// What a host has in its memory, the other one does not see, and it is lost with its host.
fn access(section: &DiskSection, geometry: &DiskGeometry) -> Access {
    if section.read_only || section.storage != DiskStorage::Shared {
        return Access::Apart;
    }
    let device = std::fs::metadata(section.path.as_path())
        .is_ok_and(|metadata| metadata.file_type().is_block_device());
    let trouble = if !device {
        Some("it is a file: only block devices are the same for both hosts at every moment")
    } else if !section.direct {
        Some("it goes through the page cache of this host: set direct = true")
    } else if geometry.block_bytes != 512 {
        Some("its logical blocks are not of 512 bytes, and parts of them would be cached")
    } else {
        None
    };
    Access::Shared { trouble }
}

fn open_disk(section: &DiskSection) -> Result<RawDisk, AttachError> {
    let options = DiskOptions {
        read_only: section.read_only,
        direct: section.direct,
        discard: if section.discard {
            DiscardPolicy::FreeSpace
        } else {
            DiscardPolicy::Keep
        },
        engine: match section.io {
            DiskIo::Auto => IoEngine::Auto,
            DiskIo::Uring => IoEngine::Uring,
            DiskIo::Plain => IoEngine::Plain,
        },
    };
    RawDisk::open(section.path.as_path(), options).map_err(|source| AttachError::Disk {
        id: section.id.to_string(),
        source,
    })
}
