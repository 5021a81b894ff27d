// SPDX-License-Identifier: Apache-2.0
//! Two engine processes whose disks met before: only what the records of changes name is compared, the
//! disks are equal then all the same, and a record that cannot be trusted is not.
#![allow(
    clippy::unwrap_used,
    reason = "a test ends where something is not as it must be"
)]

#[allow(dead_code, reason = "each test file uses its part")]
mod disk_site;
#[allow(dead_code, reason = "each test file uses its part")]
mod replica_process;
#[allow(dead_code, reason = "each test file uses its part")]
mod shared_device;
#[allow(dead_code, reason = "each test file uses its part")]
mod standing_disk;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::{Duration, Instant};

use kemari_api::Licence;
use kemari_api::replica::{DiskState, Promotion};
use kemari_replication::storage::ChangeRecord;

use disk_site::{LARGE_DISK_BYTES, Site, first_difference, is_a_copy};
use replica_process::{ReplicaProcess, kvm_or_skip};

const DURABLE: &str = "the disks are equal and durable on both nodes";

/// A pair whose disks are equal, and recorded to be.
fn pair_with_records(active: &ReplicaProcess, passive: &ReplicaProcess) {
    let before = active.log().matches(DURABLE).count();
    active.protect(passive);
    is_a_copy(passive);
    active.wait_for_log(DURABLE, before + 1);
    // The record is written behind that: where one side has the new base on disk and the other has not yet, all is
    // compared, which is right, and not what is tested here.
    let log = active.log();
    let (_, last) = log.rsplit_once(DURABLE).unwrap();
    let (_, base) = last.split_once(" base=").unwrap();
    let base = base.split_whitespace().next().unwrap();
    for replica in [active, passive] {
        let begun = Instant::now();
        let recorded = || {
            let bytes = fs::read(replica.record("changes")).ok()?;
            Some(ChangeRecord::decode(&bytes).unwrap().base.to_string())
        };
        while recorded().as_deref() != Some(base) {
            assert!(begun.elapsed() < Duration::from_secs(60), "not recorded");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// How many bytes of the disks were compared last, by the records of changes.
fn compared_by_records(active: &ReplicaProcess) -> u64 {
    let log = active.log();
    let (_, last) = log.rsplit_once("comparing ").unwrap();
    let line = last.lines().next().unwrap();
    println!("comparing {line}");
    assert!(line.starts_with("the disks where the records"), "{line}");
    let (_, bytes) = line.split_once(" bytes=").unwrap();
    bytes.split_whitespace().next().unwrap().parse().unwrap()
}

/// All of the disks were compared last, for this reason.
fn compared_all(active: &ReplicaProcess, why: &str) {
    let log = active.log();
    let (_, last) = log.rsplit_once("comparing all of the disks: ").unwrap();
    assert!(last.starts_with(why), "{last}");
    assert!(!last.contains("the disks where the records"), "{last}");
}

/// Hands over, which leaves both disks equal, and looks whether they are.
fn ends_equal(site: &Site, active: &ReplicaProcess) {
    active.demote().unwrap();
    assert_eq!(first_difference(&site.disk("a"), &site.disk("b")), None);
}

#[test]
fn after_a_failover_only_what_was_written_is_compared() {
    if !kvm_or_skip() {
        return;
    }
    let site = Site::with_large_disks();
    let (mut active, mut passive) = (site.replica("a", ""), site.replica("b", ""));
    active.promote(Promotion::ColdStart, 1).unwrap();
    site.see_more(300);
    pair_with_records(&active, &passive);
    compared_all(&active, "this node has no record of changes");
    for generation in 2..5 {
        site.see_more(300);
        active.kill();
        passive.wait("the loss noticed", |status| status.detail.contains("lost"));
        passive.promote(Promotion::TakeOver, generation).unwrap();
        site.see_more(300);
        let returned = active.start_again();
        pair_with_records(&passive, &returned);
        let compared = compared_by_records(&passive);
        assert!(compared < LARGE_DISK_BYTES / 8, "{compared} bytes compared");
        (active, passive) = (passive, returned);
    }
    site.see_more(300);
    assert!(active.monitor("verify").unwrap().contains("are equal"));
    ends_equal(&site, &active);
    site.judge();
}

#[test]
fn a_passive_replica_that_returns_gets_only_what_was_written() {
    if !kvm_or_skip() {
        return;
    }
    let site = Site::with_large_disks();
    let (a, mut b) = (site.replica("a", ""), site.replica("b", ""));
    a.promote(Promotion::ColdStart, 1).unwrap();
    pair_with_records(&a, &b);
    for generation in 2..5 {
        site.see_more(300);
        b.kill();
        a.wait("the loss noticed", |status| status.licence == Licence::Cut);
        a.go_solo(generation).unwrap();
        site.see_more(300);
        b = b.start_again();
        pair_with_records(&a, &b);
        let compared = compared_by_records(&a);
        assert!(compared < LARGE_DISK_BYTES / 8, "{compared} bytes compared");
    }
    site.see_more(300);
    ends_equal(&site, &a);
    site.judge();
}

#[test]
fn without_a_sound_record_all_is_compared() {
    if !kvm_or_skip() {
        return;
    }
    let site = Site::with_large_disks();
    let (a, mut b) = (site.replica("a", ""), site.replica("b", ""));
    a.promote(Promotion::ColdStart, 1).unwrap();
    pair_with_records(&a, &b);
    let record = b.record("changes");
    let stale = fs::read(&record).unwrap();
    let mut generation = 1;
    let mut return_after = |spoil: &dyn Fn(), said: &str, mut b: ReplicaProcess| {
        generation += 1;
        b.kill();
        spoil();
        a.wait("the loss noticed", |status| status.licence == Licence::Cut);
        a.go_solo(generation).unwrap();
        site.see_more(300);
        let b = b.start_again();
        pair_with_records(&a, &b);
        assert!(said.is_empty() || b.log().contains(said), "{}", b.log());
        b
    };
    let damaged = || {
        let mut bytes = fs::read(&record).unwrap();
        let last = bytes.len() - 20;
        bytes[last] ^= 1;
        fs::write(&record, bytes).unwrap();
    };
    b = return_after(&damaged, "it is damaged", b);
    compared_all(&a, "the other replica has no record of changes");
    // An old one.
    b = return_after(&|| fs::write(&record, &stale).unwrap(), "", b);
    compared_all(&a, "the other replica has");
    // Another disk, of the same size.
    let replaced = || {
        let blank = site.directory.path().join("blank");
        File::create(&blank)
            .unwrap()
            .set_len(LARGE_DISK_BYTES)
            .unwrap();
        fs::rename(blank, site.directory.path().join("b")).unwrap();
    };
    b = return_after(&replaced, "other files are in the place of the disks", b);
    compared_all(&a, "the other replica has no record of changes");
    // And with sound ones not.
    b = return_after(&|| {}, "", b);
    assert!(compared_by_records(&a) < LARGE_DISK_BYTES / 8);
    assert_eq!(b.status().disks, DiskState::Copy);
    ends_equal(&site, &a);
    site.judge();
}

#[test]
fn what_a_comparison_found_is_made_equal_when_the_passive_replica_returns() {
    if !kvm_or_skip() {
        return;
    }
    let site = Site::with_large_disks();
    let (a, mut b) = (site.replica("a", ""), site.replica("b", ""));
    a.promote(Promotion::ColdStart, 1).unwrap();
    pair_with_records(&a, &b);
    let spoilt = fs::OpenOptions::new()
        .write(true)
        .open(site.disk("b"))
        .unwrap();
    spoilt
        .write_all_at(b"!", 200 * 1024 * 1024 + 70_000)
        .unwrap();
    let differs = a.monitor("verify").unwrap_err().to_string();
    assert!(differs.contains("1 differ"), "{differs}");
    b.kill();
    a.wait("the loss noticed", |status| status.licence == Licence::Cut);
    a.go_solo(2).unwrap();
    b = b.start_again();
    pair_with_records(&a, &b);
    assert!(compared_by_records(&a) < LARGE_DISK_BYTES / 8);
    assert!(a.monitor("verify").unwrap().contains("are equal"));
    ends_equal(&site, &a);
    site.judge();
}

#[test]
fn records_that_are_found_to_be_wrong_do_not_count() {
    if !kvm_or_skip() {
        return;
    }
    let site = Site::with_large_disks();
    let (a, mut b) = (site.replica("a", ""), site.replica("b", ""));
    a.promote(Promotion::ColdStart, 1).unwrap();
    pair_with_records(&a, &b);
    b.kill();
    // One in the sample, one not.
    let written = fs::OpenOptions::new()
        .write(true)
        .open(site.disk("b"))
        .unwrap();
    for offset in [LARGE_DISK_BYTES - 1, 100 * 1024 * 1024 + 5 * 64 * 1024] {
        written.write_all_at(b"!", offset).unwrap();
    }
    a.wait("the loss noticed", |status| status.licence == Licence::Cut);
    a.go_solo(2).unwrap();
    let b = b.start_again();
    pair_with_records(&a, &b);
    a.wait_for_log("they differ where the records of changes say", 1);
    assert_eq!(b.status().disks, DiskState::Copy);
    ends_equal(&site, &a);
    site.judge();
}
