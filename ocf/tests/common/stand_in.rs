// SPDX-License-Identifier: Apache-2.0
//! A stand-in for an engine, behind the control socket of a node.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use kemari_api::replica::{self, DiskState, FailoverPolicy, Promotion, ReplicaStatus};
use kemari_api::{Epoch, Generation, Licence, Role};
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio::sync::Notify;
use zbus::fdo;

use super::Node;

/// A replica with a role, a power button and a monitor only.
#[derive(Debug)]
pub struct StandIn {
    role: Arc<Mutex<Role>>,
    guest: Guest,
}

/// What the engine's own thread does, which takes the monitor's requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Conductor {
    /// It waits for something to do.
    #[default]
    Idle,
    /// It waits for something that does not end.
    Hangs,
    /// It has much to do, and counts what is done.
    Busy,
}

/// What the power button does.
#[derive(Debug, Clone, Default)]
pub struct Guest {
    /// Presses.
    pub pressed: Arc<AtomicU32>,
    /// The engine ends when this is told; a guest that ignores the button has none.
    pub off: Option<Arc<Notify>>,
    /// What its own thread does.
    pub conductor: Conductor,
    /// What `info migrate` counts.
    pub counted: Arc<AtomicU32>,
    /// Its licence is `paired` and the pair in sync; nothing is ever committed.
    pub paired: bool,
}

#[zbus::interface(name = "org.kemari.Replica1")]
impl StandIn {
    fn status(&self) -> ReplicaStatus {
        ReplicaStatus {
            vm: "vm".parse().expect("a name"),
            node: "node1".parse().expect("a name"),
            pid: 1,
            role: *self.role.lock().expect("not poisoned"),
            licence: if self.guest.paired {
                Licence::Paired
            } else {
                Licence::Solo
            },
            in_sync: self.guest.paired,
            running: true,
            generation: Generation::new(1),
            epoch: Epoch::new(0),
            disks: DiskState::None,
            failover: FailoverPolicy::Auto,
            peer: "node2".to_owned(),
            listen: String::new(),
            detail: "it stands in".to_owned(),
        }
    }

    fn promote(&self, _how: Promotion, _generation: Generation) -> fdo::Result<()> {
        Err(fdo::Error::Failed("only the agent promotes".to_owned()))
    }

    async fn monitor(&self, line: &str) -> fdo::Result<String> {
        match (line, self.guest.conductor) {
            ("info migrate", Conductor::Busy) => {
                let counted = self.guest.counted.fetch_add(1, Ordering::SeqCst);
                Ok(format!("transferred: {counted} KiB\n"))
            }
            ("info migrate", _) => Ok("transferred: 0 KiB\n".to_owned()),
            (_, Conductor::Idle) => Err(fdo::Error::Failed("there is no balloon".to_owned())),
            _ => std::future::pending().await,
        }
    }

    fn power_button(&self) {
        self.guest.pressed.fetch_add(1, Ordering::SeqCst);
        if let Some(off) = &self.guest.off {
            off.notify_one();
        }
    }

    fn demote(&self) -> fdo::Result<()> {
        let mut role = self.role.lock().expect("not poisoned");
        if *role == Role::Outdated {
            // As an engine says it.
            return Err(fdo::Error::Failed("restart the engine".to_owned()));
        }
        *role = Role::Waiting;
        Ok(())
    }
}

/// Serves a replica of this role on the node until the runtime is dropped.
pub fn serve(node: &Node, role: Role) -> (Runtime, Arc<Mutex<Role>>) {
    serve_guest(node, role, Guest::default())
}

/// The same with this guest.
pub fn serve_guest(node: &Node, role: Role, guest: Guest) -> (Runtime, Arc<Mutex<Role>>) {
    let runtime = Runtime::new().expect("a runtime");
    let role = Arc::new(Mutex::new(role));
    let served = Arc::clone(&role);
    let socket = node.path("vm.sock");
    let listener = runtime
        .block_on(async { UnixListener::bind(socket) })
        .expect("it binds");
    runtime.spawn(async move {
        let mut connections = Vec::new();
        loop {
            let off = async {
                match &guest.off {
                    Some(off) => off.notified().await,
                    None => std::future::pending().await,
                }
            };
            let stream = tokio::select! {
                () = off => return,
                accepted = listener.accept() => accepted.expect("a caller").0,
            };
            let guest = guest.clone();
            let stream = stream.into_std().expect("a socket");
            let role = Arc::clone(&served);
            let connection = zbus::connection::Builder::unix_stream(stream)
                .server(zbus::Guid::generate())
                .p2p()
                .serve_at(replica::PATH, StandIn { role, guest })
                .build()
                .await;
            connections.push(connection);
        }
    });
    (runtime, role)
}
