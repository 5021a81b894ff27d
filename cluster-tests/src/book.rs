// SPDX-License-Identifier: Apache-2.0
//! The book's chapters as instructions: what a reader is told to type, where, and what is printed then.

/// One command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The line of the chapter it stands in, from 1.
    pub line: usize,
    /// The title of the section it stands in.
    pub section: String,
    /// The last sentence before it, which says on which nodes it is typed; empty right after a title.
    pub lead: String,
    /// As a shell takes it, with what belongs to it of the lines below.
    pub text: String,
    /// What is printed then; `…` stands for what is left out.
    pub output: Vec<String>,
}

impl Step {
    /// The command without what it is given to read.
    pub fn first_line(&self) -> &str {
        self.text.lines().next().unwrap_or_default()
    }
}

/// The commands of a chapter in their order: lines of blocks that begin with `# `, and commands of crm, pcs and apt
/// within the text.
pub fn steps(chapter: &str) -> Vec<Step> {
    let mut found: Vec<Step> = Vec::new();
    let mut block = false;
    let (mut section, mut paragraph) = (String::new(), String::new());
    let mut lines = (1..).zip(chapter.lines());
    while let Some((line, text)) = lines.next() {
        let step = |text: &str, lead: &str| Step {
            line,
            section: section.clone(),
            lead: lead.to_owned(),
            text: text.to_owned(),
            output: vec![],
        };
        if text.starts_with("```") {
            block = !block;
            if !block {
                paragraph.clear();
            }
        } else if !block {
            let spans = text.split('`').skip(1).step_by(2);
            found.extend(
                spans
                    .filter(|span| typed_in_prose(span))
                    .map(|span| step(span, "")),
            );
            if let Some(title) = text.strip_prefix('#') {
                title
                    .trim_start_matches('#')
                    .trim()
                    .clone_into(&mut section);
                paragraph.clear();
            } else if !text.is_empty() {
                paragraph.push_str(text);
                paragraph.push(' ');
            }
        } else if let Some(command) = text.strip_prefix("# ") {
            let mut whole = command.to_owned();
            let end = command
                .split_once("<<'")
                .and_then(|(_, rest)| rest.split_once('\''));
            let goes_on = |whole: &str| match end {
                Some((end, _)) => whole.lines().last() != Some(end),
                None => whole.ends_with('\\'),
            };
            let first = step("", last_sentence(&paragraph));
            while goes_on(&whole) {
                let Some((_, next)) = lines.next() else { break };
                whole.push('\n');
                whole.push_str(next);
            }
            found.push(Step {
                text: whole,
                ..first
            });
        } else if let Some(step) = found.last_mut() {
            step.output.push(text.to_owned());
        }
    }
    found
}

fn last_sentence(paragraph: &str) -> &str {
    let paragraph = paragraph.trim_end();
    paragraph
        .rsplit_once(". ")
        .map_or(paragraph, |(_, last)| last)
}

/// The placeholders of prose are no commands.
fn typed_in_prose(span: &str) -> bool {
    [
        "crm configure ",
        "crm resource ",
        "pcs resource ",
        "pcs property ",
        "apt remove ",
        "apt purge ",
    ]
    .iter()
    .any(|begin| span.starts_with(begin))
}

/// Whether output is, to the letter, as a chapter shows it: `…` alone is any number of lines, within a line any text.
pub fn matches(shown: &[String], printed: &str) -> bool {
    let printed: Vec<&str> = printed.lines().collect();
    lines_match(shown, &printed, &same_text)
}

/// Whether output is like what a chapter shows: the same words in the same order, other numbers and amounts.
pub fn resembles(shown: &[String], printed: &str) -> bool {
    let printed: Vec<&str> = printed.lines().collect();
    lines_match(shown, &printed, &|shown, printed| {
        let (shown, printed): (Vec<&str>, Vec<&str>) = (
            shown.split_whitespace().collect(),
            printed.split_whitespace().collect(),
        );
        words_match(&shown, &printed)
    })
}

fn lines_match(shown: &[String], printed: &[&str], same: &dyn Fn(&str, &str) -> bool) -> bool {
    match (shown.split_first(), printed.split_first()) {
        (None, None) => true,
        (Some((first, rest)), _) if first == "…" => {
            (0..=printed.len()).any(|skipped| lines_match(rest, &printed[skipped..], same))
        }
        (Some((shown, rest)), Some((printed, more))) => {
            same(shown, printed) && lines_match(rest, more, same)
        }
        _ => false,
    }
}

fn same_text(shown: &str, printed: &str) -> bool {
    match shown.split_once('…') {
        None => shown == printed,
        Some((begin, end)) => printed
            .strip_prefix(begin)
            .is_some_and(|rest| rest.ends_with(end)),
    }
}

/// `…` is any number of words, and may end a word.
fn words_match(shown: &[&str], printed: &[&str]) -> bool {
    match (shown.split_first(), printed.split_first()) {
        (None, None) => true,
        (Some((&"…", rest)), _) => {
            (0..=printed.len()).any(|skipped| words_match(rest, &printed[skipped..]))
        }
        (Some((shown, rest)), Some((printed, more))) => {
            kind(shown) == kind(printed) && words_match(rest, more)
        }
        _ => false,
    }
}

/// What a word is, without the figure: a number, a unit, or itself.
fn kind(word: &str) -> &str {
    const UNITS: [&str; 8] = ["ns", "us", "ms", "s", "B/s", "KiB/s", "MiB/s", "GiB/s"];
    if word.parse::<f64>().is_ok() {
        "a number"
    } else if UNITS.contains(&word) {
        "a unit"
    } else {
        word
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(lines: &[&str]) -> Vec<String> {
        lines.iter().map(|&line| line.to_owned()).collect()
    }

    #[test]
    fn a_chapter_is_read_as_it_is_typed() {
        let page = "## How\n\nSet `crm configure property a=b`, not `pcs x`. On `n1`,\nor n2:\n```\n# one \\\n    two\nout\n…\n\
            # cat > f <<'E'\n# x\nE\n```\n# Heading\n```\n# three\n```\n";
        let found = steps(page);
        let text: Vec<_> = found.iter().map(|step| step.text.as_str()).collect();
        assert_eq!(
            text,
            [
                "crm configure property a=b",
                "one \\\n    two",
                "cat > f <<'E'\n# x\nE",
                "three"
            ]
        );
        assert_eq!(found[1].output, ["out", "…"]);
        assert_eq!(
            (found[1].line, found[1].section.as_str(), &*found[1].lead),
            (6, "How", "On `n1`, or n2:")
        );
        assert!(found[2].output.is_empty());
        assert_eq!(
            (found[3].section.as_str(), &*found[3].lead),
            ("Heading", "")
        );
    }

    #[test]
    fn output_is_compared_but_for_what_is_left_out() {
        assert!(matches(&lines(&["a", "…", "d…f"]), "a\nb\nc\nd e f\n"));
        assert!(matches(&lines(&["…"]), ""));
        assert!(!matches(&lines(&["a", "…", "x"]), "a\nb\n"));
        assert!(!matches(&lines(&[]), "a\n"));
    }

    #[test]
    fn figures_are_the_readers_own_and_words_are_not() {
        let shown = lines(&["VM  ROLE", "vm  active   1   2.1 ms  …"]);
        assert!(resembles(
            &shown,
            "VM ROLE\nvm    active 17 480 us  it runs well\n"
        ));
        assert!(!resembles(&shown, "VM ROLE\nvm  passive 17 480 us\n"));
        assert!(!resembles(&shown, "VM ROLE\nvm  active - - -\n"));
        assert!(resembles(&lines(&["a … b …"]), "a x y b\n"));
        assert!(!resembles(&lines(&["a … b"]), "a x y\n"));
    }
}
