// SPDX-License-Identifier: Apache-2.0
//! What in Corosync's configuration will hurt, and what to set instead.
//!
//! Only what a fault-tolerant VM minds more than other resources do; Corosync works with all of it.
//! The agent logs it at its start, `kemarictl doctor` shows it.

use rust_corosync::cmap::{self, Map};

use super::nodes::{number, text};
use super::{CorosyncError, failed};

/// Corosync's own notice of a lost node comes after this at best; longer, and clients notice.
const TOKEN_MS_MAX: u32 = 3_000;

/// What of the configuration matters here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// How long a silent node is waited for, in effect, in milliseconds.
    pub token_ms: Option<u32>,
    /// How many nodes are configured.
    pub nodes: usize,
    /// Votequorum treats two nodes as a special case: either is quorate alone.
    pub two_node: Option<bool>,
    /// A node that starts waits until it has seen all others once.
    pub wait_for_all: Option<bool>,
    /// The model of the quorum device, if there is one.
    pub device: Option<String>,
}

/// Who fences, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fencing {
    /// Pacemaker has a device and uses it.
    Configured,
    /// It has none, or does not use it.
    Missing,
    /// Nobody was asked: the agent starts before Pacemaker.
    Unknown,
}

/// One thing that will hurt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advice {
    /// What it is.
    pub found: String,
    /// What to set.
    pub remedy: String,
}

impl Settings {
    /// Reads them from the Corosync that runs here. Blocks for its answer.
    ///
    /// # Errors
    /// When there is none, or it refuses this user.
    pub fn read() -> Result<Self, CorosyncError> {
        let nodes = super::nodes::NodeList::read()?;
        let handle = cmap::initialize(Map::Icmap).map_err(failed("connecting to cmap"))?;
        let flag = |key: &str| -> Result<Option<bool>, CorosyncError> {
            Ok(number(&handle, key)?.map(|value| value != 0))
        };
        Ok(Self {
            token_ms: number(&handle, "runtime.config.totem.token")?,
            nodes: nodes.configured().len(),
            two_node: flag("runtime.votequorum.two_node")?,
            wait_for_all: match flag("runtime.votequorum.wait_for_all_status")? {
                Some(true) => Some(true),
                // Says whether it waits now; the configuration, whether it ever would.
                _ => flag("quorum.wait_for_all")?.or(flag("quorum.two_node")?),
            },
            device: text(&handle, "quorum.device.model")?,
        })
    }

    /// What will hurt, worst first.
    #[must_use]
    pub fn advice(&self, fencing: Fencing) -> Vec<Advice> {
        let mut advice = Vec::new();
        let mut say = |found: String, remedy: &str| {
            advice.push(Advice {
                found,
                remedy: remedy.to_owned(),
            });
        };
        let few = self.nodes < 3;
        if few && fencing != Fencing::Configured && self.device.is_none() {
            let known = match fencing {
                Fencing::Unknown => "if Pacemaker fences nothing",
                _ => "and Pacemaker fences nothing",
            };
            say(
                format!(
                    "{} nodes without a quorum device, {known}: after a split both can call \
                     themselves quorate, and a lost node is never taken over from",
                    self.nodes
                ),
                "configure stonith, or better a third node with corosync, pacemaker and kemari-agent",
            );
        }
        if let Some(device) = self.device.as_ref().filter(|_| few) {
            say(
                format!(
                    "a quorum device ({device}) counts for Corosync, not for the agents' majority: \
                     with {} nodes everything after a node loss rests on fencing",
                    self.nodes
                ),
                "a third node with kemari-agent in place of the device",
            );
        }
        if let Some(token_ms) = self.token_ms.filter(|token| *token > TOKEN_MS_MAX) {
            say(
                format!(
                    "token is {token_ms} ms in effect: a lost node is noticed that late, and its \
                     guests stand still meanwhile"
                ),
                "totem { token: 1000 } in corosync.conf, up to 3000 where the network needs it",
            );
        }
        if self.wait_for_all == Some(false) {
            say(
                "wait_for_all is off: a node that boots alone can become quorate and fence the others"
                    .to_owned(),
                "quorum { wait_for_all: 1 } in corosync.conf",
            );
        }
        advice
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sound() -> Settings {
        Settings {
            token_ms: Some(1000),
            nodes: 3,
            two_node: Some(false),
            wait_for_all: Some(true),
            device: None,
        }
    }

    #[test]
    fn a_sound_configuration_gets_no_advice() {
        assert_eq!(sound().advice(Fencing::Missing), []);
        assert_eq!(Settings::default().advice(Fencing::Configured), []);
        let two = Settings {
            nodes: 2,
            ..sound()
        };
        assert_eq!(two.advice(Fencing::Configured), []);
    }

    #[test]
    fn each_setting_that_hurts_is_named_with_what_to_set() {
        let cases = [
            (
                Settings {
                    token_ms: Some(3001),
                    ..sound()
                },
                "token is 3001 ms",
                "token: 1000",
            ),
            (
                Settings {
                    wait_for_all: Some(false),
                    ..sound()
                },
                "wait_for_all is off",
                "wait_for_all: 1",
            ),
            (
                Settings {
                    nodes: 2,
                    ..sound()
                },
                "2 nodes without",
                "stonith",
            ),
            (
                Settings {
                    nodes: 2,
                    device: Some("net".to_owned()),
                    ..sound()
                },
                "quorum device (net)",
                "third node",
            ),
        ];
        for (settings, found, remedy) in cases {
            let advice = settings.advice(Fencing::Missing);
            let only = advice.first().unwrap();
            assert_eq!(advice.len(), 1, "{advice:?}");
            assert!(
                only.found.contains(found) && only.remedy.contains(remedy),
                "{only:?}"
            );
        }
    }

    #[test]
    fn the_longest_token_that_is_borne_is_three_seconds() {
        let settings = Settings {
            token_ms: Some(3000),
            ..sound()
        };
        assert_eq!(settings.advice(Fencing::Configured), []);
    }
}
