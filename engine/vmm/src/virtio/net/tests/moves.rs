// SPDX-License-Identifier: Apache-2.0
//! Whatever happens between guest, device and wire, and however often the guest moves to another
//! machine meanwhile: each packet arrives once, whole, and in its order.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use proptest::prelude::*;

use super::wire::{PATIENCE, Wire};
use super::{RECEIVE, TRANSMIT, content, in_chains, net, packet};
use crate::virtio::driver::{Driver, Submitted};
use crate::virtio::state::FunctionState;

/// Descriptors in use at a time, at most.
const IN_USE_MAX: usize = 240;

#[derive(Debug, Clone)]
enum Step {
    Send { bytes: usize, parts: usize },
    Arrive { pair: usize, bytes: usize },
    Offer { buffers: usize, bytes: usize },
    Room(usize),
    Pause,
    Resume,
    Move,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (13usize..4000, 1usize..4).prop_map(|(bytes, parts)| Step::Send { bytes, parts }),
        4 => (0usize..2, 16usize..4000).prop_map(|(pair, bytes)| Step::Arrive { pair, bytes }),
        4 => (1usize..12, 64usize..2000).prop_map(|(buffers, bytes)| Step::Offer { buffers, bytes }),
        2 => (0usize..6).prop_map(Step::Room),
        1 => Just(Step::Pause),
        1 => Just(Step::Resume),
        2 => Just(Step::Move),
    ]
}

type Packets = Vec<Vec<u8>>;

/// The guest, and what it knows.
struct Guest {
    driver: Option<Driver>,
    wire: Wire,
    sent: Packets,
    /// Descriptors of each packet being sent.
    sending: VecDeque<usize>,
    arrived: [Packets; 2],
    offered: HashMap<u16, Submitted>,
    used: VecDeque<Vec<u8>>,
    received: Packets,
}

impl Guest {
    fn new() -> Self {
        let wire = Wire::with_room(2, 0);
        Self {
            driver: Some(Driver::start(net(&wire))),
            wire,
            sent: Vec::new(),
            sending: VecDeque::new(),
            arrived: [Vec::new(), Vec::new()],
            offered: HashMap::new(),
            used: VecDeque::new(),
            received: Vec::new(),
        }
    }

    fn driver(&mut self) -> &mut Driver {
        self.driver.as_mut().unwrap()
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Send { bytes, parts } => self.send(bytes, parts),
            Step::Arrive { pair, bytes } => {
                let number = u32::try_from(self.arrived[pair].len()).unwrap();
                let mut packet = packet(number, bytes);
                packet[12 + 3] = u8::try_from(pair).unwrap();
                self.wire.arrive(pair, &packet);
                self.arrived[pair].push(packet);
            }
            Step::Offer { buffers, bytes } => self.offer(buffers, bytes),
            Step::Room(packets) => self.wire.make_room(packets),
            Step::Pause => self.driver().function().pause(),
            Step::Resume => self.driver().function().resume(),
            Step::Move => self.go(),
        }
        self.look();
    }

    fn send(&mut self, bytes: usize, parts: usize) {
        if self.sending.iter().sum::<usize>() + parts > IN_USE_MAX {
            return;
        }
        let packet = packet(u32::try_from(self.sent.len()).unwrap(), bytes);
        let pieces: Vec<&[u8]> = packet.chunks(bytes.div_ceil(parts)).collect();
        self.sending.push_back(pieces.len());
        let driver = self.driver.as_mut().unwrap();
        driver.submit(TRANSMIT, &pieces, &[]);
        driver.ring(TRANSMIT);
        self.sent.push(packet);
    }

    fn offer(&mut self, buffers: usize, bytes: usize) {
        for _ in 0..buffers {
            if self.offered.len() < IN_USE_MAX {
                let chain = self.driver().submit(RECEIVE, &[], &[bytes]);
                self.offered.insert(chain.head, chain);
            }
        }
        self.driver().ring(RECEIVE);
    }

    fn go(&mut self) {
        let driver = self.driver.take().unwrap();
        driver.function().pause();
        let state = postcard::to_stdvec(&driver.function().save()).unwrap();
        let state: FunctionState = postcard::from_bytes(&state).unwrap();
        self.driver = Some(driver.move_to(net(&self.wire), &state));
    }

    /// Collects what the device gave back.
    fn look(&mut self) {
        let driver = self.driver.as_mut().unwrap();
        while driver.try_used(TRANSMIT).is_some() {
            self.sending.pop_front();
        }
        while let Some((head, written)) = driver.try_used(RECEIVE) {
            let chain = self.offered.remove(&head).expect("the chain was offered");
            self.used.push_back(content(driver, &chain, written));
        }
        while let Some(first) = self.used.front() {
            let chains = u16::from_le_bytes([first[10], first[11]]);
            let parts = self.used.drain(..usize::from(chains));
            self.received.push(parts.flatten().collect());
        }
    }

    /// Lets everything come to its end and says what was received, by pair.
    fn finish(mut self) -> (Packets, [Packets; 2], Self) {
        self.wire.make_room(usize::MAX);
        self.driver().function().resume();
        let sent = self.wire.sent(self.sent.len());
        let expected: usize = self.arrived.iter().map(Vec::len).sum();
        let begin = Instant::now();
        while self.received.len() < expected {
            assert!(begin.elapsed() < PATIENCE, "a packet does not arrive");
            let missing = IN_USE_MAX - self.offered.len();
            self.offer(missing, 1526);
            std::thread::yield_now();
            self.look();
        }
        let mut received = [Vec::new(), Vec::new()];
        for packet in std::mem::take(&mut self.received) {
            received[usize::from(packet[12 + 3])].push(packet);
        }
        (sent, received, self)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn nothing_is_lost_and_nothing_doubled(steps in prop::collection::vec(step(), 1..80)) {
        let mut guest = Guest::new();
        for step in &steps {
            guest.take(step);
        }
        let (sent, received, guest) = guest.finish();
        prop_assert_eq!(&sent, &guest.sent);
        for (received, arrived) in received.iter().zip(&guest.arrived) {
            prop_assert_eq!(received.len(), arrived.len());
            for (received, arrived) in received.iter().zip(arrived) {
                let chains = u16::from_le_bytes([received[10], received[11]]);
                prop_assert_eq!(received, &in_chains(arrived.clone(), chains));
            }
        }
    }
}
