// SPDX-License-Identifier: Apache-2.0
//! The outside, and the two rules as it sees them.
//!
//! What a guest has put out so far is its whole history: output n carries n and the generation
//! under which it was made, so histories that went apart differ from there on. A restart from an
//! older state than what has left, or two replicas that run, show as two different outputs n.

use kemari_api::Generation;

/// A guest's state: what it has put out, by the generation in which it did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Guest {
    /// The generation in which it was booted from nothing.
    pub boot: u8,
    pub made: Vec<u8>,
}

/// Says that a state is none.
const UNDECODABLE: u8 = 0xff;

impl Guest {
    pub fn encode(&self, decodes: bool) -> Vec<u8> {
        let mut bytes = vec![if decodes { self.boot } else { UNDECODABLE }];
        bytes.extend_from_slice(&self.made);
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (&boot, made) = bytes.split_first()?;
        (boot != UNDECODABLE).then(|| Self {
            boot,
            made: made.to_vec(),
        })
    }

    /// Goes on by one output, whose bytes are returned.
    pub fn step(&mut self, generation: Generation) -> [u8; 2] {
        let number = u8::try_from(self.made.len()).expect("short histories");
        self.made.push(short(generation));
        [number, short(generation)]
    }

    fn continues(&self, seen: &Self) -> bool {
        self.boot > seen.boot || self.boot == seen.boot && self.made.starts_with(&seen.made)
    }
}

/// Generations of the model are small.
pub fn short(generation: Generation) -> u8 {
    u8::try_from(generation.get()).expect("few generations")
}

/// How a rule was broken.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Violation {
    /// Rule 1: it left although no passive replica had decoded a state that made it.
    NotHeld { node: usize, number: u8 },
    /// Rule 2: another output of this number has left before.
    Contradicts { node: usize, number: u8 },
    /// An output that came before was never seen.
    Gap { node: usize, number: u8 },
    /// Rule 2: something new came from a generation that is over.
    Stale { node: usize, generation: u8 },
    /// Rule 2: it runs from a state older than what has left.
    GoesBack { node: usize },
    /// Rule 2: the right was given twice, or an older one after a newer one.
    GivenTwice { node: usize, generation: u8 },
    /// Rule 2: two replicas let everything out.
    TwoSolo,
    /// A shipped assertion failed.
    Panicked(String),
}

/// What has happened that the checker wants to see at least once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Seen {
    pub failover: bool,
    pub solo: bool,
    pub outdated: bool,
    pub repeated: bool,
    pub rejoined: bool,
}

/// The outside.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Outside {
    /// All that has left since the last boot.
    pub seen: Guest,
    /// The newest generation that let something new out.
    newest: u8,
    /// The newest right given.
    given: u8,
    /// The furthest a passive replica has certainly decoded.
    pub decoded: Guest,
    pub violation: Option<Violation>,
    pub happened: Seen,
}

impl Outside {
    pub fn report(&mut self, violation: Violation) {
        self.violation.get_or_insert(violation);
    }

    /// The right to let everything out was given.
    pub fn given(&mut self, node: usize, generation: Generation) {
        let generation = short(generation);
        if generation <= self.given {
            self.report(Violation::GivenTwice { node, generation });
        }
        self.given = self.given.max(generation);
    }

    /// A replica begins to run from this state.
    pub fn runs_from(&mut self, node: usize, guest: &Guest) {
        if !guest.continues(&self.seen) {
            self.report(Violation::GoesBack { node });
        }
        self.happened.failover |= !guest.made.is_empty();
    }

    /// The guest boots from nothing: its clients see a reboot.
    pub fn reboots(&mut self, generation: Generation) {
        self.seen = Guest {
            boot: short(generation),
            made: Vec::new(),
        };
        self.decoded = self.seen.clone();
    }

    /// A passive replica could run from this.
    pub fn holds(&mut self, guest: &Guest) {
        if guest.continues(&self.decoded) {
            self.decoded = guest.clone();
        }
    }

    /// An output has left, under a paired licence or solo.
    pub fn takes(
        &mut self,
        node: usize,
        generation: Generation,
        boot: u8,
        bytes: &[u8],
        solo: bool,
    ) {
        let &[number, made] = bytes else {
            panic!("an output of this model has two bytes");
        };
        let (place, generation) = (usize::from(number), short(generation));
        if boot != self.seen.boot {
            return self.report(Violation::Stale { node, generation });
        }
        if let Some(&before) = self.seen.made.get(place) {
            self.happened.repeated = true;
            if before != made {
                self.report(Violation::Contradicts { node, number });
            }
            return;
        }
        if place > self.seen.made.len() {
            self.report(Violation::Gap { node, number });
        }
        if generation < self.newest {
            self.report(Violation::Stale { node, generation });
        }
        if !solo && self.decoded.made.get(place) != Some(&made) {
            self.report(Violation::NotHeld { node, number });
        }
        self.newest = generation;
        self.seen.made.push(made);
    }
}
