// SPDX-License-Identifier: Apache-2.0
//! File name patterns with `*` and `?`, as `default` of `loader.conf` has them.
//!
//! Brackets are taken literally: no installer writes them there.

/// Whether the whole name fits the pattern. Takes time in proportion to the product of the lengths.
pub(crate) fn fits(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut at, mut here) = (0, 0);
    // Where the last star was, and how far into the name it reaches so far.
    let mut star: Option<(usize, usize)> = None;
    while here < name.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, here));
                at += 1;
                continue;
            }
            Some(wanted) if *wanted == b'?' || Some(wanted) == name.get(here) => {
                at += 1;
                here += 1;
                continue;
            }
            _ => {}
        }
        let Some((star_at, reach)) = star else {
            return false;
        };
        star = Some((star_at, reach + 1));
        at = star_at + 1;
        here = reach + 1;
    }
    pattern
        .get(at..)
        .is_some_and(|rest| rest.iter().all(|byte| *byte == b'*'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, name) in [
            ("", ""),
            ("*", ""),
            ("*", "abc"),
            ("a*c", "abc"),
            ("a*c", "abcbc"),
            ("*-6.?.conf", "debian-6.1.conf"),
            ("a**", "a"),
            ("a*b*c", "aXbbXXc"),
        ] {
            assert!(fits(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("", "a"),
            ("a", ""),
            ("a?", "a"),
            ("a*c", "abd"),
            ("*b", "abc"),
            ("?", ""),
        ] {
            assert!(!fits(pattern, name), "{pattern} {name}");
        }
    }

    #[test]
    fn a_hard_pattern_takes_no_time() {
        assert!(!fits(
            &"a*".repeat(100),
            &format!("{}b", "a".repeat(1000)).replace('a', "c")
        ));
        assert!(!fits(&format!("{}b", "a*".repeat(200)), &"a".repeat(4000)));
    }
}
