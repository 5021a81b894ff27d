// SPDX-License-Identifier: Apache-2.0
//! Reads what the `ledger` and `dirty` guests wrote, and says whether a single machine wrote it.
//!
//! After `LEDGER START` every line is `<n> <time stamp counter>`: n decimal, from 1 on, one more each
//! line; the counter in 16 hexadecimal digits. A missing number is lost output, a repeated one is
//! lost state, two stamps of one number are a stretch executed twice, and `CORRUPT` is a page that
//! is not of the same instant as the rest.
//!
//! The time stamp counter may go back when the guest moves to another host, because not every host
//! can offset it (software KVM cannot). That is counted, not judged.

use std::collections::BTreeMap;

/// The line every boot of a ledger begins with.
pub const START: &str = "LEDGER START";

/// What a correct ledger holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LedgerSummary {
    /// Complete lines in all boots, the starting lines not counted.
    pub lines: u64,
    /// The last number; 0 if there is none yet.
    pub last: u64,
    /// How often the guest started; 1 unless it was reset.
    pub boots: u64,
    /// How often, within a boot, the counter was not above that of the line before.
    pub backward: u64,
    /// Bytes of a last line that is not complete.
    pub unfinished: usize,
}

/// Why a stream is not the ledger of one machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// The guest did not start, or not as a ledger.
    #[error("No line {START:?} in {bytes} bytes; the first line is {first:?}")]
    NotStarted {
        /// Length of the stream.
        bytes: usize,
        /// What it begins with.
        first: String,
    },
    /// The guest started again: its state is lost.
    #[error("The guest started again after line {after}, at byte {offset}")]
    Restarted {
        /// The last number before.
        after: u64,
        /// Offset of the second start.
        offset: usize,
    },
    /// Numbers are missing: lost output.
    #[error("Lines {}..={} are missing, at byte {offset}", after + 1, found - 1)]
    Missing {
        /// The last number before.
        after: u64,
        /// The number found instead of the next one.
        found: u64,
        /// Offset of the line.
        offset: usize,
    },
    /// A number came again: the guest went back.
    #[error("Line {found} after line {after}, at byte {offset}")]
    Repeated {
        /// The last number before.
        after: u64,
        /// The number found instead of the next one.
        found: u64,
        /// Offset of the line.
        offset: usize,
    },
    /// The guest found a page that is not of its round.
    #[error("The guest found its memory torn after line {after}: {line:?}, at byte {offset}")]
    Corrupt {
        /// The last number before.
        after: u64,
        /// What the guest said.
        line: String,
        /// Offset of the line.
        offset: usize,
    },
    /// A line of no known form.
    #[error("After line {after} comes {line:?}, which is no line of a ledger, at byte {offset}")]
    Unreadable {
        /// The last number before.
        after: u64,
        /// The line, at most 80 characters of it.
        line: String,
        /// Offset of the line.
        offset: usize,
    },
    /// The same line was made twice.
    #[error("Line {number} was made at {first:016x} and again at {second:016x}: executed twice")]
    TwoStamps {
        /// Its number.
        number: u64,
        /// The stamp that was seen first.
        first: u64,
        /// The other one.
        second: u64,
    },
}

/// Checks the spliced stream of a guest that was started once.
pub fn check(bytes: &[u8]) -> Result<LedgerSummary, LedgerError> {
    read(bytes, 1)
}

/// Like [`check`], of a guest that may have been reset any number of times.
pub fn check_with_resets(bytes: &[u8]) -> Result<LedgerSummary, LedgerError> {
    read(bytes, u64::MAX)
}

/// Checks what several connections delivered, each from the position given: no number may have two
/// stamps. Returns how many different lines there are. For guests that were not reset.
///
/// A connection may begin and end within a line, and the rest of a line can look like a whole one;
/// so the first line counts only from position 0.
pub fn check_stamps<'a>(
    connections: impl IntoIterator<Item = (u64, &'a [u8])>,
) -> Result<usize, LedgerError> {
    let mut stamps = BTreeMap::new();
    for (position, bytes) in connections {
        let whole = lines(bytes).skip(usize::from(position != 0));
        for (number, second) in whole.filter_map(|(_, line)| entry(line)) {
            let first = *stamps.entry(number).or_insert(second);
            if first != second {
                return Err(LedgerError::TwoStamps {
                    number,
                    first,
                    second,
                });
            }
        }
    }
    Ok(stamps.len())
}

/// Complete lines with their offsets, newlines excluded.
fn lines(bytes: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let mut offset = 0;
    bytes
        .split_inclusive(|byte| *byte == b'\n')
        .filter_map(move |line| {
            let start = offset;
            offset += line.len();
            Some((start, line.strip_suffix(b"\n")?))
        })
}

/// Number and stamp of a line, if it has exactly the form of one.
pub fn entry(line: &[u8]) -> Option<(u64, u64)> {
    let (number, stamp) = std::str::from_utf8(line).ok()?.split_once(' ')?;
    let decimal = number.bytes().all(|byte| byte.is_ascii_digit()) && !number.starts_with('0');
    let hexadecimal = stamp
        .bytes()
        .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if !decimal || !hexadecimal || stamp.len() != 16 {
        return None;
    }
    Some((number.parse().ok()?, u64::from_str_radix(stamp, 16).ok()?))
}

fn shown(line: &[u8]) -> String {
    String::from_utf8_lossy(line).chars().take(80).collect()
}

fn read(bytes: &[u8], boots: u64) -> Result<LedgerSummary, LedgerError> {
    let mut summary = LedgerSummary::default();
    let mut stamp = None;
    let last_newline = bytes.iter().rposition(|byte| *byte == b'\n');
    summary.unfinished = bytes.len() - last_newline.map_or(0, |at| at + 1);
    for (offset, line) in lines(bytes) {
        if line == START.as_bytes() {
            if summary.boots == boots {
                return Err(LedgerError::Restarted {
                    after: summary.last,
                    offset,
                });
            }
            summary.boots += 1;
            (summary.last, stamp) = (0, None);
        } else if summary.boots > 0 {
            next_line(&mut summary, &mut stamp, offset, line)?;
        }
    }
    if summary.boots == 0 {
        let first = shown(
            bytes
                .split(|byte| *byte == b'\n')
                .next()
                .unwrap_or_default(),
        );
        return Err(LedgerError::NotStarted {
            bytes: bytes.len(),
            first,
        });
    }
    Ok(summary)
}

fn next_line(
    summary: &mut LedgerSummary,
    stamp: &mut Option<u64>,
    offset: usize,
    line: &[u8],
) -> Result<(), LedgerError> {
    let after = summary.last;
    let Some((found, tsc)) = entry(line) else {
        let line = shown(line);
        return Err(if line.starts_with("CORRUPT ") {
            LedgerError::Corrupt {
                after,
                line,
                offset,
            }
        } else {
            LedgerError::Unreadable {
                after,
                line,
                offset,
            }
        });
    };
    if found <= after {
        return Err(LedgerError::Repeated {
            after,
            found,
            offset,
        });
    }
    if found > after + 1 {
        return Err(LedgerError::Missing {
            after,
            found,
            offset,
        });
    }
    summary.backward += u64::from(stamp.is_some_and(|before| tsc <= before));
    *stamp = Some(tsc);
    summary.lines += 1;
    summary.last = found;
    Ok(())
}

#[cfg(test)]
#[path = "ledger/tests.rs"]
mod tests;
