// SPDX-License-Identifier: Apache-2.0
//! `[[network]]`: a virtio network interface of the guest, a TAP device of the host.
//!
//! Like a made MAC address, a made TAP name depends on the names of VM and interface only, so that
//! rules of a packet filter that name it hold on both hosts.

use schemars::JsonSchema;
use serde::Deserialize;
use thiserror::Error;
use xxhash_rust::xxh3::xxh3_64;

use super::{DeviceId, InterfaceName, MacAddress, Mtu, QueuePairs};
use crate::VmName;

/// Interfaces a machine may have: with the disks and the other devices they fill one PCI bus.
pub const NETWORKS_MAX: usize = 8;

/// The beginning of every TAP name that Kemari makes.
pub const TAP_PREFIX: &str = "kmi-";

/// A network interface of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "NetworkKeys")]
pub struct NetworkSection {
    /// What the interface is called in the description.
    pub id: DeviceId,
    /// Where its packets go on the host.
    pub outside: NetworkOutside,
    /// Queue pairs.
    pub queues: QueuePairs,
    /// The longest packet, where it is not the TAP device's.
    pub mtu: Option<Mtu>,
    mac: Option<MacAddress>,
}

/// Where an interface's packets go on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkOutside {
    /// To a bridge of the host, through a TAP device that the engine makes and joins to it.
    Bridge {
        /// The bridge.
        bridge: InterfaceName,
        /// The name for the TAP device, where it should not be the made one.
        tap: Option<InterfaceName>,
    },
    /// To a TAP device that the administrator made.
    Tap(InterfaceName),
}

impl NetworkSection {
    /// The address the guest's interface has: the given one, or one made from the names.
    #[must_use]
    pub fn mac(&self, vm: &VmName) -> MacAddress {
        self.mac
            .unwrap_or_else(|| MacAddress::made_for(vm, &self.id))
    }

    /// The TAP device: the given one, or a name made from the names of VM and interface.
    #[must_use]
    pub fn tap(&self, vm: &VmName) -> InterfaceName {
        match &self.outside {
            NetworkOutside::Tap(tap) | NetworkOutside::Bridge { tap: Some(tap), .. } => tap.clone(),
            NetworkOutside::Bridge { tap: None, .. } => made_tap(vm, &self.id),
        }
    }

    /// The bridge the TAP device is joined to.
    #[must_use]
    pub fn bridge(&self) -> Option<&InterfaceName> {
        match &self.outside {
            NetworkOutside::Bridge { bridge, .. } => Some(bridge),
            NetworkOutside::Tap(_) => None,
        }
    }
}

/// `kmi-VM_ID` where that fits an interface's name, else `kmi-` and a hash. No two interfaces share
/// a readable name, as no id has an underscore; and no hash has one either.
fn made_tap(vm: &VmName, id: &DeviceId) -> InterfaceName {
    let readable = format!("{TAP_PREFIX}{vm}_{id}");
    readable.parse().unwrap_or_else(|_| {
        let hash = base32(xxh3_64(format!("{vm}\0{id}").as_bytes()));
        format!("{TAP_PREFIX}{hash}")
            .parse()
            .expect("4 + 11 characters that interfaces may have in their names")
    })
}

/// The lowest 55 bits in 11 digits of RFC 4648's base 32, in small letters.
fn base32(number: u64) -> String {
    const DIGITS: [char; 32] = [
        'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i', 'j', 'k', 'l', 'm', 'n', 'o', 'p', 'q', 'r',
        's', 't', 'u', 'v', 'w', 'x', 'y', 'z', '2', '3', '4', '5', '6', '7',
    ];
    let digit = |place: u32| {
        let digit = usize::try_from(number >> (5 * place) & 31).unwrap_or(0);
        DIGITS.get(digit).copied().unwrap_or('a')
    };
    (0..11).rev().map(digit).collect()
}

/// The keys as they stand in the file.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(
    rename = "NetworkSection",
    description = "A network interface of the guest: give `bridge`, `tap` or both.",
    extend("anyOf" = [{ "required": ["bridge"] }, { "required": ["tap"] }])
)]
pub(super) struct NetworkKeys {
    /// What the interface is called: 1 to 20 letters, digits and dashes, unique among the
    /// interfaces of the machine. Required.
    id: DeviceId,
    /// A bridge of the host. The engine makes a TAP device and joins it. Without `bridge`, `tap`
    /// must be given.
    bridge: Option<InterfaceName>,
    /// The name of the TAP device, 1 to 15 characters. With `bridge` the engine makes it; the
    /// default is a name made from the names of VM and interface that begins with `kmi-`. Without
    /// `bridge` the administrator made it, and sees to where its packets go.
    tap: Option<InterfaceName>,
    /// The address the guest sees, as in "52:54:00:12:34:56"; default: one made from the names of
    /// VM and interface, always the same, on both hosts.
    mac: Option<MacAddress>,
    /// Queue pairs, 1 to 8; default 1. More let several virtual CPUs send and receive at once; each
    /// costs a thread's work and memory for two rings. A TAP device that the administrator made
    /// must have been made for several (`multi_queue`).
    #[serde(default)]
    queues: QueuePairs,
    /// The longest packet in bytes, 68 to 65521, told to the guest and set on a TAP device that the
    /// engine makes; default: the TAP device's own.
    mtu: Option<Mtu>,
}

#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "interface \"{0}\" leads nowhere: give bridge = \"br0\" to join a bridge of the host, or \
     tap = \"NAME\" for a TAP device you made"
)]
pub(super) struct Nowhere(DeviceId);

impl TryFrom<NetworkKeys> for NetworkSection {
    type Error = Nowhere;

    fn try_from(keys: NetworkKeys) -> Result<Self, Nowhere> {
        let outside = match (keys.bridge, keys.tap) {
            (Some(bridge), tap) => NetworkOutside::Bridge { bridge, tap },
            (None, Some(tap)) => NetworkOutside::Tap(tap),
            (None, None) => return Err(Nowhere(keys.id)),
        };
        Ok(Self {
            id: keys.id,
            outside,
            queues: keys.queues,
            mtu: keys.mtu,
            mac: keys.mac,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Result<NetworkSection, String> {
        toml::from_str(text).map_err(|error: toml::de::Error| error.message().to_owned())
    }

    fn tap(vm: &str, id: &str) -> String {
        made_tap(&vm.parse().unwrap(), &id.parse().unwrap()).to_string()
    }

    proptest! {
        #[test]
        fn a_made_tap_name_is_one_whatever_the_names(
            vm in "[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}", id in "[a-zA-Z0-9-]{1,20}",
        ) {
            prop_assert!(tap(&vm, &id).starts_with(TAP_PREFIX));
        }
    }

    #[test]
    fn made_tap_names_are_readable_where_they_fit_and_never_change() {
        assert_eq!(tap("web", "lan"), "kmi-web_lan");
        assert_eq!(tap("database", "lan"), "kmi-yblupwuezdf");
        let names = [
            ("a-b", "c"),
            ("a", "b-c"),
            ("a_b", "c"),
            ("a", "b"),
            ("a.b", "c"),
        ];
        let made: HashSet<_> = names.iter().map(|(vm, id)| tap(vm, id)).collect();
        assert_eq!(made.len(), names.len());
    }

    #[test]
    fn an_interface_joins_a_bridge_or_takes_a_tap_device() {
        let vm = "web".parse().unwrap();
        let bridged = read("id = \"lan\"\nbridge = \"br0\"").unwrap();
        assert_eq!(bridged.bridge().unwrap().as_str(), "br0");
        assert_eq!(bridged.tap(&vm).as_str(), "kmi-web_lan");
        assert_eq!(bridged.mac(&vm), MacAddress::made_for(&vm, &bridged.id));
        let given = read("id = \"lan\"\ntap = \"tap7\"\nmac = \"52:54:00:00:00:01\"").unwrap();
        assert_eq!((given.bridge(), given.tap(&vm).as_str()), (None, "tap7"));
        assert_eq!(given.mac(&vm).to_string(), "52:54:00:00:00:01");
        assert!(
            read("id = \"lan\"")
                .unwrap_err()
                .contains("bridge = \"br0\"")
        );
        assert!(
            read("id = \"lan\"\ntap = \"tap%d\"")
                .unwrap_err()
                .contains("1 to 15")
        );
    }
}
