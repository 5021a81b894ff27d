// SPDX-License-Identifier: Apache-2.0
//! Medians and 99th percentiles of what was measured.

use std::time::Duration;

/// The middle and the tail of some durations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quantiles {
    /// Half are at most this.
    pub p50: Duration,
    /// 99 of 100 are at most this.
    pub p99: Duration,
}

impl Quantiles {
    /// Of these; nothing of none.
    pub fn of(mut values: Vec<Duration>) -> Option<Self> {
        values.sort_unstable();
        let at = |percent: usize| {
            let index = (values.len() * percent / 100).min(values.len().saturating_sub(1));
            values.get(index).copied()
        };
        Some(Self {
            p50: at(50)?,
            p99: at(99)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_none_of_one_and_of_many() {
        let ms = Duration::from_millis;
        assert_eq!(Quantiles::of(Vec::new()), None);
        let one = Quantiles::of(vec![ms(3)]);
        assert_eq!(one.map(|one| (one.p50, one.p99)), Some((ms(3), ms(3))));
        let many = Quantiles::of((1..=200).rev().map(ms).collect());
        assert_eq!(
            many.map(|many| (many.p50, many.p99)),
            Some((ms(101), ms(199)))
        );
    }
}
