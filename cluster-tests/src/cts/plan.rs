// SPDX-License-Identifier: Apache-2.0
//! Which tests are run, on which nodes. Pure: the same seed makes the same plan.

use std::fmt;
use std::time::Duration;

use crate::histories::NodeNumber;

/// What can be killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Component {
    /// A daemon of Pacemaker's or Corosync itself, by the name of its process.
    Daemon(&'static str),
    /// The VM's engine.
    Engine,
    /// The agent.
    Agent,
}

/// A test of CTS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Test {
    /// A node that is up is stopped; one that was left stopped is started.
    Flip(NodeNumber),
    /// The cluster is stopped on a node and started again.
    Restart(NodeNumber),
    /// A node is fenced.
    StonithOnce(NodeNumber),
    /// A node is stopped again while it starts.
    PartialStart(NodeNumber, Duration),
    /// These nodes are stopped, all at the same time, and then started.
    NearQuorumPoint(Vec<NodeNumber>),
    /// A node is on one side, all others are on the other one.
    SplitBrain(NodeNumber),
    /// A part of the stack is killed.
    ComponentFail(NodeNumber, Component),
    /// The cluster is stopped everywhere under a VM that runs on, and takes it over again.
    Reattach,
    /// Pacemaker is told that the replica on a node has failed.
    ResourceRecover(NodeNumber),
    /// A node gives up its resources, and may have some again.
    Standby(NodeNumber),
}

impl Test {
    /// As CTS calls it.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Flip(_) => "Flip",
            Self::Restart(_) => "Restart",
            Self::StonithOnce(_) => "StonithOnce",
            Self::PartialStart(..) => "PartialStart",
            Self::NearQuorumPoint(_) => "NearQuorumPoint",
            Self::SplitBrain(_) => "SplitBrain",
            Self::ComponentFail(..) => "ComponentFail",
            Self::Reattach => "Reattach",
            Self::ResourceRecover(_) => "ResourceRecover",
            Self::Standby(_) => "Standby",
        }
    }
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match self {
            Self::Reattach => Ok(()),
            Self::Flip(node)
            | Self::Restart(node)
            | Self::StonithOnce(node)
            | Self::SplitBrain(node)
            | Self::ResourceRecover(node)
            | Self::Standby(node) => write!(f, " {node}"),
            Self::PartialStart(node, after) => write!(f, " {node} after {} ms", after.as_millis()),
            Self::NearQuorumPoint(nodes) => nodes.iter().try_for_each(|node| write!(f, " {node}")),
            Self::ComponentFail(node, Component::Daemon(name)) => write!(f, " {node} {name}"),
            Self::ComponentFail(node, component) => write!(f, " {node} {component:?}"),
        }
    }
}

const COMPONENTS: [Component; 9] = [
    Component::Daemon("corosync"),
    Component::Daemon("pacemaker-attrd"),
    Component::Daemon("pacemaker-based"),
    Component::Daemon("pacemaker-controld"),
    Component::Daemon("pacemaker-execd"),
    Component::Daemon("pacemaker-fenced"),
    Component::Daemon("pacemaker-schedulerd"),
    Component::Engine,
    Component::Agent,
];
const KINDS: usize = 10;
/// A start is interrupted after at most so many milliseconds.
const START_MS: u64 = 3_000;

/// Tests, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Each begins with the cluster as the one before left it.
    pub tests: Vec<Test>,
}

impl Plan {
    /// So many tests for a cluster of so many nodes: in each ten of them every kind once, in random order.
    #[must_use]
    pub fn of(seed: u64, count: usize, nodes: usize) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut tests = Vec::with_capacity(count);
        while tests.len() < count {
            let mut kinds: [usize; KINDS] = std::array::from_fn(|kind| kind);
            random.shuffle(&mut kinds);
            let left = count - tests.len();
            let round = kinds.iter().take(left);
            tests.extend(round.map(|kind| test(*kind, nodes, &mut random)));
        }
        Self { tests }
    }
}

fn test(kind: usize, nodes: usize, random: &mut fastrand::Rng) -> Test {
    let node = NodeNumber(random.usize(0..nodes.max(1)));
    match kind {
        0 => Test::Flip(node),
        1 => Test::Restart(node),
        2 => Test::StonithOnce(node),
        3 => Test::PartialStart(node, Duration::from_millis(random.u64(0..=START_MS))),
        4 => {
            let all = (0..nodes).map(NodeNumber);
            Test::NearQuorumPoint(all.filter(|_| random.bool()).collect())
        }
        5 => Test::SplitBrain(node),
        6 => Test::ComponentFail(node, random.choice(COMPONENTS).unwrap_or(Component::Engine)),
        7 => Test::Reattach,
        8 => Test::ResourceRecover(node),
        _ => Test::Standby(node),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn each_ten_tests_are_one_of_every_kind() {
        for seed in 0..50 {
            let plan = Plan::of(seed, 30, 3);
            assert_eq!(plan, Plan::of(seed, 30, 3));
            for ten in plan.tests.chunks(10) {
                let names: BTreeSet<_> = ten.iter().map(Test::name).collect();
                assert_eq!(names.len(), KINDS, "{names:?}");
            }
        }
        assert_eq!(Plan::of(1, 7, 3).tests.len(), 7);
    }

    #[test]
    fn every_component_is_killed_some_day() {
        let tests = (0..200).flat_map(|seed| Plan::of(seed, 10, 3).tests);
        let killed: BTreeSet<String> = tests
            .filter_map(|test| match test {
                Test::ComponentFail(_, component) => Some(format!("{component:?}")),
                _ => None,
            })
            .collect();
        assert_eq!(killed.len(), COMPONENTS.len());
    }
}
