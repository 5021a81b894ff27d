// SPDX-License-Identifier: Apache-2.0
//! What a passive replica knows from one session to the next.

use kemari_api::{Epoch, Generation};

use super::checkpoint::Checkpoint;
use super::retained::Retained;
use crate::wire::Held;

/// The knowledge of a passive replica. RAM and machine state themselves lie with the process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Replica {
    generation: Generation,
    held: Option<Held>,
    /// The newest epoch ever committed in this generation, whether it is still held or not.
    newest: Epoch,
    console_position: u64,
    retained: Retained,
}

impl Replica {
    /// A replica that holds nothing and knows of no generation newer than this one.
    #[must_use]
    pub fn new(generation: Generation) -> Self {
        Self {
            generation,
            ..Self::default()
        }
    }

    /// The newest generation it knows of.
    #[must_use]
    pub const fn generation(&self) -> Generation {
        self.generation
    }

    /// The checkpoint it could run from. `None`: it is not promotable.
    #[must_use]
    pub const fn held(&self) -> Option<Held> {
        self.held
    }

    pub(super) const fn newest(&self) -> Epoch {
        self.newest
    }

    /// Position of the console's stream at the end of the checkpoint it holds.
    #[must_use]
    pub const fn console_position(&self) -> u64 {
        self.console_position
    }

    /// The outputs to replay before anything new leaves, if it takes over now.
    #[must_use]
    pub const fn retained(&self) -> &Retained {
        &self.retained
    }

    /// It must never run from what it holds: a newer generation exists, or the pair was dissolved.
    /// The process records that durably first.
    pub fn outdate(&mut self, generation: Generation) {
        self.generation = self.generation.max(generation);
        self.forget();
    }

    /// Follows an active replica of this generation. What was committed in an older generation is
    /// void: outputs that are newer than it may have left since.
    ///
    /// # Panics
    /// When the generation is older than one it knows of.
    pub(super) fn follow(&mut self, generation: Generation) {
        assert!(
            generation >= self.generation,
            "an older generation is never followed"
        );
        if generation > self.generation {
            self.newest = Epoch::default();
        }
        self.generation = generation;
        if self.held.is_some_and(|held| held.generation != generation) {
            self.forget();
        }
    }

    /// RAM is about to be overwritten: there is no checkpoint until the next commit.
    pub(super) fn forget(&mut self) {
        self.held = None;
        self.retained.clear();
    }

    /// This checkpoint is from now on what it would run from.
    pub(super) fn commit(&mut self, checkpoint: &mut Checkpoint) {
        let (epoch, newest) = (checkpoint.epoch, self.newest);
        assert!(epoch > newest, "epoch {epoch} committed after {newest}");
        self.newest = epoch;
        self.held = Some(Held {
            generation: checkpoint.generation,
            epoch: checkpoint.epoch,
        });
        self.console_position = checkpoint.console_position;
        self.retained
            .commit(checkpoint.epoch, std::mem::take(&mut checkpoint.outputs));
        self.retained.delivered(checkpoint.delivered_up_to);
    }

    pub(super) fn delivered(&mut self, up_to: Epoch) {
        self.retained.delivered(up_to);
    }
}
