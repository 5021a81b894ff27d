// SPDX-License-Identifier: Apache-2.0
//! Judges what a guest said: kernel log, clocks, ledgers. Pure functions.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// What a healthy kernel never says (Linux 6.1: `lib/bug.c`, `kernel/watchdog.c`, `kernel/rcu/tree_stall.h`, `kernel/hung_task.c`,
/// `kernel/time/clocksource.c`, `block/blk-core.c`, `fs/ext4/super.c`, `net/sched/sch_generic.c`).
const ALARMS: &[&str] = &[
    "BUG:",
    "WARNING:",
    "Oops",
    "Call Trace",
    "Kernel panic",
    "hard LOCKUP",
    "detected stalls",
    "self-detected stall",
    "blocked for more than",
    // Not "timekeeping watchdog" alone: it also says that a clock was slow to read, which is so under emulation.
    "Marking clocksource",
    "Clocksource tsc unstable",
    "I/O error",
    "EXT4-fs error",
    "EXT4-fs warning",
    "Remounting filesystem read-only",
    "NETDEV WATCHDOG",
    "general protection",
    "segfault",
    "Out of memory",
    "irq: nobody cared",
    "nobody cared",
    "failed unit:",
];

/// Those of them which say no more than that time passed in which a processor did nothing.
const STANDSTILLS: &[&str] = &[
    "soft lockup",
    "hard LOCKUP",
    "workqueue lockup",
    "detected stalls",
    "self-detected stall",
    "blocked for more than",
];

/// The lines of a log that must not be there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Alarms<'log> {
    /// Something is wrong.
    pub faults: Vec<&'log str>,
    /// The guest's processors stood still. On an emulated node, whose own processors do that, they must; anywhere else it is a fault.
    pub standstills: Vec<&'log str>,
}

impl<'log> Alarms<'log> {
    /// Of a kernel log. The trace that follows an alarm belongs to it.
    pub fn of(log: &'log str) -> Self {
        let mut alarms = Self::default();
        let mut last_stood_still = false;
        let wrong = |line: &&str| ALARMS.iter().any(|alarm| line.contains(alarm));
        for line in log.lines().filter(wrong) {
            if !line.contains("Call Trace") {
                last_stood_still = STANDSTILLS.iter().any(|word| line.contains(word));
            }
            if last_stood_still {
                alarms.standstills.push(line);
            } else {
                alarms.faults.push(line);
            }
        }
        alarms
    }
}

/// Checks that a list of numbers, one a line, contains all of these.
pub(super) fn has_all(who: &str, text: &str, numbers: &[u32]) -> Result<()> {
    let held: HashSet<u32> = text
        .lines()
        .filter_map(|line| line.trim().parse().ok())
        .collect();
    let missing: Vec<_> = numbers.iter().filter(|n| !held.contains(n)).collect();
    ensure!(
        missing.is_empty(),
        "{who} has lost {} of {} acknowledged numbers, among them {:?}",
        missing.len(),
        numbers.len(),
        missing.iter().take(5).collect::<Vec<_>>()
    );
    Ok(())
}

/// What a program in the guest saw of its clocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClockReport {
    /// How long it has been watching, by `CLOCK_MONOTONIC`.
    pub watched: Duration,
    /// The longest time between two looks: how long the guest stood still, or was kept from its processor.
    pub largest_gap: Duration,
    /// When that one ended, since it began to watch.
    pub largest_gap_at: Duration,
    /// How far `CLOCK_REALTIME` went from `CLOCK_MONOTONIC` in that time: none, unless somebody sets the clock.
    pub drift: Duration,
}

impl ClockReport {
    /// Reads lines `monotonic realtime backwards largest-gap`, in nanoseconds.
    ///
    /// # Errors
    /// When time went backwards, or nothing was written.
    pub fn read(text: &str) -> Result<Self> {
        let mut looks = Vec::new();
        for line in text.lines() {
            let numbers: Vec<i128> = line.split(' ').filter_map(|n| n.parse().ok()).collect();
            let [monotonic, realtime, backwards, gap] = *numbers.as_slice() else {
                bail!("{line:?} is no look at the clocks");
            };
            ensure!(backwards == 0, "CLOCK_MONOTONIC went backwards: {line}");
            looks.push((monotonic, realtime, gap));
        }
        let (first, last) = (looks.first(), looks.last());
        let ((m0, r0, _), (m1, r1, _)) = first.zip(last).context("No look at the clocks")?;
        ensure!(
            looks.is_sorted_by_key(|look| look.0),
            "CLOCK_MONOTONIC went backwards between two lines"
        );
        let largest = looks.iter().max_by_key(|look| look.2);
        let (at, gap) = largest.map_or((*m0, 0), |look| (look.0, look.2));
        Ok(Self {
            watched: nanoseconds(m1 - m0),
            largest_gap: nanoseconds(gap),
            largest_gap_at: nanoseconds(at - *m0),
            drift: nanoseconds(((r1 - r0) - (m1 - m0)).abs()),
        })
    }
}

fn nanoseconds(number: i128) -> Duration {
    Duration::from_nanos(u64::try_from(number).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Alarms, ClockReport, has_all};

    #[test]
    fn alarms_are_found_among_ordinary_lines() {
        let log = "[0.1] tsc: Fast TSC calibration failed\n[1.0] clocksource: timekeeping watchdog on CPU0: kvm-clock wd-wd read-back delay of 77826ns\n[9.0] watchdog: BUG: soft lockup - CPU#0 stuck for 22s!\n\
                   [9.1] EXT4-fs (vda): mounted filesystem\nfailed unit: nginx.service loaded failed failed\n";
        let alarms = Alarms::of(log);
        assert_eq!((alarms.faults.len(), alarms.standstills.len()), (1, 1));
    }

    #[test]
    fn a_trace_belongs_to_the_alarm_before_it() {
        let log = "[1] watchdog: BUG: soft lockup - CPU#0 stuck for 22s!\n[1] Call Trace:\n[2] rcu: INFO: rcu_preempt self-detected stall on CPU\n\
                   [3] WARNING: CPU: 0 PID: 7 at kernel/x.c\n[3] Call Trace:\n";
        let alarms = Alarms::of(log);
        assert_eq!((alarms.faults.len(), alarms.standstills.len()), (2, 3));
        let alone = Alarms::of("[1] Call Trace:\n");
        assert_eq!((alone.faults.len(), alone.standstills.len()), (1, 0));
    }

    #[test]
    fn a_missing_number_is_named() {
        has_all("It", "1\n3\n2\n", &[1, 2]).unwrap();
        let error = has_all("It", "1\n", &[1, 2]).unwrap_err().to_string();
        assert!(error.contains("[2]"), "{error}");
    }

    #[test]
    fn clocks_are_judged() {
        let report = ClockReport::read("100 1000 0 5\n600 1510 0 90\n").unwrap();
        assert_eq!(report.watched, Duration::from_nanos(500));
        assert_eq!(report.largest_gap, Duration::from_nanos(90));
        assert_eq!(report.largest_gap_at, Duration::from_nanos(500));
        assert_eq!(report.drift, Duration::from_nanos(10));
        for wrong in ["", "100 1000 1 5\n", "100 1000 0 5\n99 1000 0 5\n", "1 2\n"] {
            assert!(ClockReport::read(wrong).is_err(), "{wrong:?}");
        }
    }
}
