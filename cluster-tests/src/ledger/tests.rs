// SPDX-License-Identifier: Apache-2.0
//! The ledger check, against ledgers that were kept and ledgers that were not.

use proptest::prelude::*;

use super::*;

/// What a guest writes: lines 1..=count, the n-th made at `stamp(n)`.
fn ledger(count: u64, stamp: impl Fn(u64) -> u64) -> Vec<u8> {
    let lines = (1..=count).map(|n| format!("{n} {:016x}\n", stamp(n)));
    format!("{START}\n{}", lines.collect::<String>()).into_bytes()
}

fn offset_of_line(bytes: &[u8], line: usize) -> usize {
    lines(bytes)
        .nth(line)
        .map_or(bytes.len(), |(offset, _)| offset)
}

#[test]
fn a_kept_ledger_is_summed_up() {
    let mut bytes = b"SeaBIOS\n".to_vec();
    bytes.extend(ledger(12, |n| n * 1000));
    bytes.extend(b"13 0000");
    let summary = check(&bytes).unwrap();
    let expected = LedgerSummary {
        lines: 12,
        last: 12,
        boots: 1,
        backward: 0,
        unfinished: 7,
    };
    assert_eq!(summary, expected);
}

#[test]
fn another_host_may_have_another_counter() {
    let moved = ledger(10, |n| if n < 6 { 1_000_000 + n } else { n });
    assert_eq!(check(&moved).unwrap().backward, 1);
}

#[test]
fn a_guest_that_never_started_is_told_from_silence() {
    let error = check(b"ERROR more pages\n").unwrap_err();
    let first = "ERROR more pages".to_owned();
    assert_eq!(error, LedgerError::NotStarted { bytes: 17, first });
}

#[test]
fn a_reset_is_lost_state_unless_it_was_asked_for() {
    let twice = [ledger(3, |n| n), ledger(2, |n| n)].concat();
    assert!(matches!(
        check(&twice),
        Err(LedgerError::Restarted { after: 3, .. })
    ));
    let summary = check_with_resets(&twice).unwrap();
    assert_eq!((summary.boots, summary.lines, summary.last), (2, 5, 2));
}

#[test]
fn torn_memory_is_an_error() {
    let mut bytes = ledger(3, |n| n);
    bytes.extend(b"CORRUPT page=7 want=3 have=2\n4 0000000000000004\n");
    assert!(matches!(
        check(&bytes),
        Err(LedgerError::Corrupt { after: 3, .. })
    ));
}

#[test]
fn lines_of_other_forms_are_errors() {
    for line in [
        "4 4",
        "04 0000000000000004",
        "4  0000000000000004",
        "4 000000000000000G",
        "",
        "\0",
    ] {
        let bytes = [ledger(3, |n| n), format!("{line}\n").into_bytes()].concat();
        assert!(
            matches!(check(&bytes), Err(LedgerError::Unreadable { .. })),
            "{line:?}"
        );
    }
}

#[test]
fn stamps_are_compared_across_connections_but_not_within_cut_lines() {
    let old = ledger(30, |n| n * 7);
    // Begins within line 21: the rest "1 00…" must not be taken for line 1.
    let cut = offset_of_line(&old, 21) + 1;
    let new = &old[cut..];
    assert_eq!(check_stamps([(0, &old[..]), (cut as u64, new)]), Ok(30));

    let other = ledger(30, |n| n * 7 + u64::from(n > 25));
    let error = check_stamps([(0, &old[..]), (cut as u64, &other[cut..])]).unwrap_err();
    assert_eq!(
        error,
        LedgerError::TwoStamps {
            number: 26,
            first: 182,
            second: 183
        }
    );
}

proptest! {
    #[test]
    fn every_prefix_of_a_kept_ledger_is_kept(count in 1_u64..200, cut in 13_usize..5000) {
        let bytes = ledger(count, |n| n);
        let cut = cut.min(bytes.len());
        let summary = check(&bytes[..cut]).unwrap();
        let complete = lines(&bytes[..cut]).count() as u64;
        prop_assert_eq!(summary.lines, complete - 1);
    }

    #[test]
    fn a_lost_stretch_is_found(count in 3_u64..200, from in 0_usize..6000, length in 1_usize..400) {
        let bytes = ledger(count, |n| n << 20);
        // Something must follow the loss, or it cannot be told from silence.
        let from = 13 + from % (bytes.len() - 13);
        let to = (from + length).min(offset_of_line(&bytes, usize::try_from(count).unwrap()));
        prop_assume!(from < to);
        let lost = [&bytes[..from], &bytes[to..]].concat();
        prop_assert!(check(&lost).is_err());
    }

    #[test]
    fn a_repeated_stretch_is_found(count in 3_usize..100, back in 1_usize..50, at in 2_usize..100) {
        let at = at.min(count);
        let back = back.min(at - 1);
        let bytes = ledger(count as u64, |n| n);
        let cut = offset_of_line(&bytes, at);
        let again = offset_of_line(&bytes, at - back);
        let repeated = [&bytes[..cut], &bytes[again..]].concat();
        let is_repeated = matches!(check(&repeated), Err(LedgerError::Repeated { .. }));
        prop_assert!(is_repeated);
    }

    #[test]
    fn nothing_makes_it_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..300), started: bool) {
        if started {
            bytes.splice(0..0, ledger(2, |n| n));
        }
        let _ = check_with_resets(&bytes);
        let _ = check_stamps([(0, &bytes[..]), (9, &bytes[..])]);
    }
}
