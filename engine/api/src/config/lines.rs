// SPDX-License-Identifier: Apache-2.0
//! Where each key stands in the file.
//!
//! A key is named by its path, `vm.name` or, below an array of tables, `disk[1].path`. In messages
//! the number in brackets is left out: the line says which disk.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The lines of a description's keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyLines {
    places: Vec<Place>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    path: String,
    line: usize,
    bytes: Range<usize>,
}

impl KeyLines {
    pub(super) fn of(table: &DeTable<'_>, text: &str) -> Self {
        let newlines: Vec<_> = text.match_indices('\n').map(|(byte, _)| byte).collect();
        let mut lines = Self::default();
        lines.note(table, "", &newlines);
        lines
    }

    fn note(&mut self, table: &DeTable<'_>, prefix: &str, newlines: &[usize]) {
        for (key, value) in table {
            let path = if prefix.is_empty() {
                key.get_ref().to_string()
            } else {
                format!("{prefix}.{}", key.get_ref())
            };
            self.note_value(&path, &key.span(), value, newlines);
        }
    }

    fn note_value(
        &mut self,
        path: &str,
        at: &Range<usize>,
        value: &Spanned<DeValue<'_>>,
        newlines: &[usize],
    ) {
        self.places.push(Place {
            path: path.to_owned(),
            line: newlines.partition_point(|newline| *newline < at.start) + 1,
            bytes: at.start..value.span().end.max(at.end),
        });
        match value.get_ref() {
            DeValue::Table(table) => self.note(table, path, newlines),
            DeValue::Array(array) => {
                for (index, element) in array.iter().enumerate() {
                    let path = format!("{path}[{index}]");
                    self.note_value(&path, &element.span(), element, newlines);
                }
            }
            _ => {}
        }
    }

    /// The line of a key, from 1; of the table it would stand in where it is left to its default.
    #[must_use]
    pub fn line(&self, path: &str) -> usize {
        let mut path = path;
        loop {
            if let Some(place) = self.places.iter().find(|place| place.path == path) {
                return place.line;
            }
            match path.rfind(['.', '[']) {
                Some(end) => path = path.get(..end).unwrap_or_default(),
                None => return 1,
            }
        }
    }

    /// Whether the description has this key.
    #[must_use]
    pub fn contains(&self, path: &str) -> bool {
        self.places.iter().any(|place| place.path == path)
    }

    /// The innermost key below `section` that stands around this byte.
    pub(super) fn key_at(&self, section: &str, byte: usize) -> Option<&str> {
        self.places
            .iter()
            .filter(|place| {
                place.bytes.contains(&byte)
                    && place
                        .path
                        .strip_prefix(section)
                        .is_some_and(|rest| rest.starts_with('.'))
            })
            .max_by_key(|place| place.path.len())
            .map(|place| place.path.as_str())
    }
}

/// The line, from 1, of a byte of the text.
pub(super) fn line_at(text: &str, byte: usize) -> usize {
    let before = text.get(..byte).unwrap_or(text);
    before.matches('\n').count() + 1
}

/// A path as messages show it: without the numbers of array elements.
#[must_use]
pub fn shown(path: &str) -> String {
    let mut shown = String::with_capacity(path.len());
    let mut parts = path.split('[');
    shown.push_str(parts.next().unwrap_or_default());
    for part in parts {
        shown.push_str(part.split_once(']').map_or(part, |(_, rest)| rest));
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "[vm]\nname = \"a\"\n\n[[disk]]\nid = \"a\"\n[[disk]]\nid = \"b\"\n\
                        [replication]\naddresses = { n1 = \"x\" }\n";

    fn lines() -> KeyLines {
        KeyLines::of(DeTable::parse(TEXT).unwrap().get_ref(), TEXT)
    }

    #[test]
    fn every_key_has_its_line_and_a_missing_one_that_of_its_table() {
        let lines = lines();
        for (path, line) in [
            ("vm", 1),
            ("vm.name", 2),
            ("vm.cpu", 1),
            ("disk[0].id", 5),
            ("disk[1].id", 7),
            ("disk[1].path", 6),
            ("replication.addresses.n1", 9),
            ("replication.addresses.n2", 9),
            ("sandbox.user", 1),
        ] {
            assert_eq!(lines.line(path), line, "{path}");
        }
        assert!(lines.contains("vm.name") && !lines.contains("vm.cpu"));
    }

    #[test]
    fn the_key_around_a_byte_is_the_innermost_one() {
        let lines = lines();
        let byte = TEXT.find("\"b\"").unwrap();
        assert_eq!(lines.key_at("disk[1]", byte), Some("disk[1].id"));
        assert_eq!(lines.key_at("vm", byte), None);
    }

    #[test]
    fn numbers_of_elements_are_not_shown() {
        assert_eq!(shown("disk[1].path"), "disk.path");
        assert_eq!(shown("vm.name"), "vm.name");
        assert_eq!(shown("a[0][1].b["), "a.b");
    }
}
