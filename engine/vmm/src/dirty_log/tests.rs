// SPDX-License-Identifier: Apache-2.0
//! Following a guest by harvests alone, on a KVM whose every write is known.

use proptest::prelude::*;

use super::*;
use crate::config::MemorySize;
use crate::dirty::bitmap::Clearing;
use crate::dirty::fake::{FakeKvm, RingFull};
use crate::dirty::{PAGE_SIZE, PageIndex};

const VCPUS: usize = 2;
const PAGES: u64 = 16 << 8;
/// Pages that the initial copy takes at once: not a multiple of 64, nor a divisor of all.
const COPY_PAGES: u64 = 500;

const RING: Method = Method::Ring {
    capability: 192,
    bytes: 0,
};
const METHODS: [Method; 4] = [
    Method::Bitmap(Clearing::Plain),
    Method::Bitmap(Clearing::Manual),
    Method::Bitmap(Clearing::ManualInitiallySet),
    RING,
];

#[derive(Debug, Clone)]
enum Step {
    /// The guest writes.
    Guest(usize, u64),
    /// This program writes.
    Ours(u64),
    /// The initial copy takes its next pages.
    Copy,
    /// An epoch ends; these guest writes come in the middle of the harvest.
    Epoch {
        acknowledged: bool,
        meanwhile: Vec<(usize, u64)>,
    },
    /// Tracking begins anew, and with it the copy; or it is ended and begun.
    Restart { stops: bool },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    // Mostly few pages, so that the same are written again; often those around the copy's first
    // end, which is inside a word.
    let page =
        || prop_oneof![3 => 0..70u64, 3 => 440..520u64, 1 => 0..PAGES, 1 => PAGES - 3..PAGES];
    let guest = || (0..VCPUS, page());
    let meanwhile = proptest::collection::vec(guest(), 0..4);
    let step = prop_oneof![
        40 => guest().prop_map(|(vcpu, page)| Step::Guest(vcpu, page)),
        4 => page().prop_map(Step::Ours),
        4 => Just(Step::Copy),
        6 => (any::<bool>(), meanwhile)
            .prop_map(|(acknowledged, meanwhile)| Step::Epoch { acknowledged, meanwhile }),
        1 => any::<bool>().prop_map(|stops| Step::Restart { stops }),
    ];
    proptest::collection::vec(step, 1..400)
}

/// The guest's memory as version numbers, and the copy of it that follows.
struct World {
    kvm: Arc<FakeKvm>,
    log: DirtyLog,
    arms: bool,
    guest: Vec<u32>,
    follower: Vec<u32>,
    copied: u64,
    rings: Option<Arc<DirtyRings>>,
}

impl World {
    fn new(method: Method, arms: bool) -> Self {
        let ram = GuestRam::new(MemorySize::from_mib(16).unwrap()).unwrap();
        let kvm = FakeKvm::new(method, Slot::of(&ram), VCPUS);
        let log = DirtyLog::with_calls(Arc::clone(&kvm) as _, ram, method);
        let rings = log.rings();
        if let Some(rings) = &rings {
            kvm.rings().into_iter().for_each(|ring| rings.add(ring));
        }
        let memory = || vec![0; usize::try_from(PAGES).unwrap()];
        Self {
            kvm,
            log,
            arms,
            guest: memory(),
            follower: memory(),
            copied: 0,
            rings,
        }
    }

    fn version(&mut self, page: PageIndex) -> &mut u32 {
        &mut self.guest[usize::try_from(page.0).unwrap()]
    }

    fn guest_writes(&mut self, vcpu: usize, page: PageIndex) {
        while self.kvm.write(vcpu, page) == Err(RingFull) {
            self.rings.as_ref().unwrap().relieve().unwrap();
        }
        *self.version(page) += 1;
    }

    fn we_write(&mut self, page: PageIndex) {
        self.log.ram.write_page(page, &[1; PAGE_SIZE]).unwrap();
        *self.version(page) += 1;
    }

    fn copy_some(&mut self) {
        let end = (self.copied + COPY_PAGES).min(PAGES);
        if self.arms {
            self.log.arm(self.copied..end).unwrap();
        }
        self.send((self.copied..end).map(PageIndex));
        self.copied = end;
    }

    fn send(&mut self, pages: impl Iterator<Item = PageIndex>) {
        for page in pages {
            let index = usize::try_from(page.0).unwrap();
            self.follower[index] = self.guest[index];
        }
    }

    /// What the guest writes in the middle of the harvest may be sent or not; if not, it is in the
    /// next one.
    fn epoch(&mut self, acknowledged: bool, meanwhile: &[(usize, u64)]) {
        let writes: Vec<_> = meanwhile
            .iter()
            .map(|(vcpu, page)| (*vcpu, PageIndex(*page)))
            .collect();
        self.kvm.write_before_protecting(&writes);
        let dirty = self.log.harvest().unwrap();
        let written = self.kvm.written_before_protecting();
        for page in &written {
            *self.version(*page) += 1;
        }
        if !acknowledged {
            return self.log.carry(&dirty);
        }
        self.send(dirty.iter());
        if self.copied == PAGES && written.is_empty() {
            assert!(
                self.follower == self.guest,
                "the follower differs after an epoch"
            );
        }
    }

    fn restart(&mut self, stops: bool) {
        if stops {
            self.log.stop().unwrap();
        }
        self.log.start().unwrap();
        self.copied = 0;
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Guest(vcpu, page) => self.guest_writes(*vcpu, PageIndex(*page)),
            Step::Ours(page) => self.we_write(PageIndex(*page)),
            Step::Copy => self.copy_some(),
            Step::Epoch {
                acknowledged,
                meanwhile,
            } => self.epoch(*acknowledged, meanwhile),
            Step::Restart { stops } => self.restart(*stops),
        }
    }

    fn finish(&mut self) {
        while self.copied < PAGES {
            self.copy_some();
        }
        self.epoch(true, &[]);
        assert!(self.follower == self.guest);
    }
}

fn follow(method: Method, arms: bool, steps: &[Step]) {
    let mut world = World::new(method, arms);
    world.log.start().unwrap();
    steps.iter().for_each(|step| world.step(step));
    world.finish();
    // And nothing is dirty any more.
    assert!(world.log.harvest().unwrap().is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is written when, whichever epochs fail, whether pages are armed or not.
    #[test]
    fn no_page_is_ever_lost(steps in steps()) {
        for method in METHODS {
            for arms in [true, false] {
                follow(method, arms, &steps);
            }
        }
    }
}

fn numbers(pages: &DirtyPages) -> Vec<u64> {
    pages.iter().map(|page| page.0).collect()
}

/// A log with its fake, tracking.
fn tracking(method: Method) -> (Arc<FakeKvm>, DirtyLog) {
    let world = World::new(method, true);
    let mut log = world.log;
    log.start().unwrap();
    (world.kvm, log)
}

#[test]
fn a_copy_that_arms_its_pages_is_not_followed_by_all_of_them() {
    for method in METHODS {
        let (kvm, mut log) = tracking(method);
        kvm.write(0, PageIndex(3)).unwrap();
        for start in (0..PAGES).step_by(300) {
            log.arm(start..start + 300).unwrap();
        }
        kvm.write(0, PageIndex(9)).unwrap();
        let dirty = log.harvest().unwrap();
        assert!(dirty.contains(PageIndex(9)), "{method:?}");
        assert!(dirty.len() <= 2, "{method:?}");
    }
}

#[test]
fn pages_that_were_never_armed_are_in_the_first_harvest_only() {
    let (kvm, mut log) = tracking(Method::Bitmap(Clearing::ManualInitiallySet));
    log.arm(0..128).unwrap();
    let first = log.harvest().unwrap();
    let expected: Vec<u64> = (128..PAGES).collect();
    assert_eq!(numbers(&first), expected);
    kvm.write(0, PageIndex(4000)).unwrap();
    assert_eq!(numbers(&log.harvest().unwrap()), [4000]);
}

#[test]
fn a_page_written_between_reading_and_clearing_is_in_the_next_harvest() {
    let (kvm, mut log) = tracking(Method::Bitmap(Clearing::Manual));
    kvm.write(0, PageIndex(1)).unwrap();
    kvm.write_before_protecting(&[(0, PageIndex(2))]);
    assert_eq!(numbers(&log.harvest().unwrap()), [1]);
    assert_eq!(numbers(&log.harvest().unwrap()), [2]);
}

#[test]
fn nothing_armed_again_forgets_what_was_written_since() {
    let (kvm, mut log) = tracking(Method::Bitmap(Clearing::ManualInitiallySet));
    log.arm(0..PAGES).unwrap();
    kvm.write(0, PageIndex(70)).unwrap();
    log.arm(0..PAGES).unwrap();
    log.start().unwrap();
    log.arm(64..128).unwrap();
    assert_eq!(numbers(&log.harvest().unwrap()), [70]);
}

#[test]
fn arming_what_a_harvest_armed_forgets_nothing() {
    let (kvm, mut log) = tracking(Method::Bitmap(Clearing::ManualInitiallySet));
    assert_eq!(log.harvest().unwrap(), DirtyPages::all(PAGES));
    kvm.write(0, PageIndex(70)).unwrap();
    log.arm(0..PAGES).unwrap();
    assert_eq!(numbers(&log.harvest().unwrap()), [70]);
}
