// SPDX-License-Identifier: Apache-2.0
//! Making guest memory: the mapping, and what the kernel is told about it.
//!
//! Memory is anonymous, private and sparse: making a machine of 512 GiB touches no page of it, and
//! what the guest never touches takes nothing. With [explicit huge pages](HugePages::Explicit2M) the
//! pool's pages are reserved at once, so that the guest cannot run out of them later; otherwise
//! memory is promised and not reserved (`MAP_NORESERVE`).
//!
//! What goes wrong here goes wrong when the machine is made, with the remedy in the message, never as
//! a signal later.

mod error;
mod host;
mod options;
mod placement;
mod untouched;
mod written;

use std::io;

use vm_memory::bitmap::Bitmap;
use vm_memory::mmap::{FromRangesError, MmapRegion, MmapRegionBuilder, MmapRegionError};
use vm_memory::{GuestAddress, GuestRegionMmap};

use crate::config::MemorySize;
use crate::ram::{HIGH_START, LOW_END, Mapping, ram_ranges};
pub use error::MapMemoryError;
pub(crate) use host::address_bits;
pub use options::{HugePages, MemoryLock, MemoryOptions, NumaNode, PoolPage};
use placement::{Advice, LockWhen};

pub(crate) use written::WrittenPages;

/// A mapped part of guest memory.
type Region = MmapRegion<WrittenPages>;

/// What huge pages of x86-64 begin at a multiple of.
const ALIGNMENT: usize = 2 << 20;

/// Refuses memory that ends beyond `bits` physical address bits.
pub(crate) fn check_address_bits(size: MemorySize, bits: u32) -> Result<(), MapMemoryError> {
    let end = 1u64.checked_shl(bits).unwrap_or(u64::MAX);
    let reached = ram_ranges(size)
        .last()
        .map_or(0, |(start, length)| start + length);
    if reached <= end {
        return Ok(());
    }
    let most = end.min(LOW_END) + end.saturating_sub(HIGH_START);
    Err(MapMemoryError::AddressBits {
        size,
        bits,
        most_mib: most >> 20,
    })
}

/// Maps zeroed guest memory.
pub(crate) fn map(size: MemorySize, options: &MemoryOptions) -> Result<Mapping, MapMemoryError> {
    check_node(options)?;
    check_pool(size, options)?;
    let regions = map_regions(size, options).map_err(|why| match why {
        Failed::Pool(page) => pool_too_small(size, page, options.numa),
        Failed::Other(error) => error,
    })?;
    Mapping::from_regions(regions).map_err(|source| MapMemoryError::Map {
        size,
        source: source.into(),
    })
}

/// Why a region could not be made. What is missing in a pool is counted when all regions of this
/// memory are gone again.
enum Failed {
    Pool(PoolPage),
    Other(MapMemoryError),
}

fn map_regions(
    size: MemorySize,
    options: &MemoryOptions,
) -> Result<Vec<GuestRegionMmap<WrittenPages>>, Failed> {
    let mut regions = Vec::new();
    for (start, length) in ram_ranges(size) {
        let region = map_region(size, length, options)?;
        place(size, &region, options)?;
        let region = GuestRegionMmap::new(region, GuestAddress(start))
            .ok_or(FromRangesError::InvalidGuestRegion)
            .map_err(|source| Failed::Other(MapMemoryError::Map { size, source }))?;
        regions.push(region);
    }
    Ok(regions)
}

/// One bit per page of `region`, set where it was never touched and so holds zeros. No bit at all
/// where that cannot be known.
pub(crate) fn untouched_pages(region: &Region) -> Vec<u64> {
    if region.is_hugetlbfs() == Some(true) {
        return Vec::new();
    }
    untouched::untouched_pages(region).unwrap_or_else(|error| {
        tracing::debug!(%error, "cannot read /proc/self/pagemap; all memory counts as touched");
        Vec::new()
    })
}

fn check_node(options: &MemoryOptions) -> Result<(), MapMemoryError> {
    let Some(node) = options.numa else {
        return Ok(());
    };
    let present = host::nodes_with_memory();
    if host::names_node(&present, node) {
        return Ok(());
    }
    Err(MapMemoryError::NodeAbsent { node, present })
}

fn check_pool(size: MemorySize, options: &MemoryOptions) -> Result<(), MapMemoryError> {
    let Some(page) = options.huge_pages.pool() else {
        return Ok(());
    };
    let path = host::pool_path(page, None);
    if !path.is_dir() {
        return Err(MapMemoryError::NoSuchPages { page, path });
    }
    if !size.mib().is_multiple_of(page.mib()) {
        return Err(MapMemoryError::NotWholePages { size, page });
    }
    Ok(())
}

fn map_region(size: MemorySize, length: u64, options: &MemoryOptions) -> Result<Region, Failed> {
    let bytes = usize::try_from(length).expect("64-bit only");
    let pool = options.huge_pages.pool();
    let mapped = match pool {
        Some(page) => map_bytes(bytes, page.map_flags()),
        None => map_aligned(bytes),
    };
    mapped.map_err(|source| match (pool, &source) {
        (Some(page), MmapRegionError::Mmap(error))
            if error.raw_os_error() == Some(libc::ENOMEM) =>
        {
            Failed::Pool(page)
        }
        _ => Failed::Other(MapMemoryError::Map {
            size,
            source: source.into(),
        }),
    })
}

/// Maps at a multiple of 2 MiB where that can be had: KVM maps huge pages only where guest and host
/// address have the same offset in them, and the kernel aligns some mappings only (none before
/// Linux 6.7). It hands out addresses downwards, so what is too high is pushed down by a filler
/// above it, large enough not to fit into a smaller gap elsewhere.
fn map_aligned(bytes: usize) -> Result<Region, MmapRegionError> {
    /// Other threads map, too.
    const ATTEMPTS: usize = 4;
    let mut fillers = Vec::new();
    for _ in 0..ATTEMPTS {
        let excess = excess(&reserve(bytes)?);
        if excess == 0 {
            break;
        }
        let Ok(filler) = reserve(bytes.next_multiple_of(ALIGNMENT) + excess) else {
            break;
        };
        fillers.push(filler);
    }
    let region = map_bytes(bytes, libc::MAP_NORESERVE)?;
    if excess(&region) != 0 {
        tracing::debug!("guest memory is not aligned to 2 MiB; KVM will use small pages");
    }
    Ok(region)
}

/// Addresses without memory.
fn reserve(bytes: usize) -> Result<MmapRegion<()>, MmapRegionError> {
    let flags = libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | libc::MAP_NORESERVE;
    MmapRegion::build(None, bytes, libc::PROT_NONE, flags)
}

/// How far the region is above a multiple of 2 MiB.
fn excess<B: Bitmap>(region: &MmapRegion<B>) -> usize {
    region.as_ptr().addr() % ALIGNMENT
}

fn map_bytes(bytes: usize, flags: i32) -> Result<Region, MmapRegionError> {
    MmapRegionBuilder::new_with_bitmap(bytes, WrittenPages::none(bytes))
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | flags)
        .with_hugetlbfs(flags & libc::MAP_HUGETLB != 0)
        .build()
}

/// Tells the kernel what the options say about a region, before anybody touches it.
fn place(size: MemorySize, region: &Region, options: &MemoryOptions) -> Result<(), Failed> {
    advise_if_possible(region, Advice::OutsideDumps);
    advise_if_possible(region, Advice::OutsideChildren);
    if let Some(node) = options.numa {
        placement::bind(region, node)
            .map_err(|source| Failed::Other(MapMemoryError::Bind { node, source }))?;
    }
    match options.huge_pages {
        HugePages::Transparent => advise_if_possible(region, Advice::HugePages),
        HugePages::Off => advise_if_possible(region, Advice::SmallPages),
        HugePages::Explicit2M => return take_from_pool(region, PoolPage::Of2M, options),
        HugePages::Explicit1G => return take_from_pool(region, PoolPage::Of1G, options),
    }
    let when = match options.lock {
        MemoryLock::Unlocked => return Ok(()),
        MemoryLock::OnFault => LockWhen::OnFault,
        MemoryLock::Now => LockWhen::Now,
    };
    placement::lock(region, when)
        .map_err(|error| Failed::Other(why_not_locked(size, host::lock_limit(), error)))
}

/// A kernel without the feature (`EINVAL`) has nothing to be told.
fn advise_if_possible(region: &Region, advice: Advice) {
    if let Err(error) = placement::advise(region, advice) {
        tracing::debug!(%error, ?advice, "the kernel takes no such advice");
    }
}

/// Pages of a pool are never swapped, so there is nothing to lock. But the kernel reserved them in
/// the host's pool, not in that of a node: bound to a node they are taken now, since a later
/// shortage would be a signal that ends the machine.
fn take_from_pool(region: &Region, page: PoolPage, options: &MemoryOptions) -> Result<(), Failed> {
    if options.numa.is_none() && options.lock != MemoryLock::Now {
        return Ok(());
    }
    placement::advise(region, Advice::Populate).map_err(|_| Failed::Pool(page))
}

fn pool_too_small(size: MemorySize, page: PoolPage, node: Option<NumaNode>) -> MapMemoryError {
    let pool = host::pool_path(page, node);
    MapMemoryError::PoolTooSmall {
        page,
        needed: u64::from(size.mib().div_ceil(page.mib())),
        free: host::free_in_pool(&pool),
        path: pool.join("nr_hugepages"),
    }
}

fn why_not_locked(size: MemorySize, limit: u64, error: io::Error) -> MapMemoryError {
    let by_limit = matches!(
        error.raw_os_error(),
        Some(libc::ENOMEM | libc::EPERM | libc::EAGAIN)
    );
    if by_limit && limit < size.bytes() {
        return MapMemoryError::LockLimit {
            size,
            limit_kib: limit >> 10,
        };
    }
    MapMemoryError::Lock {
        size,
        source: error,
    }
}

#[cfg(test)]
mod tests;
