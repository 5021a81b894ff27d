// SPDX-License-Identifier: Apache-2.0
//! The guest and its machine: a little RAM, registers, dirty tracking.
//!
//! The guest is a program that depends on everything it ever did and on inputs no other run gets
//! (as a clock or a random number generator would give them). So a run that goes on from a
//! checkpoint makes other bytes than the one that was lost, and an output that should not have left
//! is found out by its bytes.

use kemari_replication::output::NetworkPort;
use kemari_replication::page::PageContent;
use kemari_replication::{GuestPages, OutputKind, PAGE_BYTES, PageIndex, RamLayout};
use xxhash_rust::xxh3::xxh3_64;

/// Pages of RAM.
pub const PAGES: usize = 8;
/// Every console write is a record of this length: the output's number, then what the guest felt.
pub const RECORD_BYTES: usize = 16;

/// Two stretches of RAM with a hole between them.
pub fn layout() -> RamLayout {
    RamLayout::new(vec![0..5, 16..19]).expect("ascending ranges")
}

const fn index_of(page: usize) -> PageIndex {
    PageIndex(if page < 5 {
        page as u64
    } else {
        page as u64 + 11
    })
}

fn page_of(index: PageIndex) -> usize {
    let ordinal = layout().ordinal(index).expect("checked by the session");
    usize::try_from(ordinal).expect("below eight")
}

/// A set of pages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PageSet(u32);

impl PageSet {
    pub const ALL: Self = Self((1 << PAGES) - 1);

    pub const fn len(self) -> u32 {
        self.0.count_ones()
    }

    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..PAGES).filter(move |page| self.0 & (1 << page) != 0)
    }

    pub const fn add(&mut self, other: Self) {
        self.0 |= other.0;
    }

    pub const fn remove(&mut self, other: Self) {
        self.0 &= !other.0;
    }

    pub const fn one(page: usize) -> Self {
        Self(1 << page)
    }

    /// Takes the first of them out, at most so many.
    pub fn take_first(&mut self, count: usize) -> Self {
        let mut taken = Self::default();
        for page in self.iter().take(count) {
            taken.add(Self::one(page));
        }
        self.remove(taken);
        taken
    }
}

/// Machine state: everything that is not RAM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Registers {
    /// Which boot of the VM this is.
    pub boot: u64,
    pub steps: u64,
    /// Depends on everything that ever happened to the guest.
    pub mix: u64,
    /// Number of the next output, of whatever kind, since first boot.
    pub next_output: u64,
    /// Console bytes put out since first boot.
    pub console: u64,
    /// The guest has powered itself off.
    pub off: bool,
}

impl Registers {
    pub fn encode(&self) -> Vec<u8> {
        let fields = [
            self.boot,
            self.steps,
            self.mix,
            self.next_output,
            self.console,
            u64::from(self.off),
        ];
        let mut bytes: Vec<_> = fields
            .iter()
            .flat_map(|field| field.to_le_bytes())
            .collect();
        let check = xxh3_64(&bytes);
        bytes.extend_from_slice(&check.to_le_bytes());
        bytes
    }

    /// `None` when the bytes are no state of this machine.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (words, []) = bytes.as_chunks::<8>() else {
            return None;
        };
        let &[boot, steps, mix, next_output, console, off, check] = words else {
            return None;
        };
        if xxh3_64(&bytes[..48]) != u64::from_le_bytes(check) {
            return None;
        }
        Some(Self {
            boot: u64::from_le_bytes(boot),
            steps: u64::from_le_bytes(steps),
            mix: u64::from_le_bytes(mix),
            next_output: u64::from_le_bytes(next_output),
            console: u64::from_le_bytes(console),
            off: u64::from_le_bytes(off) != 0,
        })
    }
}

/// One host's machine. A passive replica's is the shadow RAM.
#[derive(Debug)]
pub struct Machine {
    ram: Vec<[u8; PAGE_BYTES]>,
    hashes: [u64; PAGES],
    stale: PageSet,
    pub registers: Registers,
    /// The vCPU executes.
    pub executes: bool,
    tracking: bool,
    dirty: PageSet,
}

impl Machine {
    pub fn new() -> Self {
        Self {
            ram: vec![[0; PAGE_BYTES]; PAGES],
            hashes: [0; PAGES],
            stale: PageSet::ALL,
            registers: Registers::default(),
            executes: false,
            tracking: false,
            dirty: PageSet::default(),
        }
    }

    /// The guest's next step, with an input nobody can predict. Returns its output, if any.
    pub fn step(&mut self, input: u64) -> Option<(OutputKind, Vec<u8>)> {
        let registers = &mut self.registers;
        registers.steps += 1;
        let step = registers.steps;
        registers.mix = (registers.mix ^ input)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(23)
            .wrapping_add(step);
        let mix = registers.mix;
        let page = usize::try_from(mix >> 8 & 7).expect("below eight");
        let at = usize::try_from(mix >> 16 & 0xff8).expect("within a page");
        // Now and then a page becomes zero again.
        let value = if mix >> 40 & 15 == 0 {
            self.ram[page].fill(0);
            0
        } else {
            mix
        };
        self.ram[page][at..at + 8].copy_from_slice(&value.to_le_bytes());
        self.wrote(PageSet::one(page));
        match mix >> 48 & 15 {
            0..=6 => Some((OutputKind::Console, self.record())),
            7..=9 => {
                let port = NetworkPort::new(u8::from(mix >> 52 & 1 == 1)).expect("one of eight");
                let mut packet = self.record();
                packet.resize(
                    RECORD_BYTES + usize::try_from(mix >> 56 & 31).expect("small"),
                    7,
                );
                Some((OutputKind::Network(port), packet))
            }
            _ => None,
        }
        .inspect(|(kind, bytes)| {
            self.registers.next_output += 1;
            if *kind == OutputKind::Console {
                self.registers.console += bytes.len() as u64;
            }
        })
    }

    fn record(&self) -> Vec<u8> {
        let Registers {
            next_output, mix, ..
        } = self.registers;
        [next_output.to_le_bytes(), mix.to_le_bytes()].concat()
    }

    fn wrote(&mut self, pages: PageSet) {
        self.stale.add(pages);
        if self.tracking {
            self.dirty.add(pages);
        }
    }

    /// Everything counts as written until it is armed for the first time.
    pub fn start_dirty_tracking(&mut self) {
        self.tracking = true;
        self.dirty = PageSet::ALL;
    }

    pub fn stop_dirty_tracking(&mut self) {
        self.tracking = false;
        self.dirty = PageSet::default();
    }

    /// Only what is written to these pages from now on counts.
    pub const fn arm_dirty_tracking(&mut self, pages: PageSet) {
        self.dirty.remove(pages);
    }

    pub fn harvest_dirty(&mut self) -> PageSet {
        std::mem::take(&mut self.dirty)
    }

    pub const fn mark_dirty(&mut self, pages: PageSet) {
        self.dirty.add(pages);
    }

    /// Copies of these pages.
    pub fn read(&self, pages: PageSet) -> Vec<(PageIndex, [u8; PAGE_BYTES])> {
        pages
            .iter()
            .map(|page| (index_of(page), self.ram[page]))
            .collect()
    }

    /// Writes a page that came from the other replica.
    pub fn merge(&mut self, index: PageIndex, content: PageContent<'_>) {
        let page = page_of(index);
        self.ram[page] = *content.bytes();
        self.wrote(PageSet::one(page));
    }

    /// A number for the whole machine with these registers.
    pub fn hash(&mut self, registers: &Registers) -> u64 {
        for page in std::mem::take(&mut self.stale).iter() {
            self.hashes[page] = xxh3_64(&self.ram[page]);
        }
        let mut bytes = registers.encode();
        for hash in self.hashes {
            bytes.extend_from_slice(&hash.to_le_bytes());
        }
        xxh3_64(&bytes)
    }
}

impl GuestPages for Machine {
    fn read(&self, index: PageIndex, page: &mut [u8; PAGE_BYTES]) -> bool {
        page.copy_from_slice(&self.ram[page_of(index)]);
        true
    }
}
