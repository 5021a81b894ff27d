// SPDX-License-Identifier: Apache-2.0
//! `kemarictl top`: `status` again and again, on the whole terminal.
//!
//! Plain control sequences (ECMA-48, and xterm's alternate screen), which every terminal knows that
//! one logs in with.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _, stdin, stdout};
use std::time::Duration;

use anyhow::Context;
use rustix::termios::tcgetwinsize;
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;

use super::paint::{Paint, Tone};
use super::terminal::RawTerminal;
use super::{status, table};
use crate::command::Ended;

/// Between two looks, each of which measures rates for as long again.
const PAUSE: Duration = Duration::from_millis(500);
/// Ctrl-C, which is a key in raw mode.
const CTRL_C: u8 = 3;

/// Columns and rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Size {
    columns: usize,
    rows: usize,
}

/// The other screen of the terminal, without a cursor, until this is dropped.
struct Screen(());

impl Screen {
    fn enter() -> io::Result<Self> {
        let entered = Self(());
        put("\x1b[?1049h\x1b[?25l")?;
        Ok(entered)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = put("\x1b[?25h\x1b[?1049l");
    }
}

fn put(text: &str) -> io::Result<()> {
    let mut out = stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Shows until `q`, Ctrl-C or a signal.
pub(super) async fn top() -> anyhow::Result<()> {
    if !stdin().is_terminal() || !stdout().is_terminal() {
        return Err(Ended::refused("top is for a terminal; use kemarictl status").into());
    }
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let raw = RawTerminal::enter().context("Cannot switch the terminal to raw mode")?;
    let screen = Screen::enter().context("Cannot write to the terminal")?;
    let shown = tokio::select! {
        shown = show() => shown,
        left = until_left() => left,
        _ = terminate.recv() => Ok(()),
        _ = hangup.recv() => Ok(()),
    };
    drop(screen);
    drop(raw);
    shown
}

async fn until_left() -> anyhow::Result<()> {
    let mut keys = tokio::io::stdin();
    let mut key = [0];
    while keys.read(&mut key).await? > 0 {
        if matches!(key, [b'q' | b'Q' | CTRL_C]) {
            break;
        }
    }
    Ok(())
}

async fn show() -> anyhow::Result<()> {
    let paint = Paint::of_stdout();
    loop {
        let looked = status::look(None).await?;
        let mut text = String::new();
        for note in &looked.notes {
            let _ = writeln!(text, "{}", paint.text(Tone::Doubtful, note));
        }
        text.push_str(&table::screen(&looked.overview, paint));
        put(&frame(&text, size())).context("Cannot write to the terminal")?;
        sleep(PAUSE).await;
    }
}

fn size() -> Size {
    let told = tcgetwinsize(stdout()).ok();
    let or = |value: Option<u16>, usual| match value {
        Some(value) if value > 0 => usize::from(value),
        _ => usual,
    };
    Size {
        columns: or(told.map(|it| it.ws_col), 80),
        rows: or(told.map(|it| it.ws_row), 24),
    }
}

/// What paints this text over whatever is there: what does not fit is cut off, the last row says how to
/// leave.
fn frame(text: &str, size: Size) -> String {
    let mut frame = "\x1b[H".to_owned();
    let room = size.rows.saturating_sub(1);
    let mut rows = 0;
    for line in text.lines().take(room) {
        frame.push_str(&clip(line, size.columns));
        frame.push_str("\x1b[K\r\n");
        rows += 1;
    }
    let over = text.lines().count().saturating_sub(rows);
    let last = if over > 0 {
        format!("{over} more lines; q leaves")
    } else {
        "q leaves".to_owned()
    };
    frame.push_str(&clip(&last, size.columns));
    frame.push_str("\x1b[K\x1b[J");
    frame
}

/// At most so many characters; colours take no room and are ended.
fn clip(line: &str, columns: usize) -> String {
    let mut clipped = String::with_capacity(line.len());
    let (mut shown, mut escape, mut coloured) = (0, false, false);
    for char in line.chars() {
        if char == '\x1b' {
            escape = true;
            coloured = true;
        } else if !escape {
            if shown == columns {
                break;
            }
            shown += 1;
        }
        clipped.push(char);
        if escape && char == 'm' {
            escape = false;
        }
    }
    if coloured {
        clipped.push_str("\x1b[0m");
    }
    clipped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_cut_by_what_is_seen_of_it() {
        assert_eq!(clip("abcdef", 3), "abc");
        assert_eq!(clip("ab", 3), "ab");
        assert_eq!(clip("\x1b[31mabcdef\x1b[0m", 3), "\x1b[31mabc\x1b[0m");
        assert_eq!(clip("ä€c", 2), "ä€");
    }

    #[test]
    fn a_frame_is_never_taller_than_the_terminal_and_clears_the_rest() {
        let size = Size {
            columns: 10,
            rows: 3,
        };
        let all = frame("a\nb\n", size);
        assert_eq!(all, "\x1b[Ha\x1b[K\r\nb\x1b[K\r\nq leaves\x1b[K\x1b[J");
        let cut = frame("a\nb\nc\nd\n", size);
        assert_eq!(cut.matches("\r\n").count(), 2);
        assert!(cut.contains("2 more lin"), "{cut:?}");
        let none = Size {
            columns: 10,
            rows: 1,
        };
        assert_eq!(frame("a\n", none).matches("\r\n").count(), 0);
    }
}
