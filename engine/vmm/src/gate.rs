// SPDX-License-Identifier: Apache-2.0
//! The gate between the vCPU threads and their controller: who may run, who waits, who woke whom.
//!
//! The controller states what it wants of all (`park`, `run`, `exit`) and each vCPU thread states when
//! it is parked, at its own *seat*. A parked thread holds no lock and has no half-done instruction; it
//! can be given a job meanwhile, which counts as being parked.
//!
//! A run that one vCPU ends (power-off, reset, crash) is ended for all: the others are kicked out of the
//! guest, and everybody stays parked, whatever is wanted, until the gate is [reopened](Gate::reopen).
//! The owner hears of it once, when all are parked: the first event counts, later ones are dropped.
//!
//! All threads are kicked before any is waited for: in Cloud Hypervisor that took the pause of 254
//! vCPUs from 254 ms to 4 ms. The [kick](crate::vcpu::kick) works wherever a thread is.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vmm_sys_util::errno;

use crate::config::{VcpuCount, VcpuIndex};
use crate::event::GuestEvent;
use crate::vcpu::kick::KickHandle;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Park,
    Run,
    Exit,
}

/// What a vCPU thread shall do after waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    Run,
    Exit,
}

/// Why a vCPU thread came to the gate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Parking {
    /// It must leave the guest.
    Asked,
    /// The console had no room; the number of wake-ups there had been when it asked.
    NoRoom { wakes_seen: u64 },
    /// The guest's run is over.
    Ended(GuestEvent),
}

/// Work for a parked vCPU thread.
pub(crate) type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Seat {
    thread: Option<KickHandle>,
    parked: bool,
    job: Option<Job>,
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seat")
            .field("thread", &self.thread)
            .field("parked", &self.parked)
            .field("has_job", &self.job.is_some())
            .finish()
    }
}

#[derive(Debug)]
struct State {
    wanted: Wanted,
    seats: Vec<Seat>,
    /// Seats that are not parked.
    running: usize,
    ended: bool,
    /// What ended the run, until the owner is told.
    untold: Option<GuestEvent>,
}

#[derive(Debug)]
pub(crate) struct Gate {
    state: Mutex<State>,
    /// For the vCPU threads: something is wanted of them.
    order_given: Condvar,
    /// For the controller.
    all_parked: Condvar,
    /// Whether the guest must be left; for the vCPU threads to read between two entries.
    leave: AtomicBool,
    /// Wake-ups for console room. Changed under the lock only.
    wakes: AtomicU64,
    events: Sender<GuestEvent>,
}

impl Gate {
    pub(crate) fn new(vcpus: VcpuCount, events: Sender<GuestEvent>) -> Self {
        let seats: Vec<Seat> = vcpus.indexes().map(|_| Seat::default()).collect();
        Self {
            state: Mutex::new(State {
                wanted: Wanted::Park,
                running: seats.len(),
                seats,
                ended: false,
                untold: None,
            }),
            order_given: Condvar::new(),
            all_parked: Condvar::new(),
            leave: AtomicBool::new(true),
            wakes: AtomicU64::new(0),
            events,
        }
    }

    /// vCPU thread, first of all: from now on this thread is the one to kick.
    pub(crate) fn take_seat(&self, vcpu: VcpuIndex) {
        if let Some(seat) = self.lock().seat(vcpu) {
            seat.thread = Some(KickHandle::of_this_thread());
        }
    }

    /// vCPU thread: whether to come to the gate before entering the guest again.
    pub(crate) fn must_leave(&self) -> bool {
        self.leave.load(Ordering::SeqCst)
    }

    /// vCPU thread: number of wake-ups so far; to be read before asking the console for room.
    pub(crate) fn wakes(&self) -> u64 {
        self.wakes.load(Ordering::SeqCst)
    }

    /// vCPU thread: parks, says so, does the jobs it is given and waits for the next order.
    pub(crate) fn wait(&self, vcpu: VcpuIndex, why: Parking) -> Order {
        let mut state = self.lock();
        let wakes_seen = match why {
            Parking::Asked => None,
            Parking::NoRoom { wakes_seen } => Some(wakes_seen),
            Parking::Ended(event) => {
                self.end(&mut state, vcpu, event);
                None
            }
        };
        self.park(&mut state, vcpu);
        loop {
            if let Some(job) = state.seat(vcpu).and_then(|seat| seat.job.take()) {
                drop(state);
                // What a job that panics owes its giver is dropped, which the giver notices.
                let _ = catch_unwind(AssertUnwindSafe(job));
                state = self.lock();
                continue;
            }
            let room = wakes_seen.is_none_or(|seen| self.wakes() != seen);
            match state.wanted {
                Wanted::Exit => return Order::Exit,
                Wanted::Run if room && !state.ended => break,
                Wanted::Run | Wanted::Park => {}
            }
            state = self
                .order_given
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.unpark(vcpu);
        Order::Run
    }

    /// The first event ends the run for all vCPUs.
    fn end(&self, state: &mut State, vcpu: VcpuIndex, event: GuestEvent) {
        if state.ended {
            return;
        }
        state.ended = true;
        state.untold = Some(event);
        self.leave.store(true, Ordering::SeqCst);
        if let Err(error) = state.kick_running(Some(vcpu)) {
            // Nothing more can be done here; the owner's own pause will say which one is stuck.
            tracing::error!(%error, "Cannot signal a vCPU thread at the end of the guest's run");
        }
    }

    fn park(&self, state: &mut State, vcpu: VcpuIndex) {
        state.park(vcpu);
        if state.running > 0 {
            return;
        }
        if let Some(event) = state.untold.take() {
            // The owner may be gone already; then nobody needs to know. Sent under the lock (it
            // never blocks), so that who finds the machine paused also finds the event.
            let _ = self.events.send(event);
        }
        self.all_parked.notify_all();
    }

    /// Controller: wants all vCPUs parked and kicks those that are not out of the guest.
    pub(crate) fn ask_park(&self) -> Result<(), errno::Error> {
        let mut state = self.lock();
        self.want(&mut state, Wanted::Park);
        state.kick_running(None)
    }

    /// Controller: waits until all vCPUs are parked; the first that is not when `limit` has passed.
    pub(crate) fn wait_parked(&self, limit: Duration) -> Result<(), usize> {
        let (state, _) = self
            .all_parked
            .wait_timeout_while(self.lock(), limit, |state| state.running > 0)
            .unwrap_or_else(PoisonError::into_inner);
        match state.seats.iter().position(|seat| !seat.parked) {
            None => Ok(()),
            Some(stuck) => Err(stuck),
        }
    }

    /// Controller: lets the vCPUs run, unless their run has ended.
    pub(crate) fn ask_run(&self) {
        let mut state = self.lock();
        if !state.ended {
            // Who waited for console room before a pause asks for it anew after it.
            self.wakes.fetch_add(1, Ordering::SeqCst);
            self.want(&mut state, Wanted::Run);
        }
    }

    /// Controller: the threads shall end; kicks those that are not parked.
    pub(crate) fn ask_exit(&self) -> Result<(), errno::Error> {
        let mut state = self.lock();
        self.want(&mut state, Wanted::Exit);
        state.kick_running(None)
    }

    /// Controller: a new state was loaded, so an ended run no longer counts.
    pub(crate) fn reopen(&self) {
        let mut state = self.lock();
        state.ended = false;
        self.want(&mut state, Wanted::Park);
    }

    /// Controller, while paused: work for a parked thread. At most one at a time.
    pub(crate) fn give(&self, vcpu: VcpuIndex, job: Job) {
        if let Some(seat) = self.lock().seat(vcpu) {
            seat.job = Some(job);
        }
        self.order_given.notify_all();
    }

    /// All parked, and staying so until told otherwise. (Waiting for console room is not that.)
    pub(crate) fn is_paused(&self) -> bool {
        let state = self.lock();
        state.running == 0 && (state.wanted == Wanted::Park || state.ended)
    }

    /// The console may have room again.
    pub(crate) fn wake(&self) {
        let _state = self.lock();
        self.wakes.fetch_add(1, Ordering::SeqCst);
        self.order_given.notify_all();
    }

    fn want(&self, state: &mut State, wanted: Wanted) {
        if state.wanted == Wanted::Exit {
            return;
        }
        state.wanted = wanted;
        self.leave.store(wanted != Wanted::Run, Ordering::SeqCst);
        self.order_given.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is plain data, valid at every step, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn seat(&mut self, vcpu: VcpuIndex) -> Option<&mut Seat> {
        self.seats.get_mut(vcpu.place())
    }

    fn park(&mut self, vcpu: VcpuIndex) {
        let was_parked = self
            .seat(vcpu)
            .is_none_or(|seat| std::mem::replace(&mut seat.parked, true));
        if !was_parked {
            self.running -= 1;
        }
    }

    fn unpark(&mut self, vcpu: VcpuIndex) {
        let was_parked = self
            .seat(vcpu)
            .is_some_and(|seat| std::mem::replace(&mut seat.parked, false));
        if was_parked {
            self.running += 1;
        }
    }

    /// Kicks every thread that is not parked, but for one; tells a failure after trying all.
    fn kick_running(&self, except: Option<VcpuIndex>) -> Result<(), errno::Error> {
        let except = except.map(VcpuIndex::place);
        let mut result = Ok(());
        for (place, seat) in self.seats.iter().enumerate() {
            // A thread without a handle is only beginning and comes here by itself.
            if let Some(thread) = seat.thread
                && !seat.parked
                && Some(place) != except
                && let Err(error) = thread.kick()
            {
                result = Err(error);
            }
        }
        result
    }
}

/// Lets the owner of the console wake vCPUs that wait for room. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct RunGate(pub(crate) Arc<Gate>);

impl RunGate {
    /// To be called whenever the console has room again. Harmless at any other time.
    pub fn wake(&self) {
        self.0.wake();
    }
}

#[cfg(test)]
mod tests;
