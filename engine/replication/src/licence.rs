// SPDX-License-Identifier: Apache-2.0
//! The licence of an active replica: whether outputs may leave, and which.
//!
//! | state | Hold | PairedRecorded | CommitSent | Committed | SessionLost | Rejoin | SoloGranted(g′) |
//! | --- | --- | --- | --- | --- | --- | --- | --- |
//! | None | | | | | | | Solo(g′) |
//! | Solo | Joining(Holding) | | | | Solo | | Solo(g′) |
//! | Joining(Holding) | | Joining(Recorded) | | | Reverting | | |
//! | Joining(Recorded) | | | Joining(Offered) | | Reverting | | |
//! | Joining(Offered) | | | Joining(Offered) | Paired | Cut | | |
//! | Reverting | | | | | Reverting | | Solo(g′), or the same g, once written |
//! | Paired | | | Paired | Paired | Cut | | |
//! | Cut | | | | | Cut | Rejoining | Solo(g′) |
//! | Rejoining | | | Rejoining | Paired | Cut | | |
//!
//! Paired goes to HandedOver. Every state but None and HandedOver goes to Outdated when a newer
//! generation is learned. Empty cells are errors. g′ is always greater than the generation held.
//!
//! **Why joining has three steps.** `paired` must be on disk before the passive side can become
//! promotable, that is before the first Commit is sent: otherwise this replica could be started
//! again from its record `solo` while the other runs. Until that Commit is sent the passive side
//! cannot have committed anything, so a failed join may go back to solo, after `solo` was written
//! again. Once it was sent, nobody but the passive side knows whether it arrived.
//!
//! The events `PairedRecorded` and `SoloGranted` are given **after** the record was written
//! durably; this machine cannot check that.

use kemari_api::{Generation, Licence as Shown};
use thiserror::Error;

/// How far joining has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Joining {
    /// Outputs are held; the disk still says `solo`.
    Holding,
    /// The disk says `paired`; no Commit was sent.
    Recorded,
    /// A Commit was sent; the passive side may be promotable.
    Offered,
}

/// What an active replica is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Licence {
    /// Nothing: it is not active.
    None,
    /// No passive replica: outputs leave at once.
    Solo {
        /// Its generation.
        generation: Generation,
    },
    /// Outputs are held until the first commit of a new pair.
    Joining {
        /// Its generation.
        generation: Generation,
        /// How far it has come.
        stage: Joining,
    },
    /// A join failed before anything could be committed: outputs are held until `solo` is on disk
    /// again.
    Reverting {
        /// Its generation.
        generation: Generation,
    },
    /// Committed outputs leave.
    Paired {
        /// Its generation.
        generation: Generation,
    },
    /// Paired, but the passive side is out of reach: nothing leaves.
    Cut {
        /// Its generation.
        generation: Generation,
    },
    /// Cut, and connected again: nothing leaves until the next commit.
    Rejoining {
        /// Its generation.
        generation: Generation,
    },
    /// The right to run was given away in good order.
    HandedOver {
        /// The generation that was given away.
        generation: Generation,
    },
    /// A newer generation exists: it must never run again before a full resync.
    Outdated {
        /// The newer generation.
        generation: Generation,
    },
}

/// What happens to a licence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LicenceEvent {
    /// A solo licence was granted and written durably. The generation is new; only at the end of
    /// [`Licence::Reverting`] it may be the one held.
    SoloGranted {
        /// Its generation.
        generation: Generation,
    },
    /// The first checkpoint of a new pair is about to be captured: hold outputs from here on.
    Hold,
    /// `paired` was written durably.
    PairedRecorded,
    /// The bytes of a Commit are about to be sent.
    CommitSent,
    /// The passive side acknowledged an epoch.
    Committed,
    /// The connection is gone.
    SessionLost,
    /// A new session of the same generation was welcomed.
    Rejoin,
    /// The passive side was told to run on; this replica never will.
    HandedOver,
    /// Somebody spoke of this generation.
    Learned {
        /// It.
        generation: Generation,
    },
}

/// Which outputs may leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Permission {
    /// All.
    All,
    /// Those of committed epochs.
    Committed,
    /// None.
    Nothing,
}

/// An event that does not fit the state. The state is unchanged; nothing was permitted by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("Licence {state:?} does not allow {event:?}")]
pub struct LicenceError {
    /// The state.
    pub state: Licence,
    /// The event.
    pub event: LicenceEvent,
}

impl Licence {
    /// The state after `event`.
    ///
    /// # Errors
    /// When the event does not fit the state; see the table above.
    pub fn after(self, event: LicenceEvent) -> Result<Self, LicenceError> {
        use Joining::{Holding, Offered, Recorded};
        use LicenceEvent as On;

        if let On::Learned { generation } = event {
            let known = self.generation();
            let newer = known.is_some_and(|known| generation > known);
            let gone = matches!(self, Self::HandedOver { .. });
            return Ok(if newer && !gone {
                Self::Outdated { generation }
            } else {
                self
            });
        }
        Ok(match (self, event) {
            (Self::None, On::SoloGranted { generation }) => Self::Solo { generation },
            (
                Self::Solo { generation: old } | Self::Cut { generation: old },
                On::SoloGranted { generation },
            ) if generation > old => Self::Solo { generation },
            (Self::Reverting { generation: old }, On::SoloGranted { generation })
                if generation >= old =>
            {
                Self::Solo { generation }
            }
            (Self::Solo { .. }, On::SessionLost) => self,
            (Self::Solo { generation }, On::Hold) => Self::Joining {
                generation,
                stage: Holding,
            },
            (
                Self::Joining {
                    generation,
                    stage: Holding,
                },
                On::PairedRecorded,
            ) => Self::Joining {
                generation,
                stage: Recorded,
            },
            (
                Self::Joining {
                    generation,
                    stage: Recorded | Offered,
                },
                On::CommitSent,
            ) => Self::Joining {
                generation,
                stage: Offered,
            },
            (
                Self::Joining {
                    generation,
                    stage: Holding | Recorded,
                },
                On::SessionLost,
            ) => Self::Reverting { generation },
            (Self::Reverting { .. } | Self::Cut { .. }, On::SessionLost) => self,
            (
                Self::Joining {
                    generation,
                    stage: Offered,
                }
                | Self::Rejoining { generation },
                On::Committed,
            ) => Self::Paired { generation },
            (Self::Paired { .. } | Self::Rejoining { .. }, On::CommitSent) => self,
            (Self::Paired { .. }, On::Committed) => self,
            (
                Self::Joining {
                    generation,
                    stage: Offered,
                }
                | Self::Paired { generation }
                | Self::Rejoining { generation },
                On::SessionLost,
            ) => Self::Cut { generation },
            (Self::Cut { generation }, On::Rejoin) => Self::Rejoining { generation },
            (Self::Paired { generation }, On::HandedOver) => Self::HandedOver { generation },
            (Self::HandedOver { .. } | Self::Outdated { .. }, On::SessionLost) => self,
            _ => return Err(LicenceError { state: self, event }),
        })
    }

    /// Which outputs may leave now.
    #[must_use]
    pub const fn permission(self) -> Permission {
        match self {
            Self::Solo { .. } => Permission::All,
            Self::Paired { .. } => Permission::Committed,
            Self::None
            | Self::Joining { .. }
            | Self::Reverting { .. }
            | Self::Cut { .. }
            | Self::Rejoining { .. }
            | Self::HandedOver { .. }
            | Self::Outdated { .. } => Permission::Nothing,
        }
    }

    /// The generation it names.
    #[must_use]
    pub const fn generation(self) -> Option<Generation> {
        match self {
            Self::None => None,
            Self::Solo { generation }
            | Self::Joining { generation, .. }
            | Self::Reverting { generation }
            | Self::Paired { generation }
            | Self::Cut { generation }
            | Self::Rejoining { generation }
            | Self::HandedOver { generation }
            | Self::Outdated { generation } => Some(generation),
        }
    }

    /// How it is shown to agents and people.
    #[must_use]
    pub const fn shown(self) -> Shown {
        match self {
            Self::None | Self::HandedOver { .. } | Self::Outdated { .. } => Shown::None,
            Self::Solo { .. } => Shown::Solo,
            Self::Joining {
                stage: Joining::Holding,
                ..
            }
            | Self::Reverting { .. } => Shown::Solo,
            Self::Joining { .. } | Self::Paired { .. } => Shown::Paired,
            Self::Cut { .. } | Self::Rejoining { .. } => Shown::Cut,
        }
    }
}
