// SPDX-License-Identifier: Apache-2.0
//! The passive replica of a plain primitive.
//!
//! `crm configure primitive vm ocf:kemari:vm params config=/etc/kemari/vm.toml`, without a clone: Pacemaker knows
//! of one instance, the one that runs the guest. On every other node that has the description the agent
//! keeps an engine that waits, so that the guest has a passive replica as in a clone, and a lost one is replaced
//! from the next node. What is kept where follows the cluster's configuration; who may run is decided as ever.
//!
//! What Pacemaker has started here (the resource agent's note says so) is Pacemaker's, until its `stop`.
//! An engine that somebody started by hand is nobody's business either: only what was kept is ended.

mod engine;
mod placement;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;
use std::{fs, mem};

use kemari_api::agent::ClusterView;
use kemari_api::config::VmConfig;
use kemari_api::{Assigned, Licence, NodeName, Role, VmName, note, place};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tracing::warn;

use crate::bus;
use crate::engines::Engines;
use crate::pacemaker::{self, Configuration, Resource};
use engine::KeptEngines;
use placement::Places;

/// How often the cluster's configuration is read.
const LOOK: Duration = Duration::from_secs(5);
/// So many looks without an answer, and Pacemaker has ended here.
const SILENT_MAX: u32 = 3;

/// The first time after the start of the agent.
const FIRST_LOOK: Duration = Duration::from_secs(3);
/// So many looks Pacemaker is given to notice by itself what is not as it thinks.
const PATIENCE: u32 = 3;
/// After so many it is told again, or more is done.
const AGAIN: u32 = 24;

/// How a VM stands, seen from this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// The replica here.
    pub here: Option<Role>,
    /// The replica here holds a state that it could go on from.
    pub in_sync: bool,
    /// A replica on another node that is heard has the guest.
    pub active_elsewhere: bool,
    /// By the records that are heard of, the replica here had the guest last.
    pub ran_last_here: bool,
    /// The active replica here holds its outputs back, since it does not know what became of the passive one on this node,
    /// which has left the membership.
    pub lost: Option<NodeName>,
}

/// Of each VM that has a replica somewhere, or that this agent has on record.
pub type Standings = BTreeMap<VmName, Standing>;

/// Computes them. `holder` tells who holds the newest generation on record.
#[must_use]
pub fn standings(view: &ClusterView, holder: impl Fn(&VmName) -> Option<NodeName>) -> Standings {
    let mut standings = Standings::new();
    for replica in view.replicas.iter().filter(|replica| replica.present) {
        let status = &replica.status;
        let standing = standings.entry(status.vm.clone()).or_default();
        if status.node != view.node {
            standing.active_elsewhere |= status.role == Role::Active;
            continue;
        }
        standing.here = Some(status.role);
        standing.in_sync = status.in_sync;
        if status.role == Role::Active && status.licence == Licence::Cut {
            let peer = status.peer.parse().ok();
            standing.lost = peer.filter(|peer| !view.members.contains(peer));
        }
    }
    for (vm, ..) in &view.generations {
        let standing = standings.entry(vm.clone()).or_default();
        standing.ran_last_here = holder(vm).as_ref() == Some(&view.node);
    }
    standings
}

/// What the cluster's configuration wants of the replica here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Want {
    /// It is to be there.
    Kept,
    /// It is not to be on this node.
    Away(&'static str),
    /// The VM is stopped: a passive replica holds the end of it and ends last.
    Stopped,
    /// Nothing is to be changed.
    AsItIs,
}

impl Want {
    fn of(configuration: &Configuration, resource: &Resource, node: &str) -> Self {
        let banned = [resource.id(), &resource.primitive].into_iter().any(|id| {
            configuration
                .bans
                .contains(&(id.to_owned(), node.to_owned()))
        });
        if configuration.maintenance
            || resource.unmanaged
            || configuration.maintained.contains(node)
        {
            Self::AsItIs
        } else if configuration.stopped || resource.stopped {
            Self::Stopped
        } else if configuration.standby.contains(node) {
            Self::Away("the node is in standby")
        } else if banned {
            Self::Away("a constraint forbids it")
        } else {
            Self::Kept
        }
    }
}

/// What is done about the engine here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    None,
    Start,
    End(&'static str),
    /// The guest runs here, and is Pacemaker's no longer.
    ShutDown,
}

fn step(want: Want, standing: &Standing, is_kept: bool) -> Step {
    let idle = standing.here.filter(|role| *role != Role::Active);
    match (want, standing.here) {
        (Want::Kept, None) => Step::Start,
        (Want::Kept, Some(Role::Outdated)) if is_kept => Step::End("it is outdated"),
        (Want::Away(why), _) if is_kept && idle.is_some() => Step::End(why),
        (Want::Stopped, _) if is_kept && idle.is_some() && !standing.active_elsewhere => {
            Step::End("the VM is stopped")
        }
        (Want::Stopped, Some(Role::Active)) if is_kept => Step::ShutDown,
        _ => Step::None,
    }
}

/// Keeps passive replicas and tells Pacemaker where the guest could go on. Ends with the daemon.
pub async fn keep(
    node: NodeName,
    engines: Engines,
    mut standings: watch::Receiver<Standings>,
    inputs: UnboundedSender<bus::Input>,
) {
    let mut keeper = Keeper {
        node,
        configuration: None,
        silent: 0,
        described: BTreeMap::new(),
        seen: standings.clone(),
        engines: KeptEngines::of(engines),
        places: Places::default(),
        said: BTreeMap::new(),
        fenced: BTreeMap::new(),
        unnoticed: BTreeMap::new(),
        orphaned: BTreeMap::new(),
        inputs,
    };
    // Not before the engines that run here were met.
    let mut look = interval_at(Instant::now() + FIRST_LOOK, LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let is_look = tokio::select! {
            changed = standings.changed() => if changed.is_err() { return } else { false },
            _ = look.tick() => true,
        };
        if is_look {
            keeper.read().await;
        }
        let now = standings.borrow_and_update().clone();
        keeper.attend(&now, is_look).await;
    }
}

/// A description, as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Described {
    Vm(VmName),
    /// This node has none: it is no host of the VM.
    Missing,
    Wrong(String),
}

impl Described {
    fn read(path: &Path) -> Self {
        if !path.is_absolute() || fs::metadata(path).is_err() {
            return Self::Missing;
        }
        match VmConfig::load(path) {
            Ok(config) => Self::Vm(config.vm.name),
            Err(error) => Self::Wrong(error.to_string()),
        }
    }
}

struct Keeper {
    node: NodeName,
    /// What Pacemaker said last.
    configuration: Option<Configuration>,
    /// So many looks ago.
    silent: u32,
    /// What the descriptions that it names say, by their paths.
    described: BTreeMap<String, Described>,
    /// How VMs stand at this moment.
    seen: watch::Receiver<Standings>,
    engines: KeptEngines,
    places: Places,
    /// What was said of a resource last, so that it is said once.
    said: BTreeMap<String, String>,
    /// Of which VMs the agent was told that the passive replica's node is fenced, and which node that is.
    fenced: BTreeMap<VmName, NodeName>,
    /// In how many looks the guest that Pacemaker started here was not there.
    unnoticed: BTreeMap<VmName, u32>,
    /// In how many looks a guest ran here that Pacemaker has stopped.
    orphaned: BTreeMap<VmName, u32>,
    inputs: UnboundedSender<bus::Input>,
}

impl Keeper {
    async fn read(&mut self) {
        match Configuration::read().await {
            Some(configuration) => {
                self.read_descriptions(&configuration).await;
                self.configuration = Some(configuration);
                self.silent = 0;
            }
            None => self.silent = self.silent.saturating_add(1),
        }
    }

    /// They may lie on storage that hangs; then what they said before counts.
    async fn read_descriptions(&mut self, configuration: &Configuration) {
        let paths: Vec<String> = configuration
            .resources
            .iter()
            .map(|resource| resource.config.clone())
            .collect();
        let read = spawn_blocking(move || {
            let read = |path: String| (path.clone(), Described::read(Path::new(&path)));
            paths.into_iter().map(read).collect()
        });
        match timeout(LOOK, read).await {
            Ok(Ok(described)) => self.described = described,
            _ => warn!("Descriptions of VMs cannot be read: look at the storage they lie on"),
        }
    }

    async fn attend(&mut self, standings: &Standings, is_look: bool) {
        let Some(configuration) = mem::take(&mut self.configuration) else {
            return;
        };
        let nothing = Standing::default();
        let mut named = BTreeSet::new();
        // What an engine was started from whose description cannot be read now.
        let mut unreadable = BTreeSet::new();
        for resource in &configuration.resources {
            let vm = match self.described.get(&resource.config).cloned() {
                Some(Described::Vm(vm)) => vm,
                other => {
                    unreadable.insert(note::description(Path::new(&resource.config)));
                    if let Some(Described::Wrong(error)) = other {
                        self.say(resource, &format!("No replica can be kept here: {error}"));
                    }
                    continue;
                }
            };
            named.insert(vm.clone());
            if resource.clone.is_some() {
                // It was plain before: the engine is Pacemaker's now.
                self.engines.leave(&vm);
                if is_look {
                    self.places.withdraw(&configuration, resource).await;
                }
                continue;
            }
            let standing = standings.get(&vm).unwrap_or(&nothing);
            let assigned = assigned(&vm);
            self.places
                .tell(resource, standing, assigned, is_look)
                .await;
            if standing.here == Some(Role::Active) {
                self.places.constrain(&configuration, resource).await;
            }
            let want = Want::of(&configuration, resource, self.node.as_str());
            if is_look && want != Want::AsItIs {
                self.look_for_fencing(&vm, standing).await;
                let is_gone = standing.here != Some(Role::Active)
                    && assigned.is_some_and(Assigned::is_to_run)
                    && want == Want::Kept;
                self.look_for_end(&vm, resource, is_gone).await;
            }
            self.care(&vm, Some(resource), want, is_look).await;
        }
        for vm in note::kept().difference(&named) {
            let started_from = fs::read_to_string(place::unit_environment(vm));
            if !started_from.is_ok_and(|text| unreadable.contains(&text)) {
                self.care(vm, None, Want::Stopped, is_look).await;
            }
        }
        self.configuration = Some(configuration);
    }

    /// Nobody notifies a plain primitive of fencing. An active replica whose passive one's node is lost is told of
    /// it here; what that allows, the arbitration decides.
    async fn look_for_fencing(&mut self, vm: &VmName, standing: &Standing) {
        let Some(lost) = &standing.lost else {
            self.fenced.remove(vm);
            return;
        };
        if self.fenced.get(vm) != Some(lost) && pacemaker::is_fenced(lost).await {
            let (vm, node) = (vm.clone(), lost.clone());
            self.fenced.insert(vm.clone(), node.clone());
            let _ = self.inputs.send(bus::Input::PassiveGone { vm, node });
        }
    }

    /// A primitive of one line has no monitor: nobody but the agent would tell Pacemaker that its guest is gone.
    async fn look_for_end(&mut self, vm: &VmName, resource: &Resource, is_gone: bool) {
        if !is_gone || self.silent > 0 {
            self.unnoticed.remove(vm);
            return;
        }
        let looks = self.unnoticed.entry(vm.clone()).or_default();
        *looks += 1;
        if *looks != PATIENCE && !looks.is_multiple_of(AGAIN) {
            return;
        }
        let resource = &resource.primitive;
        match pacemaker::fail(resource, &self.node).await {
            Ok(()) => {
                warn!(%vm, resource, "Pacemaker is told that the guest it started here is gone");
            }
            Err(reason) => {
                warn!(%vm, resource, "Pacemaker cannot be told that its guest is gone: {reason}");
            }
        }
    }

    async fn care(&mut self, vm: &VmName, resource: Option<&Resource>, want: Want, is_look: bool) {
        // What was done meanwhile took time.
        let standing = self.seen.borrow().get(vm).cloned().unwrap_or_default();
        // Pacemaker has ended on this node, and nobody would call `start` here after a failover.
        let want = match want {
            Want::AsItIs => Want::AsItIs,
            _ if self.silent >= SILENT_MAX => Want::Away("Pacemaker does not run here"),
            want => want,
        };
        if assigned(vm).is_some_and(Assigned::is_to_run) {
            return;
        }
        let step = step(want, &standing, note::is_kept(vm));
        if step != Step::ShutDown {
            self.orphaned.remove(vm);
        }
        match (step, resource) {
            (Step::Start, Some(resource)) => {
                let path = Path::new(&resource.config);
                if let Err(reason) = self.engines.start(vm, path).await {
                    self.say(resource, &format!("No replica is kept here: {reason}"));
                }
            }
            // Only by what the configuration says now.
            (Step::End(why), _) if is_look => self.engines.end(vm, standing.here, why).await,
            (Step::ShutDown, _) if is_look => self.shut_down(vm).await,
            (Step::End(_) | Step::ShutDown, _) => {}
            _ => self.engines.settled(vm, standing.here),
        }
    }

    /// The agents had the guest go on here, and before Pacemaker started the VM here somebody stopped it: nobody but the
    /// agent ends it.
    async fn shut_down(&mut self, vm: &VmName) {
        let looks = self.orphaned.entry(vm.clone()).or_default();
        *looks += 1;
        if *looks == PATIENCE {
            self.engines.press_power_button(vm).await;
        } else if *looks >= AGAIN {
            self.engines
                .end(
                    vm,
                    Some(Role::Active),
                    "the VM is stopped, and its guest does not shut down",
                )
                .await;
        }
    }

    fn say(&mut self, resource: &Resource, text: &str) {
        let said = self
            .said
            .insert(resource.primitive.clone(), text.to_owned());
        if said.as_deref() != Some(text) {
            warn!(resource = resource.primitive, "{text}");
        }
    }
}

/// What Pacemaker made of the replica here.
fn assigned(vm: &VmName) -> Option<Assigned> {
    Assigned::recall(vm).ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::tests::{replica, view};
    use kemari_api::Generation;
    use kemari_api::agent::ReplicaView;

    const NOBODY: Standing = Standing {
        here: None,
        in_sync: false,
        active_elsewhere: false,
        ran_last_here: false,
        lost: None,
    };

    fn here(role: Role, active_elsewhere: bool) -> Standing {
        Standing {
            here: Some(role),
            active_elsewhere,
            ..NOBODY
        }
    }

    #[test]
    fn only_what_is_kept_and_has_no_guest_is_ended() {
        let away = Want::Away("");
        for want in [Want::Kept, away, Want::Stopped, Want::AsItIs] {
            for role in [Role::Active, Role::Passive, Role::Waiting, Role::Outdated] {
                for active_elsewhere in [false, true] {
                    let standing = &here(role, active_elsewhere);
                    assert_eq!(step(want, standing, false), Step::None, "{want:?} {role}");
                    let step = step(want, standing, true);
                    let orphaned = want == Want::Stopped && role == Role::Active;
                    assert_eq!(step == Step::ShutDown, orphaned);
                    let ended = matches!(step, Step::End(_));
                    let due = match want {
                        Want::Kept => role == Role::Outdated,
                        Want::Away(_) => role != Role::Active,
                        // The passive one holds the end of a guest that still shuts down.
                        Want::Stopped => role != Role::Active && !active_elsewhere,
                        Want::AsItIs => false,
                    };
                    assert_eq!(ended, due, "{want:?} {role} {active_elsewhere}");
                }
            }
            let started = step(want, &NOBODY, false) == Step::Start;
            assert_eq!(started, want == Want::Kept);
        }
    }

    #[test]
    fn the_cluster_s_configuration_says_what_is_kept_where() {
        let resource = Resource {
            primitive: "vm".to_owned(),
            group: Some("all".to_owned()),
            ..Resource::default()
        };
        let want = |change: fn(&mut Configuration, &mut Resource)| {
            let (mut configuration, mut resource) = (Configuration::default(), resource.clone());
            change(&mut configuration, &mut resource);
            Want::of(&configuration, &resource, "n1")
        };
        let pair = |id: &str, node: &str| (id.to_owned(), node.to_owned());
        assert_eq!(want(|_, _| {}), Want::Kept);
        assert_eq!(want(|_, it| it.stopped = true), Want::Stopped);
        assert_eq!(want(|all, _| all.stopped = true), Want::Stopped);
        assert_eq!(want(|_, it| it.unmanaged = true), Want::AsItIs);
        assert_eq!(want(|all, _| all.maintenance = true), Want::AsItIs);
        for (node, left) in [("n1", false), ("n2", true)] {
            let mut configuration = Configuration::default();
            let kept = |configuration: &Configuration| {
                Want::of(configuration, &resource, "n1") == Want::Kept
            };
            configuration.standby.insert(node.to_owned());
            assert_eq!(kept(&configuration), left);
            for id in ["vm", "all"] {
                let mut configuration = Configuration::default();
                configuration.bans.insert(pair(id, node));
                assert_eq!(kept(&configuration), left, "{id} {node}");
            }
            let mut configuration = Configuration::default();
            configuration.maintained.insert(node.to_owned());
            assert_eq!(kept(&configuration), left);
        }
        assert_eq!(
            want(|all, _| all.bans.extend([("other".to_owned(), "n1".to_owned())])),
            Want::Kept
        );
    }

    #[test]
    fn a_standing_is_of_what_is_heard() {
        let vm: VmName = "web".parse().unwrap();
        let mut there = replica("n3", Role::Active, Licence::Solo, true);
        let seen = |there: &ReplicaView, holder: &str| {
            let mut passive = replica("n1", Role::Passive, Licence::None, true);
            passive.status.in_sync = true;
            let mut view = view(vec![passive, there.clone()]);
            let generation = Generation::new(3);
            view.generations = vec![(vm.clone(), generation, "n1".parse().unwrap())];
            standings(&view, |_| holder.parse().ok())
                .remove(&vm)
                .unwrap()
        };
        let standing = |active_elsewhere, ran_last_here| Standing {
            in_sync: true,
            ran_last_here,
            ..here(Role::Passive, active_elsewhere)
        };
        assert_eq!(seen(&there, "n3"), standing(true, false));
        assert_eq!(seen(&there, "n1"), standing(true, true));
        there.present = false;
        assert_eq!(seen(&there, "n3"), standing(false, false));
    }

    #[test]
    fn only_an_active_replica_that_is_cut_off_has_lost_a_node() {
        let vm: VmName = "web".parse().unwrap();
        let lost = |role, licence, member: bool| {
            let mut active = replica("n1", role, licence, true);
            active.status.peer = "n9".to_owned();
            let mut view = view(vec![active]);
            if member {
                view.members.push("n9".parse().unwrap());
            }
            standings(&view, |_| None).remove(&vm).unwrap().lost
        };
        let n9: Option<NodeName> = "n9".parse().ok();
        assert_eq!(lost(Role::Active, Licence::Cut, false), n9);
        assert_eq!(lost(Role::Active, Licence::Cut, true), None);
        assert_eq!(lost(Role::Active, Licence::Paired, false), None);
        assert_eq!(lost(Role::Active, Licence::Solo, false), None);
        assert_eq!(lost(Role::Passive, Licence::None, false), None);
    }
}
