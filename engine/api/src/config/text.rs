// SPDX-License-Identifier: Apache-2.0
//! Short texts of the description that other programs read: each with its alphabet and length.
//!
//! What is accepted here needs no escaping where it goes: udev's `/dev/disk/by-id`, the names of
//! network interfaces, the passwd database.

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A text that is not of the form it must have.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{value:?} is no {kind}: {rule}")]
pub struct TextError {
    value: String,
    kind: &'static str,
    rule: &'static str,
}

macro_rules! text {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $rule:literal, $pattern:literal, $fits:path) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// It as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = TextError;

            fn try_from(value: String) -> Result<Self, TextError> {
                if $fits(&value) {
                    return Ok(Self(value));
                }
                Err(TextError { value, kind: $kind, rule: $rule })
            }
        }

        impl std::str::FromStr for $name {
            type Err = TextError;

            fn from_str(value: &str) -> Result<Self, TextError> {
                Self::try_from(value.to_owned())
            }
        }

        impl From<$name> for String {
            fn from(text: $name) -> Self {
                text.0
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
                json_schema!({ "type": "string", "pattern": $pattern })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text! {
    /// What a disk or network interface is called in the description.
    DeviceId, "device id", "use 1 to 20 of a-z, A-Z, 0-9 and '-'",
    r"^[a-zA-Z0-9-]{1,20}$", is_device_id
}
text! {
    /// The serial number the guest reads from a disk. 20 bytes: VIRTIO 1.2 §5.2.6, GET_ID.
    DiskSerial, "serial number",
    "use 1 to 20 printable ASCII characters, none of them a blank at the beginning or end",
    r"^[!-~]([ -~]{0,18}[!-~])?$", is_serial
}
text! {
    /// The name of a network interface of the host. 15 bytes: Linux' IFNAMSIZ less the NUL.
    InterfaceName, "name of a network interface",
    "use 1 to 15 of a-z, A-Z, 0-9, '.', '_' and '-', not beginning with '-' or '.'",
    r"^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,14}$", is_interface_name
}
text! {
    /// A user of the host that is not root.
    UserName, "user the engine could drop to",
    "give the name of a user other than root (1 to 32 of a-z, A-Z, 0-9, '.', '_' and '-', \
     beginning with a letter or '_'), or set sandbox.enabled = false for debugging",
    r"^(?!root$)[a-zA-Z_][a-zA-Z0-9._-]{0,31}$", is_user_name
}
text! {
    /// Where the other replica is found: a host name or an IP address.
    HostName, "address", "give an IP address or a host name, without port or brackets",
    r"^[^/ ,\[]+$", is_host_name
}

impl Default for UserName {
    fn default() -> Self {
        Self("kemari".to_owned())
    }
}

impl From<&DeviceId> for DiskSerial {
    /// Every id is a serial number too.
    fn from(id: &DeviceId) -> Self {
        Self(id.0.clone())
    }
}

fn consists_of(text: &str, bytes_max: usize, others: &str) -> bool {
    (1..=bytes_max).contains(&text.len())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || others.contains(c))
}

fn is_device_id(text: &str) -> bool {
    consists_of(text, 20, "-")
}

fn is_serial(text: &str) -> bool {
    (1..=20).contains(&text.len())
        && text.chars().all(|c| c == ' ' || c.is_ascii_graphic())
        && text.trim() == text
}

fn is_interface_name(text: &str) -> bool {
    consists_of(text, 15, "._-") && !text.starts_with(['-', '.'])
}

fn is_user_name(text: &str) -> bool {
    consists_of(text, 32, "._-")
        && text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text != "root"
}

fn is_host_name(text: &str) -> bool {
    !text.is_empty() && !text.contains(['/', ' ', ',', '['])
}

/// A path that means the same whatever directory a program is started in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct AbsolutePath(PathBuf);

impl AbsolutePath {
    /// The path.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

impl TryFrom<String> for AbsolutePath {
    type Error = TextError;

    fn try_from(value: String) -> Result<Self, TextError> {
        if value.starts_with('/') && !value.contains('\0') {
            return Ok(Self(value.into()));
        }
        Err(TextError {
            value,
            kind: "absolute path",
            rule: "begin it with '/', as in \"/dev/vg/web\" or \"/srv/web.img\"",
        })
    }
}

impl JsonSchema for AbsolutePath {
    fn schema_name() -> Cow<'static, str> {
        "AbsolutePath".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^/" })
    }
}

impl fmt::Display for AbsolutePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_text_is_accepted_as_it_is_or_refused_with_the_rule(text in "\\PC{0,24}") {
            let answers = [
                DeviceId::try_from(text.clone()).map(String::from),
                DiskSerial::try_from(text.clone()).map(String::from),
                InterfaceName::try_from(text.clone()).map(String::from),
                UserName::try_from(text.clone()).map(String::from),
                HostName::try_from(text.clone()).map(String::from),
            ];
            for answer in answers {
                match answer {
                    Ok(accepted) => prop_assert_eq!(&accepted, &text),
                    Err(error) => prop_assert!(error.to_string().contains("is no ")),
                }
            }
        }

        #[test]
        fn an_id_is_a_serial_number(id in "[a-zA-Z0-9-]{1,20}") {
            let id: DeviceId = id.parse().unwrap();
            let serial = DiskSerial::from(&id);
            prop_assert_eq!(serial.as_str().parse::<DiskSerial>().unwrap(), serial);
        }
    }

    #[test]
    fn what_would_need_escaping_or_mean_something_else_is_refused() {
        for bad in ["", "a b", "ä", "a_b", &"x".repeat(21)] {
            assert!(bad.parse::<DeviceId>().is_err(), "{bad:?}");
        }
        for bad in ["", " a", "a ", "a\n", &"x".repeat(21)] {
            assert!(bad.parse::<DiskSerial>().is_err(), "{bad:?}");
        }
        assert!("WD 12".parse::<DiskSerial>().is_ok());
        // The kernel takes "tap%d" as a request to number it.
        for bad in ["", ".", "..", "-t", "tap%d", "a/b", "a:1", &"x".repeat(16)] {
            assert!(bad.parse::<InterfaceName>().is_err(), "{bad:?}");
        }
        for bad in ["", "root", "0", "a:b", "-a"] {
            let text = bad.parse::<UserName>().unwrap_err().to_string();
            assert!(text.contains("sandbox.enabled = false"), "{text}");
        }
        for bad in ["", "web.img", "~/a", "/a\0"] {
            assert!(AbsolutePath::try_from(bad.to_owned()).is_err(), "{bad:?}");
        }
    }
}
