// SPDX-License-Identifier: Apache-2.0
//! What a chapter tells its reader to type, and what it says is printed then.

/// One command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Step {
    /// Where it stands.
    pub(crate) line: usize,
    /// As a shell takes it, with what belongs to it of the lines below.
    pub(crate) text: String,
    /// What is printed then; `…` stands for what is left out.
    pub(crate) output: Vec<String>,
}

impl Step {
    pub(crate) fn first_line(&self) -> &str {
        self.text.lines().next().unwrap_or_default()
    }
}

/// The commands of a chapter in their order: lines of blocks that begin with `# `, and commands of crm and pcs within
/// the text.
pub(crate) fn steps(chapter: &str) -> Vec<Step> {
    let mut found: Vec<Step> = Vec::new();
    let mut block = false;
    let mut lines = (1..).zip(chapter.lines());
    while let Some((line, text)) = lines.next() {
        if text.starts_with("```") {
            block = !block;
        } else if !block {
            let spans = text.split('`').skip(1).step_by(2);
            found.extend(spans.filter(|span| typed_in_prose(span)).map(|span| Step {
                line,
                text: span.to_owned(),
                output: vec![],
            }));
        } else if let Some(command) = text.strip_prefix("# ") {
            let mut whole = command.to_owned();
            let end = command
                .split_once("<<'")
                .and_then(|(_, rest)| rest.split_once('\''));
            let goes_on = |whole: &str| match end {
                Some((end, _)) => whole.lines().last() != Some(end),
                None => whole.ends_with('\\'),
            };
            while goes_on(&whole) {
                let (_, next) = lines.next().expect("the command ends");
                whole.push('\n');
                whole.push_str(next);
            }
            found.push(Step {
                line,
                text: whole,
                output: vec![],
            });
        } else if let Some(step) = found.last_mut() {
            step.output.push(text.to_owned());
        }
    }
    found
}

/// The placeholders of prose are no commands.
fn typed_in_prose(span: &str) -> bool {
    [
        "crm configure ",
        "crm resource ",
        "pcs resource ",
        "pcs property ",
    ]
    .iter()
    .any(|begin| span.starts_with(begin))
}

/// Whether output is as a chapter shows it: `…` alone is any number of lines, within a line any text.
pub(crate) fn matches(shown: &[String], printed: &str) -> bool {
    let printed: Vec<&str> = printed.lines().collect();
    lines_match(shown, &printed)
}

fn lines_match(shown: &[String], printed: &[&str]) -> bool {
    match (shown.split_first(), printed.split_first()) {
        (None, None) => true,
        (Some((first, rest)), _) if first == "…" => {
            (0..=printed.len()).any(|skipped| lines_match(rest, &printed[skipped..]))
        }
        (Some((shown, rest)), Some((printed, more))) => {
            line_matches(shown, printed) && lines_match(rest, more)
        }
        _ => false,
    }
}

fn line_matches(shown: &str, printed: &str) -> bool {
    match shown.split_once('…') {
        None => shown == printed,
        Some((begin, end)) => printed
            .strip_prefix(begin)
            .is_some_and(|rest| rest.ends_with(end)),
    }
}

#[test]
fn a_chapter_is_read_as_it_is_typed() {
    let page = "Set `crm configure property a=b`, not `pcs x`.\n```\n# one \\\n    two\nout\n…\n# cat > f <<'E'\n# x\nE\n```\n# Heading\n";
    let found = steps(page);
    let text: Vec<_> = found.iter().map(|step| step.text.as_str()).collect();
    assert_eq!(
        text,
        [
            "crm configure property a=b",
            "one \\\n    two",
            "cat > f <<'E'\n# x\nE"
        ]
    );
    assert_eq!(found[1].output, ["out", "…"]);
    assert!(found[2].output.is_empty());
}

#[test]
fn output_is_compared_but_for_what_is_left_out() {
    let shown = |lines: &[&str]| {
        lines
            .iter()
            .map(|&line| line.to_owned())
            .collect::<Vec<_>>()
    };
    assert!(matches(&shown(&["a", "…", "d…f"]), "a\nb\nc\nd e f\n"));
    assert!(matches(&shown(&["…"]), ""));
    assert!(!matches(&shown(&["a", "…", "x"]), "a\nb\n"));
    assert!(!matches(&shown(&[]), "a\n"));
}
