// SPDX-License-Identifier: Apache-2.0
//! A guest that reads and writes configuration space and BARs at random, by ECAM and by the ports.
//!
//! What must hold: a function stays who it is; its doorbells are where its BAR is; a bus that loads
//! the state of another one is like it.

use std::sync::Arc;

use super::guest::Guest;
use super::input::Input;
use super::platform::{Doorbells, Met};
use crate::config::FreePageReporting;
use crate::pci::ports::{self, ConfigPorts};
use crate::pci::{ECAM_BYTES, ECAM_START, PciBus, PciFunction, WINDOW_START};
use crate::vcpu::mmio::MmioHandler;
use crate::virtio::balloon::Balloon;
use crate::virtio::rng::Rng;
use crate::virtio::transport::{BAR_BYTES, VirtioFunction};

const STEPS_MAX: usize = 256;
/// Parts of configuration space that say who a function is: vendor and device, class, subsystem.
const IDENTITY: [(u16, usize); 3] = [(0x00, 4), (0x08, 4), (0x2c, 4)];

struct Bench {
    functions: Vec<Arc<VirtioFunction>>,
    bus: PciBus,
    doorbells: Arc<Doorbells>,
    guest: Guest,
}

impl Bench {
    fn new() -> Self {
        let guest = Guest::new();
        let doorbells = Doorbells::new();
        let balloon = Balloon::new(guest.ram.clone(), FreePageReporting::On);
        let memory = Arc::new(guest.memory().clone());
        let function = |device, slot| {
            let platform = Arc::clone(&doorbells);
            let function = VirtioFunction::new(device, slot, Arc::clone(&memory), platform);
            Arc::new(function.expect("eventfds can be made"))
        };
        let functions = vec![function(Box::new(Rng), 1), function(Box::new(balloon), 2)];
        let on_bus = functions
            .iter()
            .map(|function| Arc::clone(function) as Arc<dyn PciFunction>);
        Self {
            bus: PciBus::new(on_bus),
            functions,
            doorbells,
            guest,
        }
    }

    fn check(&self, met: Met) {
        let functions: Vec<&VirtioFunction> = self.functions.iter().map(Arc::as_ref).collect();
        self.doorbells.check(&functions, met);
    }

    fn have_met(&self) -> bool {
        let mut windows = self
            .functions
            .iter()
            .filter_map(|function| function.window());
        match (windows.next(), windows.next()) {
            (Some(one), Some(other)) => one == other,
            _ => false,
        }
    }

    fn identities(&self) -> Vec<Vec<u8>> {
        let identity = |function: &Arc<VirtioFunction>| {
            IDENTITY.map(|(at, length)| {
                let mut bytes = vec![0; length];
                function.read_config(at, &mut bytes);
                bytes
            })
        };
        self.functions.iter().flat_map(identity).collect()
    }
}

/// Accesses the bus as the bytes say.
pub(super) fn access(data: &[u8]) {
    let bench = Bench::new();
    let identities = bench.identities();
    let mut ports = ConfigPorts::default();
    let mut input = Input::new(data);
    let mut met = Met::Never;
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        let before = bench.guest.snapshot();
        step(&bench, &mut ports, &mut input);
        bench.guest.check_untouched(&before);
        if bench.have_met() {
            met = Met::Once;
        }
        bench.check(met);
    }
    assert_eq!(bench.identities(), identities, "a function became another");
    check_state(&bench, met);
}

fn step(bench: &Bench, ports: &mut ConfigPorts, input: &mut Input<'_>) {
    let kind = input.u8();
    let mut data = input.access();
    let write = kind & 1 == 1;
    if kind >> 1 & 7 == 0 {
        let port = ports::FIRST + u16::from(input.below(8));
        data.truncate(4);
        return if write {
            ports.write(&bench.bus, port, &data);
        } else {
            ports.read(&bench.bus, port, &mut data);
        };
    }
    let address = address(bench, kind >> 1 & 7, input);
    if write {
        bench.bus.write(address, &data);
    } else {
        bench.bus.read(address, &mut data);
    }
}

fn address(bench: &Bench, kind: u8, input: &mut Input<'_>) -> u64 {
    let ecam = u64::from(ECAM_START);
    match kind {
        // A device's first 256 bytes, where everything is.
        1..=3 => ecam + (u64::from(input.below(4)) << 15) + u64::from(input.u8()),
        4 => ecam + u64::from(input.u32() % ECAM_BYTES),
        // Where a BAR is now, or was at first.
        5 => {
            let function = usize::from(input.below(2));
            let window = bench
                .functions
                .get(function)
                .and_then(|function| function.window());
            let start = window.map_or(0, |window| window.start);
            start + u64::from(input.u16())
        }
        6 => u64::from(WINDOW_START) + u64::from(input.u32() % (4 * BAR_BYTES)),
        _ => input.u64(),
    }
}

/// Loads what was saved into another bus.
fn check_state(bench: &Bench, met: Met) {
    let other = Bench::new();
    for (function, into) in bench.functions.iter().zip(&other.functions) {
        let state = function.save();
        into.restore(&state)
            .expect("the state of an alike device fits");
        assert_eq!(into.save(), state);
        assert_eq!(into.window(), function.window());
    }
    other.check(met);
    assert_eq!(other.identities(), bench.identities());
}
