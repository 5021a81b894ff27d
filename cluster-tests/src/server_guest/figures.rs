// SPDX-License-Identifier: Apache-2.0
//! Figures that Debian's measuring programs print, read into numbers. Pure functions.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Deserialize;

/// What `ping -q` says at its end.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PingFigures {
    /// Requests.
    pub sent: u32,
    /// Answers.
    pub received: u32,
    /// Round trips: the shortest.
    pub min: Duration,
    /// The mean.
    pub mean: Duration,
    /// The longest.
    pub max: Duration,
}

impl PingFigures {
    /// Reads them.
    ///
    /// # Errors
    /// When no answer came.
    pub fn read(text: &str) -> Result<Self> {
        let missing = || format!("Not what ping says: {text}");
        let counts = text
            .lines()
            .find(|line| line.contains("packets transmitted"))
            .with_context(missing)?;
        let mut numbers = counts
            .split([' ', ','])
            .filter_map(|word| word.parse::<u32>().ok());
        let times = text
            .lines()
            .find_map(|line| line.strip_prefix("rtt min/avg/max/mdev = "))
            .with_context(missing)?;
        let mut times = times
            .split(['/', ' '])
            .filter_map(|word| word.parse::<f64>().ok())
            .map(|ms| Duration::from_secs_f64(ms / 1e3));
        let mut time = || times.next().with_context(missing);
        Ok(Self {
            sent: numbers.next().with_context(missing)?,
            received: numbers.next().with_context(missing)?,
            min: time()?,
            mean: time()?,
            max: time()?,
        })
    }
}

impl fmt::Display for PingFigures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        write!(
            f,
            "{} of {} answered, {:.2} / {:.2} / {:.2} ms",
            self.received,
            self.sent,
            ms(self.min),
            ms(self.mean),
            ms(self.max)
        )
    }
}

/// One way to use a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskJob {
    /// Its name in the figures.
    pub name: &'static str,
    /// fio's options for it.
    pub options: &'static str,
}

/// What one job reached.
#[derive(Debug, Clone, PartialEq)]
pub struct DiskFigures {
    /// The job's name.
    pub name: String,
    /// Requests a second.
    pub iops: f64,
    /// Throughput.
    pub mib_per_s: f64,
    /// The mean time from submitting a request to its completion.
    pub latency: Duration,
    /// Of the slowest percent, the fastest.
    pub latency_p99: Duration,
}

#[derive(Deserialize)]
struct Report {
    jobs: Vec<Job>,
}

#[derive(Deserialize)]
struct Job {
    jobname: String,
    read: Direction,
    write: Direction,
}

#[derive(Deserialize)]
struct Direction {
    iops: f64,
    bw_bytes: f64,
    total_ios: u64,
    clat_ns: Latency,
}

#[derive(Deserialize)]
struct Latency {
    mean: f64,
    percentile: Option<std::collections::BTreeMap<String, f64>>,
}

impl DiskFigures {
    /// Reads what `fio --output-format=json` says of each job. A warning may stand before it.
    ///
    /// # Errors
    /// When it is not that.
    pub fn read(text: &str) -> Result<Vec<Self>> {
        let start = text.find('{').context("fio wrote no JSON")?;
        let json = text.get(start..).unwrap_or_default();
        let report: Report = serde_json::from_str(json).context("Not fio's JSON")?;
        Ok(report.jobs.into_iter().map(Self::of).collect())
    }

    fn of(job: Job) -> Self {
        let used = if job.read.total_ios > job.write.total_ios {
            job.read
        } else {
            job.write
        };
        let slow = used
            .clat_ns
            .percentile
            .as_ref()
            .and_then(|table| table.get("99.000000").copied());
        let time = |ns: f64| Duration::from_secs_f64(ns.max(0.0) / 1e9);
        Self {
            name: job.jobname,
            iops: used.iops,
            mib_per_s: used.bw_bytes / f64::from(1 << 20),
            latency: time(used.clat_ns.mean),
            latency_p99: time(slow.unwrap_or_default()),
        }
    }
}

impl fmt::Display for DiskFigures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {:.0} requests/s, {:.2} MiB/s, mean {:.2} ms, p99 {:.2} ms",
            self.name,
            self.iops,
            self.mib_per_s,
            self.latency.as_secs_f64() * 1e3,
            self.latency_p99.as_secs_f64() * 1e3
        )
    }
}

/// The received bytes a second, in Mbit, of what `iperf3 -J` says.
///
/// # Errors
/// When it is not that.
pub(crate) fn iperf_mbit_per_s(text: &str) -> Result<f64> {
    let report: serde_json::Value = serde_json::from_str(text).context("Not iperf3's JSON")?;
    report
        .pointer("/end/sum_received/bits_per_second")
        .and_then(serde_json::Value::as_f64)
        .map(|bits| bits / 1e6)
        .with_context(|| format!("iperf3 measured nothing: {text}"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{DiskFigures, PingFigures, iperf_mbit_per_s};

    #[test]
    fn ping_is_read() {
        let text = "--- 10.77.0.100 ping statistics ---\n20 packets transmitted, 19 received, 5% packet loss, time 3800ms\n\
                    rtt min/avg/max/mdev = 0.319/1.500/20.250/0.100 ms\n";
        let figures = PingFigures::read(text).unwrap();
        assert_eq!((figures.sent, figures.received), (20, 19));
        assert_eq!(figures.mean, Duration::from_micros(1500));
        assert!(PingFigures::read("1 packets transmitted, 0 received\n").is_err());
    }

    #[test]
    fn fio_is_read() {
        let none = "{\"iops\":0,\"bw_bytes\":0,\"total_ios\":0,\"clat_ns\":{\"mean\":0}}";
        let some = "{\"iops\":250.5,\"bw_bytes\":1048576,\"total_ios\":7,\
                    \"clat_ns\":{\"mean\":2e6,\"percentile\":{\"99.000000\":9000000}}}";
        let text = format!(
            "fio: a warning\n{{\"jobs\":[{{\"jobname\":\"j\",\"read\":{none},\"write\":{some}}}]}}"
        );
        let figures = DiskFigures::read(&text).unwrap();
        assert_eq!(figures[0].mib_per_s, 1.0);
        assert_eq!(figures[0].latency, Duration::from_millis(2));
        assert_eq!(figures[0].latency_p99, Duration::from_millis(9));
        assert!(DiskFigures::read("no").is_err());
    }

    #[test]
    fn iperf3_is_read() {
        let text = "{\"end\":{\"sum_received\":{\"bits_per_second\":2500000.0}}}";
        assert_eq!(iperf_mbit_per_s(text).unwrap(), 2.5);
        assert!(iperf_mbit_per_s("{\"error\":\"refused\"}").is_err());
    }
}
