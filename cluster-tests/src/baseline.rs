// SPDX-License-Identifier: Apache-2.0
//! What a VMM is measured by: boot, disk and network of the server guest, the same for every VMM.
//!
//! One measurement is a guest that was started by [`ServerGuest::start`] with one [`crate::server_vmm::ServerVmm`]; a comparison is two
//! of them in beds that are alike. Under emulation the figures say how the two compare, nothing about real hosts.

mod tracking;

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::server_guest::{DiskFigures, DiskJob, PingFigures, ServerGuest, iperf_mbit_per_s};

pub use tracking::{TrackingFigures, WorkFigures};

/// How a server uses its disk: one after the other, many at once, in a row, and durably.
pub const DISK_JOBS: &[DiskJob] = &[
    DiskJob {
        name: "read-4k-one",
        options: "--rw=randread --bs=4k --iodepth=1",
    },
    DiskJob {
        name: "read-4k-many",
        options: "--rw=randread --bs=4k --iodepth=16",
    },
    DiskJob {
        name: "read-row",
        options: "--rw=read --bs=256k --iodepth=4",
    },
    DiskJob {
        name: "write-4k-many",
        options: "--rw=randwrite --bs=4k --iodepth=16",
    },
    DiskJob {
        name: "write-4k-sync",
        options: "--rw=randwrite --bs=4k --iodepth=1 --fsync=1",
    },
];

/// How long each thing is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Effort {
    /// Seconds of each disk job and of each direction of the network.
    pub seconds: u32,
    /// Pings.
    pub pings: u32,
}

/// One VMM's figures.
#[derive(Debug, Clone, PartialEq)]
pub struct Figures {
    /// From the VMM's start to the login prompt.
    pub boot_to_login: Duration,
    /// What `systemd-analyze` says: kernel and userspace by the guest's own clock.
    pub boot_by_guest: String,
    /// One entry for each of [`DISK_JOBS`].
    pub disk: Vec<DiskFigures>,
    /// From outside.
    pub ping: PingFigures,
    /// To the guest, one TCP connection.
    pub in_mbit_per_s: f64,
    /// From the guest.
    pub out_mbit_per_s: f64,
}

impl Figures {
    /// Measures a guest that has shown its login prompt after `boot_to_login`.
    ///
    /// # Errors
    /// When a client or a program in the guest fails.
    pub fn measure(
        guest: &ServerGuest<'_>,
        boot_to_login: Duration,
        effort: Effort,
    ) -> Result<Self> {
        guest.wait_address()?;
        Ok(Self {
            boot_to_login,
            boot_by_guest: boot_by_guest(guest)?,
            ping: guest.ping(effort.pings, Duration::from_millis(100))?,
            disk: disk(guest, effort.seconds)?,
            in_mbit_per_s: network(guest, effort.seconds, &[])?,
            out_mbit_per_s: network(guest, effort.seconds, &["-R"])?,
        })
    }
}

fn boot_by_guest(guest: &ServerGuest<'_>) -> Result<String> {
    // It knows only when the last job of the boot is done.
    let script = "systemctl is-system-running --wait >/dev/null; systemd-analyze time | head -1";
    Ok(guest.ssh(script)?.success()?.trim().to_owned())
}

fn disk(guest: &ServerGuest<'_>, seconds: u32) -> Result<Vec<DiskFigures>> {
    let mut script = format!(
        "fio --output-format=json --filename=/var/tmp/measured --size=64m --ioengine=libaio --direct=1 \
         --time_based --runtime={seconds} --stonewall --percentile_list=99"
    );
    for job in DISK_JOBS {
        script.push_str(&format!(" --name={} {}", job.name, job.options));
    }
    let output = guest.ssh(&script)?.success().context("fio")?;
    DiskFigures::read(&output)
}

fn network(guest: &ServerGuest<'_>, seconds: u32, direction: &[&str]) -> Result<f64> {
    guest
        .ssh(
            // The daemon's first process ends before the second one listens.
            "pidof iperf3 >/dev/null || iperf3 --server --daemon; \
             timeout 60 sh -c \"until ss -Hltn 'sport = :5201' | grep -q .; do sleep 0.2; done\"",
        )?
        .success()?;
    let (address, seconds) = (guest.address().to_string(), seconds.to_string());
    let mut command = vec!["iperf3", "--json", "--time", &seconds, "--client", &address];
    command.extend(direction);
    let limit = Duration::from_secs(600);
    let finished = guest.clients().run(&command, limit)?;
    iperf_mbit_per_s(&finished.stdout)
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "boot to login prompt: {:.1} s ({})",
            self.boot_to_login.as_secs_f64(),
            self.boot_by_guest
        )?;
        for job in &self.disk {
            writeln!(f, "disk, {job}")?;
        }
        writeln!(f, "ping: {}", self.ping)?;
        write!(
            f,
            "TCP: {:.1} Mbit/s in, {:.1} Mbit/s out",
            self.in_mbit_per_s, self.out_mbit_per_s
        )
    }
}
