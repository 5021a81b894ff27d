// SPDX-License-Identifier: Apache-2.0
//! In which form Pacemaker has the resource: a promotable clone, or a plain primitive.
//!
//! Pacemaker hands the limits of a clone to each action of its instances, those of promotion only to
//! a promotable one's (Pacemaker's `clone_append_meta`; resource-agents' `ocf_is_ms` goes by the same).

use kemari_api::Assigned;

/// What the resource is to Pacemaker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Form {
    /// An instance of a promotable clone: one runs the guest, the other one holds its state.
    #[default]
    Promotable,
    /// A primitive by itself: it runs the guest, and the agents keep the passive replica.
    Plain,
    /// An instance of a clone that is not promotable, which no VM can be.
    Cloned,
}

impl Form {
    /// Reads what Pacemaker says by the names of meta attributes.
    pub(crate) fn read(meta: impl Fn(&str) -> Option<String>) -> Self {
        let told = |key: &str| meta(key).is_some_and(|text| !text.is_empty());
        // crm_resource, which runs actions for a person, knows the attributes as they are written.
        let written = meta("promotable").is_some_and(|text| is_true(&text));
        // The second name is that of before Pacemaker 2.1.
        if written || told("promoted_max") || told("master_max") {
            Self::Promotable
        } else if told("clone_max") {
            Self::Cloned
        } else {
            Self::Plain
        }
    }

    /// The form of a resource whose action a person or ocf-tester runs, by the role it was
    /// assigned last.
    pub(crate) fn remembered(assigned: Option<Assigned>) -> Self {
        match assigned {
            Some(Assigned::Started) => Self::Plain,
            _ => Self::Promotable,
        }
    }
}

/// As Pacemaker reads a boolean.
fn is_true(text: &str) -> bool {
    ["true", "on", "yes", "y", "1"]
        .iter()
        .any(|word| text.eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_that_pacemaker_hands_over_tell_the_form() {
        let form = |told: &[(&str, &str)]| {
            Form::read(|key| {
                let found = told.iter().find(|(name, _)| *name == key);
                found.map(|(_, value)| (*value).to_owned())
            })
        };
        let clone = ("clone_max", "2");
        assert_eq!(form(&[clone, ("promoted_max", "1")]), Form::Promotable);
        assert_eq!(form(&[clone, ("master_max", "1")]), Form::Promotable);
        assert_eq!(form(&[clone, ("promotable", "true")]), Form::Promotable);
        assert_eq!(form(&[clone, ("promotable", "Yes")]), Form::Promotable);
        assert_eq!(form(&[clone, ("promotable", "false")]), Form::Cloned);
        assert_eq!(form(&[clone]), Form::Cloned);
        assert_eq!(form(&[("timeout", "20000")]), Form::Plain);
    }
}
