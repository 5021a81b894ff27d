// SPDX-License-Identifier: Apache-2.0
//! What an engine is at, on a terminal, while something long goes on.

use std::convert::Infallible;
use std::io::{IsTerminal, Write, stderr};

use futures_util::StreamExt as _;
use kemari_api::replica::ReplicaProxy;

/// Characters of the bar.
const BAR: usize = 30;

/// Shows what the engine says of itself, with a bar where it names a percentage, for as long as this
/// is polled. Silent if standard error is no terminal.
pub(super) async fn show(proxy: &ReplicaProxy<'static>) -> Infallible {
    if stderr().is_terminal()
        && let Ok(mut changes) = proxy.receive_changed().await
    {
        let mut line = Line::default();
        while let Some(change) = changes.next().await {
            if let Ok(arguments) = change.args() {
                line.show(&with_bar(&arguments.status.detail));
            }
        }
    }
    std::future::pending().await
}

/// A line of a terminal that is written again and again, and that is gone when this is dropped.
#[derive(Debug, Default)]
pub(super) struct Line {
    shown: bool,
}

impl Line {
    /// [`Self::show`], if standard error is a terminal.
    pub fn show_on_terminal(&mut self, text: &str) {
        if stderr().is_terminal() {
            self.show(text);
        }
    }

    /// Puts this in the place of what was there.
    pub fn show(&mut self, text: &str) {
        self.shown = true;
        // Who does not want to see it need not.
        let _ = write!(stderr().lock(), "\r{text}\x1b[K");
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.shown {
            self.show("");
        }
    }
}

/// A sentence with its percentage as a bar before it.
fn with_bar(detail: &str) -> String {
    let Some(percent) = percent(detail) else {
        return detail.to_owned();
    };
    let full = BAR * percent / 100;
    format!("[{}{}] {detail}", "#".repeat(full), ".".repeat(BAR - full))
}

/// The last "N %" of a sentence, at most 100.
fn percent(detail: &str) -> Option<usize> {
    let (before, _) = detail.rsplit_once('%')?;
    let number: usize = before.split_whitespace().next_back()?.parse().ok()?;
    Some(number.min(100))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentage_becomes_a_bar_and_a_sentence_without_stays() {
        let text = with_bar("paired; comparing disks: 50 %");
        assert_eq!(
            text,
            "[###############...............] paired; comparing disks: 50 %"
        );
        assert_eq!(with_bar("solo"), "solo");
        assert_eq!(
            with_bar("of 100% none"),
            "[##############################] of 100% none"
        );
        assert_eq!(percent("x 1000 %"), Some(100));
        assert_eq!(percent("%"), None);
    }
}
