// SPDX-License-Identifier: Apache-2.0
//! Names of VMs and nodes, checked once at the border.
//!
//! A VM's name becomes part of file, socket and systemd unit names, so it is kept to characters
//! that need no escaping in any of them.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use zbus::zvariant::Type;

/// Longest name accepted, in bytes: what a host name label may have.
pub const NAME_BYTES_MAX: usize = 63;

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "{value:?} is no {kind}: use 1 to {NAME_BYTES_MAX} of a-z, A-Z, 0-9, '_', '-' and '.', \
     starting with a letter or digit"
)]
pub struct NameError {
    kind: &'static str,
    value: String,
}

fn check(kind: &'static str, value: &str) -> Result<(), NameError> {
    let fits = value.len() <= NAME_BYTES_MAX
        && value.starts_with(|c: char| c.is_ascii_alphanumeric())
        && value
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c));
    if fits {
        Ok(())
    } else {
        Err(NameError {
            kind,
            value: value.to_owned(),
        })
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Type,
        )]
        #[serde(try_from = "String", into = "String")]
        #[zvariant(signature = "s")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(value: String) -> Result<Self, NameError> {
                check($kind, &value)?;
                Ok(Self(value))
            }
        }

        impl std::str::FromStr for $name {
            type Err = NameError;

            fn from_str(value: &str) -> Result<Self, NameError> {
                Self::try_from(value.to_owned())
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                let pattern = "^[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}$";
                json_schema!({ "type": "string", "pattern": pattern })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name! {
    /// The name of a VM, the same on every node.
    VmName, "VM name"
}
name! {
    /// The name of a cluster node, as Corosync and Pacemaker call it.
    NodeName, "node name"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_need_no_escaping_are_accepted() {
        for good in ["vm", "web-01", "a.b_c", "9"] {
            assert_eq!(good.parse::<VmName>().unwrap().as_str(), good);
        }
    }

    #[test]
    fn other_names_are_refused_with_the_value_and_the_rule() {
        for bad in ["", "-x", "../etc", "a/b", "a b", "ä", &"x".repeat(64)] {
            let text = bad.parse::<VmName>().unwrap_err().to_string();
            assert!(
                text.contains("VM name") && text.contains("1 to 63"),
                "{text}"
            );
        }
    }
}
