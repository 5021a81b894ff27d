// SPDX-License-Identifier: Apache-2.0
//! TAPs in network namespaces of their own: each test's thread gets one, and the host's network is
//! never touched. Here: opening and configuring; in `traffic`: packets.

mod traffic;

use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};

use super::*;
use crate::backend::ioctl::{InterfaceName, Interfaces};

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
fn a_tap_that_is_taken_away_is_an_error_and_no_panic() {
    in_namespace(|| {
        let mut gone = Tap::open(&tap("gone")).unwrap();
        if !ip(&["link", "del", "gone"]) {
            return;
        }
        gone.transmit(&[0; 60]);
        assert_eq!(gone.lost(), 1);
        assert!(gone.receive(0, &mut [0; 2048]).is_err());
        assert!(gone.set_offloads(Offloads::ALL).is_err());
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
