// SPDX-License-Identifier: Apache-2.0
//! Every target, on its seeds, on what once broke it, and on a bounded number of random changes.

use std::path::Path;

use super::*;

#[path = "../../../fuzz/replay.rs"]
mod replay;

fn run(name: &str) {
    let (_, target) = TARGETS
        .iter()
        .find(|(known, _)| *known == name)
        .expect("a target of this name");
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let directories = [
        here.join("../fuzz/seeds").join(name),
        here.join("fuzz-regressions").join(name),
    ];
    replay::replay(*target, &directories);
}

macro_rules! targets {
    ($($name:ident),+) => {
        $(
            #[test]
            fn $name() {
                run(stringify!($name));
            }
        )+

        #[test]
        fn every_target_has_its_test() {
            assert_eq!(TARGETS.map(|(name, _)| name), [$(stringify!($name)),+]);
        }
    };
}

targets!(
    virtio_rng,
    virtio_console,
    virtio_balloon,
    virtio_block,
    virtio_net,
    pci,
    boot,
    state
);

#[test]
fn what_inputs_damage_is_good_at_first() {
    assert!(crate::MachineState::decode(state::template()).is_ok());
    for kernel in [boot::bzimage(), boot::elf()] {
        crate::check_boot(&boot::machine(kernel)).unwrap();
    }
}
