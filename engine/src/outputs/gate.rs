// SPDX-License-Identifier: Apache-2.0
//! The event-tap and the licence under one lock, shared by the vCPUs, the devices, the carrier and
//! the conductor.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use kemari_api::{Epoch, Generation};
use kemari_replication::event_tap::{EventTap, Release, TapConfig};
use kemari_replication::gate::OutputGate;
use kemari_replication::licence::Permission;
use kemari_replication::{NetworkPort, OutputKind};
use kemari_vmm::{ConsoleOutput, RunGate};
use nix::sys::eventfd::EventFd;

use crate::clock;
use crate::conductor::Input;

use super::{History, Interface};

/// How long the carrier lets the first byte of a burst wait under a solo licence.
const GATHER: Duration = Duration::from_micros(200);

#[derive(Debug)]
struct Inner {
    gate: OutputGate,
    /// When the oldest output of the open epoch was queued.
    output_since: Option<Duration>,
    /// Counts the gates there have been: the carrier must not report to a newer one.
    incarnation: u64,
    /// The carrier is letting something out right now.
    writing: bool,
    /// A vCPU found no room and waits at this gate.
    waits_at: Option<RunGate>,
    run_gate: Option<RunGate>,
    /// Interfaces whose device found no room and waits.
    starved: [bool; NetworkPort::COUNT],
    /// The virtio console found no room and waits to be told by this.
    console_waits: Option<Arc<EventFd>>,
    /// Shared disks with changes that wait, to be told by these when one may leave.
    disks_wait: Vec<Arc<EventFd>>,
}

/// The outputs of one replica.
#[derive(Debug)]
pub struct Outputs {
    inner: Mutex<Inner>,
    interfaces: Vec<Arc<Interface>>,
    history: Arc<History>,
    changed: Condvar,
    inputs: mpsc::Sender<Input>,
}

/// What the carrier shall let out, and under which right.
#[derive(Debug)]
pub struct Job {
    /// The output.
    pub release: Release,
    /// The generation it leaves under.
    pub generation: Generation,
    incarnation: u64,
}

impl Outputs {
    /// A tap in front of the console and these interfaces (at most eight) that lets nothing out
    /// until it is told to.
    pub fn new(
        bytes_max: usize,
        interfaces: Vec<Arc<Interface>>,
        inputs: mpsc::Sender<Input>,
    ) -> Arc<Self> {
        let tap = EventTap::new(&TapConfig {
            bytes_max,
            ..TapConfig::default()
        });
        let inner = Inner {
            gate: OutputGate::new(tap),
            output_since: None,
            incarnation: 0,
            writing: false,
            waits_at: None,
            run_gate: None,
            starved: [false; NetworkPort::COUNT],
            console_waits: None,
            disks_wait: Vec::new(),
        };
        Arc::new(Self {
            inner: Mutex::new(inner),
            interfaces,
            history: Arc::new(History::new()),
            changed: Condvar::new(),
            inputs,
        })
    }

    /// The gate at which vCPUs of the machine there is now wait for room.
    pub fn wake_through(&self, gate: RunGate) {
        self.lock().run_gate = Some(gate);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the gate and wakes the carrier, which may have something to do now.
    pub fn with_gate<T>(&self, change: impl FnOnce(&mut OutputGate) -> T) -> T {
        let mut inner = self.lock();
        let before = rights(&inner.gate);
        let result = change(&mut inner.gate);
        if rights(&inner.gate) != before {
            for disk in inner.disks_wait.drain(..) {
                // Full: it is readable already.
                let _ = disk.write(1);
            }
        }
        if !inner.gate.tap().has_pending() {
            inner.output_since = None;
        }
        self.changed.notify_all();
        result
    }

    /// Puts another tap in place, whose licence is none, and waits until nothing of the old one is
    /// being written.
    pub fn replace(&self, tap: EventTap) {
        let mut inner = self.lock();
        inner.gate = OutputGate::new(tap);
        inner.output_since = None;
        inner.incarnation += 1;
        drop(self.quiet(inner));
    }

    /// Waits until nothing is being written that a revoked licence no longer allows.
    pub fn settle(&self) {
        drop(self.quiet(self.lock()));
    }

    fn quiet<'a>(&'a self, inner: MutexGuard<'a, Inner>) -> MutexGuard<'a, Inner> {
        self.changed
            .wait_while(inner, |inner| inner.writing)
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits at most this long until the outside has taken everything.
    pub fn drain(&self, limit: Duration) -> bool {
        let inner = self.lock();
        let (inner, _) = self
            .changed
            .wait_timeout_while(inner, limit, |inner| !inner.gate.tap().is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        inner.gate.tap().is_empty()
    }

    /// When the oldest output of the open epoch was queued, if it waits for a checkpoint.
    pub fn output_since(&self) -> Option<Duration> {
        let inner = self.lock();
        inner
            .output_since
            .filter(|_| inner.gate.tap().has_pending())
    }

    /// Carrier: waits for the next output that may leave.
    pub fn next(&self) -> Job {
        let mut inner = self.lock();
        loop {
            let generation = inner.gate.licence().generation();
            if let (Some(generation), Some(release)) = (generation, inner.gate.next_release()) {
                inner.writing = true;
                return Job {
                    release,
                    generation,
                    incarnation: inner.incarnation,
                };
            }
            inner = self
                .changed
                .wait(inner)
                .unwrap_or_else(PoisonError::into_inner);
            if inner.gate.licence().permission() == Permission::All {
                // A serial port puts out one byte at a time; each need not be written alone.
                drop(inner);
                thread::sleep(GATHER);
                inner = self.lock();
            }
        }
    }

    /// Carrier: the outside has taken the output.
    pub fn taken(&self, job: &Job) {
        let mut inner = self.lock();
        inner.writing = false;
        if inner.incarnation == job.incarnation {
            inner.gate.taken();
        }
        if inner.gate.tap().has_room() {
            if let Some(gate) = inner.waits_at.take() {
                gate.wake();
            }
            if let Some(room) = inner.console_waits.take() {
                let _ = room.write(1);
            }
            for (starved, interface) in inner.starved.iter_mut().zip(&self.interfaces) {
                if std::mem::take(starved) {
                    interface.tell_room();
                }
            }
        }
        self.changed.notify_all();
    }

    /// Carrier: the outside could not take it; it is offered again while it may still leave.
    pub fn not_taken(&self, job: &Job) {
        let mut inner = self.lock();
        inner.writing = false;
        if inner.incarnation == job.incarnation {
            inner.gate.hand_out_again();
        }
        self.changed.notify_all();
    }
}

impl Outputs {
    /// What the console has let out lately.
    pub fn history(&self) -> &Arc<History> {
        &self.history
    }

    /// The interfaces, by port.
    pub fn interfaces(&self) -> &[Arc<Interface>] {
        &self.interfaces
    }

    /// Device: a packet that the guest sends.
    pub(super) fn send_packet(&self, port: NetworkPort, packet: &[u8]) {
        let inner = self.lock();
        let idle = inner.gate.tap().is_empty() && !inner.writing;
        // Under the lock, so that the licence cannot be lost between the look and the deed.
        if idle
            && inner.gate.licence().permission() == Permission::All
            && let Some(interface) = self.interfaces.get(port.index())
            && interface.try_send(packet)
        {
            return;
        }
        self.queue(inner, OutputKind::Network(port), packet);
    }

    /// Device: whether it may send; if not, it is told when it may.
    pub(super) fn has_room_for_packets(&self, port: NetworkPort) -> bool {
        let mut inner = self.lock();
        let room = inner.gate.tap().has_room();
        if let Some(starved) = inner.starved.get_mut(port.index()) {
            *starved = !room;
        }
        room
    }

    /// Virtio console: whether it may write; if not, `room` is made readable when it may.
    pub(super) fn has_room_for_console(&self, room: &Arc<EventFd>) -> bool {
        let mut inner = self.lock();
        let has = inner.gate.tap().has_room();
        inner.console_waits = (!has).then(|| Arc::clone(room));
        has
    }

    /// A disk that both hosts see: the guest changes it now. `None`: the change may go there; else it
    /// waits for the commit of this epoch.
    pub(crate) fn change_of_shared_disk(&self) -> Option<Epoch> {
        let mut inner = self.lock();
        let waiting = inner.gate.ask_to_leave()?;
        self.tell_of_waiting(inner, waiting.first);
        Some(waiting.epoch)
    }

    /// Whether a change that waited for this epoch may go to the shared disk. If not, `wake` becomes
    /// readable when that may have changed.
    pub(crate) fn may_change_shared_disk(&self, epoch: Epoch, wake: &Arc<EventFd>) -> bool {
        let mut inner = self.lock();
        let may = inner.gate.may_leave(epoch);
        if !may && !inner.disks_wait.iter().any(|disk| Arc::ptr_eq(disk, wake)) {
            inner.disks_wait.push(Arc::clone(wake));
        }
        may
    }

    fn queue(&self, mut inner: MutexGuard<'_, Inner>, kind: OutputKind, bytes: &[u8]) {
        let first = inner.gate.push(kind, bytes);
        self.tell_of_waiting(inner, first);
    }

    /// Something waits for the open epoch's checkpoint, as the first or not, or may leave.
    fn tell_of_waiting(&self, mut inner: MutexGuard<'_, Inner>, first: bool) {
        let held = inner.gate.tap().has_pending();
        if first && held {
            inner.output_since = Some(clock::now());
        }
        drop(inner);
        if !held {
            self.changed.notify_all();
        } else if first {
            let _ = self.inputs.send(Input::OutputQueued);
        }
    }
}

/// What decides whether something that waits may leave.
fn rights(gate: &OutputGate) -> (Permission, Epoch) {
    (gate.licence().permission(), gate.tap().committed())
}

impl ConsoleOutput for Outputs {
    fn write(&self, bytes: &[u8]) {
        self.queue(self.lock(), OutputKind::Console, bytes);
    }

    fn has_room(&self) -> bool {
        let mut inner = self.lock();
        let room = inner.gate.tap().has_room();
        // Never taken back here: another vCPU may be the one that waits.
        if !room {
            inner.waits_at = inner.run_gate.clone();
        }
        room
    }
}
