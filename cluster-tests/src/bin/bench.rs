// SPDX-License-Identifier: Apache-2.0
//! `make bench`: one table, and the same as JSON lines in `target/bench.jsonl`.
//!
//! Figures of one run are to be compared with each other. A target that is missed is said, and is no failure of the program.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use kemari_cluster_tests::bench::figure::{Figure, Report, Target};
use kemari_cluster_tests::bench::quantiles::Quantiles;
use kemari_cluster_tests::bench::{colo, initial_copy, pauses, release};

/// Measure checkpoints, beside COLO, memcpy and iperf3.
#[derive(Debug, Parser)]
struct Arguments {
    /// Where the figures go as JSON lines.
    #[arg(long, default_value = "target/bench.jsonl")]
    output: PathBuf,

    /// Only these: pages, share, release, copy, ram, vcpus.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Measures one thing.
type Step = fn(&mut Report) -> Result<()>;

fn run(arguments: &Arguments) -> Result<()> {
    let mut report = Report::begin(&arguments.output)?;
    let steps: [(&str, Step); 6] = [
        ("pages", by_pages),
        ("share", share),
        ("release", released),
        ("copy", copied),
        ("ram", by_ram),
        ("vcpus", by_vcpus),
    ];
    for (name, step) in steps {
        if arguments.only.is_empty() || arguments.only.iter().any(|only| only == name) {
            step(&mut report)?;
        }
    }
    println!("The same as JSON lines: {}", arguments.output.display());
    Ok(())
}

fn us(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

/// The longest epoch in which the guest has certainly written to all its pages.
const fn epoch_ms(pages: u32) -> u32 {
    match pages {
        0..=1000 => 20,
        1001..=10_000 => 100,
        _ => 1000,
    }
}

/// Two figures, the median and the tail, each with a baseline.
fn both(
    report: &mut Report,
    figure: impl Fn() -> Figure,
    value: Quantiles,
    of: &'static str,
    baseline: Quantiles,
    target: Option<Target>,
) -> Result<()> {
    let median = figure()
        .with("quantile", "p50")
        .beside(of, us(baseline.p50));
    let median = Figure {
        value: us(value.p50),
        target,
        ..median
    };
    let tail = figure()
        .with("quantile", "p99")
        .beside(of, us(baseline.p99));
    report.add(&median)?;
    report.add(&Figure {
        value: us(value.p99),
        ..tail
    })
}

fn by_pages(report: &mut Report) -> Result<()> {
    for pages in [100, 1000, 10_000, 100_000] {
        let memory_mib = if pages > 10_000 { 512 } else { 256 };
        let shape = pauses::shape(memory_mib, 1, pages, epoch_ms(pages));
        let ours = pauses::measure(&shape)?;
        let figure = || Figure::new("pause", 0.0, "us").with("pages", ours.pages);
        let aimed = pages == 1000;
        let target = aimed.then_some(Target::TimesBaselineAtMost(2.0));
        both(report, figure, ours.pause, "memcpy", ours.memcpy, target)?;
        let limit = Duration::from_secs(40);
        let colo = colo::measure(memory_mib, &shape.cmdline, epoch_ms(pages), 150, limit)?;
        let target = aimed.then_some(Target::BaselineTimesAtLeast(50.0));
        both(report, figure, ours.pause, "COLO", colo.pause, target)?;
        report.add(
            &Figure::new("guest-runs", ours.running * 100.0, "%")
                .with("pages", ours.pages)
                .with("epoch_ms", epoch_ms(pages))
                .beside("COLO", colo.running * 100.0),
        )?;
    }
    Ok(())
}

fn share(report: &mut Report) -> Result<()> {
    for epoch_ms in [5, 20, 100] {
        let ours = pauses::measure(&pauses::shape(256, 1, 1000, epoch_ms))?;
        let colo = colo::measure(
            256,
            "fill=1000 pages=1000",
            epoch_ms,
            150,
            Duration::from_secs(40),
        )?;
        let figure = Figure::new("guest-runs", ours.running * 100.0, "%")
            .with("pages", ours.pages)
            .with("epoch_ms", epoch_ms)
            .beside("COLO", colo.running * 100.0);
        report.add(&if epoch_ms == 20 {
            figure.aiming_at(Target::AtLeast(90.0))
        } else {
            figure
        })?;
        report.add(
            &Figure::new("checkpoints", ours.per_second, "1/s")
                .with("pages", ours.pages)
                .with("epoch_ms", epoch_ms),
        )?;
    }
    Ok(())
}

fn released(report: &mut Report) -> Result<()> {
    for policy in ["latency", "auto"] {
        let answers = release::measure(policy)?;
        let figure = || Figure::new("answer", 0.0, "us").with("policy", policy);
        both(
            report,
            figure,
            answers.protected,
            "unprotected",
            answers.alone,
            None,
        )?;
        let later = us(answers.protected.p50) - us(answers.alone.p50);
        report.add(
            &Figure::new("output-release", later, "us")
                .with("policy", policy)
                .with("quantile", "p50")
                .aiming_at(Target::AtMost(2000.0)),
        )?;
    }
    Ok(())
}

fn copied(report: &mut Report) -> Result<()> {
    let rates = initial_copy::measure()?;
    report.add(
        &Figure::new("initial-copy", rates.copy, "MiB/s")
            .beside("iperf3", rates.iperf3)
            .aiming_at(Target::PartOfBaselineAtLeast(0.7)),
    )?;
    report.add(
        &Figure::new("initial-copy", rates.prefaulted, "MiB/s")
            .with("prefault", true)
            .beside("iperf3", rates.iperf3)
            .aiming_at(Target::PartOfBaselineAtLeast(0.7)),
    )?;
    report.add(
        &Figure::new("initial-copy", rates.prefaulted, "MiB/s")
            .with("prefault", true)
            .beside("iperf3 beside the guest", rates.iperf3_beside_guest),
    )
}

fn by_ram(report: &mut Report) -> Result<()> {
    let mut least = None;
    for memory_mib in [256, 2048, 16_384] {
        let ours = pauses::measure(&pauses::shape(memory_mib, 1, 1000, 20))?;
        let first = *least.get_or_insert(ours.pause);
        let figure = || {
            Figure::new("pause", 0.0, "us")
                .with("pages", ours.pages)
                .with("memory_mib", memory_mib)
        };
        let target = (memory_mib == 16_384).then_some(Target::TimesBaselineAtMost(1.2));
        both(report, figure, ours.pause, "256 MiB", first, target)?;
    }
    Ok(())
}

fn by_vcpus(report: &mut Report) -> Result<()> {
    let mut least = None;
    for vcpus in [1, 2, 4, 8] {
        let ours = pauses::measure(&pauses::shape(256, vcpus, 1000, 20))?;
        let first = *least.get_or_insert(ours.pause);
        let figure = || {
            Figure::new("pause", 0.0, "us")
                .with("pages", ours.pages)
                .with("vcpus", vcpus)
        };
        both(report, figure, ours.pause, "1 vCPU", first, None)?;
    }
    Ok(())
}
