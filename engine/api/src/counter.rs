// SPDX-License-Identifier: Apache-2.0
//! The two counters every decision and every transaction names.
//!
//! Both only grow. They are different types so that one can never stand for the other.

use std::fmt;

use serde::{Deserialize, Serialize};
use zbus::zvariant::Type;

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize,
            Deserialize, Type,
        )]
        #[serde(transparent)]
        pub struct $name(u64);

        impl $name {
            /// The counter with this value.
            #[must_use]
            pub const fn new(value: u64) -> Self {
                Self(value)
            }

            /// The bare number, for the wire and for logs.
            #[must_use]
            pub const fn get(self) -> u64 {
                self.0
            }

            /// The one after this.
            ///
            /// # Panics
            /// After 2^64 steps, which no cluster lives to see.
            #[must_use]
            pub const fn next(self) -> Self {
                match self.0.checked_add(1) {
                    Some(value) => Self(value),
                    None => panic!("counter exhausted"),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

counter! {
    /// How often the right to run a VM has changed hands. 0: nobody has ever had it.
    Generation
}
counter! {
    /// The guest's execution between two checkpoints; never reused within a [`Generation`].
    Epoch
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_grow_by_one_and_compare() {
        assert_eq!(Generation::new(4).next(), Generation::new(5));
        assert!(Epoch::new(1) < Epoch::new(2));
        assert_eq!(Epoch::new(7).to_string(), "7");
    }

    #[test]
    #[should_panic(expected = "counter exhausted")]
    fn a_counter_never_wraps() {
        let _ = Epoch::new(u64::MAX).next();
    }
}
