// SPDX-License-Identifier: Apache-2.0
//! The difference of two pages, in words of 8 bytes.
//!
//! | bytes | what |
//! | ---: | --- |
//! | 8 | which of the 64 lines of 64 bytes differ: bit n for bytes 64 n to 64 n + 63; not 0 |
//! | 1 each | for each such line, ascending: which of its 8 words differ, bit n for word n; not 0 |
//! | 8 each | for each such word, ascending: old word XOR new word |
//!
//! Equal pages have the empty difference. Applying one changes the base in place; a well-formed
//! difference fits every base, so what the base was must be checked by other means
//! ([`crate::page::page_checksum`]).

use crate::page::PAGE_BYTES;

/// Longest difference: every word of every line.
pub const DELTA_BYTES_MAX: usize = size_of::<u64>() + LINES + PAGE_BYTES;

const LINE_BYTES: usize = 64;
const LINES: usize = PAGE_BYTES / LINE_BYTES;
const _: () = assert!(LINES == u64::BITS as usize);

type Line = [[u8; 8]; 8];

/// Appends the difference to `out`: nothing for equal pages. `false`, and `out` as it was, when it
/// would be longer than `bytes_max`.
pub fn encode_delta(
    out: &mut Vec<u8>,
    base: &[u8; PAGE_BYTES],
    page: &[u8; PAGE_BYTES],
    bytes_max: usize,
) -> bool {
    let start = out.len();
    let (mut lines, mut masks) = (0_u64, [0_u8; LINES]);
    let mut words = 0;
    for (number, (old, new)) in lines_of(base).iter().zip(lines_of(page)).enumerate() {
        if old != new {
            lines |= 1 << number;
            let mask = differing(old, new);
            masks[number] = mask;
            words += mask.count_ones() as usize;
        }
    }
    if lines == 0 {
        return true;
    }
    if size_of::<u64>() + lines.count_ones() as usize + words * 8 > bytes_max {
        return false;
    }
    out.extend_from_slice(&lines.to_le_bytes());
    out.extend(masks.iter().filter(|mask| **mask != 0));
    for ((old, new), mask) in lines_of(base).iter().zip(lines_of(page)).zip(masks) {
        if mask == 0 {
            continue;
        }
        for (number, (old, new)) in old.iter().zip(new).enumerate() {
            if mask & (1 << number) != 0 {
                let change = u64::from_le_bytes(*old) ^ u64::from_le_bytes(*new);
                out.extend_from_slice(&change.to_le_bytes());
            }
        }
    }
    debug_assert!(out.len() - start <= bytes_max);
    true
}

/// Changes `page`, which is the base, to what it became.
///
/// # Errors
/// What is wrong with the difference. `page` may have changed in part then.
pub fn apply_delta(delta: &[u8], page: &mut [u8; PAGE_BYTES]) -> Result<(), &'static str> {
    if delta.is_empty() {
        return Ok(());
    }
    let (lines, rest) = delta
        .split_first_chunk::<8>()
        .ok_or("a delta ends before its lines")?;
    let lines = u64::from_le_bytes(*lines);
    if lines == 0 {
        return Err("a delta names no line");
    }
    let (masks, rest) = rest
        .split_at_checked(lines.count_ones() as usize)
        .ok_or("a delta ends before its words")?;
    let (changes, []) = rest.as_chunks::<8>() else {
        return Err("a delta ends inside a word");
    };
    let (mut masks, mut changes) = (masks.iter(), changes.iter());
    let (page_lines, _) = page.as_chunks_mut::<LINE_BYTES>();
    for (number, line) in page_lines.iter_mut().enumerate() {
        if lines & (1 << number) == 0 {
            continue;
        }
        let mask = masks.next().copied().unwrap_or(0);
        if mask == 0 {
            return Err("a delta names no word of a line");
        }
        let (words, _) = line.as_chunks_mut::<8>();
        for (number, word) in words.iter_mut().enumerate() {
            if mask & (1 << number) != 0 {
                let change = changes.next().ok_or("a delta lacks a word")?;
                *word = (u64::from_le_bytes(*word) ^ u64::from_le_bytes(*change)).to_le_bytes();
            }
        }
    }
    match changes.next() {
        None => Ok(()),
        Some(_) => Err("a delta has words left over"),
    }
}

fn lines_of(page: &[u8; PAGE_BYTES]) -> &[Line] {
    page.as_chunks::<8>().0.as_chunks::<8>().0
}

fn differing(old: &Line, new: &Line) -> u8 {
    old.iter()
        .zip(new)
        .enumerate()
        .fold(0, |mask, (number, (old, new))| {
            mask | (u8::from(old != new) << number)
        })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(base: &[u8; PAGE_BYTES], page: &[u8; PAGE_BYTES]) -> Vec<u8> {
        let mut delta = Vec::new();
        assert!(encode_delta(&mut delta, base, page, DELTA_BYTES_MAX));
        delta
    }

    #[test]
    fn equal_pages_have_an_empty_delta_and_one_word_takes_seventeen_bytes() {
        let base = [7; PAGE_BYTES];
        assert!(encoded(&base, &base).is_empty());
        let mut page = base;
        page[64 * 3 + 8 * 2 + 1] = 9;
        let mut expected = vec![0b1000, 0, 0, 0, 0, 0, 0, 0, 0b100];
        expected.extend([0, 7 ^ 9, 0, 0, 0, 0, 0, 0]);
        assert_eq!(encoded(&base, &page), expected);
    }

    #[test]
    fn a_page_all_new_takes_the_most() {
        let delta = encoded(&[0; PAGE_BYTES], &[1; PAGE_BYTES]);
        assert_eq!(delta.len(), DELTA_BYTES_MAX);
        let mut out = vec![1, 2, 3];
        let (base, page) = ([0; PAGE_BYTES], [1; PAGE_BYTES]);
        assert!(!encode_delta(&mut out, &base, &page, DELTA_BYTES_MAX - 1));
        assert_eq!(out, [1, 2, 3]);
    }

    #[test]
    fn what_is_no_delta_is_told_what_is_wrong() {
        let one = |masks: &[u8], words: usize| {
            let mut delta = vec![1, 0, 0, 0, 0, 0, 0, 0];
            delta.extend_from_slice(masks);
            delta.extend(vec![5; words * 8]);
            delta
        };
        for (delta, wrong) in [
            (vec![1, 0, 0], "before its lines"),
            (vec![0; 8], "no line"),
            (one(&[], 0), "before its words"),
            (one(&[0], 0), "no word of a line"),
            (one(&[3], 1), "lacks a word"),
            (one(&[1], 2), "left over"),
            (one(&[1, 1], 1), "inside a word"),
        ] {
            let error = apply_delta(&delta, &mut [0; PAGE_BYTES]).unwrap_err();
            assert!(error.contains(wrong), "{error} for {delta:?}");
        }
        assert_eq!(apply_delta(&one(&[1], 1), &mut [0; PAGE_BYTES]), Ok(()));
    }

    proptest! {
        #[test]
        fn a_delta_makes_of_its_base_what_the_page_became(
            fill: u8, edits in prop::collection::vec((0..PAGE_BYTES, 1..200_usize, any::<u8>()), 0..30),
        ) {
            let base: [u8; PAGE_BYTES] =
                std::array::from_fn(|n| fill.wrapping_mul(u8::try_from(n % 251).unwrap()));
            let mut page = base;
            for (at, length, value) in edits {
                let end = (at + length).min(PAGE_BYTES);
                page[at..end].fill(value);
            }
            let delta = encoded(&base, &page);
            let mut applied = base;
            prop_assert_eq!(apply_delta(&delta, &mut applied), Ok(()));
            prop_assert!(applied == page);
        }

        #[test]
        fn any_bytes_are_applied_or_refused(delta in prop::collection::vec(any::<u8>(), 0..120)) {
            let _ = apply_delta(&delta, &mut [0; PAGE_BYTES]);
        }
    }
}
