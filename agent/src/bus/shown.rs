// SPDX-License-Identifier: Apache-2.0
//! What the objects of the VMs show, computed from what the agent knows.

use std::collections::BTreeMap;

use kemari_api::agent::{ClusterView, ReplicaView};
use kemari_api::{Epoch, Generation, Role, VmName};

use crate::operator::why_unprotected;

/// One VM.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ShownVm {
    /// The role of the replica on this node, or empty.
    pub role: String,
    /// The newest generation of a replica that is heard.
    pub generation: Generation,
    /// The epoch of the active replica, as told last.
    pub epoch: Epoch,
    /// The node of the active replica, or empty.
    pub active_node: String,
    /// Why no second host could go on with it now; `None` if one could.
    pub why_not: Option<String>,
}

impl ShownVm {
    /// The same but for the epoch, of whose change no signal tells.
    fn tells_the_same(&self, other: &Self) -> bool {
        Self {
            epoch: other.epoch,
            ..self.clone()
        } == *other
    }
}

/// Every VM that has a replica somewhere.
pub type Shown = BTreeMap<VmName, ShownVm>;

/// Computes it.
#[must_use]
pub fn shown(view: &ClusterView) -> Shown {
    let mut replicas: BTreeMap<&VmName, Vec<&ReplicaView>> = BTreeMap::new();
    for replica in &view.replicas {
        replicas
            .entry(&replica.status.vm)
            .or_default()
            .push(replica);
    }
    replicas
        .into_iter()
        .map(|(vm, replicas)| (vm.clone(), of_vm(view, &replicas)))
        .collect()
}

fn of_vm(view: &ClusterView, replicas: &[&ReplicaView]) -> ShownVm {
    let heard = || replicas.iter().filter(|replica| replica.present);
    let here = heard().find(|replica| replica.status.node == view.node);
    // Two call themselves active for a moment at a failover: the newer one is.
    let active = heard()
        .filter(|replica| replica.status.role == Role::Active)
        .max_by_key(|replica| replica.status.generation);
    ShownVm {
        role: here.map_or_else(String::new, |replica| replica.status.role.to_string()),
        generation: heard()
            .map(|replica| replica.status.generation)
            .max()
            .unwrap_or_default(),
        epoch: active.map_or_else(Epoch::default, |replica| replica.status.epoch),
        active_node: active.map_or_else(String::new, |replica| replica.status.node.to_string()),
        why_not: why_unprotected(Some(view), replicas),
    }
}

/// Puts `new` in place of `old`. Says whether that is worth a signal.
pub fn renew(old: &mut Shown, new: Shown) -> bool {
    let same = old.len() == new.len()
        && old
            .iter()
            .zip(&new)
            .all(|(old, new)| old.0 == new.0 && old.1.tells_the_same(new.1));
    *old = new;
    !same
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::tests::{replica, view};
    use kemari_api::Licence;

    #[test]
    fn a_pair_in_sync_is_shown_as_protected() {
        let pair = view(vec![
            replica("n1", Role::Passive, Licence::None, true),
            replica("n3", Role::Active, Licence::Paired, true),
        ]);
        let vms = shown(&pair);
        let vm = &vms[&"web".parse().unwrap()];
        assert_eq!(
            (vm.role.as_str(), vm.active_node.as_str()),
            ("passive", "n3")
        );
        assert_eq!(
            (vm.generation, vm.epoch),
            (Generation::new(3), Epoch::new(9))
        );
        assert_eq!(vm.why_not, None);
    }

    #[test]
    fn of_a_lost_node_only_the_reason_tells() {
        let lost = view(vec![replica("n3", Role::Active, Licence::Paired, false)]);
        let vm = shown(&lost).into_values().next().unwrap();
        assert_eq!((vm.role.as_str(), vm.active_node.as_str()), ("", ""));
        assert!(vm.why_not.unwrap().contains("n3"));
    }

    #[test]
    fn an_epoch_is_kept_and_is_worth_no_signal() {
        let mut old = shown(&view(vec![replica(
            "n1",
            Role::Active,
            Licence::Solo,
            true,
        )]));
        let mut new = old.clone();
        let vm: VmName = "web".parse().unwrap();
        new.get_mut(&vm).unwrap().epoch = Epoch::new(10);
        assert!(!renew(&mut old, new.clone()));
        assert_eq!(old[&vm].epoch, Epoch::new(10));
        new.get_mut(&vm).unwrap().role = "outdated".to_owned();
        assert!(renew(&mut old, new));
        assert!(renew(&mut old, Shown::new()));
    }
}
