// SPDX-License-Identifier: Apache-2.0
//! Addresses of network interfaces.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use xxhash_rust::xxh3::xxh3_64;

/// The address of one Ethernet interface: never a group's, never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress([u8; 6]);

/// What is no address of an interface.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum MacAddressError {
    /// Not six pairs of hexadecimal digits with colons between.
    #[error("`{text}` is no MAC address; write one like 52:54:00:12:34:56")]
    Malformed {
        /// What was given.
        text: String,
    },
    /// The address of a group.
    #[error(
        "{0} is a multicast address; an interface needs one with an even first byte",
        octets(address)
    )]
    Multicast {
        /// What was given.
        address: [u8; 6],
    },
    /// All zeroes.
    #[error("00:00:00:00:00:00 is no address of an interface")]
    Zero,
}

impl MacAddress {
    /// Checks an address.
    ///
    /// # Errors
    /// It is a group's or zero.
    pub fn new(address: [u8; 6]) -> Result<Self, MacAddressError> {
        let [first, ..] = address;
        if first & 1 != 0 {
            return Err(MacAddressError::Multicast { address });
        }
        if address == [0; 6] {
            return Err(MacAddressError::Zero);
        }
        Ok(Self(address))
    }

    /// An address for an interface whose owner named none: locally administered, made from the names
    /// alone. So both hosts of a pair find the same one without agreeing on it, and it stays the same
    /// for ever: this function must never change. Two guests that share a name *and* a network
    /// would share an address; one of them must then be given another. (46 bits: for a thousand guests
    /// with different names the odds of a collision are one in 140 million.)
    #[must_use]
    pub fn generate(vm: &str, interface: &str) -> Self {
        // Neither name can contain a zero byte where they are checked, so no two pairs of names run
        // together to the same text.
        let text = format!("kemari-mac\0{vm}\0{interface}");
        let [mut first, b, c, d, e, f, _, _] = xxh3_64(text.as_bytes()).to_be_bytes();
        // IEEE 802: bit 0 is "group", bit 1 is "locally administered".
        first = first & 0xfc | 0x02;
        Self([first, b, c, d, e, f])
    }

    /// Its six bytes, as on the wire.
    #[must_use]
    pub fn octets(self) -> [u8; 6] {
        self.0
    }
}

fn octets(address: &[u8; 6]) -> String {
    address.map(|byte| format!("{byte:02x}")).join(":")
}

impl fmt::Display for MacAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&octets(&self.0))
    }
}

impl FromStr for MacAddress {
    type Err = MacAddressError;

    fn from_str(text: &str) -> Result<Self, MacAddressError> {
        let malformed = || MacAddressError::Malformed {
            text: text.chars().take(64).collect(),
        };
        let mut address = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut address {
            let part = parts.next().ok_or_else(malformed)?;
            // from_str_radix alone would take a sign.
            if part.len() != 2 || !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(malformed());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| malformed())?;
        }
        if parts.next().is_some() {
            return Err(malformed());
        }
        Self::new(address)
    }
}

impl TryFrom<String> for MacAddress {
    type Error = MacAddressError;

    fn try_from(text: String) -> Result<Self, MacAddressError> {
        text.parse()
    }
}

impl From<MacAddress> for String {
    fn from(address: MacAddress) -> Self {
        address.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn generated_addresses_never_change() {
        assert_eq!(
            MacAddress::generate("web", "net0").to_string(),
            "72:1c:0f:fd:22:4d"
        );
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "52:54:00:12:34:5",
            "52:54:00:12:34:+5",
            "52-54-00-12-34-56",
            "zz:54:00:12:34:56",
        ] {
            let refused = text.parse::<MacAddress>();
            assert!(
                matches!(refused, Err(MacAddressError::Malformed { .. })),
                "{text}"
            );
        }
        assert_eq!(
            "ff:ff:ff:ff:ff:ff"
                .parse::<MacAddress>()
                .unwrap_err()
                .to_string(),
            "ff:ff:ff:ff:ff:ff is a multicast address; an interface needs one with an even first byte"
        );
        assert_eq!(
            "00:00:00:00:00:00".parse::<MacAddress>(),
            Err(MacAddressError::Zero)
        );
    }

    proptest! {
        #[test]
        fn generated_addresses_are_local_unicast_and_survive_text(vm: String, interface: String) {
            let address = MacAddress::generate(&vm, &interface);
            prop_assert_eq!(address.octets()[0] & 3, 2);
            prop_assert_eq!(address.to_string().to_uppercase().parse(), Ok(address));
            let encoded = postcard::to_stdvec(&address).unwrap();
            prop_assert_eq!(postcard::from_bytes::<MacAddress>(&encoded).unwrap(), address);
        }
    }
}
