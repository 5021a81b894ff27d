// SPDX-License-Identifier: Apache-2.0
//! Pacemaker starts a plain primitive where its replica is.
//!
//! ```text
//!  replica on this node                                         kemari-RESOURCE
//!  -----------------------------------------------------------  ---------------
//!  active, and Pacemaker has not started it here yet            10000
//!  active, and started by Pacemaker                              1000
//!  passive, in sync                                              1000
//!  none or waiting, the guest runs on another node              -INFINITY
//!  passive, behind; outdated                                    -INFINITY
//!  nothing runs, and by the records it ran here last              100
//!  otherwise                                                    none
//! ```
//!
//! Of two nodes that are equally good Pacemaker takes the one where the VM is, so nothing moves by itself; and what an
//! administrator says (`crm resource move`, a location of his own, `resource-stickiness`) decides between the two.
//!
//! A location constraint with a rule reads this node attribute. The agent of the node with the guest adds it where it
//! is missing (as DRBD's handler adds one). Without it the resource agent's `start` has the guest handed over
//! to where Pacemaker wants it, which takes a copy of its state.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use kemari_api::{Assigned, Role};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::Standing;
use crate::pacemaker::{self, Configuration, Resource};

/// Between two attempts to add a constraint.
const AGAIN: Duration = Duration::from_secs(5);

/// What Pacemaker is told of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Score(u32),
    Never,
    Any,
}

impl Place {
    fn of(standing: &Standing, assigned: Option<Assigned>) -> Self {
        match standing.here {
            Some(Role::Active) if !assigned.is_some_and(Assigned::is_to_run) => Self::Score(10_000),
            Some(Role::Active) => Self::Score(1_000),
            Some(Role::Passive) if standing.in_sync => Self::Score(1_000),
            Some(Role::Passive | Role::Outdated) => Self::Never,
            _ if standing.active_elsewhere => Self::Never,
            _ if standing.ran_last_here => Self::Score(100),
            _ => Self::Any,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Score(score) => write!(f, "{score}"),
            Self::Never => f.write_str("-INFINITY"),
            Self::Any => f.write_str("none"),
        }
    }
}

/// What was told.
#[derive(Debug, Default)]
pub(super) struct Places {
    told: BTreeMap<String, Place>,
    /// When a constraint was added, or tried to be, and what was said of it.
    constrained: BTreeMap<String, (Instant, String)>,
}

impl Places {
    /// Tells Pacemaker, if it is new, or `again`: Pacemaker may have been restarted.
    pub(super) async fn tell(
        &mut self,
        resource: &Resource,
        standing: &Standing,
        assigned: Option<Assigned>,
        again: bool,
    ) {
        let name = &resource.primitive;
        let place = Place::of(standing, assigned);
        let is_new = self.told.get(name) != Some(&place);
        if !is_new && !again {
            return;
        }
        let attribute = attribute(resource);
        let heard = match place {
            Place::Any => pacemaker::forget(&attribute).await,
            _ => pacemaker::tell(&attribute, &place.to_string()).await,
        };
        if !heard {
            self.told.remove(name);
        } else if is_new {
            info!(resource = name, %place, "Pacemaker is told how well the VM would be placed here");
            self.told.insert(name.clone(), place);
        }
    }

    /// Adds the constraint that has Pacemaker go by it.
    pub(super) async fn constrain(&mut self, configuration: &Configuration, resource: &Resource) {
        let id = constraint_id(resource);
        if configuration.locations.contains(&id) {
            self.constrained.remove(&id);
            return;
        }
        let tried = self.constrained.get(&id);
        if tried.is_some_and(|(tried, _)| tried.elapsed() < AGAIN) {
            return;
        }
        let said = tried.map(|(_, said)| said.clone()).unwrap_or_default();
        let added = Configuration::change_constraint("--create", &constraint(resource)).await;
        if added.is_ok() {
            info!(
                resource = resource.primitive,
                id, "Added a location constraint"
            );
        }
        let failed = added.err().unwrap_or_default();
        if !failed.is_empty() && failed != said {
            warn!(
                resource = resource.primitive,
                id, "The location constraint is missing and cannot be added: {failed}"
            );
        }
        self.constrained.insert(id, (Instant::now(), failed));
    }

    /// The resource is a clone now, which goes by promotion scores.
    pub(super) async fn withdraw(&mut self, configuration: &Configuration, resource: &Resource) {
        let id = constraint_id(resource);
        if !configuration.locations.contains(&id) {
            return;
        }
        self.told.remove(&resource.primitive);
        pacemaker::forget(&attribute(resource)).await;
        let xml = format!("<rsc_location id=\"{id}\"/>");
        match Configuration::change_constraint("--delete", &xml).await {
            Ok(()) => info!(
                resource = resource.primitive,
                id, "Removed the location constraint of a resource that is a clone now"
            ),
            Err(reason) => debug!(id, reason, "The location constraint is not removed"),
        }
    }
}

fn attribute(resource: &Resource) -> String {
    format!("kemari-{}", resource.primitive)
}

fn constraint_id(resource: &Resource) -> String {
    format!("kemari-location-{}", resource.primitive)
}

fn constraint(resource: &Resource) -> String {
    let (id, attribute) = (constraint_id(resource), attribute(resource));
    format!(
        "<rsc_location id=\"{id}\" rsc=\"{}\"><rule id=\"{id}-rule\" score-attribute=\"{attribute}\">\
         <expression id=\"{id}-expression\" attribute=\"{attribute}\" operation=\"defined\"/></rule></rsc_location>",
        resource.id()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_in_the_documentation_holds() {
        let standing = |here, active_elsewhere, in_sync, ran_last_here| Standing {
            here,
            in_sync,
            active_elsewhere,
            ran_last_here,
            lost: None,
        };
        for elsewhere in [false, true] {
            for last in [false, true] {
                for in_sync in [false, true] {
                    let place = |role| {
                        let standing = standing(role, elsewhere, in_sync, last);
                        Place::of(&standing, None).to_string()
                    };
                    let active = standing(Some(Role::Active), elsewhere, in_sync, last);
                    for (assigned, score) in [
                        (Assigned::Started, "1000"),
                        (Assigned::Promoted, "1000"),
                        (Assigned::Unpromoted, "10000"),
                    ] {
                        assert_eq!(Place::of(&active, Some(assigned)).to_string(), score);
                    }
                    let without = match (elsewhere, last) {
                        (true, _) => "-INFINITY",
                        (false, true) => "100",
                        (false, false) => "none",
                    };
                    assert_eq!(place(Some(Role::Active)), "10000");
                    let passive = if in_sync { "1000" } else { "-INFINITY" };
                    assert_eq!(place(Some(Role::Passive)), passive);
                    assert_eq!(place(Some(Role::Outdated)), "-INFINITY");
                    assert_eq!(place(Some(Role::Waiting)), without);
                    assert_eq!(place(None), without);
                }
            }
        }
    }

    #[test]
    fn the_constraint_names_what_constraints_name() {
        let resource = Resource {
            primitive: "vm".to_owned(),
            group: Some("all".to_owned()),
            ..Resource::default()
        };
        let xml = constraint(&resource);
        for part in [
            "rsc=\"all\"",
            "score-attribute=\"kemari-vm\"",
            "id=\"kemari-location-vm\"",
        ] {
            assert!(xml.contains(part), "{part} in {xml}");
        }
    }
}
