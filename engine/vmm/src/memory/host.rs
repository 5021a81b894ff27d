// SPDX-License-Identifier: Apache-2.0
//! What sysfs and the process limits say about the host's memory, for checks and for messages.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::resource::{Resource, getrlimit};

use super::options::{NumaNode, PoolPage};
use crate::cpuid::CpuidLeaf;

/// The pools of huge pages of the whole host.
const POOLS: &str = "/sys/kernel/mm/hugepages";
/// The NUMA nodes.
const NODES: &str = "/sys/devices/system/node";
/// What a CPU has that does not say (Intel SDM, CPUID leaf 80000008H).
const LEAST_ADDRESS_BITS: u32 = 36;

/// Where the pool for these pages is, of the host or of one node.
pub(super) fn pool_path(page: PoolPage, node: Option<NumaNode>) -> PathBuf {
    let pools = match node {
        Some(node) => Path::new(NODES).join(format!("node{node}/hugepages")),
        None => PathBuf::from(POOLS),
    };
    pools.join(page.directory())
}

/// Pages of the pool that are free and promised to nobody. (A node's pool counts no promises.)
pub(super) fn free_in_pool(pool: &Path) -> u64 {
    let count = |file| read_number(&pool.join(file)).unwrap_or(0);
    count("free_hugepages").saturating_sub(count("resv_hugepages"))
}

/// The kernel's list of nodes with memory, such as `0-1,3`.
pub(super) fn nodes_with_memory() -> String {
    let list = fs::read_to_string(Path::new(NODES).join("has_memory"));
    // A kernel without NUMA has the one node.
    list.map_or_else(|_| "0".to_owned(), |list| list.trim().to_owned())
}

/// Whether a list like `0-1,3` names the node.
pub(super) fn names_node(list: &str, node: NumaNode) -> bool {
    list.split(',').any(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        match (first.trim().parse::<u32>(), last.trim().parse::<u32>()) {
            (Ok(first), Ok(last)) => (first..=last).contains(&node.0),
            _ => false,
        }
    })
}

/// How much this process may lock, in bytes.
pub(super) fn lock_limit() -> u64 {
    getrlimit(Resource::RLIMIT_MEMLOCK).map_or(0, |(soft, _)| soft)
}

/// Physical address bits of the CPU that KVM shows to guests (CPUID 8000_0008H, EAX 7:0; where
/// guests have fewer, EAX 23:16).
pub(crate) fn address_bits(cpuid: &[CpuidLeaf]) -> u32 {
    let leaf = cpuid.iter().find(|leaf| leaf.function == 0x8000_0008);
    let host = leaf.map_or(0, |leaf| leaf.eax & 0xff);
    let guest = leaf.map_or(0, |leaf| leaf.eax >> 16 & 0xff);
    match (host, guest) {
        (0, _) => LEAST_ADDRESS_BITS,
        (host, 0) => host,
        (host, guest) => host.min(guest),
    }
}

fn read_number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_lists_of_the_kernel_are_understood() {
        let named = |list| [0, 1, 2, 3, 4].map(|node| names_node(list, NumaNode(node)));
        assert_eq!(named("0"), [true, false, false, false, false]);
        assert_eq!(named("0-1,3"), [true, true, false, true, false]);
        assert_eq!(named(""), [false; 5]);
        assert_eq!(named("x-,-,9999999999999"), [false; 5]);
    }

    #[test]
    fn the_smaller_of_the_two_widths_counts() {
        let leaf = |eax| CpuidLeaf {
            function: 0x8000_0008,
            index: 0,
            flags: 0,
            eax,
            ebx: 0,
            ecx: 0,
            edx: 0,
        };
        assert_eq!(address_bits(&[]), 36);
        assert_eq!(address_bits(&[leaf(0x3028)]), 40);
        assert_eq!(address_bits(&[leaf(0x30_3034)]), 48);
    }
}
