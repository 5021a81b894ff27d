// SPDX-License-Identifier: Apache-2.0
//! What agents with a known-bad rule do besides ([`Variant`]).

use kemari_agent::arbitration::{Action, Event, Grounds};
use kemari_api::Role;
use kemari_api::replica::Promotion;

use super::setup::Variant;
use super::world::{World, name, vm};

impl World {
    /// What a known-bad agent does besides.
    pub(super) fn break_rules(&mut self, node: usize, event: &Event) {
        let setup = self.setup;
        let this = self.node(node);
        if let Event::Quorum { quorate, .. } = event {
            this.quorate = *quorate;
        }
        let (vm, quorate) = (vm(), this.quorate);
        let Some(engine) = this.engine.as_ref().filter(|_| quorate) else {
            return;
        };
        let generation = engine.generation.next();
        let grounds = Grounds::Pacemaker;
        match event {
            Event::PassiveGoneReported { .. }
                if setup.is(Variant::SoloByFencing) && engine.role == Role::Active =>
            {
                this.orders.push_back(Action::GoSolo {
                    vm,
                    generation,
                    grounds,
                });
            }
            Event::Quorum { members, .. }
                if setup.is(Variant::TakeOverByQuorum)
                    && engine.in_sync
                    && engine.role == Role::Passive
                    && engine
                        .peer
                        .is_some_and(|peer| !members.contains(&name(peer))) =>
            {
                this.orders.push_back(Action::Promote {
                    vm,
                    how: Promotion::TakeOver,
                    generation,
                    grounds,
                });
            }
            _ => {}
        }
    }
}
