// SPDX-License-Identifier: Apache-2.0
//! Rings that behave, and rings that do not.

use super::*;
use crate::dirty::calls::Logging;
use crate::dirty::fake::{FakeKvm, RING_SIZE, RingFull};
use crate::dirty::tracking::Method;

const PAGES: u64 = 4096;
const RING: Method = Method::Ring {
    capability: 192,
    bytes: 0,
};

fn slots() -> Vec<Slot> {
    let slot = |number, first| Slot {
        number,
        first: PageIndex(first),
        pages: PAGES / 2,
    };
    vec![slot(0, 0), slot(1, PAGES / 2)]
}

fn tracked(vcpus: usize) -> (Arc<FakeKvm>, DirtyRings) {
    let kvm = FakeKvm::new(RING, slots(), vcpus);
    for slot in slots() {
        kvm.set_slot(&slot, Logging::On).unwrap();
    }
    let calls: Arc<dyn KvmCalls> = Arc::clone(&kvm) as _;
    let rings = DirtyRings::new(calls, slots(), PAGES);
    kvm.rings().into_iter().for_each(|ring| rings.add(ring));
    (kvm, rings)
}

fn harvest(rings: &DirtyRings) -> Vec<u64> {
    let mut pages = DirtyPages::none(PAGES);
    rings.harvest(&mut pages).unwrap();
    pages.iter().map(|page| page.0).collect()
}

fn everything() -> Vec<u64> {
    (0..PAGES).collect()
}

#[test]
fn pages_of_all_vcpus_and_slots_are_harvested_once() {
    let (kvm, rings) = tracked(3);
    for (vcpu, page) in [(0, 5), (1, 2047), (2, 2048), (0, 5), (1, 5)] {
        kvm.write(vcpu, PageIndex(page)).unwrap();
    }
    assert_eq!(harvest(&rings), [5, 2047, 2048]);
    assert!(harvest(&rings).is_empty());
    kvm.write(1, PageIndex(5)).unwrap();
    assert_eq!(harvest(&rings), [5]);
}

#[test]
fn a_full_ring_is_emptied_by_its_vcpu_and_nothing_is_lost() {
    let (kvm, rings) = tracked(2);
    let mut reliefs = 0;
    for page in (0..PAGES).map(PageIndex) {
        while kvm.write(0, page) == Err(RingFull) {
            rings.relieve().unwrap();
            reliefs += 1;
        }
    }
    assert!(reliefs > 10);
    assert_eq!(harvest(&rings), everything());
    assert!(harvest(&rings).is_empty());
}

#[test]
fn a_vcpu_whose_ring_another_thread_emptied_just_goes_on() {
    let (kvm, rings) = tracked(1);
    for round in 0..10 {
        while kvm.write(0, PageIndex(round * 64)).is_ok() {
            for page in 0..64 {
                let _ = kvm.write(0, PageIndex(round * 64 + page));
            }
        }
        assert!(!harvest(&rings).is_empty());
        rings.relieve().unwrap();
    }
    assert!(harvest(&rings).is_empty());
}

#[test]
fn a_reset_cut_short_by_a_signal_is_continued() {
    let (kvm, rings) = tracked(1);
    for after in [0, 1, 7] {
        for page in 0..20 {
            kvm.write(0, PageIndex(page)).unwrap();
        }
        kvm.interrupt_next_reset(after);
        assert_eq!(harvest(&rings).len(), 20);
        assert!(harvest(&rings).is_empty());
    }
}

#[test]
fn what_is_discarded_is_not_harvested() {
    let (kvm, rings) = tracked(1);
    kvm.write(0, PageIndex(1)).unwrap();
    rings.discard().unwrap();
    kvm.write(0, PageIndex(2)).unwrap();
    assert_eq!(harvest(&rings), [2]);
}

/// From an anomaly on every harvest is everything.
fn assert_distrusted(rings: &DirtyRings, anomaly: Anomaly) {
    assert_eq!(harvest(rings), everything());
    assert_eq!(harvest(rings), everything());
    assert_eq!(rings.lock().anomaly, Some(anomaly));
}

#[test]
fn an_entry_beyond_its_slot_makes_every_page_dirty_for_good() {
    for (slot, offset) in [(0, PAGES / 2), (1, u64::MAX), (2, 0), (1 << 16, 0)] {
        let (kvm, rings) = tracked(1);
        kvm.push(0, slot, offset);
        assert_distrusted(&rings, Anomaly::NoSuchPage { slot, offset });
    }
}

#[test]
fn an_overrun_makes_every_page_dirty_for_good() {
    let (kvm, rings) = tracked(1);
    // KVM refuses the reset, so that taken entries stay; then it writes over them.
    for offset in 0..RING_SIZE as u64 {
        kvm.push(0, 0, offset);
    }
    kvm.refuse_resets(true);
    assert!(rings.harvest(&mut DirtyPages::none(PAGES)).is_err());
    kvm.push(0, 0, 1);
    kvm.refuse_resets(false);
    assert_eq!(harvest(&rings), everything());
    assert_eq!(rings.lock().anomaly, Some(Anomaly::Overrun));
}

#[test]
fn pages_of_a_harvest_whose_reset_was_refused_come_with_the_next() {
    let (kvm, rings) = tracked(1);
    kvm.write(0, PageIndex(7)).unwrap();
    kvm.refuse_resets(true);
    let mut pages = DirtyPages::none(PAGES);
    assert!(rings.harvest(&mut pages).is_err());
    kvm.refuse_resets(false);
    kvm.write(0, PageIndex(9)).unwrap();
    pages.union(
        &harvest(&rings)
            .into_iter()
            .fold(DirtyPages::none(PAGES), |mut set, page| {
                set.insert(PageIndex(page));
                set
            }),
    );
    assert_eq!(pages.iter().map(|page| page.0).collect::<Vec<_>>(), [7, 9]);
    assert_eq!(rings.lock().anomaly, None);
}

#[test]
fn entries_that_are_never_reset_make_every_page_dirty_for_good() {
    let (kvm, rings) = tracked(1);
    kvm.write(0, PageIndex(7)).unwrap();
    kvm.lose_resets(1);
    assert_distrusted(&rings, Anomaly::ResetTooFew { rest: 1 });
}

#[test]
fn entries_reset_that_nobody_took_make_every_page_dirty_for_good() {
    let (kvm, rings) = tracked(1);
    kvm.write(0, PageIndex(7)).unwrap();
    kvm.lose_resets(-1);
    assert_distrusted(&rings, Anomaly::ResetTooMany { more: 1 });
}

#[test]
fn a_ring_that_is_full_and_empty_ends_the_vcpu_instead_of_looping() {
    let (_kvm, rings) = tracked(1);
    for _ in 1..IDLE_RELIEFS_MAX {
        rings.relieve().unwrap();
    }
    assert!(matches!(rings.relieve(), Err(ReliefError::Stuck)));
    assert_distrusted(&rings, Anomaly::Stuck);
}

#[test]
fn a_page_written_down_again_and_again_without_protection_is_an_anomaly() {
    let (_kvm, rings) = tracked(1);
    let mut inner = rings.lock();
    let entry = |offset| Entry { slot: 0, offset };
    // Each page as often as is still legal.
    for offset in 0..256 {
        for _ in 0..REPEATS_MAX {
            inner.note(&slots(), entry(offset));
        }
    }
    inner.finish_collection(256 * REPEATS_MAX);
    assert_eq!(inner.anomaly, None);
    // A page that KVM itself writes often, but few entries.
    inner.note(&slots(), entry(3));
    inner.finish_collection(REPEATS_COUNT_FROM - 1);
    assert_eq!(inner.anomaly, None);
    inner.note(&slots(), entry(3));
    inner.finish_collection(REPEATS_COUNT_FROM);
    let entries = REPEATS_COUNT_FROM;
    assert_eq!(inner.anomaly, Some(Anomaly::Repeats { entries, pages: 1 }));
}
