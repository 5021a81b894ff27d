// SPDX-License-Identifier: Apache-2.0
//! `org.kemari.Vm1`: one object a VM, below the agent's own.
//!
//! Objects hold nothing: they read what the daemon has computed last, so reading them never waits
//! for its loop. Methods ask polkit first and then the loop.

use std::borrow::Cow;
use std::collections::HashMap;

use kemari_api::agent::{VM_INTERFACE, vm_path};
use kemari_api::{Epoch, Generation, VmName};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{oneshot, watch};
use tracing::info;
use zbus::message::Header;
use zbus::names::InterfaceName;
use zbus::object_server::SignalEmitter;
use zbus::{Connection, Variant, fdo};

use super::permission::{Act, check};
use super::shown::{Shown, ShownVm};
use super::{Input, ends, wait_for};

struct VmObject {
    vm: VmName,
    shown: watch::Receiver<Shown>,
    inputs: UnboundedSender<Input>,
}

impl VmObject {
    fn now(&self) -> ShownVm {
        self.shown
            .borrow()
            .get(&self.vm)
            .cloned()
            .unwrap_or_default()
    }

    /// Asks the loop for what needs no claim.
    async fn ask(
        &self,
        input: impl FnOnce(oneshot::Sender<Result<(), String>>) -> Input,
    ) -> fdo::Result<()> {
        let (answer, answered) = oneshot::channel();
        let _ = self.inputs.send(input(answer));
        answered
            .await
            .map_err(|_| ends())?
            .map_err(fdo::Error::Failed)
    }
}

#[zbus::interface(name = "org.kemari.Vm1")]
impl VmObject {
    #[zbus(property(emits_changed_signal = "const"))]
    fn name(&self) -> VmName {
        self.vm.clone()
    }

    #[zbus(property)]
    fn role(&self) -> String {
        self.now().role
    }

    #[zbus(property)]
    fn generation(&self) -> Generation {
        self.now().generation
    }

    #[zbus(property(emits_changed_signal = "false"))]
    fn epoch(&self) -> Epoch {
        self.now().epoch
    }

    #[zbus(property)]
    fn active_node(&self) -> String {
        self.now().active_node
    }

    #[zbus(property)]
    fn protected(&self) -> bool {
        self.shown
            .borrow()
            .get(&self.vm)
            .is_some_and(|vm| vm.why_not.is_none())
    }

    #[zbus(property)]
    fn why_not(&self) -> String {
        self.now().why_not.unwrap_or_default()
    }

    async fn power_button(
        &self,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> fdo::Result<()> {
        check(connection, &header, Act::PowerButton).await?;
        let vm = self.vm.clone();
        self.ask(|answer| Input::PowerButton { vm, answer }).await
    }

    async fn take_over(
        &self,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> fdo::Result<()> {
        check(connection, &header, Act::ChangeRole).await?;
        let vm = self.vm.clone();
        // Pacemaker may start a guest from nothing; this is for going on.
        if self.now().role != "passive" {
            return Err(fdo::Error::Failed(format!(
                "The replica of VM {vm} on this node is not passive: it has nothing to go on from"
            )));
        }
        info!(%vm, "Asked over D-Bus to take over");
        wait_for(&self.inputs, |answer, cancel| Input::Promote {
            vm,
            answer,
            cancel,
        })
        .await
    }

    async fn fail_over(
        &self,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> fdo::Result<()> {
        check(connection, &header, Act::ChangeRole).await?;
        let vm = self.vm.clone();
        self.ask(|answer| Input::FailOver { vm, answer }).await
    }

    async fn force_active(
        &self,
        typed: String,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> fdo::Result<()> {
        check(connection, &header, Act::ForceActive).await?;
        super::force_active(&self.inputs, self.vm.clone(), &typed).await
    }
}

/// Keeps the objects as the daemon knows the VMs. Ends with the daemon, or with an error of the bus.
pub(super) async fn keep(
    connection: &Connection,
    inputs: &UnboundedSender<Input>,
    mut shown: watch::Receiver<Shown>,
) -> zbus::Result<()> {
    let mut told = Shown::new();
    loop {
        let now = shown.borrow_and_update().clone();
        for vm in told.keys().filter(|vm| !now.contains_key(*vm)) {
            let server = connection.object_server();
            server.remove::<VmObject, _>(vm_path(vm)).await?;
        }
        for (vm, state) in &now {
            match told.get(vm) {
                Some(before) => tell_changes(connection, vm, before, state).await?,
                None => {
                    let object = VmObject {
                        vm: vm.clone(),
                        shown: shown.clone(),
                        inputs: inputs.clone(),
                    };
                    connection.object_server().at(vm_path(vm), object).await?;
                }
            }
        }
        told = now;
        if shown.changed().await.is_err() {
            return Ok(());
        }
    }
}

/// One signal with all that changed.
async fn tell_changes(
    connection: &Connection,
    vm: &VmName,
    before: &ShownVm,
    now: &ShownVm,
) -> zbus::Result<()> {
    let mut changed: HashMap<&str, Variant<'_>> = HashMap::new();
    if before.role != now.role {
        changed.insert("Role", Variant::from(now.role.as_str()));
    }
    if before.generation != now.generation {
        changed.insert("Generation", Variant::from(now.generation.get()));
    }
    if before.active_node != now.active_node {
        changed.insert("ActiveNode", Variant::from(now.active_node.as_str()));
    }
    if before.why_not.is_none() != now.why_not.is_none() {
        changed.insert("Protected", Variant::from(now.why_not.is_none()));
    }
    if before.why_not != now.why_not {
        let text = now.why_not.as_deref().unwrap_or_default();
        changed.insert("WhyNot", Variant::from(text));
    }
    if changed.is_empty() {
        return Ok(());
    }
    let emitter = SignalEmitter::new(connection, vm_path(vm))?;
    let interface = InterfaceName::try_from(VM_INTERFACE)?;
    fdo::Properties::properties_changed(&emitter, interface, changed, Cow::Borrowed(&[])).await
}

#[cfg(test)]
mod tests {
    use super::super::{connect, shown::renew};
    use super::*;
    use crate::private_bus::PrivateBus;
    use futures_util::StreamExt as _;
    use kemari_api::agent::{AgentProxy, BUS_NAME, PATH, VmProxy};
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    fn name(text: &str) -> VmName {
        text.parse().unwrap()
    }

    fn active(epoch: u64) -> ShownVm {
        ShownVm {
            role: "active".to_owned(),
            generation: Generation::new(3),
            epoch: Epoch::new(epoch),
            active_node: "n1".to_owned(),
            why_not: Some("no other node has a replica of it".to_owned()),
        }
    }

    struct Bed {
        bus: PrivateBus,
        shown: watch::Sender<Shown>,
        inputs: UnboundedReceiver<Input>,
        _serving: tokio::task::JoinHandle<()>,
    }

    /// An agent that knows of this VM, on a bus of its own. `None`: there can be no such bus here.
    async fn bed(vm: &str) -> Option<Bed> {
        let bus = PrivateBus::start()?;
        let (sender, inputs) = unbounded_channel();
        let (shown, seen) = watch::channel(Shown::from([(name(vm), active(9))]));
        let agent = connect(bus.builder(), &sender).await.unwrap();
        let _serving = tokio::spawn(async move {
            let _ = keep(&agent, &sender, seen).await;
        });
        Some(Bed {
            bus,
            shown,
            inputs,
            _serving,
        })
    }

    impl Bed {
        fn show(&self, vm: &str, state: ShownVm) {
            self.shown.send_if_modified(|shown| {
                let mut new = shown.clone();
                new.insert(name(vm), state);
                renew(shown, new)
            });
        }

        async fn object(&self, vm: &str) -> VmProxy<'static> {
            let client = self.bus.connect().await;
            let objects = fdo::ObjectManagerProxy::new(&client, BUS_NAME, PATH)
                .await
                .unwrap();
            let mut added = objects.receive_interfaces_added().await.unwrap();
            let path = vm_path(&name(vm));
            let there = objects.get_managed_objects().await.unwrap();
            if !there.keys().any(|known| known.as_str() == path) {
                let signal = added.next().await.unwrap();
                assert_eq!(signal.args().unwrap().object_path.as_str(), path);
            }
            VmProxy::builder(&client).path(path).build().await.unwrap()
        }
    }

    #[tokio::test]
    async fn a_vm_is_an_object_whose_changes_are_told() {
        let Some(bed) = bed("web-1").await else {
            return;
        };
        let vm = bed.object("web-1").await;
        assert_eq!(vm.name().await.unwrap(), name("web-1"));
        assert_eq!(vm.role().await.unwrap(), "active");
        assert_eq!(vm.active_node().await.unwrap(), "n1");
        assert_eq!(vm.generation().await.unwrap(), Generation::new(3));
        assert!(!vm.protected().await.unwrap());
        assert!(vm.why_not().await.unwrap().contains("no other node"));

        let client = vm.inner().connection();
        let properties = fdo::PropertiesProxy::new(client, BUS_NAME, vm_path(&name("web-1")))
            .await
            .unwrap();
        let mut signals = properties.receive_properties_changed().await.unwrap();
        // The first is no news; were it told, it would come before the second.
        bed.show("web-1", active(10));
        let pair = ShownVm {
            why_not: None,
            ..active(11)
        };
        bed.show("web-1", pair);
        let signal = signals.next().await.unwrap();
        let args = signal.args().unwrap();
        let mut names: Vec<_> = args.changed_properties.keys().copied().collect();
        names.sort_unstable();
        assert_eq!(names, ["Protected", "WhyNot"]);
        assert_eq!(vm.epoch().await.unwrap(), Epoch::new(11));

        bed.shown.send_replace(Shown::new());
        let objects = fdo::ObjectManagerProxy::new(client, BUS_NAME, PATH)
            .await
            .unwrap();
        while !objects.get_managed_objects().await.unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn methods_reach_the_loop_with_the_name_of_the_vm() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: not root, so polkit would be asked");
            return;
        }
        let Some(mut bed) = bed("web").await else {
            return;
        };
        let vm = bed.object("web").await;
        let loop_answers = async {
            while let Some(input) = bed.inputs.recv().await {
                match input {
                    Input::PowerButton { vm, answer } if vm == name("web") => {
                        let _ = answer.send(Ok(()));
                    }
                    Input::FailOver { answer, .. } => {
                        let _ = answer.send(Err("not in sync".to_owned()));
                        return;
                    }
                    other => panic!("{other:?}"),
                }
            }
        };
        let asks = async {
            vm.power_button().await.unwrap();
            let refused = vm.take_over().await.unwrap_err();
            assert!(refused.to_string().contains("is not passive"), "{refused}");
            let refused = vm.force_active("wbe").await.unwrap_err();
            assert!(refused.to_string().contains("\"wbe\""), "{refused}");
            let refused = vm.fail_over().await.unwrap_err();
            assert!(refused.to_string().contains("not in sync"), "{refused}");
        };
        tokio::join!(loop_answers, asks);
        assert!(AgentProxy::new(vm.inner().connection()).await.is_ok());
    }

    #[tokio::test]
    async fn busctl_can_read_it() {
        let Some(bed) = bed("web").await else {
            return;
        };
        bed.object("web").await;
        let address = format!("--address={}", bed.bus.address());
        let output = tokio::process::Command::new("busctl")
            .args([
                &address,
                "introspect",
                BUS_NAME,
                "/org/kemari/Agent1/vm/web",
            ])
            .output()
            .await;
        let Ok(output) = output else {
            eprintln!("SKIPPED: this machine has no busctl");
            return;
        };
        let text = String::from_utf8_lossy(&output.stdout);
        for line in [".PowerButton", ".ActiveNode", ".WhyNot", ".Protected"] {
            assert!(text.contains(line), "{line} in {text}{output:?}");
        }
    }
}
