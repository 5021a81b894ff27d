// SPDX-License-Identifier: Apache-2.0
//! The role Pacemaker assigned last, remembered for `monitor`.
//!
//! The agents promote a replica before Pacemaker has computed anything. Until Pacemaker calls
//! `promote`, `monitor` must report the role Pacemaker knows, or it would take the promotion for an
//! error. The note lies under /run: after a reboot nothing is assigned. The agent reads it, too: what Pacemaker
//! has started it leaves alone.

use std::fmt;
use std::fs;
use std::io::{self, ErrorKind};

use crate::note::{remove, replace};
use crate::{VmName, place};

/// The role Pacemaker assigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Assigned {
    /// Started or demoted.
    Unpromoted,
    /// Promoted.
    Promoted,
    /// Started, as a plain primitive: it has no other role.
    Started,
}

impl fmt::Display for Assigned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unpromoted => "Unpromoted",
            Self::Promoted => "Promoted",
            Self::Started => "Started",
        })
    }
}

impl Assigned {
    /// What was remembered. Anything but these words counts as nothing.
    ///
    /// # Errors
    /// What the file system said; a missing file is none.
    pub fn recall(vm: &VmName) -> io::Result<Option<Self>> {
        match fs::read_to_string(place::assigned_role(vm)) {
            Ok(text) => Ok(Self::named(text.trim())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Remembers this role.
    ///
    /// # Errors
    /// What the file system said.
    pub fn remember(self, vm: &VmName) -> io::Result<()> {
        replace(&place::assigned_role(vm), &format!("{self}\n"))
    }

    /// Forgets any role.
    ///
    /// # Errors
    /// What the file system said; a missing file is none.
    pub fn forget(vm: &VmName) -> io::Result<()> {
        remove(&place::assigned_role(vm))
    }

    /// Whether the replica here is Pacemaker's to run: it started or promoted it, and did not stop it since.
    #[must_use]
    pub const fn is_to_run(self) -> bool {
        matches!(self, Self::Promoted | Self::Started)
    }

    fn named(text: &str) -> Option<Self> {
        [Self::Unpromoted, Self::Promoted, Self::Started]
            .into_iter()
            .find(|role| role.to_string() == text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_read_back_and_no_others() {
        for role in [Assigned::Unpromoted, Assigned::Promoted, Assigned::Started] {
            assert_eq!(Assigned::named(&role.to_string()), Some(role));
        }
        assert_eq!(Assigned::named("promoted"), None);
        assert_eq!(Assigned::named(""), None);
    }
}
