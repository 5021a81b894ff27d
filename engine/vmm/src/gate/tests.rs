// SPDX-License-Identifier: Apache-2.0
//! The gate without KVM: threads that only park.

use super::*;
use std::sync::mpsc::{self, Receiver};
use std::thread::JoinHandle;

const LONG: Duration = Duration::from_secs(60);

fn gate(vcpus: u32) -> (Arc<Gate>, Receiver<GuestEvent>) {
    crate::vcpu::kick::install_handler().unwrap();
    let (sender, events) = mpsc::channel();
    let count = VcpuCount::new(vcpus).unwrap();
    (Arc::new(Gate::new(count, sender)), events)
}

/// Threads that come to the gate once, each for its own reason.
fn parked(gate: &Arc<Gate>, reasons: Vec<Parking>) -> Vec<JoinHandle<Order>> {
    let count = VcpuCount::new(reasons.len().try_into().unwrap()).unwrap();
    count
        .indexes()
        .zip(reasons)
        .map(|(vcpu, why)| {
            let gate = Arc::clone(gate);
            std::thread::spawn(move || {
                gate.take_seat(vcpu);
                gate.wait(vcpu, why)
            })
        })
        .collect()
}

#[test]
fn an_ended_run_stays_parked_until_reopened() {
    let (gate, events) = gate(1);
    gate.ask_run();
    let threads = parked(&gate, vec![Parking::Ended(GuestEvent::Reset)]);
    assert_eq!(gate.wait_parked(LONG), Ok(()));
    assert_eq!(events.recv(), Ok(GuestEvent::Reset));
    gate.ask_run();
    assert!(gate.is_paused());
    gate.reopen();
    assert!(gate.is_paused());
    gate.ask_run();
    for thread in threads {
        assert_eq!(thread.join().unwrap(), Order::Run);
    }
}

#[test]
fn the_owner_hears_of_an_end_once_and_when_all_are_parked() {
    let (gate, events) = gate(3);
    gate.ask_run();
    let mut threads = parked(&gate, vec![Parking::Ended(GuestEvent::PowerOff)]);
    while !gate.must_leave() {
        std::thread::yield_now();
    }
    assert!(events.try_recv().is_err());
    assert!(!gate.is_paused());
    for (vcpu, why) in VcpuCount::new(3).unwrap().indexes().skip(1).zip([
        Parking::Ended(GuestEvent::Reset),
        Parking::NoRoom {
            wakes_seen: gate.wakes(),
        },
    ]) {
        let gate = Arc::clone(&gate);
        threads.push(std::thread::spawn(move || gate.wait(vcpu, why)));
    }
    assert_eq!(events.recv(), Ok(GuestEvent::PowerOff));
    assert!(gate.is_paused());
    gate.wake();
    assert!(gate.is_paused());
    gate.ask_exit().unwrap();
    for thread in threads {
        assert_eq!(thread.join().unwrap(), Order::Exit);
    }
    assert!(events.try_recv().is_err());
}

#[test]
fn a_wake_up_between_asking_for_room_and_parking_is_not_lost() {
    let (gate, _events) = gate(1);
    gate.ask_run();
    let wakes_seen = gate.wakes();
    gate.wake();
    let order = gate.wait(VcpuIndex::BOOT, Parking::NoRoom { wakes_seen });
    assert_eq!(order, Order::Run);
}

#[test]
fn one_that_waits_for_room_does_not_keep_the_others_from_running() {
    let (gate, _events) = gate(2);
    gate.ask_run();
    let wakes_seen = gate.wakes();
    let mut threads = parked(&gate, vec![Parking::NoRoom { wakes_seen }, Parking::Asked]);
    assert_eq!(threads.pop().unwrap().join().unwrap(), Order::Run);
    assert!(!gate.is_paused());
    gate.wake();
    assert_eq!(threads.pop().unwrap().join().unwrap(), Order::Run);
}

#[test]
fn a_parked_thread_does_its_job_and_stays_parked() {
    let (gate, _events) = gate(2);
    let threads = parked(&gate, vec![Parking::Asked, Parking::Asked]);
    assert_eq!(gate.wait_parked(LONG), Ok(()));
    let (sender, results) = mpsc::channel();
    for vcpu in VcpuCount::new(2).unwrap().indexes() {
        let sender = sender.clone();
        gate.give(vcpu, Box::new(move || sender.send(vcpu.place()).unwrap()));
    }
    let mut done = [results.recv().unwrap(), results.recv().unwrap()];
    done.sort_unstable();
    assert_eq!(done, [0, 1]);
    assert!(gate.is_paused());
    gate.ask_exit().unwrap();
    for thread in threads {
        assert_eq!(thread.join().unwrap(), Order::Exit);
    }
}

#[test]
fn who_does_not_park_is_named() {
    let (gate, _events) = gate(2);
    let threads = parked(&gate, vec![Parking::Asked]);
    while gate.lock().running > 1 {
        std::thread::yield_now();
    }
    assert_eq!(gate.wait_parked(Duration::from_millis(1)), Err(1));
    gate.ask_exit().unwrap();
    for thread in threads {
        assert_eq!(thread.join().unwrap(), Order::Exit);
    }
}
