// SPDX-License-Identifier: Apache-2.0
//! What happened since the agent started, counted from what its state machine said to do.

use std::collections::BTreeMap;

use kemari_api::replica::Promotion;
use kemari_api::{Generation, VmName};

use crate::arbitration::message::{Message, Record};
use crate::arbitration::{Action, Grounds};

/// Counts by VM and what else tells them apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// By purpose.
    pub claims: BTreeMap<(VmName, String), u64>,
    /// By kind and grounds.
    pub promotions: BTreeMap<(VmName, &'static str, &'static str), u64>,
    /// Take-overs from a lost replica.
    pub failovers: BTreeMap<VmName, u64>,
    /// Solo licences.
    pub solo: BTreeMap<VmName, u64>,
    /// Replicas that were outdated.
    pub outdated: BTreeMap<VmName, u64>,
    /// Requests refused.
    pub refusals: u64,
    /// The claim counted last, which is repeated until it is decided.
    last_claims: BTreeMap<VmName, Generation>,
}

/// Whether the other replica was there when this one took over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Other {
    /// It was demoted: a handover.
    Present,
    /// It was lost.
    Lost,
}

impl Counters {
    /// Counts what an action says. `other`: of the VM's other replica, as seen from this node.
    pub fn count(&mut self, action: &Action, other: impl Fn(&VmName) -> Other) {
        match action {
            Action::Multicast(Message::Claim(claim)) => self.claimed(claim),
            Action::Promote {
                vm, how, grounds, ..
            } => {
                let key = (vm.clone(), kind(*how), words(*grounds));
                *self.promotions.entry(key).or_default() += 1;
                if *how == Promotion::TakeOver && other(vm) == Other::Lost {
                    *self.failovers.entry(vm.clone()).or_default() += 1;
                }
            }
            Action::GoSolo { vm, .. } => *self.solo.entry(vm.clone()).or_default() += 1,
            Action::Outdate { vm, .. } => *self.outdated.entry(vm.clone()).or_default() += 1,
            Action::Answer { result: Err(_), .. } => self.refusals += 1,
            Action::Multicast(_)
            | Action::WriteRecord(_)
            | Action::Admit
            | Action::Protect { .. }
            | Action::Answer { .. }
            | Action::Note { .. } => {}
        }
    }

    fn claimed(&mut self, claim: &Record) {
        let last = self.last_claims.insert(claim.vm.clone(), claim.generation);
        if last != Some(claim.generation) {
            let key = (claim.vm.clone(), claim.purpose.to_string());
            *self.claims.entry(key).or_default() += 1;
        }
    }
}

const fn kind(how: Promotion) -> &'static str {
    match how {
        Promotion::TakeOver => "take-over",
        Promotion::ColdStart => "cold-start",
        Promotion::ForcedColdStart => "forced-cold-start",
    }
}

const fn words(grounds: Grounds) -> &'static str {
    match grounds {
        Grounds::Majority(_) => "majority",
        Grounds::Pacemaker => "pacemaker",
        Grounds::Person(_) => "person",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arbitration::message::Purpose;

    fn vm() -> VmName {
        "web".parse().unwrap()
    }

    #[test]
    fn a_repeated_claim_counts_once_and_a_handover_is_no_failover() {
        let mut counters = Counters::default();
        let claim = |generation| {
            Action::Multicast(Message::Claim(Record {
                vm: vm(),
                generation: Generation::new(generation),
                holder: "n1".parse().unwrap(),
                purpose: Purpose::TakeOver,
                after: Generation::default(),
                consent: Default::default(),
            }))
        };
        for generation in [2, 2, 3] {
            counters.count(&claim(generation), |_| Other::Present);
        }
        assert_eq!(
            counters.claims.get(&(vm(), "take-over".to_owned())),
            Some(&2)
        );
        let promote = Action::Promote {
            vm: vm(),
            how: Promotion::TakeOver,
            generation: Generation::new(2),
            grounds: Grounds::Majority(2),
        };
        counters.count(&promote, |_| Other::Present);
        assert_eq!(counters.failovers.get(&vm()), None);
        counters.count(&promote, |_| Other::Lost);
        assert_eq!(counters.failovers.get(&vm()), Some(&1));
        assert_eq!(
            counters.promotions.get(&(vm(), "take-over", "majority")),
            Some(&2)
        );
    }
}
