// SPDX-License-Identifier: Apache-2.0
//! What the engines of the model cluster do: pair, cut, release, take over, go solo.
//!
//! `release` checks the two rules: the generation of what leaves never falls, has one holder, and
//! nobody takes over from a state older than what left.

use kemari_api::replica::{DiskState, Promotion};
use kemari_api::{Generation, Licence, Role};

use super::world::{GuestDisk, World};

impl World {
    pub(super) fn become_active(
        &mut self,
        node: usize,
        how: Promotion,
        generation: Generation,
    ) -> bool {
        let released = self.released;
        let (disks, disk) = (self.disks, self.nodes[node].guest_disk);
        let Some(engine) = &mut self.nodes[node].engine else {
            return false;
        };
        let fits = match how {
            Promotion::TakeOver => engine.role == Role::Passive && engine.in_sync,
            Promotion::ColdStart | Promotion::ForcedColdStart => engine.role == Role::Waiting,
        };
        if !fits || generation <= engine.generation {
            return false;
        }
        if how == Promotion::ForcedColdStart {
            if disks && disk.state == DiskState::Incomplete {
                return false;
            }
            engine.state = if disks { disk.content } else { released.2 + 1 };
        } else if how == Promotion::TakeOver {
            assert!(
                engine.state >= released.2,
                "n{} takes over generation {generation} from {} but {} has left",
                node + 1,
                engine.state,
                released.2
            );
        } else if !disks {
            engine.state = released.2 + 1;
        } else if disk.state == DiskState::Own {
            assert!(
                disk.content >= released.2,
                "n{} boots from a disk of {} but {} has left",
                node + 1,
                disk.content,
                released.2
            );
            engine.state = disk.content;
        } else {
            return false;
        }
        engine.role = Role::Active;
        engine.licence = Licence::Solo;
        engine.in_sync = false;
        engine.generation = generation;
        self.write_disk(node, DiskState::Own);
        self.right_of(node, generation);
        true
    }

    /// The node's disk is what its engine's guest has made of it.
    fn write_disk(&mut self, node: usize, state: DiskState) {
        if let Some(engine) = &self.nodes[node].engine {
            self.nodes[node].guest_disk = GuestDisk {
                state,
                generation: engine.generation,
                content: engine.state,
            };
        }
    }

    pub(super) fn go_solo(&mut self, node: usize, generation: Generation) -> bool {
        let Some(engine) = &mut self.nodes[node].engine else {
            return false;
        };
        let held = matches!(engine.licence, Licence::Cut | Licence::Paired);
        if engine.role != Role::Active || !held || generation <= engine.generation {
            return false;
        }
        engine.licence = Licence::Solo;
        engine.in_sync = false;
        engine.generation = generation;
        engine.session = 0;
        self.write_disk(node, DiskState::Own);
        self.right_of(node, generation);
        true
    }

    /// A generation is given once, and never after a newer one was.
    fn right_of(&mut self, node: usize, generation: Generation) {
        if let Some((newest, holder)) = self.promoted.last_key_value() {
            assert!(
                generation > *newest,
                "n{} got {generation} after n{} got {newest}",
                node + 1,
                holder + 1
            );
        }
        self.promoted.insert(generation, node);
    }

    pub(super) fn outdate(&mut self, node: usize, generation: Generation) -> bool {
        let Some(engine) = &mut self.nodes[node].engine else {
            return false;
        };
        if generation > engine.generation {
            match engine.role {
                Role::Active => {
                    engine.role = Role::Outdated;
                    engine.licence = Licence::None;
                }
                Role::Passive => {
                    engine.role = Role::Waiting;
                    engine.in_sync = false;
                    engine.generation = generation;
                    engine.peer = None;
                }
                Role::Waiting | Role::Outdated => {}
            }
        }
        true
    }

    pub(super) fn pair(&mut self, node: usize, peer: usize) -> bool {
        let Some(active) = self.nodes[node].engine.clone() else {
            return false;
        };
        let reachable = self.link && self.connected(node, peer);
        let Some(passive) = self.nodes[peer].engine.as_mut().filter(|_| reachable) else {
            return false;
        };
        let willing = match passive.role {
            Role::Waiting => true,
            Role::Passive => passive.generation <= active.generation,
            Role::Active | Role::Outdated => false,
        };
        if active.role != Role::Active || !willing || active.in_sync {
            return false;
        }
        self.pids += 1;
        passive.role = Role::Passive;
        passive.in_sync = true;
        passive.generation = active.generation;
        passive.state = active.state;
        passive.peer = Some(node);
        passive.session = self.pids;
        self.write_disk(peer, DiskState::Copy);
        if let Some(active) = &mut self.nodes[node].engine {
            active.licence = Licence::Paired;
            active.in_sync = true;
            active.peer = Some(peer);
            active.session = self.pids;
        }
        self.say(peer);
        true
    }

    fn in_contact(&self, node: usize) -> Option<usize> {
        let active = self.nodes[node].engine.as_ref()?;
        let peer = active.peer?;
        let passive = self.nodes[peer].engine.as_ref()?;
        let paired = passive.role == Role::Passive && passive.session == active.session;
        (paired && active.session != 0 && self.link && self.connected(node, peer)).then_some(peer)
    }

    /// The guest runs a little and its output leaves if it may; or a lost contact is noticed.
    pub fn run_guest(&mut self, node: usize) {
        let peer = self.in_contact(node);
        let Some(engine) = self.nodes[node].engine.as_mut() else {
            return;
        };
        if engine.role != Role::Active {
            return;
        }
        match (engine.licence, peer) {
            (Licence::Solo, _) => {
                engine.state += 1;
                let (generation, state) = (engine.generation, engine.state);
                self.write_disk(node, DiskState::Own);
                self.release(node, generation, state);
            }
            (Licence::Paired | Licence::Cut, Some(peer)) => {
                engine.state += 1;
                engine.licence = Licence::Paired;
                engine.in_sync = true;
                let (generation, state) = (engine.generation, engine.state);
                if let Some(passive) = &mut self.nodes[peer].engine {
                    passive.state = state;
                    passive.in_sync = true;
                }
                self.write_disk(node, DiskState::Own);
                self.write_disk(peer, DiskState::Copy);
                self.release(node, generation, state);
            }
            (Licence::Paired, None) => {
                engine.licence = Licence::Cut;
                engine.in_sync = false;
                self.say(node);
            }
            _ => {}
        }
    }

    fn release(&mut self, node: usize, generation: Generation, state: u64) {
        let (newest, holder, _) = self.released;
        assert!(
            generation > newest || (generation == newest && holder == node),
            "n{} lets out with generation {generation} after n{} with {newest}",
            node + 1,
            holder + 1
        );
        self.released = (generation, node, state);
    }

    /// Pacemaker demotes: the last checkpoint is committed if there is somebody to take it.
    pub fn demote(&mut self, node: usize) {
        let Some(engine) = self.nodes[node].engine.as_mut() else {
            return;
        };
        if engine.role != Role::Active {
            return;
        }
        engine.role = Role::Waiting;
        engine.licence = Licence::None;
        engine.in_sync = false;
        engine.session = 0;
        self.say(node);
    }
}
