// SPDX-License-Identifier: Apache-2.0
//! What fuzzers and tests feed with hostile bytes: a guest's driver, a guest's PCI accesses, a kernel
//! file, a machine state.
//!
//! Each [`Target`] is a plain function of bytes. It makes what it needs anew, uses neither KVM, files
//! nor threads, and panics when something that must hold does not. cargo-fuzz runs them guided by
//! coverage (`make fuzz`), and this crate's tests run them on every kept input and some random ones.
//! docs/fuzzing.md says how.
//!
//! Bytes beyond the input's end are zeroes, and every input means something: a fuzzer that changes
//! one byte changes one step of what the guest does, not all that follow.

mod benches;
mod boot;
mod device;
mod guest;
mod input;
mod pci;
mod platform;
mod state;
#[cfg(test)]
mod tests;

/// A function that must come back, whatever the bytes.
pub type Target = fn(&[u8]);

/// All targets by name, which is that of their directories of inputs too.
pub const TARGETS: [(&str, Target); 8] = [
    ("virtio_rng", virtio_rng),
    ("virtio_console", virtio_console),
    ("virtio_balloon", virtio_balloon),
    ("virtio_block", virtio_block),
    ("virtio_net", virtio_net),
    ("pci", pci::access),
    ("boot", boot::load),
    ("state", state::load),
];

/// The entropy device, driven by a hostile guest.
pub fn virtio_rng(data: &[u8]) {
    device::drive(data, benches::rng);
}

/// The console, driven by a hostile guest.
pub fn virtio_console(data: &[u8]) {
    device::drive(data, benches::console);
}

/// The balloon, driven by a hostile guest.
pub fn virtio_balloon(data: &[u8]) {
    device::drive(data, benches::balloon);
}

/// A disk, driven by a hostile guest.
pub fn virtio_block(data: &[u8]) {
    device::drive(data, benches::block);
}

/// A network interface, driven by a hostile guest.
pub fn virtio_net(data: &[u8]) {
    device::drive(data, benches::net);
}

/// Configuration space, BARs, doorbells and MSI-X of a bus with two devices.
pub fn pci(data: &[u8]) {
    pci::access(data);
}

/// The boot loader, given a hostile kernel file.
pub fn boot(data: &[u8]) {
    boot::load(data);
}

/// The decoder of machine states, and what loads the state of virtio devices.
pub fn state(data: &[u8]) {
    state::load(data);
}
