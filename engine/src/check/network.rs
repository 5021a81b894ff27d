// SPDX-License-Identifier: Apache-2.0
//! `[[network]]` and `replication.port`: bridges, TAP devices and the port, from sysfs.

use std::net::TcpListener;

use kemari_api::config::{NetworkOutside, NetworkSection, VmConfig};

use super::host::{Host, Running};
use super::{FailureKind, Problem, Severity};

/// linux/if_tun.h
const IFF_TAP: u64 = 0x0002;
const IFF_MULTI_QUEUE: u64 = 0x0100;

/// What this node lacks for the interfaces, and whether the port is free.
pub(super) fn problems(config: &VmConfig, host: &Host, running: Running) -> Vec<Problem> {
    let mut found = Vec::new();
    if !config.network.is_empty() {
        found.extend(driver(host));
    }
    for (index, network) in config.network.iter().enumerate() {
        let key = |key: &str| format!("network[{index}].{key}");
        found.extend(bridge(network, host).map(|text| Problem::missing(key("bridge"), text)));
        let tap = tap(config, network, host, running);
        found.extend(tap.map(|text| Problem::missing(key("tap"), text)));
    }
    if running == Running::No {
        found.extend(port(config.replication.port.number()));
    }
    found
}

fn driver(host: &Host) -> Option<Problem> {
    let path = host.path("dev/net/tun");
    let there = path.exists();
    let text = format!("{} is missing; load the module tun", path.display());
    (!there).then(|| Problem::missing("network[0]", text))
}

fn bridge(network: &NetworkSection, host: &Host) -> Option<String> {
    let bridge = network.bridge()?;
    let device = host.path(format!("sys/class/net/{bridge}"));
    if !device.exists() {
        return Some(format!(
            "there is no bridge {bridge} on this host; make it (ip link add {bridge} type bridge)"
        ));
    }
    let is_bridge = device.join("bridge").exists();
    (!is_bridge).then(|| format!("{bridge} is a network interface but no bridge; name a bridge"))
}

fn tap(
    config: &VmConfig,
    network: &NetworkSection,
    host: &Host,
    running: Running,
) -> Option<String> {
    let name = network.tap(&config.vm.name);
    let flags = tun_flags(host, name.as_str());
    match (&network.outside, flags) {
        (NetworkOutside::Tap(_), Tun::Nothing) => Some(format!(
            "there is no TAP device {name} on this host; make it (ip tuntap add dev {name} mode \
             tap), or give bridge and the engine makes it"
        )),
        (NetworkOutside::Bridge { .. }, Tun::Nothing) => None,
        (_, Tun::Other) => Some(format!(
            "{name} is a network interface but no TAP device; give another name"
        )),
        (_, Tun::Tap { multi_queue }) => {
            let queues = network.queues.get();
            // One that the engine of this VM made goes with it.
            let wrong = queues > 1 && !multi_queue && running == Running::No;
            wrong.then(|| {
                format!(
                    "{name} was made for one queue pair and {queues} are asked for; make it anew \
                     (ip tuntap add dev {name} mode tap multi_queue), or give queues = 1"
                )
            })
        }
    }
}

/// What bears a name among the network interfaces.
enum Tun {
    Nothing,
    Other,
    Tap { multi_queue: bool },
}

fn tun_flags(host: &Host, name: &str) -> Tun {
    let device = host.path(format!("sys/class/net/{name}"));
    if !device.exists() {
        return Tun::Nothing;
    }
    let flags = host
        .text(device.join("tun_flags"))
        .and_then(|text| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok());
    match flags {
        Some(flags) if flags & IFF_TAP != 0 => Tun::Tap {
            multi_queue: flags & IFF_MULTI_QUEUE != 0,
        },
        _ => Tun::Other,
    }
}

fn port(port: u16) -> Option<Problem> {
    let error = TcpListener::bind(("0.0.0.0", port)).err()?;
    let text = format!(
        "cannot listen at port {port}: {error}; give each VM of a node its own replication.port"
    );
    let severity = Severity::Error(FailureKind::Other);
    Some(Problem::new("replication.port", severity, text))
}

#[cfg(test)]
mod tests {
    use super::super::host::{FakeHost, described};
    use super::*;

    /// The key and text of the only problem, as one text.
    fn told(more: &str) -> String {
        let fake = FakeHost::with(&[
            ("dev/net/tun", ""),
            ("sys/class/net/eth0/mtu", "1500\n"),
            ("sys/class/net/br0/bridge/bridge_id", ""),
            ("sys/class/net/single/tun_flags", "0x1002\n"),
            ("sys/class/net/multi/tun_flags", "0x5102\n"),
            ("sys/class/net/tun0/tun_flags", "0x1001\n"),
        ]);
        let text = format!("[[network]]\nid = \"a\"\n{more}");
        // Not the port: another test, or a VM, may have it.
        let found = problems(&described(&text), &fake.host(), Running::Here);
        let again = config_problems_when_stopped(&fake, &text);
        let texts: Vec<_> = found.into_iter().chain(again).map(|it| it.text).collect();
        texts.join("\n")
    }

    fn config_problems_when_stopped(fake: &FakeHost, text: &str) -> Option<Problem> {
        let config = described(text);
        let network = &config.network[0];
        let text = tap(&config, network, &fake.host(), Running::No)?;
        let known = tap(&config, network, &fake.host(), Running::Here).is_some();
        (!known).then(|| Problem::missing("network[0].tap", text))
    }

    #[test]
    fn bridges_and_taps_that_are_there_are_accepted() {
        for good in [
            "bridge = \"br0\"\n",
            "bridge = \"br0\"\ntap = \"new\"\nqueues = 8\n",
            "tap = \"single\"\n",
            "tap = \"multi\"\nqueues = 2\n",
        ] {
            assert_eq!(told(good), "", "{good}");
        }
    }

    #[test]
    fn what_is_missing_or_something_else_is_told_with_the_command() {
        for (bad, words) in [
            ("bridge = \"br1\"\n", "ip link add br1 type bridge"),
            ("bridge = \"eth0\"\n", "no bridge"),
            ("tap = \"tap7\"\n", "ip tuntap add dev tap7"),
            ("tap = \"eth0\"\n", "no TAP device"),
            ("tap = \"tun0\"\n", "no TAP device"),
            ("tap = \"single\"\nqueues = 2\n", "multi_queue"),
        ] {
            let told = told(bad);
            assert!(told.contains(words), "{bad}: {told}");
            assert_eq!(told.lines().count(), 1, "{told}");
        }
    }

    #[test]
    fn a_host_without_the_driver_is_told_once() {
        let fake = FakeHost::with(&[("sys/class/net/br0/bridge/x", "")]);
        let text = "[[network]]\nid = \"a\"\nbridge = \"br0\"\n";
        let found = problems(&described(text), &fake.host(), Running::Here);
        assert_eq!(found.len(), 1);
        assert!(found[0].text.contains("module tun"), "{found:?}");
    }

    #[test]
    fn a_port_that_is_taken_is_told() {
        let taken = TcpListener::bind("0.0.0.0:0").unwrap();
        let number = taken.local_addr().unwrap().port();
        assert_eq!(port(number).unwrap().key, "replication.port");
    }
}
