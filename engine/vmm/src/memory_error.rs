// SPDX-License-Identifier: Apache-2.0
//! Memory of the host that fails under the guest.
//!
//! A memory controller that cannot correct an error tells the CPU, and the kernel takes the page away from
//! whoever has it ("hardware poison", `Documentation/mm/hwpoison.rst`). The owner gets SIGBUS (sigaction(2)):
//! with `BUS_MCEERR_AR` the thread that touched the page and cannot go on without it, or with
//! `BUS_MCEERR_AO` the process, before anybody touched it. For a vCPU that touches such a page KVM sends the
//! former to its thread (`kvm_send_hwpoison_signal`).
//!
//! [`MemoryErrors::watch`] catches both where the page is guest RAM. A thread that touched one never
//! goes on: without the page's content there is nothing right that it could do. Somebody must therefore
//! [wait](MemoryErrors::wait) and end the process. Every other SIGBUS does what it does by default: it ends
//! the process.
//!
//! The parts: which addresses are guest RAM (`places`), what was noticed and not told yet (`noticed`),
//! and the handler (`signal`).

mod noticed;
mod places;
#[cfg(any(test, feature = "test-support"))]
mod sent;
mod signal;

use std::fmt;
use std::io;

use nix::errno::Errno;

pub(crate) use places::WatchedRam;
#[cfg(any(test, feature = "test-support"))]
pub use sent::bus_error;

/// A page of guest RAM that the host cannot read any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryError {
    /// Whether anybody needed it already.
    pub kind: MemoryErrorKind,
    /// Where it begins in the guest.
    pub address: GuestPhysicalAddress,
    /// Bytes that are lost: a page of the host, which is 4 KiB, 2 MiB or 1 GiB.
    pub bytes: u64,
}

/// What a memory error demands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryErrorKind {
    /// A thread touched the page and stands still for ever (`BUS_MCEERR_AR`, "action required").
    Touched,
    /// Nobody has touched the page since it failed (`BUS_MCEERR_AO`, "action optional").
    Found,
}

/// A byte's number in the guest's memory as its CPUs see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestPhysicalAddress(pub u64);

impl fmt::Display for GuestPhysicalAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// The watch for memory errors of this process.
#[derive(Debug)]
pub struct MemoryErrors(());

impl MemoryErrors {
    /// From now on memory errors in guest RAM are told here. To be called before the process has other
    /// threads: they inherit the wish to hear of errors that nobody has touched (`PR_MCE_KILL_EARLY`,
    /// prctl(2)). The process gets a handler for SIGBUS.
    ///
    /// # Errors
    /// There is a watch already, or the kernel refuses the handler.
    pub fn watch() -> io::Result<Self> {
        signal::install()?;
        if let Err(error) = signal::ask_early() {
            tracing::debug!(%error, "the kernel tells of memory errors only when memory is touched");
        }
        Ok(Self(()))
    }

    /// Waits for the next error. A thread may be standing still for ever by then, with whatever it has
    /// locked: whoever is told must not wait for anything that touches guest memory.
    ///
    /// # Errors
    /// The kernel refuses to wait.
    pub fn wait(&self) -> io::Result<MemoryError> {
        loop {
            if let Some(error) = noticed::next() {
                return Ok(error);
            }
            match signal::bell().map(|bell| bell.read()) {
                Some(Ok(_) | Err(Errno::EINTR)) => {}
                Some(Err(error)) => return Err(error.into()),
                None => return Err(io::ErrorKind::NotFound.into()),
            }
        }
    }
}
