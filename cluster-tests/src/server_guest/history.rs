// SPDX-License-Identifier: Apache-2.0
//! What clients outside were told is done: two data bases are given numbers, the web server is asked for a page, each over one TCP
//! connection, at a pace, and what was acknowledged is kept.

use std::fmt;
use std::fs;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::data::count;
use super::{PATIENCE, Server, Whence};
use crate::clients::Running;

/// Between two writes of a client, in seconds.
const PACE: &str = "0.4";
/// Requests of the web's client; about as many as writes.
const REQUESTS: &str = "150/m";
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
    web: Writer,
}

#[derive(Debug)]
struct Writer {
    log: PathBuf,
    /// What the client says of a request that was done.
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
            "PostgreSQL acknowledged {}, Redis {}, nginx answered {} of {}",
            self.postgres.acknowledged(),
            self.redis.acknowledged(),
            self.web.acknowledged(),
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
        // A second connection would be told of; what curl says on standard error is not held back.
        let requests = format!(
            "curl -sS --fail --fail-early --rate {REQUESTS} --output /dev/null \
             --write-out '%{{stderr}}%{{http_code}} connections %{{num_connects}}\\n' 'http://{}/?[{first}-{last}]'",
            server.address()
        );
        Ok(Self {
            web: writer(server, "web", &requests, "200 connections 0")?,
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
        let least = || {
            let all = [&self.postgres, &self.redis, &self.web];
            all.map(Writer::acknowledged).into_iter().min()
        };
        while least() < Some(writes) {
            ensure!(begin.elapsed() < PATIENCE, "{self}, {writes} were expected");
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Waits until all are done, and checks that every request was answered over the connection it began on, and what was written is
    /// there.
    ///
    /// # Errors
    /// When that is not so.
    pub fn end(self, server: &Server<'_>) -> Result<()> {
        let begin = Instant::now();
        let all = [&self.postgres, &self.redis, &self.web];
        while !all.into_iter().all(Writer::has_ended) {
            ensure!(begin.elapsed() < PATIENCE, "The clients wait: {self}");
            std::thread::sleep(LOOK);
        }
        for (name, writer, writes) in [
            ("psql", &self.postgres, self.numbers.clone().count() - 1),
            ("redis-cli", &self.redis, self.numbers.clone().count()),
            // The first one makes the connection.
            ("curl", &self.web, self.numbers.clone().count() - 1),
        ] {
            let text = writer.text();
            ensure!(
                text.contains(ENDED) && writer.acknowledged() == writes,
                "{name} lost its connection or a request: of {writes} {} were acknowledged\n{text}",
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
