// SPDX-License-Identifier: Apache-2.0
//! A busy server: what runs while the machine under it is saved, restored and moved, and how each part shows that it lost nothing.
//!
//! * In the guest: fio writes blocks, reads them back and compares; a compiler must always give the same bytes.
//! * From another node: one TCP connection, never opened again, whose every byte comes back ([`STREAM`]).
//! * From outside: requests to the web server, one after the other.

use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::{PATIENCE, Server};
use crate::bed::Bed as _;
use crate::clients::Running;

const GUEST: &str = include_str!("load/guest.sh");
const STREAM: &str = include_str!("load/stream.py");

/// Where the guest sends everything back.
const ECHO_PORT: u16 = 7007;
/// The unit of the stream in its node, and where it says how far it is.
const STREAM_UNIT: &str = "load-stream";
const STREAM_COUNT: &str = "/run/load-stream";

/// How far each part has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Done {
    /// Bytes of the connection that came back.
    pub echoed_bytes: u64,
    /// Answers of the web server.
    pub pages: u64,
    /// Times that fio has written and verified its blocks.
    pub verified: u64,
    /// Times that the compiler gave the same bytes.
    pub compiled: u64,
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} KiB echoed, {} pages, fio verified {} times, compiled {} times",
            self.echoed_bytes >> 10,
            self.pages,
            self.verified,
            self.compiled
        )
    }
}

/// The load on one guest, until it is dropped.
#[derive(Debug)]
pub struct Load {
    /// Where the other end of the connection is.
    peer: String,
    http: Running,
    http_log: PathBuf,
    done: Done,
}

impl Load {
    /// Makes a guest busy, partly from the node `peer`.
    ///
    /// # Errors
    /// When a part does not start.
    pub fn begin(guest: &Server<'_>, peer: &str) -> Result<Self> {
        let script =
            format!("cat >/run/load.sh <<'LOAD'\n{GUEST}LOAD\nsh /run/load.sh {ECHO_PORT}");
        guest.ssh(&script)?.success().context("load in the guest")?;
        let address = guest.address();
        guest
            .bed
            .write(peer, "/srv/stream.py", STREAM.as_bytes(), 0o644)?;
        let stream = format!(
            "systemd-run --quiet --unit={STREAM_UNIT} python3 /srv/stream.py {address} {ECHO_PORT} {STREAM_COUNT}"
        );
        guest.bed.exec(peer, &["sh", "-c", &stream])?.success()?;
        let http_log = guest.bed.supervisor().run_directory().join("load-http.log");
        let url = format!("http://{address}/?[1-100000000]");
        // Said on standard error, which is not buffered.
        let curl = [
            "curl",
            "-sS",
            "--fail",
            "--fail-early",
            "--rate",
            "5/s",
            "--output",
            "/dev/null",
            "--write-out",
            "%{stderr}%{http_code}\\n",
            &url,
        ];
        Ok(Self {
            peer: peer.to_owned(),
            http: guest.clients().start_into(&curl, &http_log)?,
            http_log,
            done: Done::default(),
        })
    }

    /// Waits until the connection has gone on since the last time, and checks that no part has failed.
    ///
    /// # Errors
    /// When one has, or stands still.
    pub fn goes_on(&mut self, guest: &Server<'_>) -> Result<Done> {
        // Until it is restored, nobody knows where it is: ssh would not wait for that.
        guest.wait_address()?;
        let begin = Instant::now();
        loop {
            let now = self.look(guest)?;
            if now.echoed_bytes > self.done.echoed_bytes {
                self.done = now;
                return Ok(now);
            }
            ensure!(
                begin.elapsed() < PATIENCE,
                "The load stands still: {now}; before: {}",
                self.done
            );
            std::thread::sleep(Duration::from_millis(300));
        }
    }

    /// As [`Self::goes_on`], and then ends the load: every part must have done something.
    ///
    /// # Errors
    /// When one has not, has failed or stands still.
    pub fn end(mut self, guest: &Server<'_>) -> Result<Done> {
        let done = self.goes_on(guest)?;
        ensure!(
            done.pages > 0 && done.verified > 0 && done.compiled > 0,
            "A part of the load has done nothing: {done}"
        );
        let stop = format!("systemctl stop {STREAM_UNIT}");
        guest
            .bed
            .exec(&self.peer, &["sh", "-c", &stop])?
            .success()?;
        guest
            .ssh("systemctl stop load-fio load-compile load-echo")?
            .success()?;
        Ok(done)
    }

    fn look(&mut self, guest: &Server<'_>) -> Result<Done> {
        let stream = format!(
            "systemctl -q is-active {STREAM_UNIT} || {{ journalctl -b -o cat -u {STREAM_UNIT} -n 20 --no-pager; exit 1; }}; \
             cat {STREAM_COUNT} 2>/dev/null || echo 0"
        );
        let echoed = guest
            .bed
            .exec(&self.peer, &["sh", "-c", &stream])?
            .success()
            .with_context(|| format!("The TCP connection from {}", self.peer))?;
        let rounds = "for unit in echo fio compile; do \
             systemctl -q is-active load-$unit || { journalctl -b -o cat -u load-$unit -n 20; cat /run/load/fio.log; exit 1; }; \
             done; for part in fio compile; do cat /run/load/$part 2>/dev/null || echo 0; done";
        let rounds = guest
            .ssh(rounds)?
            .success()
            .context("The load in the guest")?;
        let mut rounds = rounds.lines().map(|line| line.trim().parse());
        let mut round = || rounds.next().context("No round")?.context("Not a number");
        Ok(Done {
            echoed_bytes: echoed.trim().parse().context("Not a number of bytes")?,
            pages: self.pages()?,
            verified: round()?,
            compiled: round()?,
        })
    }

    /// How many answers the web server gave; an error of any is in the log, and ends the requests.
    fn pages(&mut self) -> Result<u64> {
        let log = fs::read_to_string(&self.http_log).context("The log of the HTTP requests")?;
        let other: Vec<_> = log.lines().filter(|line| *line != "200").collect();
        if !self.http.is_running() || !other.is_empty() {
            bail!("The HTTP requests ended or failed: {other:?}");
        }
        Ok(log.lines().count() as u64)
    }
}
