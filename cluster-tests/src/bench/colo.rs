// SPDX-License-Identifier: Apache-2.0
//! The baseline for a checkpoint's pause: Debian's QEMU with COLO in periodic mode, two processes on this host, the same guest.
//!
//! COLO compares network packets and takes a checkpoint when they differ, and every `x-checkpoint-delay` milliseconds. Without a
//! network the delay is all there is (QEMU: docs/COLO-FT.txt). How long the guest stands still is told by its own trace of
//! `colo_vm_state_change`.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::quantiles::Quantiles;
use crate::guests;

const QEMU: &str = "qemu-system-x86_64";
/// Until QEMU answers, and until it has taken its checkpoints.
const PATIENCE: Duration = Duration::from_secs(60);

/// What COLO did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Colo {
    /// How long the guest stood still for one checkpoint.
    pub pause: Quantiles,
    /// Part of the time in which the guest ran, from 0 to 1.
    pub running: f64,
    /// How many checkpoints that was.
    pub checkpoints: usize,
}

struct Qemu {
    child: Child,
    monitor: BufReader<UnixStream>,
}

impl Qemu {
    fn start(
        directory: &Path,
        name: &str,
        memory_mib: u32,
        cmdline: &str,
        more: &[&str],
    ) -> Result<Self> {
        let socket = directory.join(format!("{name}.qmp"));
        let child = Command::new(QEMU)
            .args(["-accel", "kvm", "-cpu", "qemu64", "-nodefaults"])
            .args(["-display", "none", "-net", "none", "-serial", "null"])
            .args(["-m", &memory_mib.to_string()])
            .arg("-kernel")
            .arg(guests::pages())
            .args(["-append", cmdline])
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", socket.display()))
            .args(["-msg", "timestamp=on", "-trace", "colo_vm_state_change"])
            .arg("-D")
            .arg(directory.join(format!("{name}.trace")))
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(directory.join(format!("{name}.log")))?)
            .spawn()
            .with_context(|| format!("Cannot run {QEMU} (Debian: qemu-system-x86)"))?;
        let begun = Instant::now();
        let stream = loop {
            match UnixStream::connect(&socket) {
                Ok(stream) => break stream,
                Err(_) if begun.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(error) => return Err(error).context("QEMU's monitor does not answer"),
            }
        };
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut qemu = Self {
            child,
            monitor: BufReader::new(stream),
        };
        qemu.next()?;
        qemu.ask("qmp_capabilities", &json!({}))?;
        Ok(qemu)
    }

    fn next(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.monitor
            .read_line(&mut line)
            .context("QEMU's monitor")?;
        serde_json::from_str(&line).with_context(|| format!("QEMU's monitor said {line:?}"))
    }

    fn ask(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
        line.push('\n');
        self.monitor.get_mut().write_all(line.as_bytes())?;
        loop {
            let said = self.next()?;
            if let Some(error) = said.get("error") {
                bail!("{command}: {error}");
            }
            if let Some(answer) = said.get("return") {
                return Ok(answer.clone());
            }
        }
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a pair until it has taken so many checkpoints, or for `limit`.
///
/// # Errors
/// When QEMU is missing, or replication does not begin.
pub fn measure(
    memory_mib: u32,
    cmdline: &str,
    epoch_ms: u32,
    checkpoints: usize,
    limit: Duration,
) -> Result<Colo> {
    let directory = TempDir::new()?;
    let path = directory.path();
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let address = format!("tcp:127.0.0.1:{port}");
    let incoming = ["-incoming", &address];
    let mut secondary = Qemu::start(path, "secondary", memory_mib, cmdline, &incoming)?;
    let mut primary = Qemu::start(path, "primary", memory_mib, cmdline, &[])?;
    let colo = json!({ "capabilities": [{ "capability": "x-colo", "state": true }] });
    for qemu in [&mut secondary, &mut primary] {
        qemu.ask("migrate-set-capabilities", &colo)?;
    }
    // The guest fills its pages first.
    std::thread::sleep(Duration::from_secs(2));
    primary.ask(
        "migrate-set-parameters",
        &json!({ "x-checkpoint-delay": epoch_ms, "max-bandwidth": 10_u64 << 30 }),
    )?;
    primary.ask("migrate", &json!({ "uri": address }))?;
    let trace = path.join("primary.trace");
    let begun = Instant::now();
    // Two lines a checkpoint.
    while fs::read_to_string(&trace)
        .unwrap_or_default()
        .lines()
        .count()
        < checkpoints * 2
        && begun.elapsed() < limit
    {
        ensure!(
            primary.child.try_wait()?.is_none() && secondary.child.try_wait()?.is_none(),
            "QEMU ended: {}",
            fs::read_to_string(path.join("primary.log")).unwrap_or_default()
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    let text = fs::read_to_string(&trace).unwrap_or_default();
    read_trace(&text).with_context(|| format!("QEMU's trace is:\n{text}"))
}

/// Each line is `PID@SECONDS.MICROSECONDS:colo_vm_state_change Change 'run' => 'stop'`, or the other way round.
fn read_trace(text: &str) -> Option<Colo> {
    let mut changes = Vec::new();
    for line in text.lines() {
        let (_, rest) = line.split_once('@')?;
        let (time, what) = rest.split_once(':')?;
        let (seconds, micros) = time.split_once('.')?;
        let at = Duration::from_secs(seconds.parse().ok()?)
            + Duration::from_micros(micros.parse().ok()?);
        changes.push((at, what.ends_with("=> 'stop'")));
    }
    // The first stop ends the copy and is longer.
    let changes = changes.get(2..)?;
    let mut pauses = Vec::new();
    for pair in changes.windows(2) {
        if let [(stopped, true), (runs, false)] = pair {
            pauses.push(runs.saturating_sub(*stopped));
        }
    }
    let whole = changes.last()?.0.saturating_sub(changes.first()?.0);
    let stopped: Duration = pauses.iter().sum();
    Some(Colo {
        checkpoints: pauses.len(),
        pause: Quantiles::of(pauses)?,
        running: 1.0 - stopped.as_secs_f64() / whole.as_secs_f64(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_tells_the_pauses_after_the_first() {
        let mut text = String::new();
        for (second, word) in [
            ("1.000000", "stop"),
            ("2.000000", "run"),
            ("2.020000", "stop"),
            ("2.110000", "run"),
            ("2.130000", "stop"),
            ("2.220000", "run"),
        ] {
            let other = if word == "stop" { "run" } else { "stop" };
            text += &format!("77@{second}:colo_vm_state_change Change '{other}' => '{word}'\n");
        }
        let colo = read_trace(&text).unwrap();
        assert_eq!(colo.checkpoints, 2);
        assert_eq!(colo.pause.p50, Duration::from_millis(90));
        assert!((colo.running - 0.1).abs() < 0.01, "{}", colo.running);
        assert_eq!(read_trace("nonsense"), None);
    }
}
