// SPDX-License-Identifier: Apache-2.0
//! The actions of the agent and the timeouts its meta-data advises.
//!
//! One list feeds the meta-data, the command line and the default time budget, so that they cannot
//! differ.

use std::fmt;
use std::time::Duration;

/// What Pacemaker can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Print the meta-data.
    MetaData,
    /// Check parameters, description and installation.
    ValidateAll,
    /// Start the engine; it waits.
    Start,
    /// End the engine.
    Stop,
    /// Compare the engine with the role Pacemaker assigned.
    Monitor,
    /// Make the replica active.
    Promote,
    /// End being active.
    Demote,
    /// What happened to the other replica.
    Notify,
    /// Hand the guest of a plain primitive over to another node.
    MigrateTo,
    /// Take it there.
    MigrateFrom,
    /// A reloadable parameter was changed.
    ReloadAgent,
}

impl Action {
    /// Every action.
    pub(crate) const ALL: [Self; 11] = [
        Self::Start,
        Self::Stop,
        Self::Monitor,
        Self::Promote,
        Self::Demote,
        Self::Notify,
        Self::MigrateTo,
        Self::MigrateFrom,
        Self::ReloadAgent,
        Self::ValidateAll,
        Self::MetaData,
    ];

    /// The action of this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|action| action.name() == name)
    }

    /// Its name in OCF.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::MetaData => "meta-data",
            Self::ValidateAll => "validate-all",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Monitor => "monitor",
            Self::Promote => "promote",
            Self::Demote => "demote",
            Self::Notify => "notify",
            Self::MigrateTo => "migrate_to",
            Self::MigrateFrom => "migrate_from",
            Self::ReloadAgent => "reload-agent",
        }
    }

    /// What it does, for people.
    pub(crate) fn meaning(self) -> &'static str {
        match self {
            Self::MetaData => "print the meta-data",
            Self::ValidateAll => {
                "check the parameters; at OCF_CHECK_LEVEL 10 also what a start needs of this node"
            }
            Self::Start => {
                "start the engine, which waits to be promoted; without a clone, also run the guest"
            }
            Self::Stop => {
                "end the engine; a guest that can go on nowhere else is given time to shut down"
            }
            Self::Monitor => {
                "compare the engine with the role Pacemaker assigned; at OCF_CHECK_LEVEL 10 also see \
                 that it works"
            }
            Self::Promote => {
                "have kemari-agent make the replica active, or find that it did so already"
            }
            Self::Demote => {
                "hand the guest over to a replica in sync, or end it; an outdated replica begins anew"
            }
            Self::Notify => "tell kemari-agent that Pacemaker stopped or fenced the other replica",
            Self::MigrateTo => {
                "hand the guest of a plain primitive over to its passive replica on the node named"
            }
            Self::MigrateFrom => "have the guest run here that was handed over",
            Self::ReloadAgent => "take over changed parameters that are reloadable",
        }
    }

    /// The advised timeout, which is also the time this action takes at most when Pacemaker names
    /// none.
    pub(crate) fn timeout(self) -> Duration {
        Duration::from_secs(match self {
            Self::Start
            | Self::Stop
            | Self::Promote
            | Self::Demote
            | Self::MigrateTo
            | Self::MigrateFrom => 60,
            Self::Monitor | Self::Notify | Self::ReloadAgent | Self::ValidateAll => 20,
            Self::MetaData => 5,
        })
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_action_is_found_by_its_name_and_no_other() {
        for action in Action::ALL {
            assert_eq!(Action::named(action.name()), Some(action));
        }
        assert_eq!(Action::named("migrate"), None);
    }
}
