// SPDX-License-Identifier: Apache-2.0
//! How fast a guest's memory goes to the other side for the first time, beside iperf3 on the same link.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::engine_pair::{EnginePair, Shape};

/// Pages with content, and what they are in MiB.
const PAGES: u32 = 200_000;
const MIB: f64 = 200_000.0 * 4096.0 / (1024.0 * 1024.0);

/// Both in MiB a second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    /// From `migrate` to the first commit, pages as they are.
    pub copy: f64,
    /// The same to a passive replica that took its memory before (`memory.prefault`).
    pub prefaulted: f64,
    /// One TCP connection of iperf3 for two seconds.
    pub iperf3: f64,
    /// The same beside the guest, which computes all the time, while it is copied, too: with two cores that is a third
    /// thread for them.
    pub iperf3_beside_guest: f64,
}

/// Copies an idle guest with 781 MiB of content.
///
/// # Errors
/// When an engine or iperf3 fails.
pub fn measure() -> Result<Rates> {
    let (copy, _) = measure_with("")?;
    let (prefaulted, iperf3_beside_guest) = measure_with("prefault = true")?;
    Ok(Rates {
        copy,
        prefaulted,
        iperf3: iperf3()?,
        iperf3_beside_guest,
    })
}

/// The rate of the copy, and iperf3's just before it, with these lines of `[memory]`.
fn measure_with(memory: &str) -> Result<(f64, f64)> {
    let pair = EnginePair::start(&Shape {
        memory_mib: 1024,
        vcpus: 1,
        cmdline: format!("fill={PAGES} quiet=100000"),
        replication: "compression = \"off\"\npeer_timeout_ms = 20000".to_owned(),
        memory: memory.to_owned(),
    })?;
    // The passive engine takes its memory while the guest fills its own.
    let beside_guest = iperf3()?;
    let took = pair.protect()?;
    Ok((MIB / took.as_secs_f64(), beside_guest))
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn iperf3() -> Result<f64> {
    let port = TcpListener::bind("127.0.0.1:0")?
        .local_addr()?
        .port()
        .to_string();
    let _server = Server(
        Command::new("iperf3")
            .args([
                "--server",
                "--one-off",
                "--bind",
                "127.0.0.1",
                "--port",
                &port,
            ])
            .stdout(Stdio::null())
            .spawn()
            .context("Cannot run iperf3 (Debian: iperf3)")?,
    );
    let mut last = String::new();
    // The server says nothing when it is ready.
    for _ in 0..50 {
        std::thread::sleep(Duration::from_millis(100));
        let output = Command::new("iperf3")
            .args([
                "--client",
                "127.0.0.1",
                "--port",
                &port,
                "--json",
                "--time",
                "2",
            ])
            .output()?;
        last = String::from_utf8_lossy(&output.stdout).into_owned();
        let said: Option<Value> = serde_json::from_str(&last).ok();
        let bits = said.and_then(|said| said["end"]["sum_received"]["bits_per_second"].as_f64());
        if let Some(bits) = bits {
            return Ok(bits / 8.0 / (1024.0 * 1024.0));
        }
    }
    anyhow::bail!("iperf3 gave no rate: {last}")
}
