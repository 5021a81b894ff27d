// SPDX-License-Identifier: Apache-2.0
//! One node's power: off, or on with a first process whose end is the node's end.
//!
//! Invariants: a boot has a number that is never used again; only the thread that waits for a boot's first process
//! turns that boot off, so whoever waits for `off` knows that every process of the node is gone.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Result, bail, ensure};

use super::cgroup::NodeCgroup;

/// A booting node is given this long, also on a machine busy with other tests.
pub(super) const BOOT_LIMIT: Duration = Duration::from_secs(180);
/// How long killed processes may take to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(60);

/// A node that has power.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Boot {
    /// Which power-on this is, from 1.
    pub(super) number: u64,
    /// The first process, as processes in the supervisor see it.
    pub(super) pid: u32,
    /// systemd said that it is ready.
    pub(super) ready: bool,
}

#[derive(Debug, Default)]
struct State {
    boot: Option<Boot>,
    boots: u64,
    /// What the harness last asked for: power or none. A node that ends although it shall have power did so by itself.
    wanted: bool,
    cut: bool,
}

/// What ended a boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The harness took the power.
    Killed,
    /// The node ended by itself, perhaps to be started again.
    ByItself,
    /// It was over already.
    Known,
}

/// A node, with or without power.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) name: String,
    pub(super) cgroup: NodeCgroup,
    /// Held while power is being given or taken: one of them at a time.
    transition: Mutex<()>,
    state: Mutex<State>,
    changed: Condvar,
}

impl Node {
    pub(super) fn new(name: String, cgroup: NodeCgroup) -> Self {
        Self {
            name,
            cgroup,
            transition: Mutex::default(),
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    pub(super) fn transition(&self) -> MutexGuard<'_, ()> {
        self.transition
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The current boot, when the node has power.
    pub(super) fn boot(&self) -> Option<Boot> {
        self.state().boot
    }

    /// The current boot, or an error that says that there is none.
    pub(super) fn powered(&self) -> Result<Boot> {
        match self.boot() {
            Some(boot) => Ok(boot),
            None => bail!("{} has no power", self.name),
        }
    }

    pub(super) fn is_cut(&self) -> bool {
        self.state().cut
    }

    pub(super) fn set_cut(&self, cut: bool) {
        self.state().cut = cut;
    }

    /// A first process is there; gives the boot's number.
    pub(super) fn started(&self, pid: u32) -> u64 {
        let mut state = self.state();
        state.boots += 1;
        let number = state.boots;
        state.boot = Some(Boot {
            number,
            pid,
            ready: false,
        });
        number
    }

    /// systemd reported that the node has booted.
    pub(super) fn ready(&self) {
        if let Some(boot) = &mut self.state().boot {
            boot.ready = true;
        }
        self.changed.notify_all();
    }

    /// The first process of a boot is gone, and everything with it.
    pub(super) fn ended(&self, number: u64) -> End {
        let mut state = self.state();
        let end = match (state.boot, state.wanted) {
            (Some(boot), wanted) if boot.number == number => {
                state.boot = None;
                if wanted { End::ByItself } else { End::Killed }
            }
            _ => End::Known,
        };
        self.changed.notify_all();
        end
    }

    /// Whether the harness wants this node to have power.
    pub(super) fn is_wanted(&self) -> bool {
        self.state().wanted
    }

    /// Says what the harness wants from now on, and whether the node has power at this moment.
    pub(super) fn want(&self, power: bool) -> bool {
        let mut state = self.state();
        state.wanted = power;
        state.boot.is_some()
    }

    /// Waits until the node has no power and no processes.
    pub(super) fn wait_off(&self) -> Result<()> {
        let (state, _) = self
            .changed
            .wait_timeout_while(self.state(), KILL_LIMIT, |state| state.boot.is_some())
            .unwrap_or_else(PoisonError::into_inner);
        ensure!(
            state.boot.is_none(),
            "{} still had processes {} s after they were killed",
            self.name,
            KILL_LIMIT.as_secs()
        );
        Ok(())
    }

    /// Waits until systemd has started everything.
    pub(super) fn wait_ready(&self) -> Result<()> {
        let (state, _) = self
            .changed
            .wait_timeout_while(self.state(), BOOT_LIMIT, |state| {
                state.boot.is_some_and(|boot| !boot.ready)
            })
            .unwrap_or_else(PoisonError::into_inner);
        match state.boot {
            Some(boot) if boot.ready => Ok(()),
            Some(_) => bail!(
                "{} had not booted after {} s",
                self.name,
                BOOT_LIMIT.as_secs()
            ),
            None => bail!("{} lost its power while it was booting", self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_boots_end_does_not_end_a_new_one() {
        let node = Node::new("node1".into(), NodeCgroup::new("/nonexistent".into()));
        assert!(!node.want(true));
        let first = node.started(10);
        assert_eq!(node.ended(first), End::ByItself);
        let second = node.started(11);
        assert_eq!(node.ended(first), End::Known);
        assert!(node.want(false));
        assert_eq!(node.ended(second), End::Killed);
        assert!(!node.want(false));
        node.wait_off().unwrap();
        assert!(node.wait_ready().is_err());
    }
}
