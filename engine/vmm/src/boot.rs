// SPDX-License-Identifier: Apache-2.0
//! Loading a guest and pointing the vCPU at it.

use std::path::PathBuf;

use kvm_ioctls::VcpuFd;
use thiserror::Error;

use crate::config::MachineConfig;
use crate::error::RestoreError;
use crate::ram::GuestRam;

/// The guest could not be loaded.
#[derive(Debug, Error)]
pub enum BootError {
    /// The machine is not paused.
    #[error("The machine is running; pause it before booting it")]
    NotPaused,
    /// The vCPU could not be put into its state after power-on.
    #[error("Cannot reset the machine")]
    Reset(#[source] RestoreError),
    /// A file cannot be read.
    #[error("Cannot read {what} {path}; check the path and its permissions", path = path.display())]
    Read {
        /// Kernel or initrd.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

pub(crate) struct Entry;

impl Entry {
    pub(crate) fn set_registers(&self, _vcpu: &VcpuFd) -> Result<(), BootError> {
        Ok(())
    }
}

pub(crate) fn load(_ram: &GuestRam, _config: &MachineConfig) -> Result<Entry, BootError> {
    Ok(Entry)
}
