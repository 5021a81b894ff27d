// SPDX-License-Identifier: Apache-2.0
//! GRUB's environment block, `grubenv`: `name=value` lines in a file of fixed size.

use crate::limits::ENTRIES_MAX;

const SIGNATURE: &str = "# GRUB Environment Block\n";
/// Written by `grub-reboot` for the next boot alone; GRUB erases them when it boots.
const ONCE: [&str; 2] = ["next_entry", "prev_saved_entry"];

/// The variables of an environment block; none if it is no such block.
pub(super) fn parse(text: &str) -> Vec<(String, String)> {
    let Some(mut rest) = text.strip_prefix(SIGNATURE) else {
        return Vec::new();
    };
    let mut variables = Vec::new();
    while let Some((line, after)) = next_line(rest) {
        rest = after;
        if let Some((name, value)) = line.split_once('=')
            && !line.starts_with('#')
            && !ONCE.contains(&name)
            && variables.len() < ENTRIES_MAX
        {
            variables.push((name.to_owned(), value.to_owned()));
        }
    }
    variables
}

/// A line without its escapes: a backslash makes the next character stand for itself.
fn next_line(text: &str) -> Option<(String, &str)> {
    if text.is_empty() {
        return None;
    }
    let mut line = String::new();
    let mut chars = text.chars();
    while let Some(next) = chars.next() {
        match next {
            '\n' => break,
            '\\' => line.extend(chars.next()),
            other => line.push(other),
        }
    }
    Some((line, chars.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_without_those_for_one_boot() {
        let block = format!(
            "{SIGNATURE}saved_entry=a>b\nnext_entry=c\nk=root=x \\\\ y\\\nz\n# c=d\n{}",
            "#".repeat(900)
        );
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            parse(&block),
            [pair("saved_entry", "a>b"), pair("k", "root=x \\ y\nz")]
        );
        assert_eq!(parse("saved_entry=x\n"), []);
        assert_eq!(parse(&format!("{SIGNATURE}a=b\\")), [pair("a", "b")]);
    }
}
