// SPDX-License-Identifier: Apache-2.0
//! Changes of role: what was asked, whether this replica may, and doing it.
//!
//! The arbitration decided before it asked; here the local half of each rule is checked again, so
//! that no caller can make an outdated or incomplete replica run.

use std::time::Duration;

use kemari_api::config::LinkAddresses;
use kemari_api::replica::{DiskState, Promotion};
use kemari_api::{Epoch, Generation, Role};
use kemari_replication::OutputKind;
use kemari_replication::event_tap::{EventTap, TapConfig};
use kemari_replication::licence::{Licence, LicenceEvent};
use kemari_replication::passive::Replica;
use kemari_replication::storage::{DiskLayout, DiskNumber};
use kemari_replication::wire::Goodbye;
use kemari_vmm::MachineState;
use tokio::sync::oneshot;

use super::finish::Finish;
use super::pair::{LinkState, Progress};
use super::{Answer, Conductor, End, Refusal, Request};
use crate::clock;
use crate::link::LinkError;
use crate::link::passive::{Held, PassiveEvent};
use crate::record::Kind;

impl Conductor {
    pub(super) fn request(&mut self, request: Request, reply: oneshot::Sender<Answer>) {
        // Many wait for disks, load a guest or write one down.
        let _long = self.pulse.long_work();
        let answer = match request {
            Request::Demote => return self.demote(reply),
            Request::Migrate(address) => return self.migrate(address, reply),
            Request::Verify => return self.verify(reply),
            Request::Promote {
                how: Promotion::TakeOver,
                generation,
            } => self.take_over(generation),
            Request::Promote {
                how: Promotion::ColdStart,
                generation,
            } => self.cold_start(generation, false),
            Request::Promote {
                how: Promotion::ForcedColdStart,
                generation,
            } => self.cold_start(generation, true),
            Request::Protect(addresses) => self.protect(addresses),
            Request::Links(tell) => {
                let _ = tell.send(self.link_views());
                Ok(())
            }
            Request::RunSnapshot(held, generation) => self.run_snapshot(&held, generation),
            Request::SaveSnapshot(file, after) => self.save_snapshot(file, after),
            Request::GoSolo(generation) => self.go_solo(generation),
            Request::Outdate(generation) => self.outdate(generation),
            Request::PowerButton => self
                .needs_active("only an active guest has a power button")
                .map(|()| {
                    tracing::info!(vm = %self.config.vm.name, "pressing the guest's power button");
                    self.machine.press_power_button();
                }),
            Request::SetBalloon(mib) => self.set_balloon(mib),
            Request::Balloon(tell) => {
                let _ = tell.send(self.machine.balloon());
                Ok(())
            }
            Request::Stop => self.stop(),
            Request::Continue => self
                .needs_active("only an active guest can go on")
                .map(|()| {
                    self.running = true;
                    self.resume_guest();
                }),
            Request::Quit => {
                self.end = Some(End::Quit);
                Ok(())
            }
        };
        // The new status is visible before the answer is.
        self.publish();
        let _ = reply.send(answer);
    }

    pub(super) fn needs_active(&self, needed: &'static str) -> Answer {
        match self.role {
            Role::Active => Ok(()),
            role => Err(Refusal::Role { role, needed }),
        }
    }

    pub(super) fn needs_newer(&self, asked: Generation) -> Answer {
        if asked > self.generation {
            Ok(())
        } else {
            Err(Refusal::OldGeneration {
                asked,
                known: self.generation,
            })
        }
    }

    fn set_balloon(&mut self, mib: u32) -> Answer {
        self.needs_active("only an active guest has a balloon")?;
        let memory = self.config.vm.memory_mib.get();
        if self.machine.balloon().is_none() {
            let told = "The machine has no balloon: set balloon.enabled in its description";
            return Err(Refusal::Failed(told.into()));
        }
        if mib == 0 || mib > memory {
            return Err(Refusal::Failed(format!(
                "The guest cannot be left with {mib} MiB: give 1 to {memory}"
            )));
        }
        self.machine.set_balloon(mib);
        tracing::info!(vm = %self.config.vm.name, mib, "asked the guest to do with less memory");
        Ok(())
    }

    fn stop(&mut self) -> Answer {
        self.needs_active("only an active guest can be stopped")?;
        self.stand_still()
            .map_err(|error| Refusal::failed(&error))?;
        self.running = false;
        Ok(())
    }

    /// Continues from the last committed checkpoint.
    fn take_over(&mut self, generation: Generation) -> Answer {
        if !matches!(self.role, Role::Passive | Role::Waiting) {
            return Err(Refusal::Role {
                role: self.role,
                needed: "only a passive one takes over",
            });
        }
        self.needs_newer(generation)?;
        let Some(endpoint) = self.endpoint.clone() else {
            return Err(Refusal::NotInSync);
        };
        let held = endpoint
            .seize(generation, "it is active itself")
            .ok_or(Refusal::NotInSync)?;
        // What the other one wanted to be recorded must not come after what this one will change.
        self.attachments.storage().changes().new_session();
        let (Some(checkpoint), Some(state)) = (held.replica.held(), &held.state) else {
            endpoint.receive(self.receiving(), held);
            self.in_sync = false;
            return Err(Refusal::NotInSync);
        };
        let taken_over = self.run_from(checkpoint.epoch, &held.replica, state, generation);
        if let Err(refusal) = &taken_over
            && self.role != Role::Active
        {
            self.receive_again();
            self.lose_state(&format!(
                "the last checkpoint could not be loaded: {refusal}"
            ));
        }
        taken_over
    }

    /// Goes on with a guest from its whole state; RAM holds its memory already.
    pub(super) fn run_from(
        &mut self,
        epoch: Epoch,
        replica: &Replica,
        state: &MachineState,
        generation: Generation,
    ) -> Answer {
        let begun_us = clock::now_us();
        self.machine
            .restore(state)
            .map_err(|error| Refusal::failed(&error))?;
        let tap = EventTap::take_over(
            self.queue_bytes(),
            epoch,
            replica.console_position(),
            replica.retained(),
        );
        let reach = replica.console_position();
        let replayed = replica
            .retained()
            .replay()
            .find(|output| output.kind == OutputKind::Console);
        let first = replayed.map_or(reach, |output| output.position);
        self.outputs.history().begin(first, reach);
        self.activate(generation, tap)?;
        self.epoch = epoch;
        tracing::info!(
            vm = %self.config.vm.name, role = "active", generation = %generation,
            %epoch, t_mono_us = clock::now_us(),
            took_us = clock::now_us() - begun_us, "took over: the guest executes"
        );
        self.detail = format!("took over from epoch {epoch}");
        Ok(())
    }

    /// Boots the guest from nothing; by force also from disks that are a copy.
    fn cold_start(&mut self, generation: Generation, forced: bool) -> Answer {
        if self.role != Role::Waiting {
            let needed = "only a waiting one can be started from nothing";
            return Err(Refusal::Role {
                role: self.role,
                needed,
            });
        }
        self.needs_newer(generation)?;
        if !(forced && self.disks == DiskState::Copy) {
            self.needs_own_disks()?;
        }
        if let Some(endpoint) = &self.endpoint {
            endpoint.seize(generation, "it is active itself");
        }
        self.attachments.storage().changes().new_session();
        if forced {
            let why = "the guest was started by force on this node";
            if let Err(error) = self.attachments.storage().changes().forget(why) {
                self.receive_again();
                return Err(Refusal::Failed(error.to_string()));
            }
        }
        if let Err(text) = self.boot_machine() {
            self.receive_again();
            return Err(Refusal::Failed(text));
        }
        let bytes_max = self.queue_bytes();
        self.outputs.history().begin(0, 0);
        self.activate(
            generation,
            EventTap::new(&TapConfig {
                bytes_max,
                ..TapConfig::default()
            }),
        )?;
        self.epoch = Epoch::default();
        tracing::info!(
            vm = %self.config.vm.name, role = "active", generation = %generation,
            t_mono_us = clock::now_us(), "cold start: the guest boots"
        );
        self.detail = "started from nothing".into();
        Ok(())
    }

    /// Disks that were received may be older than those of the other replica, and then the guest
    /// would go back in time.
    fn needs_own_disks(&self) -> Answer {
        let what = match self.disks {
            DiskState::None | DiskState::Own | DiskState::Shared => return Ok(()),
            DiskState::Copy => "a copy of the other replica's, which may be newer",
            DiskState::Incomplete => "only partly copied from the other replica's",
        };
        Err(Refusal::Failed(format!(
            "The disks of this node are {what}: start the guest on the node where it ran last. If \
             that is lost for good: kemarictl force-active here, or by hand kemari-engine run --force"
        )))
    }

    /// The machine holds the guest; gives it the right to run, on disk first, and lets it.
    fn activate(&mut self, generation: Generation, tap: EventTap) -> Answer {
        self.generation = generation;
        if !self.write_record(Kind::Solo) {
            return Err(Refusal::Failed(
                "the licence record cannot be written".into(),
            ));
        }
        self.outputs.replace(tap);
        self.tell_gate(LicenceEvent::SoloGranted { generation });
        self.role = Role::Active;
        self.attachments.take_over();
        self.own_disks();
        self.machine.announce();
        self.running = true;
        self.in_sync = false;
        self.peer = None;
        self.prefault = None;
        self.reached_at = None;
        self.link = LinkState::None;
        self.links = None;
        self.progress = Progress::default();
        self.machine.resume();
        Ok(())
    }

    /// From now on this node writes its disks; what it received is made durable beside.
    fn own_disks(&mut self) {
        let storage = self.attachments.storage();
        storage.log().stop();
        if !storage.is_replicated() {
            return;
        }
        self.disks = DiskState::Own;
        for (number, layout) in DiskNumber::all().zip(storage.layouts()) {
            if *layout != DiskLayout::Apart {
                self.disk_jobs.sync(number);
            }
        }
    }

    fn protect(&mut self, addresses: LinkAddresses) -> Answer {
        self.needs_active("only an active guest can be replicated")?;
        if self.finish.is_some() {
            return Err(Refusal::Ending);
        }
        self.needs_sound_memory()?;
        if let Some((disk, trouble)) = self.attachments.trouble_with_shared_disks() {
            return Err(Refusal::Failed(format!(
                "Disk \"{disk}\" is shared and the guest can write to it, but {trouble}. Or give \
                 each host a disk of its own (storage = \"replicated\"), or make it read-only"
            )));
        }
        if self.attachments.writes_shared_disks() && self.attachments.storage().is_replicated() {
            return Err(Refusal::Failed(
                "The guest has replicated disks and shared ones that it can write to: this release \
                 protects guests with one kind only"
                    .into(),
            ));
        }
        let usable = addresses
            .iter()
            .try_for_each(|address| self.security.check(address));
        if let Err(why) = usable {
            if self.link.is_none() {
                self.not_replicating(&why);
            }
            return Err(Refusal::Failed(why));
        }
        self.connect_to(addresses)
    }

    /// The passive replica is provably out, or will never be granted this generation: outputs may
    /// leave at once. A link that is still there, or there again, ends.
    pub(super) fn go_solo(&mut self, generation: Generation) -> Answer {
        self.needs_active("only an active one can go solo")?;
        self.needs_newer(generation)?;
        self.stop_tracking();
        if !matches!(self.licence(), Licence::Solo { .. }) {
            self.tell_gate(LicenceEvent::SessionLost);
        }
        self.generation = generation;
        self.progress = Progress::default();
        if !self.write_record(Kind::Solo) {
            return Err(Refusal::Failed(
                "the licence record cannot be written".into(),
            ));
        }
        self.tell_gate(LicenceEvent::SoloGranted { generation });
        self.peer = None;
        self.resume_guest();
        tracing::info!(
            vm = %self.config.vm.name, role = %self.role, generation = %generation,
            t_mono_us = clock::now_us(), "solo: held outputs leave, the guest is not protected"
        );
        self.detail = "solo: the passive replica is out".into();
        Ok(())
    }

    fn outdate(&mut self, generation: Generation) -> Answer {
        if generation <= self.generation {
            return Ok(());
        }
        match self.role {
            Role::Active => self.become_outdated(generation),
            Role::Waiting | Role::Passive => {
                if let Some(endpoint) = self.endpoint.clone() {
                    let held = endpoint.seize(generation, "it was just outdated");
                    let mut replica =
                        held.map_or_else(|| Replica::new(generation), |held| held.replica);
                    replica.outdate(generation);
                    self.generation = generation;
                    endpoint.receive(
                        self.receiving(),
                        Held {
                            replica,
                            state: None,
                        },
                    );
                }
                self.lose_state(&format!(
                    "generation {generation} ran elsewhere; waiting for a resync"
                ));
            }
            Role::Outdated => {}
        }
        Ok(())
    }

    /// An active replica learned that the right to run has gone on: it stops at once, and what it
    /// held back never leaves.
    pub(super) fn become_outdated(&mut self, generation: Generation) {
        self.tell_gate(LicenceEvent::Learned { generation });
        let _long = self.pulse.long_work();
        let _ = self.machine.pause();
        self.outputs.settle();
        let own = self.generation;
        self.generation = generation;
        self.write_record(Kind::Outdated);
        self.attachments.storage().changes().abort_round();
        self.link = LinkState::None;
        self.role = Role::Outdated;
        self.in_sync = false;
        tracing::error!(
            vm = %self.config.vm.name, role = "outdated", generation = %generation, own_generation = %own,
            t_mono_us = clock::now_us(),
            "a newer generation exists: stopped, held outputs dropped; restart this engine to \
             receive again"
        );
        self.detail = format!("generation {generation} runs elsewhere; this one was {own}");
        if let Some(finish) = self.finish.take() {
            finish.answer(Err(Refusal::Role {
                role: Role::Outdated,
                needed: "it must never run again",
            }));
        }
    }

    fn demote(&mut self, reply: oneshot::Sender<Answer>) {
        if self.role != Role::Active {
            let answer = match self.role {
                Role::Outdated => Err(Refusal::Role {
                    role: self.role,
                    needed: "restart the engine to make it waiting",
                }),
                _ => Ok(()),
            };
            let _ = reply.send(answer);
            return;
        }
        tracing::info!(
            vm = %self.config.vm.name, generation = %self.generation, in_sync = self.in_sync,
            "demoting"
        );
        self.begin_finish(Finish::demote(reply));
    }

    /// Gives the guest up and waits for the next checkpoint or promotion.
    pub(super) fn become_waiting(&mut self, detail: &str) -> Answer {
        let _long = self.pulse.long_work();
        let _ = self.machine.pause();
        self.link = LinkState::None;
        let bytes_max = self.queue_bytes();
        self.outputs.replace(EventTap::new(&TapConfig {
            bytes_max,
            ..TapConfig::default()
        }));
        self.progress = Progress::default();
        self.attachments.storage().log().stop();
        self.attachments.storage().changes().abort_round();
        if let Err(error) = self.renew_machine() {
            let text = crate::exit::chain(&error);
            self.end = Some(End::Failed(text.clone()));
            return Err(Refusal::Failed(text));
        }
        self.receive_again();
        self.make_memory_ready();
        self.running = true;
        self.lose_state(detail);
        tracing::info!(vm = %self.config.vm.name, role = "waiting", generation = %self.generation, "{detail}");
        Ok(())
    }

    fn receive_again(&mut self) {
        if let Some(endpoint) = &self.endpoint {
            let held = Held {
                replica: Replica::new(self.generation),
                state: None,
            };
            endpoint.receive(self.receiving(), held);
        }
    }

    /// There is nothing to run from any more.
    fn lose_state(&mut self, detail: &str) {
        self.role = Role::Waiting;
        self.in_sync = false;
        self.peer = None;
        self.reached_at = None;
        self.links = None;
        self.epoch = Epoch::default();
        self.detail = detail.to_owned();
    }

    fn queue_bytes(&self) -> usize {
        self.config.replication.queue_kib_max.get() as usize * 1024
    }

    pub(super) fn passive_event(&mut self, event: PassiveEvent) {
        if !matches!(self.role, Role::Waiting | Role::Passive) {
            // What was still queued when this replica took over.
            return;
        }
        match event {
            PassiveEvent::Joined {
                node,
                at,
                generation,
                in_sync,
            } => {
                tracing::info!(
                    vm = %self.config.vm.name, role = "passive", %generation, peer = %node, link = at,
                    "an active replica joined"
                );
                self.role = Role::Passive;
                self.in_sync = in_sync;
                self.generation = self.generation.max(generation);
                self.detail = format!("receiving from {node} at {at}");
                self.reached_at = Some(at);
                self.peer = Some(node);
            }
            PassiveEvent::Disks(disks) => self.disks = disks,
            PassiveEvent::Copying => self.in_sync = false,
            PassiveEvent::Committed(epoch) => self.committed(epoch),
            PassiveEvent::Goodbye(Goodbye::Migrated { generation, .. }) => {
                if let Err(refusal) = self.take_over(generation) {
                    tracing::error!(vm = %self.config.vm.name, %generation, "the migrated guest cannot run here: {refusal}");
                }
            }
            PassiveEvent::Goodbye(Goodbye::Unprotected) => {
                self.lose_state("the active replica ended the pair; waiting");
            }
            PassiveEvent::Goodbye(goodbye) => {
                tracing::info!(vm = %self.config.vm.name, ?goodbye, "the active replica said goodbye");
            }
            PassiveEvent::Lost(LinkError::CalledAnew) => {
                self.reached_at = None;
                "the active replica has called anew".clone_into(&mut self.detail);
                if self.role == Role::Passive && !self.in_sync {
                    self.lose_state("the active replica has called anew while copying");
                }
            }
            PassiveEvent::Lost(error) => {
                self.reached_at = None;
                if self.role == Role::Passive {
                    tracing::warn!(
                        vm = %self.config.vm.name, role = %self.role, generation = %self.generation,
                        epoch = %self.epoch, in_sync = self.in_sync, t_mono_us = clock::now_us(),
                        "lost the active replica: {error}"
                    );
                    self.detail = format!("lost the active replica: {error}");
                    if !self.in_sync {
                        self.lose_state(&format!("lost the active replica while copying: {error}"));
                    }
                }
            }
        }
    }

    fn committed(&mut self, epoch: Epoch) {
        self.role = Role::Passive;
        self.epoch = epoch;
        if !self.in_sync {
            self.in_sync = true;
            tracing::info!(
                vm = %self.config.vm.name, role = "passive", generation = %self.generation, %epoch,
                "in sync: this replica can take over"
            );
        }
    }

    /// How long a demotion may wait for the last commit.
    pub(super) fn finish_patience(&self) -> Duration {
        self.silence_max().max(Duration::from_secs(10))
    }
}
