// SPDX-License-Identifier: Apache-2.0
//! How fast connections over loopback are: `cargo run --release -p kemari-transport --example
//! throughput`.
//!
//! For each transport and size of write: MiB per second of a stream, and the time from a write to
//! the last byte of the other side's equally long answer (median, 99th percentile). The transports
//! take turns, so that what else the machine does meets all of them.
#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    reason = "a measurement ends where something fails, and figures are rounded"
)]

use std::io::Read;
use std::thread;
use std::time::{Duration, Instant};

use kemari_api::cluster_key::{ClusterKeys, ClusterSecret};
use kemari_transport::{Connection, Listener, Patience, Tls, TlsFiles, connect};

const PATIENCE: Duration = Duration::from_secs(30);
const ROUNDS: usize = 5;
const STREAM_BYTES: usize = 512 << 20;
const EXCHANGES: usize = 2_000;

fn main() {
    let directory = std::env::temp_dir().join(format!("kemari-throughput-{}", std::process::id()));
    std::fs::create_dir(&directory).unwrap();
    let key = directory.join("cluster.key");
    write_key(&key);
    let tls = Tls::load(&TlsFiles::ClusterKey(key)).unwrap();
    let unix = format!("kemari:unix:{}/link", directory.display());
    let addresses = [
        "kemari:tcp:127.0.0.1:44871",
        "kemari:tls:127.0.0.1:44872",
        &unix,
    ];
    println!("| transport | write | MiB/s | exchange p50 | exchange p99 |");
    println!("| --- | --- | --- | --- | --- |");
    for bytes in [4 << 10, 1 << 20] {
        let mut rates = vec![Vec::new(); addresses.len()];
        let mut times = vec![Vec::new(); addresses.len()];
        for _ in 0..ROUNDS {
            for (index, address) in addresses.iter().enumerate() {
                let pair = pair(address, &tls);
                rates[index].push(stream(&pair, bytes));
                times[index].extend(exchanges(&pair, bytes));
            }
        }
        for (index, address) in addresses.iter().enumerate() {
            let transport = address.split(':').nth(1).unwrap();
            rates[index].sort_unstable_by(f64::total_cmp);
            times[index].sort_unstable();
            let at = |percent: usize| times[index][times[index].len() * percent / 100];
            println!(
                "| {transport} | {} KiB | {:.0} | {} µs | {} µs |",
                bytes >> 10,
                rates[index][ROUNDS / 2],
                at(50).as_micros(),
                at(99).as_micros()
            );
        }
    }
    std::fs::remove_dir_all(&directory).unwrap();
}

fn write_key(path: &std::path::Path) {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let text = ClusterKeys::of(ClusterSecret::generate().unwrap()).to_text();
    let mut options = std::fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

fn pair(address: &str, tls: &Tls) -> (Connection, Connection) {
    let address = address.parse().unwrap();
    let listener = Listener::bind(&address, Some(tls.clone()), None).unwrap();
    let patience = Patience {
        reach: PATIENCE,
        answer: PATIENCE,
    };
    thread::scope(|scope| {
        let there = scope.spawn(|| listener.accept().unwrap().greet(Instant::now() + PATIENCE));
        let here = connect(&address, Some(tls), patience).unwrap();
        (here, there.join().unwrap().unwrap())
    })
}

/// MiB per second.
fn stream((here, there): &(Connection, Connection), bytes: usize) -> f64 {
    let begun = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| {
            let buffer = vec![0x5a; bytes];
            (0..STREAM_BYTES / bytes).for_each(|_| here.send(&buffer).unwrap());
        });
        let mut buffer = vec![0; 256 << 10];
        let mut left = STREAM_BYTES;
        while left > 0 {
            left -= there.receive(&mut buffer).unwrap();
        }
    });
    (STREAM_BYTES >> 20) as f64 / begun.elapsed().as_secs_f64()
}

/// The times of exchanges, one after the other.
fn exchanges((here, there): &(Connection, Connection), bytes: usize) -> Vec<Duration> {
    let number = EXCHANGES.min((256 << 20) / bytes);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut there = there.clone();
            let mut buffer = vec![0; bytes];
            for _ in 0..number {
                there.read_exact(&mut buffer).unwrap();
                there.send(&buffer).unwrap();
            }
        });
        let mut here = here.clone();
        let mut buffer = vec![0x5a; bytes];
        let once = |_| {
            let begun = Instant::now();
            here.send(&buffer).unwrap();
            here.read_exact(&mut buffer).unwrap();
            begun.elapsed()
        };
        (0..number).map(once).collect()
    })
}
