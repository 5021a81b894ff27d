// SPDX-License-Identifier: Apache-2.0
//! The files that make a set of nodes one cluster: `corosync.conf`, `authkey`, `hosts`, a first CIB.
//!
//! Only text is made here; a bed writes it to its nodes' disks before their first boot.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use xxhash_rust::xxh3::xxh3_128;

use crate::fencing::FENCING_PORT;
use crate::switch;

/// How Corosync's messages travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// Corosync's default, with link supervision. Links take 1.0 to 1.6 s to come up after a start.
    Knet,
    /// Plain UDP. Links are there after 0.2 s.
    Udpu,
}

/// One cluster's parameters.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// `cluster_name`.
    pub name: String,
    /// The nodes' names; the first has nodeid 1 and the address that [`switch::address`] gives for 1.
    pub nodes: Vec<String>,
    /// Corosync's token time-out in milliseconds, the same whatever the number of nodes. A lost node is noticed
    /// after about 2.15 times this.
    pub token_ms: u32,
    /// How messages travel.
    pub transport: Transport,
    /// Whether Pacemaker fences, through the agent `fence_bed`.
    pub stonith: bool,
}

/// A file of a node's disk.
#[derive(Debug, Clone)]
pub struct NodeFile {
    /// Absolute path in the node.
    pub path: &'static str,
    /// What is in it.
    pub contents: String,
    /// Permission bits.
    pub mode: u32,
    /// Whether it belongs to `hacluster:haclient` (and the directories above it too, up to `/var/lib/pacemaker`)
    /// instead of root.
    pub pacemaker: bool,
}

impl Cluster {
    /// The number of a node, counted from 1: its nodeid and the last byte of its address.
    pub fn number(&self, node: &str) -> Option<u8> {
        let index = self.nodes.iter().position(|name| name == node)?;
        u8::try_from(index + 1).ok().filter(|number| *number < 254)
    }

    /// The address of a node.
    pub fn address(&self, node: &str) -> Option<Ipv4Addr> {
        self.number(node).map(switch::address)
    }

    /// Every file that the node's disk needs on top of the shared layers to be this member of the cluster.
    pub fn files(&self, node: &str) -> Vec<NodeFile> {
        let root = |path, contents: String, mode| NodeFile {
            path,
            contents,
            mode,
            pacemaker: false,
        };
        let machine = xxh3_128(format!("{}/{node}", self.name).as_bytes());
        vec![
            root("/etc/hostname", format!("{node}\n"), 0o644),
            root("/etc/machine-id", format!("{machine:032x}\n"), 0o444),
            root("/etc/hosts", self.hosts(), 0o644),
            root("/etc/corosync/corosync.conf", self.configuration(), 0o644),
            root("/etc/corosync/authkey", "kemari-test-bed!".repeat(8), 0o400),
            NodeFile {
                path: "/var/lib/pacemaker/cib/cib.xml",
                contents: self.cib(),
                mode: 0o600,
                pacemaker: true,
            },
        ]
    }

    fn hosts(&self) -> String {
        let mut text = String::from("127.0.0.1 localhost\n");
        for (node, address) in self.members() {
            let _ = writeln!(text, "{address} {node}");
        }
        text
    }

    fn members(&self) -> impl Iterator<Item = (&String, Ipv4Addr)> {
        self.nodes
            .iter()
            .filter_map(|node| Some((node, self.address(node)?)))
    }

    /// `corosync.conf`.
    pub fn configuration(&self) -> String {
        let mut text = format!("totem {{\n{}}}\n\nnodelist {{\n", self.totem());
        for (number, (node, address)) in self.members().enumerate() {
            let _ = write!(
                text,
                "  node {{\n    name: {node}\n    nodeid: {}\n    ring0_addr: {address}\n  }}\n",
                number + 1
            );
        }
        text.push_str("}\n\nquorum {\n  provider: corosync_votequorum\n");
        if self.nodes.len() == 2 {
            text.push_str("  two_node: 1\n");
        }
        text.push_str(
            "}\n\nlogging {\n  to_logfile: yes\n  logfile: /var/log/corosync/corosync.log\n",
        );
        text.push_str("  to_syslog: no\n  to_stderr: no\n  timestamp: hires\n}\n");
        text
    }

    fn totem(&self) -> String {
        let transport = match self.transport {
            Transport::Knet => "knet",
            Transport::Udpu => "udpu",
        };
        let mut text = format!(
            "  version: 2\n  cluster_name: {}\n  transport: {transport}\n  token: {}\n  token_coefficient: 0\n",
            self.name, self.token_ms
        );
        if self.transport == Transport::Knet {
            text.push_str("  crypto_cipher: none\n  crypto_hash: none\n");
            if self.token_ms < 500 {
                // The default time-out of half a token is near the resolution of knet's own heartbeat timer:
                // healthy links would be declared down every few seconds.
                text.push_str("  interface {\n    linknumber: 0\n    knet_ping_interval: 250\n");
                text.push_str("    knet_ping_timeout: 2000\n  }\n");
            }
        }
        text
    }

    /// The first CIB. Without it Pacemaker waits 20 s for other nodes before the first election.
    pub fn cib(&self) -> String {
        let resources = if self.stonith {
            format!(
                "<resources><primitive id=\"fencing\" class=\"stonith\" type=\"fence_bed\">\
                 <instance_attributes id=\"fencing-parameters\">\
                 <nvpair id=\"fencing-ip\" name=\"ip\" value=\"{}\"/>\
                 <nvpair id=\"fencing-ipport\" name=\"ipport\" value=\"{FENCING_PORT}\"/>\
                 </instance_attributes></primitive></resources>",
                switch::OUTSIDE
            )
        } else {
            String::from("<resources/>")
        };
        let options: String = [
            ("dc-deadtime", "2s"),
            (
                "stonith-enabled",
                if self.stonith { "true" } else { "false" },
            ),
        ]
        .iter()
        .map(|(name, value)| {
            format!(
                "<nvpair id=\"cib-bootstrap-options-{name}\" name=\"{name}\" value=\"{value}\"/>"
            )
        })
        .collect();
        format!(
            "<cib crm_feature_set=\"3.16.1\" validate-with=\"pacemaker-3.9\" epoch=\"1\" num_updates=\"0\" \
             admin_epoch=\"0\"><configuration><crm_config><cluster_property_set id=\"cib-bootstrap-options\">\
             {options}</cluster_property_set></crm_config><nodes/>{resources}<constraints/></configuration>\
             <status/></cib>\n"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(nodes: usize) -> Cluster {
        Cluster {
            name: "bed".into(),
            nodes: (1..=nodes).map(|n| format!("node{n}")).collect(),
            token_ms: 1000,
            transport: Transport::Knet,
            stonith: true,
        }
    }

    #[test]
    fn only_two_nodes_are_two_node() {
        assert!(cluster(2).configuration().contains("two_node: 1"));
        assert!(!cluster(3).configuration().contains("two_node"));
    }

    #[test]
    fn a_short_token_has_slower_link_supervision() {
        let mut short = cluster(3);
        assert!(!short.configuration().contains("knet_ping_timeout"));
        short.token_ms = 300;
        assert!(short.configuration().contains("knet_ping_timeout: 2000"));
    }

    #[test]
    fn nodes_are_numbered_from_one() {
        let three = cluster(3);
        assert_eq!(three.number("node3"), Some(3));
        assert_eq!(three.number("node4"), None);
        assert_eq!(three.address("node2"), Some(Ipv4Addr::new(10, 77, 0, 2)));
        assert!(
            three
                .configuration()
                .contains("nodeid: 3\n    ring0_addr: 10.77.0.3")
        );
    }
}
