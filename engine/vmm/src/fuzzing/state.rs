// SPDX-License-Identifier: Apache-2.0
//! Machine states that another host sent, with damage: the decoder, and what loads virtio devices.
//!
//! What must hold: what is decoded is encoded and decoded to the same again; a device that took a
//! state can be served, saved, and loaded from that; and it runs with no features it does not offer.

use std::sync::{Arc, OnceLock};

use super::benches::{self, Bench};
use super::guest::Guest;
use super::input::Input;
use super::platform::Doorbells;
use crate::pci::PciFunction;
use crate::state::{MachineState, STATE_VERSION};
use crate::virtio::Wake;
use crate::virtio::state::FunctionState;
use crate::virtio::transport::VirtioFunction;

/// Batches served after a state was taken.
const BATCHES_MAX: usize = 20;

/// Loads the bytes.
pub(super) fn load(data: &[u8]) {
    let mut input = Input::new(data);
    match input.below(8) {
        0 => decode(input.rest()),
        1 => decode(&[&header()[..], input.rest()].concat()),
        2 | 3 => {
            let mut bytes = template().to_vec();
            input.damage(&mut bytes);
            decode(&bytes);
        }
        kind => load_device(kind - 4, &mut input),
    }
}

fn decode(bytes: &[u8]) {
    let Ok(state) = MachineState::decode(bytes) else {
        return;
    };
    let encoded = state.encode();
    let again = MachineState::decode(&encoded).expect("what is encoded can be decoded");
    assert!(again.encode() == encoded, "a state changed on its way");
}

fn header() -> Vec<u8> {
    let mut bytes = b"KEMARIVM".to_vec();
    bytes.extend(STATE_VERSION.to_le_bytes());
    bytes
}

/// The state of a machine of 64 MiB with one vCPU in which everything else is zero.
pub(super) fn template() -> &'static [u8] {
    static TEMPLATE: OnceLock<Vec<u8>> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let mut body = vec![0; 64 << 10];
        for (byte, value) in body.iter_mut().zip([64, 0, 1]) {
            *byte = value;
        }
        match postcard::take_from_bytes::<MachineState>(&body) {
            Ok((state, _)) => state.encode(),
            Err(_) => Vec::new(),
        }
    })
}

/// A damaged state of one of the devices, which had work to do and work begun.
fn load_device(kind: u8, input: &mut Input<'_>) {
    let make: fn(&mut Input<'_>) -> Box<dyn Bench> = match kind {
        0 => benches::net,
        1 => benches::block,
        2 => benches::balloon,
        _ => benches::console,
    };
    let mut bench = make(input);
    let mut guest = Guest::new();
    let from = function(bench.as_mut(), &guest);
    from.resume();
    let queues = u16::try_from(from.doorbells().len()).expect("a few queues");
    guest.set_up(&from, queues, u64::from(input.u32()));
    bench.stall();
    guest.ask(&bench.request());
    from.serve(Wake::All);
    from.freeze();
    guest.ask(&bench.request());
    let mut bytes = postcard::to_stdvec(&from.save()).expect("plain data can be encoded");
    input.damage(&mut bytes);
    if let Ok(state) = postcard::from_bytes::<FunctionState>(&bytes) {
        take(
            &function(bench.as_mut(), &guest),
            &state,
            bench.as_mut(),
            &guest,
        );
    }
}

fn take(into: &VirtioFunction, state: &FunctionState, bench: &mut dyn Bench, guest: &Guest) {
    if into.restore(state).is_err() {
        return;
    }
    check_features(into);
    into.resume();
    let before = guest.snapshot();
    for _ in 0..BATCHES_MAX {
        into.serve(Wake::All);
    }
    into.pause();
    guest.check_written(&before);
    let saved = into.save();
    let again = function(bench, guest);
    again
        .restore(&saved)
        .expect("the state of an alike device fits");
}

/// A driver that is ready has only features that it was offered.
fn check_features(function: &VirtioFunction) {
    if Guest::status(function) & 4 == 0 {
        return;
    }
    for half in [0u32, 1] {
        let mut words = [[0; 4]; 2];
        let [offered, accepted] = &mut words;
        function.write_window(0x00, &half.to_le_bytes());
        function.write_window(0x08, &half.to_le_bytes());
        function.read_window(0x04, offered);
        function.read_window(0x0c, accepted);
        let [offered, accepted] = words.map(u32::from_le_bytes);
        assert_eq!(accepted & !offered, 0, "features that were not offered");
    }
}

fn function(bench: &mut dyn Bench, guest: &Guest) -> VirtioFunction {
    let memory = Arc::new(guest.memory().clone());
    VirtioFunction::new(bench.device(&guest.ram), 1, memory, Doorbells::new())
        .expect("eventfds can be made")
}
