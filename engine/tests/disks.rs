// SPDX-License-Identifier: Apache-2.0
//! Replicated disks between two engine processes on this machine's `/dev/kvm`: the bare guest checks
//! in each round that its disk holds what its memory says, and we compare the two hosts' files.
#![allow(
    clippy::unwrap_used,
    reason = "a test ends where something is not as it must be"
)]

#[allow(dead_code, reason = "each test file uses its part")]
mod disk_site;
#[allow(dead_code, reason = "each test file uses its part")]
mod replica_process;
mod shared_device;
mod standing_disk;

use std::fs;
use std::os::unix::fs::FileExt;

use kemari_api::replica::{DiskState, Promotion};
use kemari_api::{Licence, Role};
use nix::sys::signal::Signal;

use disk_site::{DISK_BYTES, Site, commit_more, first_difference, is_a_copy};
use replica_process::kvm_or_skip;
use standing_disk::StandingDisk;

#[test]
fn the_disk_of_a_killed_active_replica_is_continued_by_the_passive_one() {
    if !kvm_or_skip() {
        return;
    }
    let site = Site::new();
    let mut active = site.replica("a", "");
    active.promote(Promotion::ColdStart, 1).unwrap();
    site.see_more(1_000);
    for round in 0..6 {
        let node = if round % 2 == 0 { "b" } else { "a" };
        let passive = site.replica(node, "");
        active.protect(&passive);
        is_a_copy(&passive);
        site.see_more(1_000);
        active.kill();
        passive.wait("the loss noticed", |status| status.detail.contains("lost"));
        passive.promote(Promotion::TakeOver, round + 2).unwrap();
        assert_eq!(passive.status().disks, DiskState::Own);
        site.see_more(500);
        active = passive;
    }
    site.judge();
}

#[test]
fn after_a_handover_both_disks_are_equal() {
    if !kvm_or_skip() {
        return;
    }
    let site = Site::new();
    let (a, b) = (site.replica("a", ""), site.replica("b", ""));
    a.promote(Promotion::ColdStart, 1).unwrap();
    let mut pair = [&a, &b];
    for generation in 2..6 {
        let [active, passive] = pair;
        site.see_more(500);
        active.protect(passive);
        site.see_more(300);
        active.demote().unwrap();
        let (ours, theirs) = (site.disk("a"), site.disk("b"));
        assert_eq!(first_difference(&ours, &theirs), None);
        passive.promote(Promotion::TakeOver, generation).unwrap();
        pair = [passive, active];
    }
    site.see_more(300);
    site.judge();
}

#[test]
fn only_what_differs_is_copied() {
    if !kvm_or_skip() {
        return;
    }
    let site = Site::new();
    fs::copy(site.disk("a"), site.directory.path().join("b")).unwrap();
    let differs = fs::OpenOptions::new()
        .write(true)
        .open(site.disk("b"))
        .unwrap();
    differs.write_all_at(b"x", 5 * 1024 * 1024).unwrap();
    differs.write_all_at(b"x", DISK_BYTES - 1).unwrap();
    let (a, b) = (site.replica("a", ""), site.replica("b", ""));
    a.promote(Promotion::ColdStart, 1).unwrap();
    site.see_more(100);
    a.protect(&b);
    let log = a.log();
    println!("{log}");
    a.demote().unwrap();
    assert_eq!(first_difference(&site.disk("a"), &site.disk("b")), None);
    // The guest uses two blocks and wrote them before and meanwhile; two more differed.
    let copied: u64 = log
        .split("copied_blocks=")
        .nth(1)
        .and_then(|rest| rest.split_whitespace().next())
        .unwrap()
        .parse()
        .unwrap();
    assert!((3..=12).contains(&copied), "{copied} blocks copied");
}

#[test]
fn a_guest_is_not_booted_from_a_copy_by_mistake() {
    if !kvm_or_skip() {
        return;
    }
    let site = Site::new();
    let (a, mut b) = (site.replica("a", ""), site.replica("b", ""));
    a.promote(Promotion::ColdStart, 1).unwrap();
    a.protect(&b);
    is_a_copy(&b);
    b.kill();
    let b = b.start_again();
    assert_eq!(b.status().disks, DiskState::Copy);
    let refused = b.promote(Promotion::ColdStart, 9).unwrap_err().to_string();
    assert!(refused.contains("copy of the other replica's"), "{refused}");
    // It can be made a passive replica again, though.
    a.go_solo(2).unwrap();
    assert_eq!(a.status().licence, Licence::Solo);
    a.protect(&b);
    site.see_more(500);
    assert_eq!(b.status().role, Role::Passive);
    site.judge();
}

#[test]
fn a_shared_file_is_refused_by_name() {
    if !kvm_or_skip() {
        return;
    }
    let site = Site::new();
    let a = site.replica("a", "storage = \"shared\"\n");
    a.promote(Promotion::ColdStart, 1).unwrap();
    let refused = a.monitor("migrate -d kemari:tcp:127.0.0.1:1").unwrap_err();
    let refused = refused.to_string();
    assert!(refused.contains("\"root\" is shared"), "{refused}");
    assert!(refused.contains("it is a file"), "{refused}");
    assert_eq!(a.status().disks, DiskState::Shared);
}

#[test]
fn disks_are_copied_while_the_guest_writes_them() {
    if !kvm_or_skip() {
        return;
    }
    let site = Site::new();
    let a = site.replica("a", "");
    a.promote(Promotion::ColdStart, 1).unwrap();
    site.see_more(1_000);
    for round in 0..5 {
        let b = site.replica("b", "");
        a.protect(&b);
        site.see_more(300);
        drop(b);
        a.wait("the loss noticed", |status| status.licence == Licence::Cut);
        a.go_solo(round + 2).unwrap();
    }
    site.judge();
}

#[test]
fn disks_are_compared_while_the_guest_writes_them() {
    if !kvm_or_skip() {
        return;
    }
    let site = Site::new();
    let (a, b) = (site.replica("a", ""), site.replica("b", ""));
    a.promote(Promotion::ColdStart, 1).unwrap();
    let alone = a.monitor("verify").unwrap_err().to_string();
    assert!(alone.contains("while the pair is in sync"), "{alone}");
    a.protect(&b);
    for _ in 0..3 {
        site.see_more(200);
        assert!(a.monitor("verify").unwrap().contains("are equal"));
    }
    // Somebody writes where nobody should.
    let spoilt = fs::OpenOptions::new()
        .write(true)
        .open(site.disk("b"))
        .unwrap();
    spoilt.write_all_at(b"!", 6 * 1024 * 1024).unwrap();
    let differs = a.monitor("verify").unwrap_err().to_string();
    assert!(differs.contains("1 differ: disk 0 at 6291456"), "{differs}");
    site.see_more(200);
    site.judge();
}

#[test]
fn a_person_can_boot_from_a_copy_by_force() {
    if !kvm_or_skip() {
        return;
    }
    let site = Site::new();
    let (mut a, mut b) = (site.replica("a", ""), site.replica("b", ""));
    a.promote(Promotion::ColdStart, 1).unwrap();
    a.protect(&b);
    is_a_copy(&b);
    b.kill();
    a.kill();
    let b = b.boot_by_force();
    let status = b.wait("the boot", |status| status.role == Role::Active);
    assert_eq!((status.disks, status.generation.get()), (DiskState::Own, 2));
}

#[test]
fn checkpoints_do_not_wait_for_a_disk_and_the_passive_replica_makes_its_request_again() {
    if !kvm_or_skip() {
        return;
    }
    let Some(standing) = StandingDisk::mount_or_skip() else {
        return;
    };
    let site = Site::new();
    site.put_disk_on("a", &standing);
    let (mut a, b) = (site.replica("a", ""), site.replica("b", ""));
    a.promote(Promotion::ColdStart, 1).unwrap();
    a.protect(&b);
    is_a_copy(&b);
    site.see_more(1_000);
    let frozen = site.stop_disk(&standing, &a);
    commit_more(&a);
    // It cannot die before its disk answers, but it does nothing any more.
    a.signal(Signal::SIGKILL);
    b.wait("the loss noticed", |status| status.detail.contains("lost"));
    b.promote(Promotion::TakeOver, 2).unwrap();
    // The guest has its answer: from this host's disk.
    site.see_more(1_000);
    drop(frozen);
    a.kill();
    site.judge();
}

#[test]
fn a_disk_that_stood_still_goes_on_and_stays_equal() {
    if !kvm_or_skip() {
        return;
    }
    let Some(standing) = StandingDisk::mount_or_skip() else {
        return;
    };
    let site = Site::new();
    site.put_disk_on("a", &standing);
    let (a, b) = (site.replica("a", ""), site.replica("b", ""));
    a.promote(Promotion::ColdStart, 1).unwrap();
    a.protect(&b);
    for _ in 0..3 {
        site.see_more(300);
        let frozen = site.stop_disk(&standing, &a);
        drop(frozen);
        site.see_more(300);
        assert!(a.monitor("verify").unwrap().contains("are equal"));
    }
    a.demote().unwrap();
    assert_eq!(first_difference(&site.disk("a"), &site.disk("b")), None);
    b.promote(Promotion::TakeOver, 2).unwrap();
    site.see_more(300);
    site.judge();
}

#[test]
fn a_shared_disk_is_continued_by_the_passive_replica() {
    if !kvm_or_skip() {
        return;
    }
    let Some((_shared, site)) = Site::with_shared_disk_or_skip() else {
        return;
    };
    let mut active = site.replica_with_shared_disk("a");
    active.promote(Promotion::ColdStart, 1).unwrap();
    site.see_more(300);
    for round in 0..6 {
        let node = if round % 2 == 0 { "b" } else { "a" };
        let passive = site.replica_with_shared_disk(node);
        active.protect(&passive);
        assert_eq!(passive.status().disks, DiskState::Shared);
        site.see_more(300);
        // When it is gone, nothing of it is on its way to the disk.
        active.kill();
        passive.wait("the loss noticed", |status| status.detail.contains("lost"));
        passive.promote(Promotion::TakeOver, round + 2).unwrap();
        site.see_more(200);
        active = passive;
    }
    site.judge();
}

#[test]
fn a_shared_disk_is_handed_over_and_a_stop_does_not_wait_for_commits() {
    if !kvm_or_skip() {
        return;
    }
    let Some((_shared, site)) = Site::with_shared_disk_or_skip() else {
        return;
    };
    let (a, b) = (
        site.replica_with_shared_disk("a"),
        site.replica_with_shared_disk("b"),
    );
    a.promote(Promotion::ColdStart, 1).unwrap();
    let mut pair = [&a, &b];
    for generation in 2..6 {
        let [active, passive] = pair;
        site.see_more(150);
        active.protect(passive);
        site.see_more(150);
        active.monitor("stop").unwrap();
        active.monitor("cont").unwrap();
        site.see_more(150);
        active.demote().unwrap();
        passive.promote(Promotion::TakeOver, generation).unwrap();
        pair = [passive, active];
    }
    site.see_more(150);
    site.judge();
}
