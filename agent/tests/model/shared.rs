// SPDX-License-Identifier: Apache-2.0
//! Parts of a state that most steps leave alone: copied and digested only when they change.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Deref;
use std::sync::Arc;

/// A value that states have in common until one of them changes it. States are told apart by 64
/// bits of it, as the checker itself does.
#[derive(Debug, Clone)]
pub struct Shared<T> {
    value: Arc<T>,
    /// 0 while it is being changed.
    digest: u64,
}

impl<T: Clone + Hash> Shared<T> {
    pub fn new(value: T) -> Self {
        let mut shared = Self {
            value: Arc::new(value),
            digest: 0,
        };
        shared.seal();
        shared
    }

    /// To change it; [`Self::seal`] must follow before states are compared.
    pub fn change(&mut self) -> &mut T {
        self.digest = 0;
        Arc::make_mut(&mut self.value)
    }

    pub fn seal(&mut self) {
        if self.digest == 0 {
            let mut hasher = DefaultHasher::new();
            self.value.hash(&mut hasher);
            self.digest = hasher.finish().max(1);
        }
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> PartialEq for Shared<T> {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl<T> Eq for Shared<T> {}

impl<T> Hash for Shared<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        assert_ne!(self.digest, 0, "not sealed");
        self.digest.hash(state);
    }
}
