// SPDX-License-Identifier: Apache-2.0
//! A network interface of the guest whose outside is a TAP interface of the host.
//!
//! The TAP is either *created* here, and then gone when the process is, or *given*: made by the
//! administrator (`ip tuntap add dev NAME mode tap user USER`), so that an engine without
//! CAP_NET_ADMIN can use it. A given one is configured only where it is not yet as it should be.
//!
//! What the guest sends goes to the kernel as it is, header and all. The kernel checks headers; a
//! packet with a bad one is lost, as is one sent while the interface is down.
//!
//! Waiting: a TAP takes packets nearly always, because it hands them on at once and only counts
//! their memory against its send buffer, which nobody limits by default. When it does refuse one
//! (EAGAIN), that packet is kept, and there is no room until the kernel has taken it.

mod interface;
mod queues;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;

use thiserror::Error;

use self::interface::Interface;
use self::queues::Queues;
use super::network::{NetworkBackend, Offloads};

/// Queue pairs the kernel's driver has at most (`MAX_TAP_QUEUES`).
pub const TAP_PAIRS_MAX: usize = 256;

/// Which TAP, and how it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TapOptions {
    /// Name of the interface.
    pub name: String,
    /// Queue pairs, from 1 to [`TAP_PAIRS_MAX`].
    pub pairs: usize,
    /// Longest packet without Ethernet header, in bytes; none: as it is (1500 if created).
    pub mtu: Option<u32>,
    /// The bridge it should be a port of; none: as it is.
    pub bridge: Option<String>,
}

/// Where a TAP comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TapOrigin {
    /// Made by this process, gone with it.
    Created,
    /// Made by the administrator, stays.
    Given,
}

/// A TAP could not be had.
#[derive(Debug, Error)]
pub enum OpenTapError {
    /// Not a name of an interface.
    #[error(
        "`{name}` is no name of a network interface: those have 1 to 15 bytes and neither spaces \
         nor any of / : %"
    )]
    Name {
        /// What was given.
        name: String,
    },
    /// Too many or no queue pairs.
    #[error("{pairs} queue pairs are not possible; a TAP has 1 to {TAP_PAIRS_MAX}")]
    Pairs {
        /// What was given.
        pairs: usize,
    },
    /// An MTU out of range.
    #[error("{mtu} is no MTU for the TAP {name}")]
    Mtu {
        /// The interface.
        name: String,
        /// What was given.
        mtu: u32,
    },
    /// The TUN/TAP driver cannot be reached.
    #[error(
        "Cannot open /dev/net/tun: load the module tun, and let the engine's user read and write it"
    )]
    NoDriver(#[source] io::Error),
    /// The interface is something else.
    #[error("The network interface {name} exists and is no TAP; choose another name")]
    NotATap {
        /// The interface.
        name: String,
    },
    /// It was made for one queue pair.
    #[error(
        "The TAP {name} was made for one queue pair, and {pairs} are wanted; make it anew with \
         `ip tuntap add dev {name} mode tap multi_queue`"
    )]
    SingleQueue {
        /// The interface.
        name: String,
        /// How many were wanted.
        pairs: usize,
    },
    /// Another process has it.
    #[error("The TAP {name} is in use by another process (another engine?)")]
    InUse {
        /// The interface.
        name: String,
    },
    /// This process may not create it, or it belongs to somebody else.
    #[error(
        "No permission for the TAP {name}: give the engine CAP_NET_ADMIN, or have an administrator \
         make the TAP for the engine's user with `ip tuntap add dev {name} mode tap user USER`"
    )]
    Permission {
        /// The interface.
        name: String,
    },
    /// This process may not configure it.
    #[error("No permission to configure the TAP {name}; have an administrator do `{command}`")]
    MayNotConfigure {
        /// The interface.
        name: String,
        /// What would do it.
        command: String,
    },
    /// There is no such bridge.
    #[error(
        "There is no bridge {bridge} for the TAP {name}; make it with \
         `ip link add {bridge} type bridge`"
    )]
    NoBridge {
        /// The interface.
        name: String,
        /// The bridge.
        bridge: String,
    },
    /// The bridge is something else.
    #[error("The TAP {name} should be a port of {bridge}, which is no Linux bridge")]
    NotABridge {
        /// The interface.
        name: String,
        /// What should be a bridge.
        bridge: String,
    },
    /// It is a port of another bridge already.
    #[error(
        "The TAP {name} is a port of another bridge than {bridge}; free it with \
         `ip link set dev {name} nomaster`"
    )]
    OtherBridge {
        /// The interface.
        name: String,
        /// The wanted bridge.
        bridge: String,
    },
    /// Another call failed.
    #[error("Cannot set up the TAP {name}: {step} failed")]
    SetUp {
        /// The interface.
        name: String,
        /// What was tried.
        step: &'static str,
        /// Its error.
        #[source]
        source: io::Error,
    },
}

/// An open TAP.
#[derive(Debug)]
pub struct Tap {
    name: String,
    origin: TapOrigin,
    mtu: u32,
    offloads: Offloads,
    queues: Queues,
}

impl Tap {
    /// Creates or takes the TAP, configures it and brings it up, in the network namespace of the
    /// calling thread.
    ///
    /// # Errors
    /// See [`OpenTapError`].
    pub fn open(options: &TapOptions) -> Result<Self, OpenTapError> {
        if !(1..=TAP_PAIRS_MAX).contains(&options.pairs) {
            let pairs = options.pairs;
            return Err(OpenTapError::Pairs { pairs });
        }
        let interface = Interface::new(&options.name)?;
        let (files, origin) = interface.attach(options.pairs)?;
        interface.configure(origin, options)?;
        let step = |step| interface.failed(step);
        let mtu = interface.mtu()?;
        Ok(Self {
            name: options.name.clone(),
            origin,
            mtu,
            offloads: offloads_of(&files).map_err(step("TUNSETOFFLOAD"))?,
            queues: Queues::new(options.name.clone(), files).map_err(step("epoll"))?,
        })
    }

    /// Name of the interface.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it was created here or given.
    #[must_use]
    pub fn origin(&self) -> TapOrigin {
        self.origin
    }

    /// Longest packet without Ethernet header, in bytes, when the TAP was opened.
    #[must_use]
    pub fn mtu(&self) -> u32 {
        self.mtu
    }

    /// Packets of the guest that the kernel did not take.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.queues.lost()
    }
}

/// What the driver offers; afterwards nothing is switched on.
fn offloads_of(files: &[File]) -> io::Result<Offloads> {
    // USO is known since Linux 6.2; the rest is as old as the header.
    let offered = match queues::set_offloads(files, Offloads::ALL) {
        Ok(()) => Offloads::ALL,
        Err(_) => Offloads::ALL.difference(Offloads::USO),
    };
    queues::set_offloads(files, offered)?;
    queues::set_offloads(files, Offloads::NONE)?;
    Ok(offered)
}

impl NetworkBackend for Tap {
    fn offloads(&self) -> Offloads {
        self.offloads
    }

    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        self.queues
            .set_offloads(offloads.intersection(self.offloads))
    }

    fn transmit(&mut self, packet: &[u8]) {
        self.queues.transmit(packet);
    }

    fn has_room(&self) -> bool {
        self.queues.has_room()
    }

    fn room(&self) -> Option<BorrowedFd<'_>> {
        Some(self.queues.room())
    }

    fn receive(&mut self, pair: usize, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        self.queues.receive(pair, buffer)
    }

    fn readable(&self, pair: usize) -> BorrowedFd<'_> {
        self.queues.readable(pair)
    }

    fn pairs(&self) -> usize {
        self.queues.len()
    }
}
