// SPDX-License-Identifier: Apache-2.0
//! Colours, for a terminal whose owner wants them (`NO_COLOR`, see no-color.org).

use std::env;
use std::io::IsTerminal;

use anstyle::{AnsiColor, Style};

/// Whether to paint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Paint {
    /// On a terminal.
    Colours,
    /// Bare text.
    Plain,
}

/// What a piece of text says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    Good,
    Doubtful,
    Bad,
    Head,
    Neutral,
}

impl Paint {
    /// For standard output.
    pub fn of_stdout() -> Self {
        let refused = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = env::var_os("TERM").is_some_and(|term| term == "dumb");
        if std::io::stdout().is_terminal() && !refused && !dumb {
            Self::Colours
        } else {
            Self::Plain
        }
    }

    /// The text in its colour.
    pub fn text(self, tone: Tone, text: &str) -> String {
        let style = match (self, tone) {
            (Self::Plain, _) | (_, Tone::Neutral) => return text.to_owned(),
            (_, Tone::Good) => AnsiColor::Green.on_default(),
            (_, Tone::Doubtful) => AnsiColor::Yellow.on_default(),
            (_, Tone::Bad) => AnsiColor::Red.on_default().bold(),
            (_, Tone::Head) => Style::new().bold(),
        };
        format!("{style}{text}{style:#}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_stays_as_it_is() {
        assert_eq!(Paint::Plain.text(Tone::Bad, "x"), "x");
        assert_eq!(Paint::Colours.text(Tone::Good, "x"), "\u{1b}[32mx\u{1b}[0m");
    }
}
