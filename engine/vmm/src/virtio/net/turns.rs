// SPDX-License-Identifier: Apache-2.0
//! Whose turn it is: one thread serves all queues, so none may keep it.
//!
//! A *lane* is one direction of one queue pair, or the control queue. A lane that may have work is
//! due; lanes have their turn one after the other, and one turn of the device ends when its budget
//! is spent. A device that is busy for ever thus still sends, receives and answers.

/// Packets in one turn of the device.
const TURN_PACKETS: usize = 64;
/// Bytes in one turn of the device: eight of the longest packets. Whoever pauses the machine waits
/// for the rest of a turn, so it must not be long.
const TURN_BYTES: usize = 512 << 10;

/// A direction of a queue pair, or the control queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    /// From this pair of the back end to the guest.
    Receive(usize),
    /// From this queue of the guest to the back end.
    Transmit(usize),
    /// The driver's commands.
    Control,
}

/// How a lane's turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Nothing can be done until something wakes the lane.
    Settled,
    /// The budget is spent.
    Interrupted,
}

/// What may still be done in this turn of the device.
#[derive(Debug)]
pub(super) struct Budget {
    packets: usize,
    bytes: usize,
}

impl Budget {
    pub(super) fn new() -> Self {
        Self {
            packets: TURN_PACKETS,
            bytes: TURN_BYTES,
        }
    }

    pub(super) fn is_left(&self) -> bool {
        self.packets > 0 && self.bytes > 0
    }

    /// A packet, or what was in the place of one, was dealt with.
    pub(super) fn spend(&mut self, bytes: usize) {
        self.packets = self.packets.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// The lanes that are due.
#[derive(Debug)]
pub(super) struct Due {
    pairs: usize,
    /// A bit a lane: receive and transmit of each pair, then control.
    lanes: u64,
    /// The first lane to have a turn.
    next: usize,
}

impl Due {
    /// None are, of this many pairs and the control queue.
    pub(super) fn new(pairs: usize) -> Self {
        Self {
            pairs,
            lanes: 0,
            next: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lanes == 0
    }

    pub(super) fn clear(&mut self) {
        self.lanes = 0;
    }

    pub(super) fn mark(&mut self, lane: Lane) {
        self.lanes |= self.bit(lane);
    }

    pub(super) fn mark_all(&mut self) {
        self.lanes = (1 << self.count()) - 1;
    }

    pub(super) fn settle(&mut self, lane: Lane) {
        self.lanes &= !self.bit(lane);
    }

    /// The lane whose turn it is; the one after it is next.
    pub(super) fn take_turn(&mut self) -> Option<Lane> {
        let count = self.count();
        let number = (self.next..count)
            .chain(0..self.next)
            .find(|number| self.lanes >> number & 1 != 0)?;
        self.next = (number + 1) % count;
        Some(match (number / 2, number % 2) {
            (pair, _) if pair == self.pairs => Lane::Control,
            (pair, 0) => Lane::Receive(pair),
            (pair, _) => Lane::Transmit(pair),
        })
    }

    fn count(&self) -> usize {
        2 * self.pairs + 1
    }

    fn bit(&self, lane: Lane) -> u64 {
        let number = match lane {
            Lane::Receive(pair) => 2 * pair,
            Lane::Transmit(pair) => 2 * pair + 1,
            Lane::Control => 2 * self.pairs,
        };
        if number < self.count() {
            1 << number
        } else {
            0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_due_lane_has_its_turn() {
        let mut due = Due::new(2);
        assert_eq!(due.take_turn(), None);
        due.mark_all();
        let turns: Vec<Lane> = (0..6).filter_map(|_| due.take_turn()).collect();
        assert_eq!(
            turns,
            [
                Lane::Receive(0),
                Lane::Transmit(0),
                Lane::Receive(1),
                Lane::Transmit(1),
                Lane::Control,
                Lane::Receive(0),
            ]
        );
        for lane in turns {
            due.settle(lane);
        }
        assert!(due.is_empty());
        due.mark(Lane::Transmit(7));
        assert!(due.is_empty(), "there is no such lane");
        due.mark(Lane::Control);
        assert_eq!(due.take_turn(), Some(Lane::Control));
    }

    #[test]
    fn a_budget_ends_by_packets_or_bytes() {
        let mut budget = Budget::new();
        budget.spend(TURN_BYTES + 1);
        assert!(!budget.is_left());
        let mut budget = Budget::new();
        for _ in 0..TURN_PACKETS {
            assert!(budget.is_left());
            budget.spend(0);
        }
        assert!(!budget.is_left());
    }
}
