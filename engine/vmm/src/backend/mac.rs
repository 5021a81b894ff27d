// SPDX-License-Identifier: Apache-2.0
//! Addresses of network interfaces.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

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
        fn addresses_survive_text_and_encoding(mut octets: [u8; 6]) {
            // Locally administered and no group.
            octets[0] = octets[0] & 0xfc | 2;
            let address = MacAddress::new(octets).unwrap();
            prop_assert_eq!(address.octets(), octets);
            prop_assert_eq!(address.to_string().to_uppercase().parse(), Ok(address));
            let encoded = postcard::to_stdvec(&address).unwrap();
            prop_assert_eq!(postcard::from_bytes::<MacAddress>(&encoded).unwrap(), address);
        }
    }
}
