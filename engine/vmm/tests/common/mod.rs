// SPDX-License-Identifier: Apache-2.0
//! What the tests on real KVM share: bare guests written in assembly, a console that remembers, and
//! a machine around them.
#![allow(dead_code, reason = "each test program uses a part")]
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

#[macro_use]
pub mod guests;
pub mod smp_guests;

use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use kemari_vmm::backend::Backends;
use kemari_vmm::{
    BootSource, ConsoleOutput, CpuModel, DirtyTracking, GuestEvent, Machine, MachineConfig,
    MemoryOptions, MemorySize, PAGE_SIZE, PageIndex, TrackingMode, VcpuCount,
};

/// Longer than anything here takes, so that only a hang reaches it.
pub const LONG: Duration = Duration::from_secs(60);

/// Ends the test early, and says so, on a machine without KVM.
#[macro_export]
macro_rules! needs_kvm {
    () => {
        if !kemari_vmm::kvm_is_usable() {
            eprintln!("SKIPPED: /dev/kvm is missing or may not be opened");
            return;
        }
    };
}

/// Remembers what the guest wrote; has room for a settable number of bytes.
pub struct Recorder {
    state: Mutex<Recorded>,
    grown: Condvar,
}

struct Recorded {
    bytes: Vec<u8>,
    limit: usize,
    /// In step mode: how often there is room still.
    steps: Option<usize>,
    /// How often there was none.
    denials: usize,
}

impl Recorder {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(Recorded {
                bytes: Vec::new(),
                limit: usize::MAX,
                steps: None,
                denials: 0,
            }),
            grown: Condvar::new(),
        })
    }

    /// From now on there is room until `limit` bytes were written in all.
    pub fn limit(&self, limit: usize) {
        self.state.lock().unwrap().limit = limit;
    }

    /// From now on there is room for `count` entries into the guest, that is, exits of it.
    pub fn allow_exits(&self, count: usize) {
        let mut state = self.state.lock().unwrap();
        state.steps = Some(count);
        state.denials = 0;
    }

    /// Waits until the allowed exits are used up.
    pub fn wait_for_denial(&self) {
        let state = self.state.lock().unwrap();
        let (_state, timeout) = self
            .grown
            .wait_timeout_while(state, LONG, |state| state.denials == 0)
            .unwrap();
        assert!(!timeout.timed_out(), "the guest does not exit");
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.state.lock().unwrap().bytes.clone()
    }

    pub fn len(&self) -> usize {
        self.state.lock().unwrap().bytes.len()
    }

    /// Waits until at least `count` bytes were written.
    pub fn wait_for(&self, count: usize) {
        self.wait_at_most(count, LONG);
    }

    /// The same, for a guest that has much to do.
    pub fn wait_long_for(&self, count: usize) {
        self.wait_at_most(count, LONG * 10);
    }

    fn wait_at_most(&self, count: usize, limit: Duration) {
        let (state, timeout) = self
            .grown
            .wait_timeout_while(self.state.lock().unwrap(), limit, |state| {
                state.bytes.len() < count
            })
            .unwrap();
        assert!(
            !timeout.timed_out(),
            "the guest wrote {} of {count} bytes",
            state.bytes.len()
        );
    }
}

impl ConsoleOutput for Recorder {
    fn write(&self, bytes: &[u8]) {
        self.state.lock().unwrap().bytes.extend(bytes);
        self.grown.notify_all();
    }

    fn has_room(&self) -> bool {
        let mut state = self.state.lock().unwrap();
        let room = match &mut state.steps {
            Some(0) => false,
            Some(count) => {
                *count -= 1;
                true
            }
            None => state.bytes.len() < state.limit,
        };
        if !room {
            state.denials += 1;
            self.grown.notify_all();
        }
        room
    }
}

/// A machine with what is needed to look at it.
pub struct Bench {
    pub machine: Machine,
    pub console: Arc<Recorder>,
    pub events: Receiver<GuestEvent>,
}

impl Bench {
    /// A machine of 16 MiB, not booted, that would boot `kernel`.
    pub fn with_kernel(kernel: &Path, cmdline: &str) -> Self {
        Self::with_memory(kernel, cmdline, 16)
    }

    /// The same with `mib` MiB.
    pub fn with_memory(kernel: &Path, cmdline: &str, mib: u32) -> Self {
        Self::with_config(config(kernel, cmdline, mib))
    }

    /// A machine of 16 MiB and so many vCPUs.
    pub fn with_vcpus(kernel: &Path, vcpus: u32) -> Self {
        Self::with_config(MachineConfig {
            vcpus: VcpuCount::new(vcpus).unwrap(),
            ..config(kernel, "", 16)
        })
    }

    /// A machine as described.
    pub fn with_config(config: MachineConfig) -> Self {
        let console = Recorder::new();
        let (sender, events) = channel();
        let output: Arc<dyn ConsoleOutput> = Arc::clone(&console) as _;
        let machine = Machine::new(config, Backends::new(output), sender).expect("KVM works here");
        Self {
            machine,
            console,
            events,
        }
    }

    /// A machine that has booted a bare guest and is about to run it.
    pub fn booted(code: &[u8], cmdline: &str) -> Self {
        let kernel = guests::write_elf(code);
        let mut bench = Self::with_kernel(kernel.path(), cmdline);
        bench.machine.boot().expect("the guest is a good one");
        bench
    }

    /// The same with so many vCPUs.
    pub fn booted_smp(code: &[u8], vcpus: u32) -> Self {
        let kernel = guests::write_elf(code);
        let mut bench = Self::with_vcpus(kernel.path(), vcpus);
        bench.machine.boot().expect("the guest is a good one");
        bench
    }

    /// A machine of so many vCPUs that nothing was loaded into.
    pub fn empty_smp(vcpus: u32) -> Self {
        Self::with_vcpus(Path::new("/nonexistent"), vcpus)
    }

    /// A machine of the same kind that nothing was loaded into.
    pub fn empty() -> Self {
        Self::with_kernel(Path::new("/nonexistent"), "")
    }

    pub fn event(&self) -> GuestEvent {
        self.events
            .recv_timeout(LONG)
            .expect("the guest ends its run")
    }
}

/// The ways of tracking dirty pages that this host offers and that are safe on it.
pub fn safe_trackings() -> Vec<DirtyTracking> {
    let mut safe = vec![DirtyTracking::Bitmap];
    let empty = |tracking| {
        let mut config = config(Path::new("/nonexistent"), "", 16);
        config.dirty_tracking = tracking;
        Machine::new(config, Backends::new(Recorder::new()), channel().0)
    };
    match empty(DirtyTracking::ManualBitmap) {
        Ok(_) => safe.push(DirtyTracking::ManualBitmap),
        Err(error) => eprintln!("SKIPPED: manual bitmap: {error}"),
    }
    match empty(DirtyTracking::Auto).map(|machine| machine.tracking_mode()) {
        Ok(TrackingMode::Ring) => safe.push(DirtyTracking::Ring),
        _ => eprintln!("SKIPPED: dirty ring: not offered, or not safe on this host"),
    }
    safe
}

pub fn config(kernel: &Path, cmdline: &str, mib: u32) -> MachineConfig {
    MachineConfig {
        memory: MemorySize::from_mib(mib).unwrap(),
        rng: kemari_vmm::Presence::Present,
        balloon: None,
        vcpus: VcpuCount::ONE,
        cpu: CpuModel::Host,
        memory_options: MemoryOptions::default(),
        dirty_tracking: DirtyTracking::Auto,
        boot: BootSource {
            kernel: kernel.to_owned().into(),
            initrd: None,
            cmdline: cmdline.to_owned(),
        },
    }
}

/// Copies all memory of one paused machine to another.
pub fn copy_memory(from: &Machine, to: &Machine) {
    let (from, to) = (from.memory(), to.memory());
    let mut page = [0; PAGE_SIZE];
    for index in (0..from.page_count()).map(PageIndex) {
        from.read_page(index, &mut page).unwrap();
        to.write_page(index, &page).unwrap();
    }
}
