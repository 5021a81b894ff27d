// SPDX-License-Identifier: Apache-2.0
//! The model as `stateright` explores it, what must hold in every state, and the report.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model, Property};

use super::moves::{Bounds, Move};
use super::outside::Violation;
use super::recovery::Repair;
use super::world::{Lane, World};

/// What happens next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// The lane whose turn it is.
    Step(Lane),
    /// Something strikes.
    Strike(Move),
}

/// A cluster and how much may strike it.
#[derive(Debug, Clone)]
pub struct Cluster {
    pub from: Vec<World>,
    pub bounds: Bounds,
    /// `None`: every move there is.
    pub only: Option<fn(Move) -> bool>,
}

/// Both rules, and every assertion in what is shipped.
pub const RULES: &str = "both rules hold";
/// A single failure, of whatever kind, is survived.
pub const SURVIVES: &str = "after one failure outputs flow again";
/// Whatever happened, once everything is repaired the VM runs.
pub const NO_DEAD_END: &str = "after repairs outputs flow again";

impl Model for Cluster {
    type State = World;
    type Action = Next;

    fn init_states(&self) -> Vec<World> {
        self.from.clone()
    }

    fn actions(&self, world: &World, actions: &mut Vec<Next>) {
        if world.outside.violation.is_some() {
            return;
        }
        actions.extend(world.next_lane().map(Next::Step));
        let mut moves = Vec::new();
        world.possible(&self.bounds, &mut moves);
        moves.retain(|&one| self.only.is_none_or(|only| only(one)));
        actions.extend(moves.into_iter().map(Next::Strike));
    }

    fn next_state(&self, last: &World, next: Next) -> Option<World> {
        let after = catch_unwind(AssertUnwindSafe(|| {
            let mut world = last.clone();
            match next {
                Next::Step(lane) => world.step(lane),
                Next::Strike(strike) => world.strike(strike),
            }
            world
        }));
        Some(after.unwrap_or_else(|panic| {
            let mut world = last.clone();
            let text = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
            world
                .outside
                .report(Violation::Panicked(text.unwrap_or_default()));
            world
        }))
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(RULES, |_, world: &World| world.outside.violation.is_none()),
            Property::always(SURVIVES, |_, world: &World| {
                let spent = &world.spent;
                let excused = spent.failures > 1 || spent.unprotected;
                excused || !is_judged(world) || holds(|| survives(world))
            }),
            Property::always(NO_DEAD_END, |_, world: &World| {
                !is_judged(world) || holds(|| world.recovers(Repair::Everything))
            }),
            Property::sometimes("a passive replica takes over", |_, world: &World| {
                world.outside.happened.failover
            }),
            Property::sometimes("an active replica goes solo", |_, world: &World| {
                world.outside.happened.solo
            }),
        ]
    }
}

/// What follows is looked at when everything under way has happened, and where the rules are the
/// shipped ones.
fn is_judged(world: &World) -> bool {
    world.outside.violation.is_none()
        && world.setup.variant.is_none()
        && world.next_lane().is_none()
}

/// An assertion that fails on the way is an answer, too.
fn holds(check: impl FnOnce() -> bool) -> bool {
    catch_unwind(AssertUnwindSafe(check)).unwrap_or(false)
}

fn survives(world: &World) -> bool {
    let mut survivors = world.survivors().into_iter();
    survivors.all(|survivor| world.recovers(Repair::Nothing { survivor }))
}

/// What a run found.
#[derive(Debug)]
pub struct Report {
    /// The property that does not hold, and how.
    pub broken: Vec<(&'static str, String)>,
    /// Things that never happened, so that the run shows little.
    pub missing: Vec<&'static str>,
}

impl Cluster {
    /// Explores every state within the bounds and prints how many there were.
    pub fn explore(self, title: &str) -> Report {
        let began = Instant::now();
        let bounds = self.bounds;
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let checker = self
            .checker()
            .threads(threads)
            .finish_when(HasDiscoveries::AnyFailures)
            .spawn_dfs()
            .join();
        println!(
            "{title}: {} states, {} of them different, at most {} steps deep, in {:.1} s; at most {} \
             moves, {} failures, {} in the midst of something, {} delays",
            checker.state_count(),
            checker.unique_state_count(),
            checker.max_depth(),
            began.elapsed().as_secs_f64(),
            bounds.moves,
            bounds.failures,
            bounds.midst,
            bounds.delays,
        );
        let mut report = Report {
            broken: Vec::new(),
            missing: Vec::new(),
        };
        let found = checker.discoveries();
        for name in [RULES, SURVIVES, NO_DEAD_END] {
            if let Some(path) = found.get(name) {
                report.broken.push((name, story(&path.clone().into_vec())));
            }
        }
        for property in checker.model().properties() {
            let sometimes = property.expectation == stateright::Expectation::Sometimes;
            if sometimes && !found.contains_key(property.name) {
                report.missing.push(property.name);
            }
        }
        report
    }
}

/// A history, a line for each step.
fn story(path: &[(World, Option<Next>)]) -> String {
    let mut text = String::new();
    for (world, next) in path {
        let roles: Vec<String> = world
            .engines()
            .map(|(node, engine)| {
                format!(
                    "n{} {:?}{} {:?}",
                    node + 1,
                    engine.role,
                    if engine.in_sync { " in sync" } else { "" },
                    engine.gate.licence()
                )
            })
            .collect();
        text += &format!("{}\n    {next:?}\n", roles.join("; "));
    }
    if let Some((world, _)) = path.last() {
        text += &format!("{:?}\n{:?}", world.outside, world.spent);
    }
    text
}
