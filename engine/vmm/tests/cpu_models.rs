// SPDX-License-Identifier: Apache-2.0
//! The CPU models that this host can give, on real KVM.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod common;

use std::path::Path;
use std::sync::mpsc;

use common::{Bench, Recorder, copy_memory, guests};
use kemari_vmm::backend::Backends;
use kemari_vmm::{CpuModel, CreateMachineError, Machine, MachineConfig};

fn with_cpu(kernel: &Path, cpu: CpuModel) -> MachineConfig {
    MachineConfig {
        cpu,
        ..common::config(kernel, "", 16)
    }
}

/// The name of the feature that keeps this host from giving guests such a CPU.
fn missing(cpu: CpuModel) -> Option<&'static str> {
    let config = with_cpu(Path::new("/nonexistent"), cpu);
    match Machine::new(config, Backends::new(Recorder::new()), mpsc::channel().0) {
        Ok(_) => None,
        Err(CreateMachineError::CpuModel { model, feature }) => {
            assert_eq!(model, cpu);
            Some(feature)
        }
        Err(other) => panic!("{other}"),
    }
}

fn a_guest_runs_and_moves(cpu: CpuModel) {
    if let Some(feature) = missing(cpu) {
        eprintln!("SKIPPED: the CPU {cpu} needs {feature}, which this host's KVM does not offer");
        return;
    }
    let kernel = guests::write_elf(guests::counter());
    let mut from = Bench::with_config(with_cpu(kernel.path(), cpu));
    let mut to = Bench::with_config(with_cpu(kernel.path(), cpu));
    let [one, other] = [&from, &to].map(|bench| bench.machine.fingerprint());
    assert_eq!(one.difference(&other), None);
    from.machine.boot().unwrap();
    from.machine.resume();
    from.console.wait_for(400);
    from.machine.pause().unwrap();
    copy_memory(&from.machine, &to.machine);
    to.machine.restore(&from.machine.save().unwrap()).unwrap();
    to.machine.resume();
    to.console.wait_for(400);
}

#[test]
fn a_guest_on_the_host_model_runs_and_moves() {
    needs_kvm!();
    a_guest_runs_and_moves(CpuModel::Host);
}

#[test]
fn a_guest_on_level_2_runs_and_moves() {
    needs_kvm!();
    a_guest_runs_and_moves(CpuModel::X86_64V2);
}

#[test]
fn a_guest_on_level_3_runs_and_moves() {
    needs_kvm!();
    a_guest_runs_and_moves(CpuModel::X86_64V3);
}

#[test]
fn a_level_without_what_the_one_below_needs_is_refused_too() {
    needs_kvm!();
    if missing(CpuModel::X86_64V2).is_some() {
        assert!(missing(CpuModel::X86_64V3).is_some());
    }
}
