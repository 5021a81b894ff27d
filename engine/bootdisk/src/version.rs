// SPDX-License-Identifier: Apache-2.0
//! Comparing versions as the UAPI Group's "Version Format Specification" says, which systemd-boot
//! and `kernel-install` follow.

use std::cmp::Ordering;

/// Which of two versions is the older one.
pub(crate) fn compare(left: &str, right: &str) -> Ordering {
    let (mut left, mut right) = (left.as_bytes(), right.as_bytes());
    loop {
        left = skip_invalid(left);
        right = skip_invalid(right);
        // A pre-release is older than the release, hence older than the end.
        if let Some(order) = separator(b'~', &mut left, &mut right) {
            return order;
        }
        match (left.is_empty(), right.is_empty()) {
            (true, true) => return Ordering::Equal,
            (true, false) => return Ordering::Less,
            (false, true) => return Ordering::Greater,
            (false, false) => {}
        }
        for mark in [b'-', b'^', b'.'] {
            if let Some(order) = separator(mark, &mut left, &mut right) {
                return order;
            }
        }
        let order = match (starts_with_digit(left), starts_with_digit(right)) {
            (true, true) => compare_numbers(&mut left, &mut right),
            (false, false) => compare_words(&mut left, &mut right),
            (left, right) => left.cmp(&right),
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

fn skip_invalid(text: &[u8]) -> &[u8] {
    let valid = |byte: &u8| byte.is_ascii_alphanumeric() || b"-.~^".contains(byte);
    let start = text.iter().position(valid).unwrap_or(text.len());
    text.get(start..).unwrap_or_default()
}

/// The one that begins with `mark` is the older one; if both do, goes on behind it.
fn separator(mark: u8, left: &mut &[u8], right: &mut &[u8]) -> Option<Ordering> {
    match (left.strip_prefix(&[mark]), right.strip_prefix(&[mark])) {
        (Some(after_left), Some(after_right)) => {
            (*left, *right) = (after_left, after_right);
            None
        }
        (Some(_), None) => Some(Ordering::Less),
        (None, Some(_)) => Some(Ordering::Greater),
        (None, None) => None,
    }
}

fn starts_with_digit(text: &[u8]) -> bool {
    text.first().is_some_and(u8::is_ascii_digit)
}

fn compare_numbers(left: &mut &[u8], right: &mut &[u8]) -> Ordering {
    let (left, right) = (
        take(left, u8::is_ascii_digit),
        take(right, u8::is_ascii_digit),
    );
    let (left, right) = (without_zeros(left), without_zeros(right));
    left.len().cmp(&right.len()).then_with(|| left.cmp(right))
}

fn compare_words(left: &mut &[u8], right: &mut &[u8]) -> Ordering {
    let alphabetic = u8::is_ascii_alphabetic;
    take(left, alphabetic).cmp(take(right, alphabetic))
}

fn take<'a>(text: &mut &'a [u8], belongs: fn(&u8) -> bool) -> &'a [u8] {
    let end = text
        .iter()
        .position(|byte| !belongs(byte))
        .unwrap_or(text.len());
    let (taken, rest) = text.split_at(end);
    *text = rest;
    taken
}

fn without_zeros(digits: &[u8]) -> &[u8] {
    let start = digits
        .iter()
        .position(|byte| *byte != b'0')
        .unwrap_or(digits.len());
    digits.get(start..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn versions_from_old_to_new() {
        // The specification's own chain, and kernels of distributions.
        for chain in [
            &[
                "~1",
                "",
                "ab",
                "abb",
                "abc",
                "0001",
                "002",
                "12",
                "122",
                "122.9",
                "123~rc1",
                "123",
                "123-a",
                "123-a.1",
                "123-a1",
                "123-a1.1",
                "123-3",
                "123-3.1",
                "123^patch1",
                "123^1",
                "123.a-1",
                "123.1-1",
                "123a-1",
                "124",
            ][..],
            &[
                "5.10.0-30-amd64",
                "6.1.0-9-amd64",
                "6.1.0-10-amd64",
                "6.1.0-41-amd64",
                "6.12.0-1-amd64",
            ],
            &[
                "0-rescue-8afdd643796e4f8fb5f2ddd3d4f3d0c2",
                "5.14.0-70.el9.x86_64",
                "5.14.0-503.el9.x86_64",
            ],
            &["6.8.0~rc1-generic", "6.8.0-generic"],
        ] {
            for (at, older) in chain.iter().enumerate() {
                for newer in &chain[at + 1..] {
                    assert_eq!(compare(older, newer), Ordering::Less, "{older} {newer}");
                    assert_eq!(compare(newer, older), Ordering::Greater, "{newer} {older}");
                }
            }
        }
        assert_eq!(compare("1.002", "1.2"), Ordering::Equal);
        assert_eq!(compare("1_2", "1 2"), Ordering::Equal);
    }

    proptest! {
        #[test]
        fn the_order_is_one(a in "\\PC{0,12}", b in "[0-9a-z.~^-]{0,12}", c in "[01a.~-]{0,6}") {
            for (a, b) in [(&a, &b), (&b, &c), (&a, &c)] {
                prop_assert_eq!(compare(a, b), compare(b, a).reverse());
                prop_assert_eq!(compare(a, a), Ordering::Equal);
            }
        }
    }
}
