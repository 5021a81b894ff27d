// SPDX-License-Identifier: Apache-2.0
//! Boots a guest on this host's KVM and shows its console: `boot KERNEL [INITRD] [CMDLINE] [MIB]
//! [VCPUS] [CPU]` (an empty INITRD is none). Ends when the guest switches itself off, resets or crashes.
//! Standard input goes to the guest's serial line.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, mpsc};

use kemari_vmm::backend::Backends;
use kemari_vmm::{
    BootSource, ConsoleOutput, CpuModel, DirtyTracking, GuestEvent, Machine, MachineConfig,
    MemoryOptions, MemorySize, VcpuCount,
};

/// Writes straight to standard output.
struct Stdout;

impl ConsoleOutput for Stdout {
    fn write(&self, bytes: &[u8]) {
        let mut stdout = std::io::stdout().lock();
        // Nobody to tell when standard output is closed.
        let _ = stdout.write_all(bytes).and_then(|()| stdout.flush());
    }

    fn has_room(&self) -> bool {
        true
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("boot: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                eprintln!("  because: {error}");
                cause = error.source();
            }
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let kernel = arguments
        .next()
        .ok_or("usage: boot KERNEL [INITRD] [CMDLINE] [MIB] [VCPUS] [CPU]")?;
    let initrd = arguments.next().filter(|path| !path.is_empty());
    let cmdline = arguments
        .next()
        .unwrap_or_else(|| "console=ttyS0 panic=-1".to_owned());
    let mib = arguments.next().map_or(Ok(256), |text| text.parse())?;
    let vcpus = arguments.next().map_or(Ok(1), |text| text.parse())?;
    let cpu = arguments
        .next()
        .map_or(Ok(CpuModel::Host), |text| text.parse())?;
    let config = MachineConfig {
        memory: MemorySize::from_mib(mib)?,
        rng: kemari_vmm::Presence::Present,
        balloon: None,
        vcpus: VcpuCount::new(vcpus)?,
        cpu,
        memory_options: MemoryOptions::default(),
        dirty_tracking: DirtyTracking::Auto,
        boot: BootSource {
            kernel: PathBuf::from(kernel).into(),
            initrd: initrd.map(|path| PathBuf::from(path).into()),
            cmdline,
        },
    };
    let (events, ended) = mpsc::channel();
    let mut machine = Machine::new(config, Backends::new(Arc::new(Stdout)), events)?;
    machine.boot()?;
    machine.resume();
    let input = machine.console_input();
    std::thread::spawn(move || {
        let mut bytes = [0; 256];
        while let Ok(count @ 1..) = std::io::stdin().read(&mut bytes) {
            let _ = input.push(bytes.get(..count).unwrap_or_default());
        }
    });
    match ended.recv()? {
        GuestEvent::PowerOff => eprintln!("boot: the guest switched itself off"),
        GuestEvent::Reset => eprintln!("boot: the guest asked for a reset"),
        GuestEvent::TripleFault => eprintln!("boot: a triple fault"),
        GuestEvent::MemoryFailed { reason } => {
            return Err(format!("the host's memory failed: {reason}").into());
        }
        GuestEvent::Crashed { reason } => return Err(format!("the guest crashed: {reason}").into()),
    }
    Ok(())
}
