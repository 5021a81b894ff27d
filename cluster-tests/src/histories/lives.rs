// SPDX-License-Identifier: Apache-2.0
//! What an observer saw, life by life. A life begins when the guest boots with nothing of its memory
//! left anywhere; what was seen within it must be the work of one machine.

use crate::ledger::{self, LedgerError, LedgerSummary};
use crate::observer::{Event, Header, Splice, Violation};

/// The guest from a boot to its end.
#[derive(Debug)]
pub struct Life {
    splice: Splice,
    /// Numbers of the observer's connections, in the order this life's splice numbers them.
    connections: Vec<usize>,
}

/// Everything seen, in order.
#[derive(Debug, Default)]
pub struct Lives {
    lives: Vec<Life>,
    late: Vec<Late>,
}

/// Bytes of an earlier life that came after a later one had begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Late {
    /// Who sent them.
    pub by: Header,
    /// How many that nobody had seen before.
    pub bytes: usize,
}

/// What must not be.
#[derive(Debug, thiserror::Error)]
pub enum LivesError {
    /// The rules were broken within a life.
    #[error("In life {life}: {violations:?}")]
    Violations {
        /// From 1 on.
        life: usize,
        /// As seen.
        violations: Vec<Violation>,
    },
    /// A life is not that of one machine.
    #[error("In life {life}")]
    Ledger {
        /// From 1 on.
        life: usize,
        /// Why.
        source: LedgerError,
    },
    /// Two machines were heard.
    #[error("Of an earlier life, after a later one had begun: {0:?}")]
    TwoLives(Vec<Late>),
}

impl Lives {
    /// Reads what an observer's splice has kept, whatever it made of it itself.
    #[must_use]
    pub fn of(seen: &Splice) -> Self {
        let raw: Vec<_> = seen.raw_by_connection().collect();
        let mut lives = Self::default();
        for event in seen.events() {
            match event {
                Event::Opened { source, at_ns, .. } => {
                    if let Some((_, header, bytes)) =
                        raw.iter().find(|(number, ..)| *number == source.connection)
                    {
                        lives.open(source.connection, header, bytes, *at_ns);
                    }
                }
                Event::Delivered {
                    connection,
                    position,
                    bytes,
                    first_ns,
                    ..
                } => {
                    if let Some((_, header, all)) =
                        raw.iter().find(|(number, ..)| number == connection)
                    {
                        let from = usize::try_from(position - header.position).unwrap_or(0);
                        let length = usize::try_from(*bytes).unwrap_or(0);
                        let piece = all.get(from..from + length).unwrap_or_default();
                        lives.deliver(*connection, header, piece, *first_ns);
                    }
                }
                Event::Closed { .. } => {}
            }
        }
        lives
    }

    /// How many there were.
    #[must_use]
    pub fn count(&self) -> usize {
        self.lives.len()
    }

    /// Whether every life was that of one machine, and one ended before the next began; what each
    /// ledger holds.
    ///
    /// # Errors
    /// What was broken first.
    pub fn judge(&self) -> Result<Vec<LedgerSummary>, LivesError> {
        let mut summaries = Vec::new();
        for (number, life) in self.lives.iter().enumerate() {
            let number = number + 1;
            let violations = life.splice.violations();
            if !violations.is_empty() {
                return Err(LivesError::Violations {
                    life: number,
                    violations,
                });
            }
            let wrong = |source| LivesError::Ledger {
                life: number,
                source,
            };
            // A life that ended before its first line came out has no ledger.
            let bytes = life.splice.bytes();
            if bytes.contains(&b'\n') {
                summaries.push(ledger::check(bytes).map_err(wrong)?);
            }
            let raw = life.splice.raw();
            ledger::check_stamps(raw.map(|(header, bytes)| (header.position, bytes)))
                .map_err(wrong)?;
        }
        if self.late.is_empty() {
            Ok(summaries)
        } else {
            Err(LivesError::TwoLives(self.late.clone()))
        }
    }

    fn open(&mut self, connection: usize, header: &Header, bytes: &[u8], at_ns: u64) {
        let begins = self.lives.last().is_none_or(|life| {
            let before = life.splice.bytes();
            let common = before.len().min(bytes.len());
            let newest = life.splice.newest_generation().unwrap_or_default();
            // The guest writes time stamps, so two boots differ in the first lines.
            header.position == 0
                && header.generation > newest
                && before.get(..common) != bytes.get(..common)
        });
        if begins {
            self.lives.push(Life {
                splice: Splice::default(),
                connections: Vec::new(),
            });
        }
        if let Some(life) = self.lives.last_mut() {
            let number = life.splice.open();
            life.connections.push(connection);
            let line = format!("{header}\n");
            life.splice.receive(number, line.as_bytes(), at_ns);
        }
    }

    fn deliver(&mut self, connection: usize, header: &Header, bytes: &[u8], at_ns: u64) {
        let number = |life: &Life| life.connections.iter().position(|one| *one == connection);
        let whose = self.lives.iter().rposition(|life| number(life).is_some());
        let later = whose.is_some_and(|at| at + 1 < self.lives.len());
        let Some(life) = whose.and_then(|at| self.lives.get_mut(at)) else {
            return;
        };
        let before = life.splice.bytes().len();
        if let Some(number) = number(life) {
            life.splice.receive(number, bytes, at_ns);
        }
        let new = life.splice.bytes().len() - before;
        if later && new > 0 {
            self.late.push(Late {
                by: header.clone(),
                bytes: new,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Connections that introduce themselves and deliver, one after the other.
    fn seen(connections: &[(&str, u64, u64, &str)]) -> Splice {
        let mut splice = Splice::default();
        for (at_ns, (node, generation, position, text)) in (0..).zip(connections) {
            let number = splice.open();
            let header = format!(
                "KEMARI-CONSOLE 1 vm=vm node={node} generation={generation} position={position}\n"
            );
            splice.receive(number, header.as_bytes(), at_ns * 10_000_000);
            splice.receive(number, text.as_bytes(), at_ns * 10_000_000);
        }
        splice
    }

    const FIRST: &str = "LEDGER START\n1 00000000000000aa\n2 00000000000000ab\n";
    const SECOND: &str = "LEDGER START\n1 00000000000000ba\n";

    #[test]
    fn a_boot_from_nothing_begins_a_life() {
        let splice = seen(&[("node1", 1, 0, FIRST), ("node2", 2, 0, SECOND)]);
        assert!(!splice.violations().is_empty(), "it is not one life");
        let lives = Lives::of(&splice);
        let lines: Vec<u64> = lives
            .judge()
            .unwrap()
            .iter()
            .map(|life| life.lines)
            .collect();
        assert_eq!(lines, [2, 1]);
    }

    #[test]
    fn a_takeover_does_not() {
        let whole = format!("{FIRST}3 00000000000000ac\n");
        let lives = Lives::of(&seen(&[("node1", 1, 0, FIRST), ("node2", 2, 0, &whole)]));
        assert_eq!((lives.count(), lives.judge().unwrap()[0].lines), (1, 3));
    }

    #[test]
    fn two_machines_of_one_generation_are_no_two_lives() {
        let lives = Lives::of(&seen(&[("node1", 1, 0, FIRST), ("node2", 1, 0, SECOND)]));
        assert!(matches!(
            lives.judge(),
            Err(LivesError::Violations { life: 1, .. })
        ));
    }

    #[test]
    fn what_comes_from_an_earlier_life_is_seen() {
        let mut splice = seen(&[("node1", 1, 0, FIRST), ("node2", 2, 0, SECOND)]);
        splice.receive(0, b"3 00000000000000ac\n", 90_000_000);
        let Err(LivesError::TwoLives(late)) = Lives::of(&splice).judge() else {
            panic!("it must be noticed");
        };
        assert_eq!((late.len(), late[0].bytes), (1, 19));
    }

    #[test]
    fn a_lost_line_in_any_life_is_noticed() {
        let gap = "LEDGER START\n1 00000000000000ba\n3 00000000000000bb\n";
        let lives = Lives::of(&seen(&[("node1", 1, 0, gap), ("node2", 2, 0, SECOND)]));
        assert!(matches!(
            lives.judge(),
            Err(LivesError::Ledger { life: 1, .. })
        ));
    }
}
