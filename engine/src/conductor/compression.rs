// SPDX-License-Identifier: Apache-2.0
//! How much work goes into the pages of each checkpoint: what the clock says, told to the policy.

use std::collections::VecDeque;
use std::time::Duration;

use kemari_api::Epoch;
use kemari_api::config::{Compression as Wanted, ReplicationSection};
use kemari_replication::active::ActiveSender;
use kemari_replication::compression::{CompressionPolicy, Effort, LinkRate, Spent};

/// What is known of one link, and chosen for it.
#[derive(Debug)]
pub struct Compression {
    policy: CompressionPolicy,
    fixed: Option<Effort>,
    rate: LinkRate,
    /// Transactions not acknowledged: epoch, bytes, when they were handed to the link.
    under_way: VecDeque<(Epoch, u64, Duration)>,
    /// When the link had carried everything before those.
    free_at: Duration,
}

impl Compression {
    /// For a link that was just welcomed.
    pub fn new(section: &ReplicationSection, session: &mut ActiveSender) -> Self {
        let mib = usize::try_from(section.delta_cache_mib.get()).unwrap_or(usize::MAX);
        session.set_sent_bytes_max(mib.saturating_mul(1024 * 1024));
        let fixed = match section.compression {
            Wanted::Auto => None,
            Wanted::Off => Some(Effort::Raw),
            Wanted::Delta => Some(Effort::Delta),
            Wanted::Lz4 => Some(Effort::DeltaLz4),
        };
        Self {
            policy: CompressionPolicy::new(fixed),
            fixed,
            rate: LinkRate::default(),
            under_way: VecDeque::new(),
            free_at: Duration::ZERO,
        }
    }

    /// For a piece of the initial copy. A link that has work left is slower than this thread: it
    /// gets less to carry. One that has none waits for this thread, which then does the least.
    pub fn effort_of_copy(&self, waiting_bytes: usize) -> Effort {
        let link_is_slower = waiting_bytes > 0;
        self.fixed.unwrap_or(if link_is_slower {
            Effort::DeltaLz4
        } else {
            Effort::Raw
        })
    }

    /// For the next checkpoint.
    pub fn effort(&self) -> Effort {
        self.policy.effort()
    }

    /// A checkpoint was handed to the link as so many bytes.
    pub fn sent(&mut self, epoch: Epoch, bytes: usize, at: Duration, spent: &Spent) {
        self.under_way.push_back((epoch, bytes as u64, at));
        self.policy.spent(spent);
    }

    /// Everything up to this epoch was acknowledged.
    pub fn acked(&mut self, epoch: Epoch, now: Duration) {
        let (mut bytes, mut since) = (0, None);
        while let Some((_, more, at)) = self.under_way.pop_front_if(|(sent, ..)| *sent <= epoch) {
            bytes += more;
            since.get_or_insert_with(|| at.max(self.free_at));
        }
        let Some(since) = since else { return };
        self.free_at = now;
        self.rate.carried(bytes, now.saturating_sub(since));
        if let Some(rate) = self.rate.bytes_per_second() {
            self.policy.link(rate);
        }
    }
}

#[cfg(test)]
mod tests {
    use kemari_replication::compression::PageTally;

    use super::*;

    fn compression() -> Compression {
        Compression {
            policy: CompressionPolicy::new(None),
            fixed: None,
            rate: LinkRate::default(),
            under_way: VecDeque::new(),
            free_at: Duration::ZERO,
        }
    }

    #[test]
    fn what_waited_behind_another_checkpoint_does_not_count_as_slow() {
        let mut compression = compression();
        let spent = Spent {
            tally: PageTally::default(),
            encode: Duration::ZERO,
        };
        let ms = Duration::from_millis;
        // Both at once, a megabyte each, at a megabyte a millisecond.
        compression.sent(Epoch::new(1), 1_000_000, ms(10), &spent);
        compression.sent(Epoch::new(2), 1_000_000, ms(10), &spent);
        compression.acked(Epoch::new(1), ms(11));
        compression.acked(Epoch::new(2), ms(12));
        assert_eq!(compression.rate.bytes_per_second(), Some(1e9));
        compression.acked(Epoch::new(2), ms(99));
        assert_eq!(compression.rate.bytes_per_second(), Some(1e9));
    }
}
