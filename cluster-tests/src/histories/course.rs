// SPDX-License-Identifier: Apache-2.0
//! Carries a history out in test bed A, and makes good afterwards what it broke.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::plan::{Affliction, Blow, NodeNumber, Plan, Step};
use crate::bed::Bed as _;
use crate::namespaces::Namespaces;
use crate::switch::Direction;

/// How long a cluster may take to be whole again, also on a machine busy with other things.
const WHOLE_LIMIT: Duration = Duration::from_secs(240);

/// What a history met that was not its own doing: a node that Pacemaker had fenced meanwhile, say.
#[derive(Debug, Default)]
pub struct Course {
    /// One line for each step that could not be done, and why.
    pub left_out: Vec<String>,
}

/// Does what the plan says, and tells each step.
pub fn carry_out(bed: &Namespaces, plan: &Plan, tell: &mut dyn FnMut(&Step)) -> Course {
    let mut course = Course::default();
    for step in &plan.steps {
        tell(step);
        let done = match *step {
            Step::Strike(node, blow) => strike(bed, node, blow),
            Step::Mend(node, affliction) => mend(bed, node, affliction),
            Step::Pause(pause) => {
                std::thread::sleep(pause);
                Ok(())
            }
        };
        if let Err(error) = done {
            course.left_out.push(format!("{step}: {error:#}"));
        }
    }
    course
}

fn strike(bed: &Namespaces, node: NodeNumber, blow: Blow) -> Result<()> {
    let name = &node.to_string();
    match blow {
        Blow::Lasting(Affliction::Off) => bed.kill(name),
        Blow::Lasting(Affliction::Frozen) => bed.freeze(name),
        Blow::Lasting(Affliction::Cut) => bed.cut(name),
        Blow::Lasting(Affliction::Deaf) => bed.switch().set_one_way(name, Some(Direction::ToNode)),
        Blow::Lasting(Affliction::Mute) => {
            bed.switch().set_one_way(name, Some(Direction::FromNode))
        }
        // Where no engine runs there is none to kill.
        Blow::EngineKilled => run(
            bed,
            name,
            "systemctl kill --signal=KILL kemari-vm@vm || true",
        ),
        Blow::AgentKilled => run(
            bed,
            name,
            "systemctl kill --signal=KILL kemari-agent || true",
        ),
        Blow::AgentRestarted => run(bed, name, "systemctl restart kemari-agent"),
        Blow::CorosyncKilled => run(
            bed,
            name,
            "systemctl kill --signal=KILL corosync || true; sleep 0.3; \
             systemctl --no-block start corosync pacemaker kemari-agent",
        ),
    }
}

fn mend(bed: &Namespaces, node: NodeNumber, affliction: Affliction) -> Result<()> {
    let name = &node.to_string();
    match affliction {
        Affliction::Off if bed.is_on(name)? => Ok(()),
        Affliction::Off => bed.power_on(name).and_then(|()| {
            run(
                bed,
                name,
                "systemctl --no-block start corosync pacemaker kemari-agent",
            )
        }),
        Affliction::Frozen => bed.thaw(name),
        Affliction::Cut => bed.heal(name),
        Affliction::Deaf | Affliction::Mute => bed.switch().set_one_way(name, None),
    }
}

fn run(bed: &Namespaces, node: &str, command: &str) -> Result<()> {
    bed.exec(node, &["sh", "-c", command])?.success().map(drop)
}

/// Gives every node power, network and a running cluster, and waits until all are online: what an
/// administrator does after such a night.
///
/// # Errors
/// When the cluster is not whole within minutes; the nodes' journals tell why.
pub fn mend_all(bed: &Namespaces) -> Result<()> {
    let begun = Instant::now();
    loop {
        match try_to_mend(bed) {
            Ok(()) => return Ok(()),
            Err(error) if begun.elapsed() > WHOLE_LIMIT => {
                return Err(error.context("The cluster did not become whole again"));
            }
            // A node may be fenced at this very moment.
            Err(_) => std::thread::sleep(Duration::from_millis(500)),
        }
    }
}

fn try_to_mend(bed: &Namespaces) -> Result<()> {
    for node in bed.nodes() {
        bed.heal(node)?;
        bed.switch().set_one_way(node, None)?;
        if bed.is_on(node)? {
            bed.thaw(node)?;
            bed.wait_booted(node)?;
        } else {
            bed.power_on(node)?;
        }
        // A unit that systemd gave up on is started again by a person.
        run(
            bed,
            node,
            "systemctl reset-failed; systemctl start corosync pacemaker kemari-agent",
        )
        .with_context(|| node.clone())?;
    }
    let first = bed.nodes().first().context("The bed has no node")?;
    let online = bed.exec(first, &["crm_mon", "-1", "--output-as=xml"])?;
    let missing = |node: &&String| !crate::bed::is_online(&online.stdout, node);
    match bed.nodes().iter().find(missing) {
        Some(node) => bail!("{node} is not online:\n{}", online.stdout),
        None => Ok(()),
    }
}
