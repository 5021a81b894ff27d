// SPDX-License-Identifier: Apache-2.0
//! Many seeds, on every processor, or one with its story.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::env::{Counts, Trace};
use super::mutant::Mutant;
use super::world::World;

thread_local! {
    /// What went wrong in this thread's history, and where.
    static FAILURE: std::cell::RefCell<Option<String>> = const { std::cell::RefCell::new(None) };
}

static QUIET: Once = Once::new();

/// One history. The error is the rule that was broken.
pub fn live(seed: u64, mutant: Option<Mutant>, trace: Trace) -> Result<Counts, String> {
    QUIET.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let known = FAILURE.with_borrow_mut(|failure| {
                let known = failure.is_some();
                *failure = Some(info.to_string().replace('\n', ": "));
                known
            });
            if !known {
                usual(info);
            }
        }));
    });
    FAILURE.set(Some(String::new()));
    let lived = catch_unwind(AssertUnwindSafe(|| World::new(seed, mutant, trace).run().0));
    let failure = FAILURE.take();
    lived.map_err(|_| failure.unwrap_or_default())
}

/// Lives through all of them; panics with the first (lowest) that fails in what was run.
pub fn campaign(seeds: Range<u64>, progress: &mut dyn FnMut(u64, &Counts)) -> Counts {
    let next = AtomicU64::new(seeds.start);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (results, from_threads) = mpsc::channel();
    let (mut total, mut done, mut failures) = (Counts::default(), 0, Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let (results, next) = (results.clone(), &next);
            scope.spawn(move || {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end
                        || results.send((seed, live(seed, None, Trace::Off))).is_err()
                    {
                        return;
                    }
                }
            });
        }
        drop(results);
        for (seed, result) in &from_threads {
            match result {
                Ok(counts) => total.add(&counts),
                Err(failure) => {
                    // What is under way still ends.
                    next.store(seeds.end, Ordering::Relaxed);
                    failures.push((seed, failure));
                }
            }
            done += 1;
            progress(done, &total);
        }
    });
    failures.sort();
    if let Some((seed, failure)) = failures.first() {
        panic!("seed {seed}: {failure}\nwhat happened: make sim SEED={seed}");
    }
    total
}

/// `SEED=n`: one history with its story. Otherwise `SEEDS=n` (100,000) from `FROM=n` (0) on.
pub fn from_environment() {
    let number = |name| {
        let text = std::env::var(name).ok()?;
        Some(
            text.parse::<u64>()
                .unwrap_or_else(|_| panic!("{name}={text} is no number")),
        )
    };
    if let Some(seed) = number("SEED") {
        return match live(seed, None, Trace::Print) {
            Ok(counts) => println!("seed {seed} breaks no rule\n{counts:#?}"),
            Err(failure) => panic!("seed {seed}: {failure}"),
        };
    }
    let (from, seeds) = (
        number("FROM").unwrap_or(0),
        number("SEEDS").unwrap_or(100_000),
    );
    let begun = Instant::now();
    let mut said = begun;
    let total = campaign(from..from + seeds, &mut |done, total| {
        if said.elapsed() >= Duration::from_secs(10) || done == seeds {
            said = Instant::now();
            let rate = done as f64 / begun.elapsed().as_secs_f64();
            println!(
                "{done} seeds, {rate:.0} a second: {} commits, {} failovers, {} crashes",
                total.commits, total.failovers, total.crashes
            );
        }
    });
    println!("no rule was broken in {seeds} seeds\n{total:#?}");
}
