// SPDX-License-Identifier: Apache-2.0
//! The book holds together: every relative link leads to a file and a heading that exist, every
//! page is in the table of contents, and a page of the book links only to pages of the book.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()
        .expect("the repository")
}

/// The pages of the book, without their directory.
fn pages() -> BTreeSet<String> {
    fs::read_dir(root().join("docs"))
        .expect("docs")
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.ends_with(".md"))
        .collect()
}

/// The lines of a page that are prose: no blocks of code.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut code = false;
    text.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        code ^= fence;
        !code && !fence
    })
}

/// The targets of `[text](target)` in a page, without spans of code.
fn links(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let whole: String = prose(text).flat_map(|line| [line, "\n"]).collect();
    let shown: String = whole.split('`').step_by(2).collect::<Vec<_>>().join("`");
    for rest in shown.split("](").skip(1) {
        if let Some((target, _)) = rest.split_once(')') {
            found.push(target.to_owned());
        }
    }
    found
}

/// The anchors of a page's headings, as mdBook and GitHub make them.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut seen = BTreeMap::<String, u32>::new();
    let headings = prose(text).filter_map(|line| {
        let title = line.trim_start_matches('#');
        (title.len() < line.len()).then(|| title.strip_prefix(' '))?
    });
    headings
        .map(|title| {
            let anchor: String = title
                .trim()
                .to_lowercase()
                .chars()
                .filter_map(|c| match c {
                    ' ' => Some('-'),
                    c if c.is_alphanumeric() || matches!(c, '-' | '_') => Some(c),
                    _ => None,
                })
                .collect();
            let count = seen.entry(anchor.clone()).or_default();
            *count += 1;
            match *count {
                1 => anchor,
                again => format!("{anchor}-{}", again - 1),
            }
        })
        .collect()
}

/// What is wrong with a link in `page`, a path in the repository.
fn broken(root: &Path, page: &str, link: &str) -> Option<String> {
    if link.contains("://") || link.starts_with("mailto:") {
        return None;
    }
    let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
    let own = root.join(page);
    let target = match file {
        "" => own,
        _ => own.parent()?.join(file),
    };
    let Ok(target) = target.canonicalize() else {
        return Some(format!("{page}: {link}: there is no such file"));
    };
    let book = root.join("docs");
    if page.starts_with("docs/") && !target.starts_with(&book) {
        return Some(format!("{page}: {link}: it is not part of the book"));
    }
    if anchor.is_empty() {
        return None;
    }
    let text = fs::read_to_string(&target).unwrap_or_default();
    (!anchors(&text).contains(anchor)).then(|| format!("{page}: {link}: there is no such heading"))
}

#[test]
fn every_link_leads_somewhere() {
    let root = root();
    let own = pages().into_iter().map(|page| format!("docs/{page}"));
    let others = ["README.md", "CONTRIBUTING.md"].map(str::to_owned);
    let mut problems = Vec::new();
    let mut count = 0;
    for page in own.chain(others) {
        let text = fs::read_to_string(root.join(&page)).expect("a page");
        for link in links(&text) {
            count += 1;
            problems.extend(broken(&root, &page, &link));
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    assert!(
        count > 50,
        "only {count} links were found: are they written otherwise now?"
    );
}

#[test]
fn every_page_is_in_the_table_of_contents_once() {
    let text = fs::read_to_string(root().join("docs/SUMMARY.md")).expect("SUMMARY.md");
    let mut listed = links(&text);
    listed.push("SUMMARY.md".to_owned());
    listed.sort();
    assert_eq!(listed, pages().into_iter().collect::<Vec<_>>());
}

#[test]
fn what_is_broken_is_found() {
    let root = root();
    let problem = |link: &str| broken(&root, "docs/pacemaker.md", link).unwrap_or_default();
    assert!(problem("nowhere.md").contains("no such file"));
    assert!(problem("limits.md#nowhere").contains("no such heading"));
    assert!(problem("#nowhere").contains("no such heading"));
    assert!(problem("../README.md").contains("not part of the book"));
    for sound in ["limits.md", "#stopping", "https://example.org/#x"] {
        assert_eq!(problem(sound), "", "{sound}");
    }
}

#[test]
fn links_and_headings_are_read_as_mdbook_reads_them() {
    let page = "# A `b`: what, it is\n[x](a.md) `[y](b.md)` [z\nw](c.md#d)\n```\n# no\n[n](n.md)\n```\n## Twice\n## Twice\n#no";
    assert_eq!(links(page), ["a.md", "c.md#d"]);
    let found: Vec<_> = anchors(page).into_iter().collect();
    assert_eq!(found, ["a-b-what-it-is", "twice", "twice-1"]);
}
