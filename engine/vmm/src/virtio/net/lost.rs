// SPDX-License-Identifier: Apache-2.0
//! Packets that neither side can have: counted, and told rarely.

/// How many packets were lost, each way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Lost {
    sent: u64,
    received: u64,
}

impl Lost {
    /// A packet that the guest sent is none.
    pub(super) fn sent(&mut self, why: &'static str) {
        self.sent = told(self.sent, "guest", why);
    }

    /// A packet cannot be given to the guest.
    pub(super) fn received(&mut self, why: &'static str) {
        self.received = told(self.received, "network", why);
    }
}

/// One more; every doubling is told, so that nobody can flood the log.
fn told(before: u64, from: &'static str, why: &'static str) -> u64 {
    let count = before.saturating_add(1);
    if count.is_power_of_two() {
        tracing::warn!(count, "Dropped a packet from the {from}: {why}");
    }
    count
}
