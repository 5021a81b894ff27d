// SPDX-License-Identifier: Apache-2.0
//! Guest memory as it is made on this host, and the messages of what this host cannot do.

use super::*;
use crate::dirty::{DirtyPages, PAGE_SIZE, PageIndex};
use crate::ram::GuestRam;

fn mib(mib: u32) -> MemorySize {
    MemorySize::from_mib(mib).unwrap()
}

fn with(change: impl FnOnce(&mut MemoryOptions)) -> MemoryOptions {
    let mut options = MemoryOptions::default();
    change(&mut options);
    options
}

/// A value of `/proc/self/status`, in KiB.
fn status_kib(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// The flags of the mapping at `address`, as in `/proc/self/smaps`.
fn flags_at(region: &Region) -> String {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let start = format!("{:x}-", region.as_ptr().addr());
    let mapping = smaps.split(&start).nth(1).unwrap();
    let line = mapping
        .lines()
        .find(|line| line.starts_with("VmFlags"))
        .unwrap();
    format!("{line} ")
}

#[test]
fn half_a_tebibyte_takes_only_what_is_touched() {
    let before = status_kib("VmRSS");
    let ram = GuestRam::new(mib(MemorySize::MAX_MIB)).unwrap();
    let last = PageIndex(ram.page_count() - 1);
    ram.write_page(last, &[7; PAGE_SIZE]).unwrap();
    let mut page = [0; PAGE_SIZE];
    ram.read_page(last, &mut page).unwrap();
    assert_eq!(page, [7; PAGE_SIZE]);
    let mut written = DirtyPages::none(ram.page_count());
    ram.take_written(&mut written);
    assert_eq!(written.iter().collect::<Vec<_>>(), [last]);
    // The bitmap has a bit a page, which is 16 MiB, and is read into another one; other tests of
    // this program run beside this one.
    let grown = status_kib("VmRSS").saturating_sub(before);
    assert!(grown < 200 << 10, "{grown} KiB");
}

#[test]
fn memory_is_outside_dumps_and_children_and_wants_huge_pages() {
    let ram = GuestRam::new(mib(64)).unwrap();
    let (_, region) = ram.regions().next().unwrap();
    let flags = flags_at(region);
    for flag in [" dd ", " dc ", " hg "] {
        assert!(flags.contains(flag), "no{flag}in {flags}");
    }
    let small = with(|options| options.huge_pages = HugePages::Off);
    let ram = GuestRam::with_options(mib(64), &small).unwrap();
    let (_, region) = ram.regions().next().unwrap();
    assert!(flags_at(region).contains(" nh "));
}

/// Other threads may map at the same moment, so one of several attempts must do.
#[test]
fn memory_starts_at_a_multiple_of_two_mebibytes() {
    let aligned = |size| {
        let ram = GuestRam::new(mib(size)).unwrap();
        ram.regions().all(|(_, region)| excess(region) == 0)
    };
    for size in [16, 64, 101, 3080] {
        assert!((0..20).any(|_| aligned(size)), "{size} MiB");
    }
}

#[test]
fn untouched_pages_are_those_nobody_wrote() {
    let small = with(|options| options.huge_pages = HugePages::Off);
    let ram = GuestRam::with_options(mib(3080), &small).unwrap();
    assert_eq!(ram.untouched_pages(), DirtyPages::all(ram.page_count()));
    let touched = [0, 5, 64, 3 << 18, ram.page_count() - 1].map(PageIndex);
    for page in touched {
        ram.write_page(page, &[1; PAGE_SIZE]).unwrap();
    }
    let untouched = ram.untouched_pages();
    assert_eq!(untouched.len() as u64, ram.page_count() - 5);
    assert!(touched.iter().all(|page| !untouched.contains(*page)));
}

#[test]
fn a_huge_page_is_touched_as_a_whole_or_not_at_all() {
    let ram = GuestRam::new(mib(64)).unwrap();
    ram.write_page(PageIndex(700), &[1; PAGE_SIZE]).unwrap();
    let untouched = ram.untouched_pages();
    assert!(!untouched.contains(PageIndex(700)));
    assert!(untouched.contains(PageIndex(0)));
    assert!(untouched.contains(PageIndex(1024)));
}

#[test]
fn locked_memory_is_locked_now_or_later() {
    for (lock, at_once) in [(MemoryLock::OnFault, false), (MemoryLock::Now, true)] {
        let options = with(|options| options.lock = lock);
        match GuestRam::with_options(mib(16), &options) {
            Ok(ram) => {
                let (_, region) = ram.regions().next().unwrap();
                assert!(flags_at(region).contains(" lo "));
                assert_eq!(ram.untouched_pages().is_empty(), at_once);
            }
            Err(MapMemoryError::LockLimit { limit_kib, .. }) => {
                eprintln!("SKIPPED: RLIMIT_MEMLOCK is {limit_kib} KiB here");
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_small_lock_limit_is_named() {
    let said = |limit, number| {
        why_not_locked(mib(64), limit, io::Error::from_raw_os_error(number)).to_string()
    };
    assert_eq!(
        said(8 << 20, libc::ENOMEM),
        "Guest memory of 64 MiB cannot be locked, RLIMIT_MEMLOCK is 8192 KiB: raise it \
         (LimitMEMLOCK=infinity in the systemd unit, `ulimit -l unlimited` in a shell)"
    );
    assert!(said(u64::MAX, libc::ENOMEM).starts_with("Cannot lock 64 MiB of guest memory"));
}

#[test]
fn an_absent_node_is_refused_with_those_there_are() {
    let options = with(|options| options.numa = Some(NumaNode(1023)));
    let error = GuestRam::with_options(mib(16), &options).unwrap_err();
    let nodes = host::nodes_with_memory();
    assert_eq!(
        error.to_string(),
        format!("NUMA node 1023 is none of this host's nodes with memory ({nodes}); name one")
    );
}

#[test]
fn memory_can_be_bound_to_a_node() {
    let options = with(|options| options.numa = Some(NumaNode(0)));
    match GuestRam::with_options(mib(16), &options) {
        Ok(ram) => {
            ram.write_page(PageIndex(0), &[1; PAGE_SIZE]).unwrap();
            let (_, region) = ram.regions().next().unwrap();
            let maps = std::fs::read_to_string("/proc/self/numa_maps").unwrap_or_default();
            let start = format!("{:x} bind:0 ", region.as_ptr().addr());
            assert!(maps.is_empty() || maps.contains(&start));
        }
        Err(MapMemoryError::Bind { source, .. }) => {
            eprintln!("SKIPPED: the kernel does not bind memory: {source}");
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn huge_pages_come_out_of_the_pool_or_the_pool_is_named() {
    let options = with(|options| options.huge_pages = HugePages::Explicit2M);
    match GuestRam::with_options(mib(64), &options) {
        Ok(ram) => {
            ram.write_page(PageIndex(0), &[1; PAGE_SIZE]).unwrap();
            assert!(ram.untouched_pages().is_empty());
        }
        Err(error @ MapMemoryError::PoolTooSmall { free, .. }) => {
            assert_eq!(
                error.to_string(),
                format!(
                    "Guest memory needs 32 free huge pages of 2 MiB, the host has {free}: raise \
                     the number in /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages by {} \
                     (early after boot, while memory is in one piece)",
                    32 - free
                )
            );
        }
        Err(MapMemoryError::NoSuchPages { path, .. }) => {
            eprintln!("SKIPPED: {} is missing", path.display());
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_size_that_is_no_multiple_of_the_page_is_refused() {
    let options = with(|options| options.huge_pages = HugePages::Explicit2M);
    let error = GuestRam::with_options(mib(17), &options).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Guest memory of 17 MiB cannot be made of pages of 2 MiB; choose a multiple of 2 MiB, or \
         other pages"
    );
}

#[test]
fn memory_beyond_the_address_bits_is_refused_with_the_most_there_may_be() {
    let most = |bits| (1u32 << (bits - 20)) - 1024;
    for bits in [36, 39] {
        assert!(check_address_bits(mib(most(bits)), bits).is_ok());
        assert_eq!(
            check_address_bits(mib(most(bits) + 1), bits)
                .unwrap_err()
                .to_string(),
            format!(
                "Guest memory of {} MiB ends beyond the {bits} physical address bits of this \
                 host's CPU; give the guest at most {} MiB",
                most(bits) + 1,
                most(bits)
            )
        );
    }
    assert!(check_address_bits(mib(MemorySize::MAX_MIB), 40).is_ok());
    assert!(check_address_bits(mib(16), 64).is_ok());
}
