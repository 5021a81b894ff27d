// SPDX-License-Identifier: Apache-2.0
//! What happens in a history. Pure: the same seed and number of nodes make the same plan.

use std::fmt;
use std::time::Duration;

/// A node of the bed, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NodeNumber(pub usize);

impl fmt::Display for NodeNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node{}", self.0 + 1)
    }
}

/// What lasts until it is mended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Affliction {
    /// Without power.
    Off,
    /// Every process stands still.
    Frozen,
    /// Its cable is pulled.
    Cut,
    /// What others send does not reach it.
    Deaf,
    /// What it sends reaches nobody.
    Mute,
}

/// What is done to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blow {
    /// It lasts.
    Lasting(Affliction),
    /// SIGKILL to the VM's engine.
    EngineKilled,
    /// SIGKILL to the agent, which systemd starts again.
    AgentKilled,
    /// The agent ends in good order and is started again.
    AgentRestarted,
    /// SIGKILL to Corosync; it, Pacemaker and the agent are started again.
    CorosyncKilled,
}

/// One step of a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Something is done to a node that is well.
    Strike(NodeNumber, Blow),
    /// A node's affliction ends.
    Mend(NodeNumber, Affliction),
    /// Nothing is done for so long.
    Pause(Duration),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Strike(node, Blow::Lasting(affliction)) => write!(f, "{node}: {affliction:?}"),
            Self::Strike(node, blow) => write!(f, "{node}: {blow:?}"),
            Self::Mend(node, affliction) => write!(f, "{node}: no longer {affliction:?}"),
            Self::Pause(pause) => write!(f, "{} ms pass", pause.as_millis()),
        }
    }
}

/// The steps of a history. What is afflicted at the end stays so: [`mend_all`](super::mend_all).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// In order.
    pub steps: Vec<Step>,
}

/// Blows of one history.
const BLOWS_MAX: usize = 4;
/// The longest pause after a step: more than Corosync needs to lose a node, and a pair to form.
const PAUSE_MAX: Duration = Duration::from_secs(8);

impl Plan {
    /// The history of this seed in a cluster of so many nodes. At no time are half of the nodes or
    /// more afflicted, but one of two may be.
    #[must_use]
    pub fn of(seed: u64, nodes: usize) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let afflicted_max = (nodes.saturating_sub(1) / 2).max(1);
        let mut afflictions: Vec<Option<Affliction>> = vec![None; nodes];
        let mut steps = Vec::new();
        let blows = random.usize(1..=BLOWS_MAX);
        for _ in 0..blows {
            let afflicted: Vec<_> = numbered(&afflictions)
                .filter_map(|(node, affliction)| Some((node, affliction?)))
                .collect();
            let may_last = afflicted.len() < afflicted_max;
            if let Some((node, affliction)) = random.choice(afflicted)
                && (!may_last || random.bool())
            {
                steps.push(Step::Mend(node, affliction));
                steps.push(pause(&mut random));
                set(&mut afflictions, node, None);
            }
            let well: Vec<_> = numbered(&afflictions)
                .filter(|(_, affliction)| affliction.is_none())
                .map(|(node, _)| node)
                .collect();
            let afflicted = afflictions.iter().flatten().count();
            let Some(node) = random.choice(well) else {
                continue;
            };
            let blow = blow(&mut random, afflicted < afflicted_max);
            steps.push(Step::Strike(node, blow));
            if let Blow::Lasting(affliction) = blow {
                set(&mut afflictions, node, Some(affliction));
            }
            steps.push(pause(&mut random));
        }
        Self { steps }
    }
}

fn numbered(
    afflictions: &[Option<Affliction>],
) -> impl Iterator<Item = (NodeNumber, Option<Affliction>)> {
    let all = afflictions.iter().enumerate();
    all.map(|(number, affliction)| (NodeNumber(number), *affliction))
}

fn set(afflictions: &mut [Option<Affliction>], node: NodeNumber, to: Option<Affliction>) {
    if let Some(affliction) = afflictions.get_mut(node.0) {
        *affliction = to;
    }
}

fn blow(random: &mut fastrand::Rng, may_last: bool) -> Blow {
    const LASTING: [Affliction; 5] = [
        Affliction::Off,
        Affliction::Frozen,
        Affliction::Cut,
        Affliction::Deaf,
        Affliction::Mute,
    ];
    const SHORT: [Blow; 4] = [
        Blow::EngineKilled,
        Blow::AgentKilled,
        Blow::AgentRestarted,
        Blow::CorosyncKilled,
    ];
    let lasting = (may_last && random.u8(0..3) > 0).then(|| random.choice(LASTING));
    match lasting.flatten() {
        Some(affliction) => Blow::Lasting(affliction),
        None => random.choice(SHORT).unwrap_or(Blow::EngineKilled),
    }
}

/// Short ones often: what matters happens while something else is under way.
fn pause(random: &mut fastrand::Rng) -> Step {
    let most = match random.u8(0..3) {
        0 => PAUSE_MAX,
        1 => PAUSE_MAX / 4,
        _ => PAUSE_MAX / 40,
    };
    let most = u64::try_from(most.as_millis()).unwrap_or(u64::MAX);
    Step::Pause(Duration::from_millis(random.u64(0..=most)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn only_the_well_are_struck_and_only_the_afflicted_mended(
            seed in any::<u64>(),
            nodes in 2usize..6,
        ) {
            let plan = Plan::of(seed, nodes);
            prop_assert_eq!(&plan, &Plan::of(seed, nodes));
            let mut afflictions = vec![None; nodes];
            let mut blows = 0;
            for step in &plan.steps {
                match *step {
                    Step::Strike(node, blow) => {
                        blows += 1;
                        prop_assert_eq!(afflictions[node.0], None);
                        if let Blow::Lasting(affliction) = blow {
                            afflictions[node.0] = Some(affliction);
                        }
                    }
                    Step::Mend(node, affliction) => {
                        prop_assert_eq!(afflictions[node.0].take(), Some(affliction));
                    }
                    Step::Pause(pause) => prop_assert!(pause <= PAUSE_MAX),
                }
                let afflicted = afflictions.iter().flatten().count();
                prop_assert!(afflicted <= 1 || afflicted * 2 < nodes);
            }
            prop_assert!((1..=BLOWS_MAX).contains(&blows));
        }
    }

    #[test]
    fn every_blow_happens() {
        let mut seen = Vec::new();
        for seed in 0..200 {
            for step in Plan::of(seed, 3).steps {
                if let Step::Strike(_, blow) = step
                    && !seen.contains(&blow)
                {
                    seen.push(blow);
                }
            }
        }
        assert_eq!(seen.len(), 9, "{seen:?}");
    }
}
