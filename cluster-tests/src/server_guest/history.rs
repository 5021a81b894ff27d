// SPDX-License-Identifier: Apache-2.0
//! What clients outside were told is done: each writes numbers over one TCP connection, at a pace, and keeps what was acknowledged.

use std::fmt;
use std::fs;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::data::count;
use super::{PATIENCE, Server, Whence};
use crate::clients::Running;

/// Between two writes of a client.
const PACE: &str = "0.4";
/// Between two looks at the clients' logs: nobody tells when a line was written.
const LOOK: Duration = Duration::from_millis(100);
/// What a client's log ends with when its connection held.
const ENDED: &str = "ended with 0";

/// The clients at work.
#[derive(Debug)]
pub struct History {
    numbers: RangeInclusive<u32>,
    postgres: Writer,
    redis: Writer,
}

#[derive(Debug)]
struct Writer {
    log: PathBuf,
    /// What the server says to a write that it has done.
    acknowledgement: &'static str,
    _running: Running,
}

impl Writer {
    fn text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn acknowledged(&self) -> usize {
        count(&self.text(), self.acknowledgement)
    }

    fn has_ended(&self) -> bool {
        self.text().contains("ended with")
    }
}

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "PostgreSQL acknowledged {}, Redis {} of {} writes",
            self.postgres.acknowledged(),
            self.redis.acknowledged(),
            self.numbers.clone().count()
        )
    }
}

impl History {
    /// Clients begin to write these numbers, which nobody wrote before.
    ///
    /// # Errors
    /// When a client cannot be started.
    pub fn begin(server: &Server<'_>, numbers: RangeInclusive<u32>) -> Result<Self> {
        let (first, last) = (numbers.start(), numbers.end());
        // The table is there.
        server.pg_write(Whence::Outside, *first..=*first)?;
        let statements = format!(
            "seq {} {last} | sed 's/.*/insert into ledger (n) values (&);\\n\\\\! sleep {PACE}/' | stdbuf -oL {}",
            first + 1,
            server.psql(&["-v", "ON_ERROR_STOP=1"]).join(" ")
        );
        let commands = format!(
            "seq {first} {last} | while read n; do echo sadd ledger $n; sleep {PACE}; done | stdbuf -oL {}",
            server.redis("").join(" ")
        );
        Ok(Self {
            postgres: writer(server, "postgres", &statements, "INSERT 0 1")?,
            redis: writer(server, "redis", &commands, "1")?,
            numbers,
        })
    }

    /// Waits until each client was told of so many writes.
    ///
    /// # Errors
    /// When that does not happen.
    pub fn wait_acknowledged(&self, writes: usize) -> Result<()> {
        let begin = Instant::now();
        while self.postgres.acknowledged().min(self.redis.acknowledged()) < writes {
            ensure!(begin.elapsed() < PATIENCE, "{self}, {writes} were expected");
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Waits until both have written all of it, and checks that every write was acknowledged over the connection it began on, and is
    /// there.
    ///
    /// # Errors
    /// When that is not so.
    pub fn end(self, server: &Server<'_>) -> Result<()> {
        let begin = Instant::now();
        while !(self.postgres.has_ended() && self.redis.has_ended()) {
            ensure!(begin.elapsed() < PATIENCE, "The clients wait: {self}");
            std::thread::sleep(LOOK);
        }
        for (name, writer, writes) in [
            ("psql", &self.postgres, self.numbers.clone().count() - 1),
            ("redis-cli", &self.redis, self.numbers.clone().count()),
        ] {
            let text = writer.text();
            ensure!(
                text.contains(ENDED) && writer.acknowledged() == writes,
                "{name} lost its connection or a write: of {writes} {} were acknowledged\n{text}",
                writer.acknowledged()
            );
        }
        let numbers: Vec<_> = self.numbers.collect();
        server.pg_check(&numbers)?;
        server.redis_check(&numbers)
    }
}

fn writer(
    server: &Server<'_>,
    name: &str,
    script: &str,
    acknowledgement: &'static str,
) -> Result<Writer> {
    let log = server
        .bed
        .supervisor()
        .run_directory()
        .join(format!("history-{name}.log"));
    let script = format!("set -o pipefail; {script}; echo ended with $?");
    let command = ["bash", "-c", &script];
    Ok(Writer {
        _running: server.clients.start_into(&command, &log)?,
        log,
        acknowledgement,
    })
}
