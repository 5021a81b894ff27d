// SPDX-License-Identifier: Apache-2.0
//! Every address at which one replica accepts connections.

use std::fmt;
use std::str::FromStr;

use super::{AddressError, ReplicationAddress};

/// So many links may there be between two replicas; Corosync has as many.
pub const LINKS_MAX: usize = 8;

/// Between two addresses: a path may have a comma of its own.
const BETWEEN: &str = ",kemari:";

/// The addresses of one replica, one for each link to it, the preferred one first. At least one,
/// none twice. As text they are separated by commas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkAddresses(Vec<ReplicationAddress>);

impl LinkAddresses {
    /// These.
    ///
    /// # Errors
    /// There is none, one is there twice, or there are more than [`LINKS_MAX`].
    pub fn new(addresses: Vec<ReplicationAddress>) -> Result<Self, AddressError> {
        let twice = addresses
            .iter()
            .enumerate()
            .find(|(number, address)| addresses.iter().take(*number).any(|one| one == *address));
        match (twice, addresses.len()) {
            (Some((_, address)), _) => Err(AddressError::Twice(address.to_string())),
            (None, 0) => Err(AddressError::Form(String::new())),
            (None, 1..=LINKS_MAX) => Ok(Self(addresses)),
            (None, count) => Err(AddressError::TooMany(count)),
        }
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &ReplicationAddress> {
        self.0.iter()
    }

    /// How many there are; at least 1.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.0.len()
    }

    /// The one of this number, counted from 0.
    #[must_use]
    pub fn get(&self, number: usize) -> Option<&ReplicationAddress> {
        self.0.get(number)
    }

    /// Whether both lead to the same place by at least one address.
    #[must_use]
    pub fn meets(&self, other: &Self) -> bool {
        self.0.iter().any(|address| other.0.contains(address))
    }
}

impl From<ReplicationAddress> for LinkAddresses {
    fn from(address: ReplicationAddress) -> Self {
        Self(vec![address])
    }
}

impl FromStr for LinkAddresses {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let mut parts = text.split(BETWEEN);
        let first = parts.next().unwrap_or_default().parse();
        let others = parts.map(|rest| format!("kemari:{rest}").parse());
        Self::new(
            std::iter::once(first)
                .chain(others)
                .collect::<Result<_, _>>()?,
        )
    }
}

impl fmt::Display for LinkAddresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, address) in self.0.iter().enumerate() {
            if number > 0 {
                f.write_str(",")?;
            }
            address.fmt(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_reads_back(hosts in prop::collection::btree_set("[a-z0-9.-]{1,12}", 1..=LINKS_MAX)) {
            let addresses = hosts.iter().map(|host| format!("kemari:tls:{host}:4444").parse().unwrap());
            let addresses = LinkAddresses::new(addresses.collect()).unwrap();
            prop_assert_eq!(addresses.to_string().parse::<LinkAddresses>(), Ok(addresses));
        }

        #[test]
        fn no_text_panics(text in "(kemari:|tcp:|,|[a-z0-9:/,]){0,12}") {
            if let Ok(addresses) = text.parse::<LinkAddresses>() {
                prop_assert_eq!(addresses.to_string().parse::<LinkAddresses>(), Ok(addresses));
            }
        }
    }

    #[test]
    fn one_address_is_written_as_it_always_was() {
        let one = "kemari:tcp:192.168.0.20:4444";
        let addresses: LinkAddresses = one.parse().unwrap();
        assert_eq!((addresses.count(), addresses.to_string()), (1, one.into()));
        let path: LinkAddresses = "kemari:unix:/run/a,b,kemari:tcp:x:1".parse().unwrap();
        assert_eq!(path.count(), 2);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let message = |text: &str| text.parse::<LinkAddresses>().unwrap_err().to_string();
        assert!(message("").contains("give kemari:tcp:"));
        let twice = message("kemari:tcp:a:1,kemari:tcp:b:1,kemari:tcp:a:1");
        assert!(twice.contains("kemari:tcp:a:1 is given twice"), "{twice}");
        let many: Vec<String> = (1..=9).map(|n| format!("kemari:tcp:a:{n}")).collect();
        assert!(message(&many.join(",")).contains("9 addresses"));
        // The second one is no address of its own.
        assert!(message("kemari:tcp:a:1,b:2").contains("no replication address"));
    }
}
