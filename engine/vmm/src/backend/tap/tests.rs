// SPDX-License-Identifier: Apache-2.0
//! TAPs in network namespaces of their own: each test's thread gets one, and the host's network is
//! never touched.

use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::*;
use crate::backend::ioctl::{InterfaceName, Interfaces};
use crate::backend::network::{PACKET_BYTES_MAX, PACKET_HEADER_BYTES};

/// Rounds of waiting for a packet that must come, of 100 ms each.
const PATIENCE_ROUNDS: usize = 300;

/// Runs a test where it can do what it likes to the network.
fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let thread = thread::spawn(move || {
        if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
            println!("SKIPPED: no network namespace can be made: {error}");
            return;
        }
        let probe = Tap::open(&tap("probe"));
        if let Err(error @ (OpenTapError::NoDriver(_) | OpenTapError::Permission { .. })) = probe {
            println!("SKIPPED: {error}");
            return;
        }
        drop(probe);
        test();
    });
    thread.join().unwrap();
}

fn tap(name: &str) -> TapOptions {
    TapOptions {
        name: name.to_owned(),
        pairs: 1,
        mtu: None,
        bridge: None,
    }
}

fn bridged(name: &str, pairs: usize) -> TapOptions {
    TapOptions {
        pairs,
        bridge: Some("br0".to_owned()),
        ..tap(name)
    }
}

fn raw(name: &str) -> InterfaceName {
    let mut raw = [0; 16];
    raw[..name.len()].copy_from_slice(name.as_bytes());
    InterfaceName(raw)
}

fn make_bridge(name: &str) -> Interfaces {
    let interfaces = Interfaces::new().unwrap();
    interfaces.make_bridge(raw(name)).unwrap();
    // Without this the bridge's own IPv6 chatter is among the packets.
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
    set_up(&interfaces, name, true);
    interfaces
}

fn set_up(interfaces: &Interfaces, name: &str, up: bool) {
    let flags = interfaces.flags(raw(name)).unwrap();
    let bit = u16::try_from(libc::IFF_UP).unwrap();
    let flags = if up { flags | bit } else { flags & !bit };
    interfaces.set_flags(raw(name), flags).unwrap();
}

/// Waits for what a closed file leads to: a process that another test is just starting may hold the
/// file a moment longer, until it becomes another program.
fn eventually<T>(attempt: impl Fn() -> Option<T>) -> T {
    for _ in 0..PATIENCE_ROUNDS {
        if let Some(outcome) = attempt() {
            return outcome;
        }
        thread::sleep(Duration::from_millis(100));
    }
    panic!("it never came true");
}

/// Opens a TAP that was open before.
fn open_free(options: &TapOptions) -> Tap {
    eventually(|| match Tap::open(options) {
        Err(OpenTapError::InUse { .. }) => None,
        other => Some(other.unwrap()),
    })
}

fn ip(arguments: &[&str]) -> bool {
    match Command::new("ip").args(arguments).status() {
        Ok(status) => status.success(),
        Err(error) => {
            println!("SKIPPED: no ip command: {error}");
            false
        }
    }
}

/// A packet of UDP over IPv4, with an empty header. (The checksum of IP must be right: where the
/// kernel has br_netfilter, a bridge looks at it.)
fn udp(from: (u8, u16), to: (u8, u16), payload: &[u8]) -> Vec<u8> {
    let number = |bytes: usize| u16::try_from(bytes).unwrap().to_be_bytes();
    let mac = |host: u8| [2, 0, 0, 0, 0, host];
    let mut ip = [0x45, 0].to_vec();
    ip.extend(number(28 + payload.len()));
    ip.extend([0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, from.0, 10, 0, 0, to.0]);
    let sum: u32 = ip
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]))
        .sum();
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    ip.extend([from.1.to_be_bytes(), to.1.to_be_bytes()].concat());
    ip.extend(number(8 + payload.len()));
    ip.extend([0, 0]);
    let header = [0; PACKET_HEADER_BYTES];
    [
        &header,
        &mac(to.0)[..],
        &mac(from.0),
        &[0x08, 0],
        &ip,
        payload,
    ]
    .concat()
}

/// Sends until it arrives: a port that has just come up may not forward at once.
fn passes(from: &mut Tap, to: &mut Tap, packet: &[u8]) -> usize {
    for _ in 0..PATIENCE_ROUNDS {
        assert!(from.has_room());
        from.transmit(packet);
        let mut fds = [PollFd::new(to.readable(0), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::from(100u16)).unwrap();
        let mut buffer = vec![0; PACKET_BYTES_MAX];
        for pair in 0..to.pairs() {
            while let Some(length) = to.receive(pair, &mut buffer).unwrap() {
                assert_eq!(buffer[10..12], [1, 0], "one buffer");
                if buffer[PACKET_HEADER_BYTES..length] == packet[PACKET_HEADER_BYTES..] {
                    return pair;
                }
            }
        }
    }
    panic!("nothing came through");
}

#[test]
fn a_created_tap_is_gone_with_its_owner() {
    in_namespace(|| {
        let options = TapOptions {
            mtu: Some(9000),
            ..tap("t0")
        };
        let opened = Tap::open(&options).unwrap();
        assert_eq!(opened.origin(), TapOrigin::Created);
        assert_eq!(opened.mtu(), 9000);
        assert!(opened.offloads().contains(Offloads::TSO4));
        let interfaces = Interfaces::new().unwrap();
        assert_eq!(interfaces.mtu(raw("t0")).unwrap(), 9000);
        assert_eq!(interfaces.hardware_address(raw("t0")).unwrap()[2], 0xfe);
        let quiet = std::fs::read_to_string("/proc/sys/net/ipv6/conf/t0/addr_gen_mode");
        assert!(quiet.is_ok_and(|mode| mode.trim() == "1") || !ipv6_is_there());
        drop(opened);
        eventually(|| interfaces.index(raw("t0")).err());
    });
}

fn ipv6_is_there() -> bool {
    std::path::Path::new("/proc/sys/net/ipv6").exists()
}

#[test]
fn two_taps_on_a_bridge_pass_packets_and_announcements() {
    in_namespace(|| {
        make_bridge("br0");
        let mut a = Tap::open(&bridged("a", 1)).unwrap();
        let mut b = Tap::open(&bridged("b", 1)).unwrap();
        passes(&mut a, &mut b, &udp((1, 7), (2, 8), b"there"));
        passes(&mut b, &mut a, &udp((2, 8), (1, 7), b"and back"));
        let address = crate::backend::MacAddress::generate("vm", "net0");
        passes(&mut a, &mut b, &crate::backend::announcement(address));
    });
}

#[test]
fn answers_come_in_on_the_queue_that_asked() {
    in_namespace(|| {
        make_bridge("br0");
        let mut many = Tap::open(&bridged("many", 4)).unwrap();
        let mut one = Tap::open(&bridged("one", 1)).unwrap();
        assert_eq!(many.pairs(), 4);
        for port in 1000..1032 {
            let question = udp((1, port), (2, 53), b"question");
            passes(&mut many, &mut one, &question);
            let pair = passes(&mut one, &mut many, &udp((2, 53), (1, port), b"answer"));
            assert_eq!(pair, crate::backend::flow::queue_of(&question, 4));
        }
    });
}

#[test]
fn a_tap_has_one_owner() {
    in_namespace(|| {
        for pairs in [1, 3] {
            let options = TapOptions {
                pairs,
                ..tap(&format!("mine{pairs}"))
            };
            let first = Tap::open(&options).unwrap();
            for pairs in [1, 2] {
                let refused = Tap::open(&TapOptions {
                    pairs,
                    ..options.clone()
                });
                assert!(
                    matches!(refused, Err(OpenTapError::InUse { .. })),
                    "{refused:?}"
                );
            }
            drop(first);
        }
    });
}

#[test]
fn what_does_not_fit_is_refused_with_its_reason() {
    in_namespace(|| {
        let refusal = |options: &TapOptions| Tap::open(options).unwrap_err();
        let too_long = refusal(&tap("sixteen-letters-"));
        assert!(matches!(too_long, OpenTapError::Name { .. }));
        for pairs in [0, TAP_PAIRS_MAX + 1] {
            let refused = refusal(&TapOptions { pairs, ..tap("t") });
            assert!(matches!(refused, OpenTapError::Pairs { .. }));
        }
        let refused = refusal(&tap("lo"));
        assert!(matches!(refused, OpenTapError::NotATap { .. }), "{refused}");
        for mtu in [1, u32::MAX] {
            let refused = refusal(&TapOptions {
                mtu: Some(mtu),
                ..tap("t")
            });
            assert!(matches!(refused, OpenTapError::Mtu { .. }), "{refused}");
        }
        let refused = refusal(&bridged("t", 1));
        assert!(
            matches!(refused, OpenTapError::NoBridge { .. }),
            "{refused}"
        );
        let refused = refusal(&TapOptions {
            bridge: Some("lo".to_owned()),
            ..tap("t")
        });
        assert!(
            matches!(refused, OpenTapError::NotABridge { .. }),
            "{refused}"
        );
    });
}

#[test]
fn a_given_tap_is_used_as_it_is_and_stays() {
    in_namespace(|| {
        let interfaces = make_bridge("br0");
        make_bridge("br1");
        if !ip(&["tuntap", "add", "dev", "given", "mode", "tap"]) {
            return;
        }
        let refused = Tap::open(&bridged("given", 2)).unwrap_err();
        assert!(
            matches!(refused, OpenTapError::SingleQueue { .. }),
            "{refused}"
        );
        for _ in 0..2 {
            let opened = open_free(&bridged("given", 1));
            assert_eq!(opened.origin(), TapOrigin::Given);
            drop(opened);
        }
        let elsewhere = TapOptions {
            bridge: Some("br1".to_owned()),
            ..tap("given")
        };
        let refused = eventually(|| match Tap::open(&elsewhere).unwrap_err() {
            OpenTapError::InUse { .. } => None,
            other => Some(other),
        });
        assert!(
            matches!(refused, OpenTapError::OtherBridge { .. }),
            "{refused}"
        );
        assert!(interfaces.index(raw("given")).is_ok());
        assert!(ip(&[
            "tuntap",
            "add",
            "dev",
            "many",
            "mode",
            "tap",
            "multi_queue"
        ]));
        for pairs in [1, 4] {
            let opened = open_free(&bridged("many", pairs));
            assert_eq!(opened.pairs(), pairs);
        }
        assert!(ip(&["tuntap", "add", "dev", "layer3", "mode", "tun"]));
        let refused = Tap::open(&tap("layer3")).unwrap_err();
        assert!(matches!(refused, OpenTapError::NotATap { .. }), "{refused}");
    });
}

#[test]
fn packets_of_a_link_that_is_down_are_lost() {
    in_namespace(|| {
        let interfaces = make_bridge("br0");
        let mut a = Tap::open(&bridged("a", 1)).unwrap();
        let mut b = Tap::open(&bridged("b", 1)).unwrap();
        let packet = udp((1, 7), (2, 8), b"packet");
        set_up(&interfaces, "a", false);
        a.transmit(&packet);
        assert_eq!(a.lost(), 1);
        assert!(a.has_room());
        assert_eq!(a.receive(0, &mut [0; 2048]).unwrap(), None);
        set_up(&interfaces, "a", true);
        passes(&mut a, &mut b, &packet);
    });
}

#[test]
fn a_tap_that_is_taken_away_is_an_error_and_no_panic() {
    in_namespace(|| {
        let mut gone = Tap::open(&tap("gone")).unwrap();
        if !ip(&["link", "del", "gone"]) {
            return;
        }
        gone.transmit(&udp((1, 7), (2, 8), b"packet"));
        assert_eq!(gone.lost(), 1);
        assert!(gone.receive(0, &mut [0; 2048]).is_err());
        assert!(gone.set_offloads(Offloads::ALL).is_err());
    });
}

#[test]
fn whatever_a_guest_sends_the_next_packet_passes() {
    in_namespace(|| {
        make_bridge("br0");
        let mut hostile = Tap::open(&bridged("hostile", 2)).unwrap();
        let mut other = Tap::open(&bridged("other", 1)).unwrap();
        hostile.set_offloads(Offloads::ALL).unwrap();
        other.set_offloads(Offloads::CHECKSUM).unwrap();
        // Flags, kind of segmentation, lengths and offsets at random or nearly right, before a frame
        // that is whole or not.
        let bytes = proptest::collection::vec(any::<u8>(), 0..40);
        let packets = (0..8u8, any::<[u8; 9]>(), any::<bool>(), bytes);
        let mut runner = TestRunner::default();
        for _ in 0..2000 {
            let tree = packets.new_tree(&mut runner).unwrap();
            let (flags, rest, whole, tail) = tree.current();
            let mut packet = udp((1, 7), (2, 8), &tail);
            packet[0] = flags;
            packet[1..10].copy_from_slice(&rest);
            if rest[0] % 2 == 0 {
                let nearly = [rest[0] % 6, rest[1] % 64, 0, rest[3], 0, 34, 0, 6, 0];
                packet[1..10].copy_from_slice(&nearly);
            }
            if !whole {
                packet.truncate(usize::from(rest[5]) % packet.len());
            }
            if hostile.has_room() {
                hostile.transmit(&packet);
            }
            let mut buffer = [0; 4096];
            while other.receive(0, &mut buffer).unwrap().is_some() {}
        }
        assert!(hostile.lost() > 0, "some were no packets");
        passes(&mut hostile, &mut other, &udp((1, 7), (2, 8), b"packet"));
    });
}

/// Names the test that is run again without privilege.
const CHILD: &str = "KEMARI_TAP_TEST_CHILD";

#[test]
fn a_given_tap_needs_no_privilege() {
    in_namespace(|| {
        make_bridge("br0");
        let commands = [
            "tuntap add dev given mode tap user 0",
            "link set dev given master br0 up",
            "tuntap add dev down mode tap user 0",
            "tuntap add dev others mode tap user 12345",
        ];
        for command in commands {
            if !ip(&command.split(' ').collect::<Vec<_>>()) {
                return;
            }
        }
        // This test program again, as the same user, but without CAP_NET_ADMIN.
        let child = Command::new("setpriv")
            .arg("--bounding-set=-net_admin")
            .arg(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "backend::tap::tests::without_privilege",
                "--nocapture",
            ])
            .env(CHILD, "1")
            .status();
        match child {
            Ok(status) => assert!(status.success()),
            Err(error) => println!("SKIPPED: no setpriv command: {error}"),
        }
    });
}

#[test]
fn without_privilege() {
    if std::env::var_os(CHILD).is_none() {
        return; // Only a part of the test above.
    }
    let given = Tap::open(&bridged("given", 1)).unwrap();
    assert_eq!(given.origin(), TapOrigin::Given);
    for (options, reason) in [
        (tap("new"), "No permission for the TAP new"),
        (tap("others"), "No permission for the TAP others"),
        (
            tap("down"),
            "have an administrator do `ip link set dev down up`",
        ),
        (
            bridged("down", 1),
            "have an administrator do `ip link set dev down master br0`",
        ),
    ] {
        let refused = Tap::open(&options).unwrap_err().to_string();
        assert!(refused.contains(reason), "{refused}");
    }
}
