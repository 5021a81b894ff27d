// SPDX-License-Identifier: Apache-2.0
//! Boots a guest and moves it to and fro between two machines of this process while it runs:
//! `shuttle KERNEL INITRD CMDLINE MIB PERIOD_MS MOVES VCPUS CPU` (an empty INITRD is none).
//!
//! Only changed pages are copied, and the state goes through its encoding, so a guest that runs well
//! through thousands of moves shows that state and dirty tracking are whole. Times of each step go
//! to standard error at the end.

use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use kemari_vmm::backend::Backends;
use kemari_vmm::{
    BootSource, ConsoleOutput, DirtyTracking, GuestEvent, Machine, MachineConfig, MachineState,
    MemoryOptions, MemorySize, PAGE_SIZE, PageIndex, VcpuCount,
};

type Failure = Box<dyn std::error::Error>;

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

/// Durations of one step over all moves.
#[derive(Default)]
struct Times(Vec<Duration>);

impl Times {
    fn add<T>(&mut self, step: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = step();
        self.0.push(start.elapsed());
        result
    }

    fn report(&mut self, name: &str) {
        self.0.sort_unstable();
        let at = |percent: usize| {
            self.0
                .get((self.0.len() * percent / 100).min(self.0.len() - 1))
        };
        eprintln!("{name}: median {:?}, 99 % {:?}", at(50), at(99));
    }
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kernel, initrd, cmdline, mib, period, moves, vcpus, cpu] = arguments.as_slice() else {
        return Err("usage: shuttle KERNEL INITRD CMDLINE MIB PERIOD_MS MOVES VCPUS CPU".into());
    };
    let config = MachineConfig {
        memory: MemorySize::from_mib(mib.parse()?)?,
        rng: kemari_vmm::Presence::Present,
        balloon: None,
        vcpus: VcpuCount::new(vcpus.parse()?)?,
        cpu: cpu.parse()?,
        memory_options: MemoryOptions::default(),
        dirty_tracking: DirtyTracking::Auto,
        boot: BootSource {
            kernel: PathBuf::from(kernel).into(),
            initrd: Some(initrd.as_str())
                .filter(|path| !path.is_empty())
                .map(Into::into),
            cmdline: cmdline.clone(),
        },
    };
    let (sender, events) = mpsc::channel();
    let mut here = Machine::new(
        config.clone(),
        Backends::new(Arc::new(Stdout)),
        sender.clone(),
    )?;
    let mut there = Machine::new(config, Backends::new(Arc::new(Stdout)), sender)?;
    // Both memories are zero, hence equal, when tracking begins.
    here.start_dirty_tracking()?;
    there.start_dirty_tracking()?;
    here.boot()?;
    let period = Duration::from_millis(period.parse()?);
    let mut steps = [const { Times(Vec::new()) }; 5];
    for _ in 0..moves.parse::<u64>()? {
        here.resume();
        match events.recv_timeout(period) {
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Ok(GuestEvent::PowerOff) => break,
            Ok(event) => return Err(format!("the guest ended: {event:?}").into()),
            Err(error) => return Err(error.into()),
        }
        move_guest(&mut here, &mut there, &mut steps)?;
        std::mem::swap(&mut here, &mut there);
    }
    eprintln!("\n{} moves", steps[0].0.len());
    for (times, name) in steps
        .iter_mut()
        .zip(["pause", "save", "harvest", "copy pages", "restore"])
    {
        times.report(name);
    }
    Ok(())
}

fn move_guest(
    here: &mut Machine,
    there: &mut Machine,
    [pause, save, harvest, copy, restore]: &mut [Times; 5],
) -> Result<(), Failure> {
    pause.add(|| here.pause())?;
    let state = save.add(|| here.save().map(|state| state.encode()))?;
    let dirty = harvest.add(|| here.harvest_dirty())?;
    let (from, to) = (here.memory(), there.memory());
    copy.add(|| -> Result<(), Failure> {
        let mut page = [0; PAGE_SIZE];
        for index in dirty.iter() {
            from.read_page(index, &mut page)?;
            to.write_page(index, &page)?;
        }
        Ok(())
    })?;
    // The copying itself is no change on the other side.
    there.harvest_dirty()?;
    debug_assert!(equal(here, there), "the memories differ after a move");
    restore.add(|| -> Result<(), Failure> { Ok(there.restore(&MachineState::decode(&state)?)?) })
}

/// Whether two paused machines have the same memory. Slow; only checked when KEMARI_SHUTTLE_CHECK is set.
fn equal(one: &Machine, other: &Machine) -> bool {
    if std::env::var_os("KEMARI_SHUTTLE_CHECK").is_none() {
        return true;
    }
    let (one, other) = (one.memory(), other.memory());
    let mut pages = [[0; PAGE_SIZE]; 2];
    (0..one.page_count()).map(PageIndex).all(|index| {
        let [a, b] = &mut pages;
        one.read_page(index, a).is_ok() && other.read_page(index, b).is_ok() && a == b
    })
}
