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
//! | Reverting | | | | | Reverting | | Solo (same g, once written) |
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
    /// A solo licence was granted and written durably. The generation is new, except for the end
    /// of [`Licence::Reverting`].
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
                if generation == old =>
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

#[cfg(test)]
mod tests {
    use super::*;

    const G: Generation = Generation::new(3);
    const NEXT: Generation = Generation::new(4);
    const SOLO: Licence = Licence::Solo { generation: G };

    fn after(state: Licence, events: &[LicenceEvent]) -> Licence {
        events
            .iter()
            .fold(state, |state, event| state.after(*event).unwrap())
    }

    fn every_state() -> Vec<Licence> {
        let generation = G;
        let mut states = vec![
            Licence::None,
            SOLO,
            Licence::Reverting { generation },
            Licence::Paired { generation },
            Licence::Cut { generation },
            Licence::Rejoining { generation },
            Licence::HandedOver { generation },
            Licence::Outdated { generation },
        ];
        for stage in [Joining::Holding, Joining::Recorded, Joining::Offered] {
            states.push(Licence::Joining { generation, stage });
        }
        states
    }

    fn every_event() -> Vec<LicenceEvent> {
        let mut events = vec![
            LicenceEvent::Hold,
            LicenceEvent::PairedRecorded,
            LicenceEvent::CommitSent,
            LicenceEvent::Committed,
            LicenceEvent::SessionLost,
            LicenceEvent::Rejoin,
            LicenceEvent::HandedOver,
        ];
        for generation in [Generation::new(2), G, NEXT] {
            events.push(LicenceEvent::SoloGranted { generation });
            events.push(LicenceEvent::Learned { generation });
        }
        events
    }

    const JOIN: [LicenceEvent; 4] = [
        LicenceEvent::Hold,
        LicenceEvent::PairedRecorded,
        LicenceEvent::CommitSent,
        LicenceEvent::Committed,
    ];

    #[test]
    fn joining_holds_outputs_until_the_first_commit() {
        let mut state = SOLO;
        for event in JOIN {
            assert_eq!(state.permission() == Permission::Nothing, state != SOLO);
            state = after(state, &[event]);
        }
        assert_eq!(state.permission(), Permission::Committed);
    }

    #[test]
    fn paired_is_on_disk_before_the_first_commit_is_sent() {
        let holding = after(SOLO, &JOIN[..1]);
        assert!(holding.after(LicenceEvent::CommitSent).is_err());
    }

    #[test]
    fn a_join_that_may_have_arrived_never_falls_back_to_solo() {
        let offered = after(SOLO, &JOIN[..3]);
        let lost = after(offered, &[LicenceEvent::SessionLost]);
        assert_eq!(lost, Licence::Cut { generation: G });
        assert!(
            lost.after(LicenceEvent::SoloGranted { generation: G })
                .is_err()
        );
    }

    #[test]
    fn a_join_that_cannot_have_arrived_goes_back_once_solo_is_on_disk() {
        for steps in [1, 2] {
            let lost = after(after(SOLO, &JOIN[..steps]), &[LicenceEvent::SessionLost]);
            assert_eq!(lost.permission(), Permission::Nothing);
            assert_eq!(
                after(lost, &[LicenceEvent::SoloGranted { generation: G }]),
                SOLO
            );
        }
    }

    #[test]
    fn trap_2_a_lost_session_never_widens_what_may_leave() {
        let width = |licence: Licence| match licence.permission() {
            Permission::Nothing => 0,
            Permission::Committed => 1,
            Permission::All => 2,
        };
        for state in every_state() {
            if let Ok(lost) = state.after(LicenceEvent::SessionLost) {
                assert!(width(lost) <= width(state), "{state:?} -> {lost:?}");
            }
        }
    }

    #[test]
    fn only_a_grant_of_a_new_generation_ends_cut_in_solo() {
        let cut = Licence::Cut { generation: G };
        for event in every_event() {
            let solo = matches!(cut.after(event), Ok(Licence::Solo { .. }));
            assert_eq!(
                solo,
                event == LicenceEvent::SoloGranted { generation: NEXT },
                "{event:?}"
            );
        }
    }

    #[test]
    fn all_outputs_leave_only_after_a_grant() {
        for state in every_state() {
            for event in every_event() {
                if let Ok(next @ Licence::Solo { .. }) = state.after(event) {
                    let granted = matches!(event, LicenceEvent::SoloGranted { .. });
                    assert!(
                        granted || next == state,
                        "{state:?} --{event:?}--> {next:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn outdated_and_handed_over_are_final() {
        for state in [
            Licence::HandedOver { generation: G },
            Licence::Outdated { generation: G },
        ] {
            for event in every_event() {
                if let Ok(next) = state.after(event) {
                    assert_eq!(next.permission(), Permission::Nothing, "{event:?}");
                }
            }
        }
    }

    #[test]
    fn a_newer_generation_outdates_and_an_older_one_does_not() {
        let learned = |generation| LicenceEvent::Learned { generation };
        assert_eq!(after(SOLO, &[learned(G)]), SOLO);
        assert_eq!(
            after(SOLO, &[learned(NEXT)]),
            Licence::Outdated { generation: NEXT }
        );
        assert_eq!(after(Licence::None, &[learned(NEXT)]), Licence::None);
    }

    #[test]
    fn a_generation_never_goes_back() {
        for state in every_state() {
            for event in every_event() {
                if let (Ok(next), Some(before)) = (state.after(event), state.generation()) {
                    assert!(
                        next.generation() >= Some(before),
                        "{state:?} --{event:?}--> {next:?}"
                    );
                }
            }
        }
    }
}
