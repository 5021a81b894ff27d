// SPDX-License-Identifier: Apache-2.0
//! MAC addresses: read, refused where no interface may have them, and made where none is given.
//!
//! A made address depends on nothing but the names of VM and interface. Both hosts must make the
//! same one, or a guest's packets would change their sender at a failover; so the rule here never
//! changes.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use thiserror::Error;
use xxhash_rust::xxh3::xxh3_64;

use super::DeviceId;
use crate::VmName;

/// The first byte of a made address: locally administered (bit 1), not multicast (bit 0), and the
/// one that administrators know from virtual machines.
const MADE: u8 = 0x52;

/// Why a text is no MAC address of an interface.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MacError {
    /// It has another form.
    #[error(
        "{0:?} is no MAC address: give six hexadecimal bytes with colons, as in \
         \"52:54:00:12:34:56\""
    )]
    Form(String),
    /// It names a group of interfaces.
    #[error("{0} is a multicast address: make the first byte even, as in \"52:54:00:12:34:56\"")]
    Multicast(MacAddress),
    /// It names no interface.
    #[error("00:00:00:00:00:00 names no interface: give another, or leave mac out and one is made")]
    Zero,
}

/// The address of one network interface: neither zero nor a group's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct MacAddress([u8; 6]);

impl MacAddress {
    /// The address an interface of a VM has when the description gives none: always the same.
    #[must_use]
    pub fn made_for(vm: &VmName, interface: &DeviceId) -> Self {
        // No name contains NUL, so no two pairs of names hash the same text.
        let hash = xxh3_64(format!("{vm}\0{interface}").as_bytes());
        let [a, b, c, d, e, ..] = hash.to_le_bytes();
        Self([MADE, a, b, c, d, e])
    }

    /// Its six bytes, as on the wire.
    #[must_use]
    pub const fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for MacAddress {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let form = || MacError::Form(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(form)?;
            // from_str_radix alone would take "+5".
            if part.len() != 2 || !part.chars().all(|c| c.is_ascii_hexdigit()) {
                return Err(form());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| form())?;
        }
        if parts.next().is_some() {
            return Err(form());
        }
        match bytes {
            [0, 0, 0, 0, 0, 0] => Err(MacError::Zero),
            [first, ..] if first & 1 == 1 => Err(MacError::Multicast(Self(bytes))),
            _ => Ok(Self(bytes)),
        }
    }
}

impl TryFrom<String> for MacAddress {
    type Error = MacError;

    fn try_from(text: String) -> Result<Self, MacError> {
        text.parse()
    }
}

impl JsonSchema for MacAddress {
    fn schema_name() -> Cow<'static, str> {
        "MacAddress".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": "^[0-9a-fA-F][02468aceACE](:[0-9a-fA-F]{2}){5}$",
        })
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn made(vm: &str, interface: &str) -> MacAddress {
        MacAddress::made_for(&vm.parse().unwrap(), &interface.parse().unwrap())
    }

    proptest! {
        #[test]
        fn an_address_reads_back_as_it_was_written(bytes: [u8; 6]) {
            let written = MacAddress(bytes);
            let read = written.to_string().parse::<MacAddress>();
            let good = bytes != [0; 6] && bytes[0] & 1 == 0;
            prop_assert_eq!(read.is_ok(), good);
            if let Ok(read) = read {
                prop_assert_eq!(read, written);
            }
        }

        #[test]
        fn a_made_address_is_a_good_one(vm in "[a-z][a-z0-9.-]{0,30}", id in "[a-z0-9-]{1,20}") {
            let address = made(&vm, &id);
            prop_assert_eq!(address.bytes()[0], MADE);
            prop_assert_eq!(address.to_string().parse::<MacAddress>().unwrap(), address);
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,20}") {
            let _ = text.parse::<MacAddress>();
        }
    }

    #[test]
    fn the_address_made_for_a_name_never_changes() {
        // If this fails, a rolling upgrade changes the addresses of running guests.
        assert_eq!(made("web", "lan").to_string(), "52:84:55:e1:ab:97");
        assert_ne!(made("web", "lan"), made("web", "wan"));
        assert_ne!(made("web", "lan"), made("web2", "lan"));
    }

    #[test]
    fn what_no_interface_may_have_is_refused_with_the_remedy() {
        let told = |text: &str| text.parse::<MacAddress>().unwrap_err().to_string();
        assert!(told("01:00:5e:00:00:01").contains("multicast"));
        assert!(told("ff:ff:ff:ff:ff:ff").contains("first byte even"));
        assert!(told("00:00:00:00:00:00").contains("names no interface"));
        for form in [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "52-54-00-12-34-56",
            "+2:54:00:12:34:56",
        ] {
            assert!(told(form).contains("six hexadecimal bytes"), "{form}");
        }
    }
}
