// SPDX-License-Identifier: Apache-2.0
//! Why guest memory could not be made, each with what to do about it.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::options::{NumaNode, PoolPage};
use crate::config::MemorySize;

/// Guest memory could not be made.
#[derive(Debug, Error)]
pub enum MapMemoryError {
    /// The kernel refused the mapping.
    #[error("Cannot map {size} of guest memory; free memory on the host or give the guest less")]
    Map {
        /// The wanted size.
        size: MemorySize,
        /// Why the mapping failed.
        #[source]
        source: vm_memory::mmap::FromRangesError,
    },
    /// The host's CPU cannot address so much.
    #[error(
        "Guest memory of {size} ends beyond the {bits} physical address bits of this host's CPU; \
         give the guest at most {most_mib} MiB"
    )]
    AddressBits {
        /// The wanted size.
        size: MemorySize,
        /// What the CPU has.
        bits: u32,
        /// The largest size that it can address, in MiB.
        most_mib: u64,
    },
    /// The size is no multiple of the huge page.
    #[error(
        "Guest memory of {size} cannot be made of pages of {page}; choose a multiple of {page}, \
         or other pages"
    )]
    NotWholePages {
        /// The wanted size.
        size: MemorySize,
        /// The wanted pages.
        page: PoolPage,
    },
    /// The host knows no such pages.
    #[error(
        "This host has no pages of {page}: {path} is missing; choose other pages",
        path = path.display()
    )]
    NoSuchPages {
        /// The wanted pages.
        page: PoolPage,
        /// Where the pool would be.
        path: PathBuf,
    },
    /// The pool has too few free pages.
    #[error(
        "Guest memory needs {needed} free huge pages of {page}, the host has {free}: raise the \
         number in {path} by {} (early after boot, while memory is in one piece)",
        needed.saturating_sub(*free).max(1),
        path = path.display()
    )]
    PoolTooSmall {
        /// The wanted pages.
        page: PoolPage,
        /// How many this guest needs.
        needed: u64,
        /// How many are free and not promised to others.
        free: u64,
        /// Where their number is set.
        path: PathBuf,
    },
    /// The process may not lock so much.
    #[error(
        "Guest memory of {size} cannot be locked, RLIMIT_MEMLOCK is {limit_kib} KiB: raise it \
         (LimitMEMLOCK=infinity in the systemd unit, `ulimit -l unlimited` in a shell)"
    )]
    LockLimit {
        /// The wanted size.
        size: MemorySize,
        /// The limit, in KiB.
        limit_kib: u64,
    },
    /// The kernel refused to lock it for another reason.
    #[error("Cannot lock {size} of guest memory; free memory on the host or do not lock it")]
    Lock {
        /// The wanted size.
        size: MemorySize,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The host has no such NUMA node, or it has no memory.
    #[error("NUMA node {node} is none of this host's nodes with memory ({present}); name one")]
    NodeAbsent {
        /// The wanted node.
        node: NumaNode,
        /// The kernel's list of nodes that have memory.
        present: String,
    },
    /// The kernel refused to bind memory to a node.
    #[error("Cannot bind guest memory to NUMA node {node}; name another node or none")]
    Bind {
        /// The wanted node.
        node: NumaNode,
        /// Why.
        #[source]
        source: io::Error,
    },
}
