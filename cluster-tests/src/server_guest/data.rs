// SPDX-License-Identifier: Apache-2.0
//! What a server guest holds and must not lose: rows, keys, blocks, the order of time, a quiet kernel log.

use std::ops::RangeInclusive;

use anyhow::{Context, Result, ensure};

use super::checks::{Alarms, ClockReport, has_all};
use super::{Server, Whence};

/// Hops over all processors, looks at both clocks, and writes what it saw: `monotonic realtime backwards largest-gap`, in ns.
const CLOCK_LOOP: &str = r"
import os, time
cpus = sorted(os.sched_getaffinity(0)); last = time.monotonic_ns(); wrong = gap = 0; shown = last
out = open('/run/clock.log', 'w')
while True:
    for cpu in cpus:
        os.sched_setaffinity(0, {cpu})
        now = time.monotonic_ns()
        wrong += now < last
        gap = max(gap, now - last)
        last = now
        if now - shown > 500_000_000:
            shown = now
            print(now, time.time_ns(), wrong, gap, file=out, flush=True)
            gap = 0
        time.sleep(0.005)
";

impl Server<'_> {
    /// Writes these numbers into PostgreSQL, a transaction each over one connection, and gives those whose commit was acknowledged.
    ///
    /// # Errors
    /// When psql cannot be started or the table cannot be made.
    pub fn pg_write(&self, whence: Whence<'_>, numbers: RangeInclusive<u32>) -> Result<Vec<u32>> {
        let table = "create table if not exists ledger \
                     (n integer primary key, at timestamptz default clock_timestamp())";
        self.until(&self.psql(&["-q", "-c", table]))?;
        let mut words = Vec::new();
        for number in numbers.clone() {
            words.push("-c".to_owned());
            words.push(format!("insert into ledger (n) values ({number})"));
        }
        let finished = self.run_at(whence, &self.psql(&words))?;
        let acknowledged = count(&finished.stdout, "INSERT 0 1");
        Ok(numbers.take(acknowledged).collect())
    }

    /// Checks that PostgreSQL has all these numbers.
    ///
    /// # Errors
    /// When one is missing, or psql cannot ask.
    pub fn pg_check(&self, numbers: &[u32]) -> Result<()> {
        let query = self.psql(&["-At", "-c", "select n from ledger"]);
        has_all("PostgreSQL", &self.until(&query)?, numbers)
    }

    /// Checks tables and indexes of all data bases with PostgreSQL's own tool, heap against indexes.
    ///
    /// # Errors
    /// With what it found.
    pub fn pg_check_files(&self) -> Result<()> {
        let script = "su postgres -c 'pg_amcheck --all --install-missing --heapallindexed'";
        self.ssh(script)?.success().context("pg_amcheck").map(drop)
    }

    pub(super) fn psql<S: AsRef<str>>(&self, words: &[S]) -> Vec<String> {
        let address = self.address().to_string();
        ["psql", "-X", "-h", &address, "-U", "postgres"]
            .into_iter()
            .chain(words.iter().map(AsRef::as_ref))
            .map(str::to_owned)
            .collect()
    }

    /// Writes these numbers into Redis and gives those that were acknowledged.
    ///
    /// # Errors
    /// When redis-cli cannot be started.
    pub fn redis_write(
        &self,
        whence: Whence<'_>,
        numbers: RangeInclusive<u32>,
    ) -> Result<Vec<u32>> {
        self.until(&self.redis("ping"))?;
        let (first, last) = (numbers.start(), numbers.end());
        let script = format!(
            "seq {first} {last} | sed 's/.*/sadd ledger &/' | {}",
            self.redis("").join(" ")
        );
        let finished = self.run_at(whence, &["sh", "-c", &script])?;
        Ok(numbers.take(count(&finished.stdout, "1")).collect())
    }

    /// Checks that Redis has all these numbers.
    ///
    /// # Errors
    /// When one is missing, or redis-cli cannot ask.
    pub fn redis_check(&self, numbers: &[u32]) -> Result<()> {
        let members = self.until(&self.redis("smembers ledger"))?;
        has_all("Redis", &members, numbers)
    }

    pub(super) fn redis(&self, command: &str) -> Vec<String> {
        ["redis-cli", "-h", &self.address().to_string()]
            .into_iter()
            .chain(command.split_whitespace())
            .map(str::to_owned)
            .collect()
    }

    /// Checks that the kernel complained of nothing, and systemd of no failed unit. Gives how often the kernel said that its processors
    /// stood still, which is the node's doing where that is emulated, under any VMM.
    ///
    /// # Errors
    /// With the alarming lines.
    pub fn dmesg_clean(&self) -> Result<usize> {
        let script =
            "dmesg; systemctl list-units --failed --no-legend --plain | sed 's/^/failed unit: /'";
        let text = self.ssh(script)?.success()?;
        let Alarms {
            faults: mut lines,
            standstills,
        } = Alarms::of(&text);
        if !self.bed.is_emulated() {
            lines.extend(&standstills);
        }
        ensure!(
            lines.is_empty(),
            "The guest complains:\n{}\nIts kernel log from there:\n{}",
            lines.join("\n"),
            from_first(&text, &lines)
        );
        Ok(standstills.len())
    }

    /// Writes random blocks of a file, reads them back and compares their checksums, past the guest's page cache.
    ///
    /// # Errors
    /// When a block is not what was written.
    pub fn fio_verify(&self, mib: u32) -> Result<()> {
        let script = format!(
            "fio --name=verify --filename=/var/tmp/verify --size={mib}m --rw=randwrite --bs=4k --ioengine=libaio \
             --iodepth=8 --direct=1 --verify=crc32c --do_verify=1 --verify_fatal=1 --minimal"
        );
        self.ssh(&script)?.success().context("fio").map(drop)
    }

    /// Starts a program in the guest that watches both of its clocks until [`Self::clock_report`].
    ///
    /// # Errors
    /// When ssh or systemd refuses.
    pub fn clock_monotonic(&self) -> Result<()> {
        let script = format!(
            "cat >/run/clock.py <<'END'\n{CLOCK_LOOP}END\n\
             systemd-run -q --collect --unit=clock -p Nice=-10 python3 /run/clock.py"
        );
        self.ssh(&script)?.success().context("the clock").map(drop)
    }

    /// What that program saw so far.
    ///
    /// # Errors
    /// When it does not run.
    pub fn clock_report(&self) -> Result<ClockReport> {
        let text = self.ssh("cat /run/clock.log")?.success()?;
        ClockReport::read(&text)
    }
}

/// The part of a log around the first of these lines.
fn from_first(log: &str, lines: &[&str]) -> String {
    let first = log.lines().position(|line| lines.contains(&line));
    let all = log.lines().skip(first.unwrap_or(0).saturating_sub(8));
    all.take(40).collect::<Vec<_>>().join("\n")
}

/// How many lines are just this.
pub(super) fn count(text: &str, line: &str) -> usize {
    text.lines().filter(|said| said.trim() == line).count()
}
