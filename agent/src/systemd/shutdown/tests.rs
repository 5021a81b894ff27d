// SPDX-License-Identifier: Apache-2.0
//! The guard against a logind and a systemd that are tests, over a real bus.

use std::io::{self, Read as _};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;
use crate::bus::shown::ShownVm;
use crate::private_bus::PrivateBus;

/// Hands out one end of a socket as the lock and keeps the other: it reads as ended once let go.
#[derive(Clone)]
struct Login(UnboundedSender<UnixStream>);

#[zbus::interface(name = "org.freedesktop.login1.Manager")]
impl Login {
    fn inhibit(&self, what: &str, who: &str, _why: &str, mode: &str) -> OwnedFd {
        assert_eq!((what, who, mode), ("shutdown", "kemari-agent", "delay"));
        let (held, theirs) = UnixStream::pair().unwrap();
        let _ = self.0.send(held);
        std::os::fd::OwnedFd::from(theirs).into()
    }

    #[zbus(signal)]
    async fn prepare_for_shutdown(
        emitter: &zbus::object_server::SignalEmitter<'_>,
        start: bool,
    ) -> zbus::Result<()>;
}

#[derive(Debug, zbus::DBusError)]
#[zbus(prefix = "org.freedesktop.systemd1")]
enum UnitError {
    #[zbus(error)]
    ZBus(zbus::Error),
    NoSuchUnit(String),
}

struct Units;

#[zbus::interface(name = "org.freedesktop.systemd1.Manager")]
impl Units {
    fn get_unit(&self, name: &str) -> Result<OwnedObjectPath, UnitError> {
        if name == "pacemaker.service" {
            return Ok(OwnedObjectPath::try_from("/pacemaker").unwrap());
        }
        Err(UnitError::NoSuchUnit(format!("Unit {name} not loaded.")))
    }
}

/// Pacemaker's unit, in this state.
struct Unit(Arc<Mutex<&'static str>>);

#[zbus::interface(name = "org.freedesktop.systemd1.Unit")]
impl Unit {
    #[zbus(property)]
    fn active_state(&self) -> String {
        (*self.0.lock().unwrap()).to_owned()
    }
}

struct Host {
    _bus: PrivateBus,
    services: Connection,
    pacemaker: Arc<Mutex<&'static str>>,
    locks: UnboundedReceiver<UnixStream>,
    movable: watch::Sender<Movable>,
    shown: watch::Sender<Shown>,
    asked: UnboundedReceiver<Input>,
}

fn web() -> VmName {
    "web".parse().unwrap()
}

fn on(node: &str) -> Shown {
    let vm = ShownVm {
        active_node: node.to_owned(),
        ..ShownVm::default()
    };
    Shown::from([(web(), vm)])
}

/// A host on which `web` runs and could move, with Pacemaker in this state.
async fn host(pacemaker: &'static str) -> Option<Host> {
    let bus = PrivateBus::start()?;
    let (taken, locks) = unbounded_channel();
    let pacemaker = Arc::new(Mutex::new(pacemaker));
    let services = bus
        .builder()
        .serve_at("/org/freedesktop/login1", Login(taken))
        .serve_at("/org/freedesktop/systemd1", Units)
        .serve_at("/pacemaker", Unit(pacemaker.clone()))
        .name("org.freedesktop.login1")
        .name("org.freedesktop.systemd1")
        .build()
        .await
        .unwrap();
    let (movable, seen_movable) = watch::channel(Movable::from([web()]));
    let (shown, seen_shown) = watch::channel(on("n1"));
    let (inputs, asked) = unbounded_channel();
    let mut guard = Guard {
        node: "n1".parse().unwrap(),
        movable: seen_movable,
        shown: seen_shown,
        inputs,
    };
    let agent = bus.connect().await;
    tokio::spawn(async move {
        let _ = guard.watch(&agent).await;
    });
    Some(Host {
        _bus: bus,
        services,
        pacemaker,
        locks,
        movable,
        shown,
        asked,
    })
}

impl Host {
    async fn goes_down(&self, start: bool) {
        let login = self
            .services
            .object_server()
            .interface::<_, Login>("/org/freedesktop/login1")
            .await
            .unwrap();
        Login::prepare_for_shutdown(login.signal_emitter(), start)
            .await
            .unwrap();
    }
}

async fn until_let_go(lock: UnixStream) {
    let read = tokio::task::spawn_blocking(move || (&lock).read(&mut [0]));
    assert_eq!(read.await.unwrap().unwrap(), 0);
}

fn is_held(lock: &UnixStream) -> bool {
    lock.set_nonblocking(true).unwrap();
    let read = { lock }.read(&mut [0]);
    lock.set_nonblocking(false).unwrap();
    read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

#[tokio::test]
async fn with_pacemaker_the_lock_is_let_go_and_nothing_is_moved() {
    for state in ["active", "deactivating", "activating"] {
        let Some(mut host) = host(state).await else {
            return;
        };
        let lock = host.locks.recv().await.unwrap();
        assert!(is_held(&lock));
        host.goes_down(true).await;
        until_let_go(lock).await;
        assert!(host.asked.try_recv().is_err(), "{state}");
        // The shutdown was called off.
        host.goes_down(false).await;
        assert!(is_held(&host.locks.recv().await.unwrap()));
    }
}

#[tokio::test]
async fn without_pacemaker_the_lock_is_held_until_the_vm_runs_elsewhere() {
    for state in ["inactive", "failed"] {
        let Some(mut host) = host(state).await else {
            return;
        };
        let lock = host.locks.recv().await.unwrap();
        host.goes_down(true).await;
        match host.asked.recv().await.unwrap() {
            Input::FailOver { vm, answer } if vm == web() => answer.send(Ok(())).unwrap(),
            other => panic!("{other:?}"),
        }
        host.movable.send_replace(Movable::new());
        host.shown.send_replace(on(""));
        assert!(is_held(&lock), "nobody runs it yet");
        host.shown.send_replace(on("n2"));
        until_let_go(lock).await;
    }
}

#[tokio::test]
async fn what_the_loop_refuses_is_not_waited_for() {
    let Some(mut host) = host("inactive").await else {
        return;
    };
    let lock = host.locks.recv().await.unwrap();
    host.goes_down(true).await;
    match host.asked.recv().await.unwrap() {
        Input::FailOver { answer, .. } => answer.send(Err("not in sync".to_owned())).unwrap(),
        other => panic!("{other:?}"),
    }
    // It still runs here.
    until_let_go(lock).await;
}

#[tokio::test]
async fn where_nobody_can_tell_nothing_is_moved() {
    let Some(mut host) = host("inactive").await else {
        return;
    };
    let lock = host.locks.recv().await.unwrap();
    let server = host.services.object_server();
    server.remove::<Unit, _>("/pacemaker").await.unwrap();
    host.goes_down(true).await;
    until_let_go(lock).await;
    assert!(host.asked.try_recv().is_err());
    assert_eq!(*host.pacemaker.lock().unwrap(), "inactive");
}

#[tokio::test]
async fn no_lock_is_held_for_what_cannot_move() {
    let Some(mut host) = host("active").await else {
        return;
    };
    let lock = host.locks.recv().await.unwrap();
    host.movable.send_replace(Movable::new());
    until_let_go(lock).await;
    host.movable.send_replace(Movable::from([web()]));
    assert!(is_held(&host.locks.recv().await.unwrap()));
}

#[tokio::test]
async fn without_logind_the_guard_says_why() {
    let Some(bus) = PrivateBus::start() else {
        return;
    };
    let (_movable, seen_movable) = watch::channel(Movable::from([web()]));
    let (_shown, seen_shown) = watch::channel(on("n1"));
    let (inputs, _asked) = unbounded_channel();
    let mut guard = Guard {
        node: "n1".parse().unwrap(),
        movable: seen_movable,
        shown: seen_shown,
        inputs,
    };
    let error = guard.watch(&bus.connect().await).await.unwrap_err();
    assert!(
        error.to_string().contains("org.freedesktop.login1"),
        "{error:?}"
    );
}
