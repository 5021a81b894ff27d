// SPDX-License-Identifier: Apache-2.0
//! The gate between the vCPU thread and its controller: who may run, who waits, who woke whom.
//!
//! The controller states what it wants (`park`, `run`, `exit`) and the vCPU thread states when it is
//! parked. A parked vCPU thread holds no lock and has no half-done instruction. A run that ended
//! (power-off, reset, crash) stays parked, whatever is wanted, until it is [`reopened`](Gate::reopen).
//!
//! The gate does not get the thread out of the guest; that is the [kick](crate::vcpu::kick).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Park,
    Run,
    Exit,
}

/// What the vCPU thread shall do after waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    Run,
    Exit,
}

/// Why the vCPU thread came to the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parking {
    /// Its controller wants it to stop.
    Asked,
    /// The console had no room; the number of wake-ups it had seen when it asked.
    NoRoom { wakes_seen: u64 },
    /// The guest's run is over.
    Ended,
}

#[derive(Debug)]
struct State {
    wanted: Wanted,
    parked: bool,
    ended: bool,
    wakes: u64,
}

#[derive(Debug)]
pub(crate) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
    /// Mirrors `wanted != Run`, for the vCPU thread to read between two guest entries.
    leave: AtomicBool,
}

impl Gate {
    pub(crate) fn new() -> Self {
        Self {
            state: Mutex::new(State {
                wanted: Wanted::Park,
                parked: false,
                ended: false,
                wakes: 0,
            }),
            changed: Condvar::new(),
            leave: AtomicBool::new(true),
        }
    }

    /// vCPU thread: whether to come to the gate before entering the guest again.
    pub(crate) fn must_leave(&self) -> bool {
        self.leave.load(Ordering::SeqCst)
    }

    /// vCPU thread: number of wake-ups so far; to be read before asking the console for room.
    pub(crate) fn wakes(&self) -> u64 {
        self.lock().wakes
    }

    /// vCPU thread: parks, says so, calls `once_parked`, and waits for the next order.
    pub(crate) fn wait(&self, why: Parking, once_parked: impl FnOnce()) -> Order {
        let mut state = self.lock();
        state.parked = true;
        if why == Parking::Ended {
            state.ended = true;
        }
        self.changed.notify_all();
        drop(state);
        once_parked();
        let mut state = self.lock();
        loop {
            let room = match why {
                Parking::NoRoom { wakes_seen } => state.wakes != wakes_seen,
                Parking::Asked | Parking::Ended => true,
            };
            match state.wanted {
                Wanted::Exit => return Order::Exit,
                Wanted::Run if room && !state.ended => break,
                Wanted::Run | Wanted::Park => {}
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.parked = false;
        Order::Run
    }

    /// Controller: wants the vCPU parked. Returns whether it must be kicked out of the guest.
    pub(crate) fn ask_park(&self) -> bool {
        let mut state = self.lock();
        self.want(&mut state, Wanted::Park);
        !state.parked
    }

    /// Controller: waits until the vCPU is parked; `false` when `limit` passed before.
    pub(crate) fn wait_parked(&self, limit: Duration) -> bool {
        let (state, _) = self
            .changed
            .wait_timeout_while(self.lock(), limit, |state| !state.parked)
            .unwrap_or_else(PoisonError::into_inner);
        state.parked
    }

    /// Controller: lets the vCPU run, unless its run has ended.
    pub(crate) fn ask_run(&self) {
        let mut state = self.lock();
        if !state.ended {
            // Who waited for console room before a pause asks for it anew after it.
            state.wakes = state.wakes.wrapping_add(1);
            self.want(&mut state, Wanted::Run);
        }
    }

    /// Controller: the thread shall end. Returns whether it must be kicked out of the guest.
    pub(crate) fn ask_exit(&self) -> bool {
        let mut state = self.lock();
        self.want(&mut state, Wanted::Exit);
        !state.parked
    }

    /// Controller: a new state was loaded, so an ended run no longer counts.
    pub(crate) fn reopen(&self) {
        let mut state = self.lock();
        state.ended = false;
        self.want(&mut state, Wanted::Park);
    }

    /// Parked, and staying so until told otherwise. (Waiting for console room is not that.)
    pub(crate) fn is_paused(&self) -> bool {
        let state = self.lock();
        state.parked && (state.wanted == Wanted::Park || state.ended)
    }

    /// The console may have room again.
    pub(crate) fn wake(&self) {
        let mut state = self.lock();
        state.wakes = state.wakes.wrapping_add(1);
        self.changed.notify_all();
    }

    fn want(&self, state: &mut State, wanted: Wanted) {
        if state.wanted == Wanted::Exit {
            return;
        }
        state.wanted = wanted;
        self.leave.store(wanted != Wanted::Run, Ordering::SeqCst);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is plain data, valid at every step, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets the owner of the console wake a vCPU that waits for room. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct RunGate(pub(crate) Arc<Gate>);

impl RunGate {
    /// To be called whenever the console has room again. Harmless at any other time.
    pub fn wake(&self) {
        self.0.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ended_run_stays_parked_until_reopened() {
        let gate = Arc::new(Gate::new());
        gate.ask_run();
        let thread = std::thread::spawn({
            let gate = Arc::clone(&gate);
            move || gate.wait(Parking::Ended, || {})
        });
        assert!(gate.wait_parked(Duration::from_secs(60)));
        gate.ask_run();
        assert!(gate.is_paused());
        gate.reopen();
        assert!(gate.is_paused());
        gate.ask_run();
        assert_eq!(thread.join().unwrap(), Order::Run);
    }

    #[test]
    fn a_wake_up_between_asking_for_room_and_parking_is_not_lost() {
        let gate = Gate::new();
        gate.ask_run();
        let wakes_seen = gate.wakes();
        gate.wake();
        assert_eq!(gate.wait(Parking::NoRoom { wakes_seen }, || {}), Order::Run);
    }
}
