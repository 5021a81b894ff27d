// SPDX-License-Identifier: Apache-2.0
//! Whether a process still exists, from `/proc` (proc(5)).
//!
//! A closed socket is no proof: only a process that is gone, or a zombie without other threads,
//! can no longer run a guest. The start time tells it from a later process of the same id.

use std::fs;
use std::time::{Duration, Instant};

/// A process as it was when first seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Process {
    pid: i32,
    start_time: Option<u64>,
}

/// What `/proc/PID/stat` says.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    state: char,
    threads: u64,
    start_time: u64,
}

impl Process {
    pub fn of(pid: i32) -> Self {
        let start_time = stat(pid).map(|stat| stat.start_time);
        Self { pid, start_time }
    }

    /// True once the kernel holds no thread of it that could execute.
    pub fn has_ended(&self) -> bool {
        let Some(stat) = stat(self.pid) else {
            return !std::path::Path::new(&format!("/proc/{}", self.pid)).exists();
        };
        let dead = matches!(stat.state, 'Z' | 'X') && stat.threads <= 1;
        dead || self.start_time.is_none_or(|start| stat.start_time != start)
    }

    /// Looks again and again, at most for `patience`. Blocks the thread.
    pub fn ends_within(&self, patience: Duration) -> bool {
        let started = Instant::now();
        let mut pause = Duration::from_micros(50);
        while !self.has_ended() {
            if started.elapsed() > patience {
                return false;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(2));
        }
        true
    }
}

fn stat(pid: i32) -> Option<Stat> {
    parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The name in parentheses may contain anything, so fields are counted from its end: state is the
/// first, the number of threads the 18th, the start time the 20th after it.
fn parse(text: &str) -> Option<Stat> {
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let threads = fields.nth(16)?.parse().ok()?;
    let start_time = fields.nth(1)?.parse().ok()?;
    Some(Stat {
        state,
        threads,
        start_time,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn fields_are_found_behind_any_name() {
        let text = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 9 0 12345 1 2 3";
        let stat = parse(text).unwrap();
        assert_eq!((stat.state, stat.threads, stat.start_time), ('S', 9, 12345));
        assert_eq!(parse("7 (x"), None);
    }

    #[test]
    fn a_zombie_has_ended_and_a_running_process_has_not() {
        let mut child = Command::new("sleep")
            .arg("60")
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let process = Process::of(i32::try_from(child.id()).unwrap());
        assert!(!process.has_ended());
        child.kill().unwrap();
        while !process.has_ended() {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(process.has_ended());
    }

    #[test]
    fn another_process_of_the_same_id_is_not_the_one() {
        let own = i32::try_from(std::process::id()).unwrap();
        let mut process = Process::of(own);
        assert!(!process.has_ended());
        process.start_time = process.start_time.map(|start| start - 1);
        assert!(process.has_ended());
    }
}
