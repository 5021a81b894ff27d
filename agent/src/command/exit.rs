// SPDX-License-Identifier: Apache-2.0
//! How `kemarictl` ends, for scripts.

use kemari_api::replica::ConnectError;
use thiserror::Error;

/// The exit statuses; their numbers do not change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done,
    /// Failed.
    Failed,
    /// Wrong usage; clap says so.
    Usage,
    /// The VM is not known, or has no replica on this node.
    NotHere,
    /// The agent or the engine does not answer.
    NoAnswer,
    /// Refused by the agents, the engine or a rule.
    Refused,
    /// Something is not as it should be.
    Found,
}

impl Exit {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Done,
        Self::Failed,
        Self::Usage,
        Self::NotHere,
        Self::NoAnswer,
        Self::Refused,
        Self::Found,
    ];

    /// The number that the shell sees.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotHere => 3,
            Self::NoAnswer => 4,
            Self::Refused => 5,
            Self::Found => 6,
        }
    }
}

/// The short form of the table in the long help.
pub(super) const TABLE: &str = "Exit status:
  0  done                       4  no answer of the agent or the engine
  1  failed                     5  refused
  2  wrong usage                6  something found that is not as it should be
  3  VM not known here";

/// An error that has an exit status of its own.
#[derive(Debug, Error)]
#[error("{text}")]
pub struct Ended {
    exit: Exit,
    text: String,
}

impl Ended {
    /// Ends with this status and these words.
    #[must_use]
    pub fn new(exit: Exit, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { exit, text }
    }

    /// Refused, in the words of whoever refused.
    #[must_use]
    pub fn refused(text: impl Into<String>) -> Self {
        Self::new(Exit::Refused, text)
    }
}

/// The exit status of an error.
#[must_use]
pub fn exit_of(error: &anyhow::Error) -> Exit {
    if let Some(ended) = error.downcast_ref::<Ended>() {
        return ended.exit;
    }
    match error.downcast_ref::<ConnectError>() {
        Some(ConnectError::NotRunning { .. }) => Exit::NotHere,
        Some(ConnectError::Io { .. } | ConnectError::Bus { .. }) => Exit::NoAnswer,
        Some(ConnectError::Permission { .. }) | None => Exit::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn a_status_survives_the_words_around_it() {
        let error: anyhow::Result<()> = Err(Ended::refused("no").into());
        let error = error.context("Cannot hand over").unwrap_err();
        assert_eq!(exit_of(&error), Exit::Refused);
        assert_eq!(exit_of(&anyhow::anyhow!("other")), Exit::Failed);
    }

    #[test]
    fn numbers_are_distinct_and_in_order() {
        for (number, exit) in Exit::ALL.iter().enumerate() {
            assert_eq!(usize::from(exit.number()), number);
        }
    }
}
