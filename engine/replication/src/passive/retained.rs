// SPDX-License-Identifier: Apache-2.0
//! Outputs of committed epochs that may not have left yet, kept for the replay after failover.

use std::collections::VecDeque;

use kemari_api::Epoch;

use crate::output::Output;

/// Most bytes of outputs a passive replica keeps, including 64 bytes for each output.
pub const RETAINED_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What each kept output is counted with besides its bytes.
pub(crate) const OUTPUT_OVERHEAD_BYTES: usize = 64;

/// Committed outputs, in the order the guest made them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Retained {
    outputs: VecDeque<(Epoch, Output)>,
    bytes: usize,
}

impl Retained {
    /// Whether these outputs would still fit.
    #[must_use]
    pub fn has_room_for(&self, outputs: &[Output]) -> bool {
        self.bytes + outputs.iter().map(cost).sum::<usize>() <= RETAINED_BYTES_MAX
    }

    /// Keeps the outputs of an epoch that is being committed.
    ///
    /// # Panics
    /// When the epoch is older than one already kept.
    pub fn commit(&mut self, epoch: Epoch, outputs: Vec<Output>) {
        let last = self
            .outputs
            .back()
            .map_or_else(Epoch::default, |(epoch, _)| *epoch);
        assert!(epoch > last, "epoch {epoch} committed after {last}");
        // The first transaction of a session carries again what the outside has not taken.
        let repeated = |(_, kept): &mut (Epoch, Output)| {
            let first = outputs
                .iter()
                .find(|output| output.kind.shares_stream(kept.kind));
            first.is_some_and(|first| kept.position >= first.position)
        };
        while let Some((_, output)) = self.outputs.pop_back_if(repeated) {
            self.bytes -= cost(&output);
        }
        for output in outputs {
            self.bytes += cost(&output);
            self.outputs.push_back((epoch, output));
        }
    }

    /// Forgets outputs up to and including this epoch: the outside has them.
    pub fn delivered(&mut self, up_to: Epoch) {
        while self
            .outputs
            .front()
            .is_some_and(|(epoch, _)| *epoch <= up_to)
        {
            if let Some((_, output)) = self.outputs.pop_front() {
                self.bytes -= cost(&output);
            }
        }
    }

    /// Forgets everything: the state these outputs belong to is gone.
    pub fn clear(&mut self) {
        self.outputs.clear();
        self.bytes = 0;
    }

    /// What must be sent again at failover before anything new leaves, in order.
    pub fn replay(&self) -> impl Iterator<Item = &Output> {
        self.outputs.iter().map(|(_, output)| output)
    }

    /// Whether there is nothing to replay.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.outputs.is_empty()
    }
}

fn cost(output: &Output) -> usize {
    output.bytes.len() + OUTPUT_OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::OutputKind;

    fn output(position: u64) -> Output {
        Output {
            kind: OutputKind::Console,
            position,
            bytes: vec![b'x'; 3],
        }
    }

    #[test]
    fn only_what_was_delivered_is_forgotten_and_the_rest_stays_in_order() {
        let mut retained = Retained::default();
        retained.commit(Epoch::new(1), vec![output(0), output(3)]);
        retained.commit(Epoch::new(3), vec![output(6)]);
        retained.delivered(Epoch::new(2));
        assert_eq!(
            retained.replay().map(|o| o.position).collect::<Vec<_>>(),
            [6]
        );
        retained.delivered(Epoch::new(3));
        assert!(retained.is_empty());
        assert_eq!(retained.bytes, 0);
    }

    #[test]
    fn outputs_carried_again_by_a_new_session_are_replayed_once() {
        let mut retained = Retained::default();
        retained.commit(Epoch::new(5), vec![output(0), output(3)]);
        retained.commit(Epoch::new(8), vec![output(3), output(6)]);
        assert_eq!(
            retained.replay().map(|o| o.position).collect::<Vec<_>>(),
            [0, 3, 6]
        );
        assert_eq!(retained.bytes, 3 * (3 + OUTPUT_OVERHEAD_BYTES));
    }

    #[test]
    fn streams_are_told_apart_when_outputs_are_carried_again() {
        let port = crate::NetworkPort::new(0).unwrap();
        let packet = |position| Output {
            kind: OutputKind::Network(port),
            position,
            bytes: vec![0; 60],
        };
        let mut retained = Retained::default();
        retained.commit(Epoch::new(5), vec![packet(7), output(0), packet(8)]);
        retained.commit(Epoch::new(6), vec![packet(8), output(3)]);
        assert_eq!(
            retained
                .replay()
                .map(|o| (o.kind, o.position))
                .collect::<Vec<_>>(),
            [
                (OutputKind::Network(port), 7),
                (OutputKind::Console, 0),
                (OutputKind::Network(port), 8),
                (OutputKind::Console, 3),
            ]
        );
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let retained = Retained {
            outputs: VecDeque::new(),
            bytes: RETAINED_BYTES_MAX - 66,
        };
        assert!(!retained.has_room_for(&[output(0)]));
        assert!(retained.has_room_for(&[]));
    }
}
