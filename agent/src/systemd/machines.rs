// SPDX-License-Identifier: Apache-2.0
//! `machinectl list` shows the VMs whose guests run here.
//!
//! `org.freedesktop.machine1(5)` is the source of names and forms. systemd-machined takes the leader's
//! unit for the machine's and would stop it on `machinectl terminate`, so an engine is registered only
//! if that is a unit of its own. A machine whose unit ends, it forgets by itself.

use std::fs;
use std::time::Duration;

use kemari_api::{VmName, place};
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::debug;
use zbus::{Connection, OwnedObjectPath};

use super::Running;

/// Longest wait for systemd-machined, which the bus may have to start.
const ANSWER_MAX: Duration = Duration::from_secs(10);

#[zbus::proxy(
    interface = "org.freedesktop.machine1.Manager",
    default_service = "org.freedesktop.machine1",
    default_path = "/org/freedesktop/machine1"
)]
trait Machines {
    fn register_machine(
        &self,
        name: &str,
        id: &[u8],
        service: &str,
        class: &str,
        leader: u32,
        root_directory: &str,
    ) -> zbus::Result<OwnedObjectPath>;
    fn unregister_machine(&self, name: &str) -> zbus::Result<()>;
    #[zbus(name = "GetMachineByPID")]
    fn get_machine_by_pid(&self, pid: u32) -> zbus::Result<OwnedObjectPath>;
}

/// Keeps systemd-machined as the daemon knows the VMs. Ends with the daemon.
pub async fn keep(mut running: watch::Receiver<Running>) {
    let mut registered = Running::new();
    loop {
        let now = running.borrow_and_update().clone();
        if now != registered {
            let settled = timeout(ANSWER_MAX, async {
                let connection = Connection::system().await?;
                settle(&connection, &mut registered, &now, has_own_unit).await
            });
            match settled.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => debug!(%error, "machinectl does not show every VM"),
                Err(_) => debug!("systemd-machined does not answer"),
            }
        }
        if running.changed().await.is_err() {
            return;
        }
    }
}

/// Takes away what runs here no more, adds what does. One that fails keeps no other from it.
async fn settle(
    connection: &Connection,
    registered: &mut Running,
    now: &Running,
    has_own_unit: impl Fn(u32, &VmName) -> bool,
) -> zbus::Result<()> {
    let machines = MachinesProxy::new(connection).await?;
    let mut result = Ok(());
    let over: Vec<VmName> = registered
        .iter()
        .filter(|(vm, pid)| now.get(*vm) != Some(*pid))
        .map(|(vm, _)| vm.clone())
        .collect();
    for vm in over {
        registered.remove(&vm);
        // It is gone if the unit has ended.
        if let Err(error) = machines.unregister_machine(vm.as_str()).await {
            debug!(%vm, %error, "systemd-machined had forgotten a VM");
        }
    }
    for (vm, pid) in now {
        if registered.contains_key(vm) || !has_own_unit(*pid, vm) {
            continue;
        }
        match register(&machines, vm, *pid).await {
            Ok(()) => {
                registered.insert(vm.clone(), *pid);
            }
            Err(error) => result = Err(error),
        }
    }
    result
}

/// One that an earlier agent has registered is taken over.
async fn register(machines: &MachinesProxy<'_>, vm: &VmName, pid: u32) -> zbus::Result<()> {
    let refused = machines
        .register_machine(vm.as_str(), &[], "kemari", "vm", pid, "")
        .await;
    match refused {
        Err(error) if machines.get_machine_by_pid(pid).await.is_err() => Err(error),
        _ => Ok(()),
    }
}

fn has_own_unit(pid: u32, vm: &VmName) -> bool {
    fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|text| is_in_unit(&text, vm))
}

/// Whether `/proc/PID/cgroup` (cgroups(7)) names the unit of this VM.
fn is_in_unit(cgroup: &str, vm: &VmName) -> bool {
    let unit = place::unit(vm);
    cgroup
        .lines()
        .filter_map(|line| line.rsplit(':').next())
        .any(|path| path.split('/').any(|part| part == unit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::private_bus::PrivateBus;
    use std::collections::BTreeMap;
    use std::sync::{Arc, Mutex};
    use zbus::fdo;

    /// Knows what systemd-machined knows: names and leaders.
    #[derive(Clone, Default)]
    struct Machined(Arc<Mutex<BTreeMap<String, u32>>>);

    #[zbus::interface(name = "org.freedesktop.machine1.Manager")]
    impl Machined {
        fn register_machine(
            &self,
            name: &str,
            id: &[u8],
            service: &str,
            class: &str,
            leader: u32,
            _root_directory: &str,
        ) -> fdo::Result<OwnedObjectPath> {
            assert_eq!((id.len(), service, class), (0, "kemari", "vm"));
            let mut machines = self.0.lock().unwrap();
            if machines.contains_key(name) {
                return Err(fdo::Error::Failed(format!("{name} exists")));
            }
            machines.insert(name.to_owned(), leader);
            Ok(OwnedObjectPath::try_from("/m").unwrap())
        }

        fn unregister_machine(&self, name: &str) -> fdo::Result<()> {
            let removed = self.0.lock().unwrap().remove(name);
            removed
                .map(|_| ())
                .ok_or_else(|| fdo::Error::Failed(format!("no {name}")))
        }

        #[zbus(name = "GetMachineByPID")]
        fn get_machine_by_pid(&self, pid: u32) -> fdo::Result<OwnedObjectPath> {
            let known = self.0.lock().unwrap().values().any(|leader| *leader == pid);
            known
                .then(|| OwnedObjectPath::try_from("/m").unwrap())
                .ok_or_else(|| fdo::Error::Failed("no such leader".to_owned()))
        }
    }

    fn running(vms: &[(&str, u32)]) -> Running {
        let own = |(vm, pid): &(&str, u32)| (vm.parse().unwrap(), *pid);
        vms.iter().map(own).collect()
    }

    #[tokio::test]
    async fn machined_knows_what_runs_here() {
        let Some(bus) = PrivateBus::start() else {
            return;
        };
        let agent = bus.connect().await;
        let mut registered = Running::new();
        let missing = settle(&agent, &mut registered, &running(&[("a", 1)]), |_, _| true).await;
        assert!(missing.is_err() && registered.is_empty());

        let machined = Machined::default();
        let service = bus.connect().await;
        let path = "/org/freedesktop/machine1";
        let server = service.object_server();
        server.at(path, machined.clone()).await.unwrap();
        service
            .request_name("org.freedesktop.machine1")
            .await
            .unwrap();
        let has = || machined.0.lock().unwrap().clone();
        let names = |vms: &[(&str, u32)]| -> BTreeMap<String, u32> {
            vms.iter()
                .map(|(vm, pid)| ((*vm).to_owned(), *pid))
                .collect()
        };

        // "c" is a container's name already, "d" runs in somebody's shell.
        machined.0.lock().unwrap().insert("c".to_owned(), 99);
        let now = running(&[("a", 1), ("b", 2), ("c", 3), ("d", 4)]);
        let own = |pid, _: &VmName| pid != 4;
        assert!(settle(&agent, &mut registered, &now, own).await.is_err());
        assert_eq!(has(), names(&[("a", 1), ("b", 2), ("c", 99)]));

        // A new agent takes over what the one before has registered; "b" has a new engine then.
        let mut registered = Running::new();
        let before = running(&[("a", 1), ("b", 2)]);
        assert!(settle(&agent, &mut registered, &before, own).await.is_ok());
        let after = running(&[("b", 5)]);
        assert!(settle(&agent, &mut registered, &after, own).await.is_ok());
        assert_eq!(has(), names(&[("b", 5), ("c", 99)]));
        assert_eq!(registered, after);
    }

    #[test]
    fn only_a_unit_of_its_own_counts() {
        let vm: VmName = "web".parse().unwrap();
        let own = "0::/kemari.slice/kemari-vm@web.service\n";
        assert!(is_in_unit(own, &vm));
        assert!(is_in_unit(
            "1:name=systemd:/x\n0::/kemari.slice/kemari-vm@web.service/sub\n",
            &vm
        ));
        assert!(!is_in_unit(
            "0::/kemari.slice/kemari-vm@web2.service\n",
            &vm
        ));
        assert!(!is_in_unit(
            "0::/user.slice/user-0.slice/session-3.scope\n",
            &vm
        ));
    }
}
