// SPDX-License-Identifier: Apache-2.0
//! Getting a vCPU thread out of the guest, without a race.
//!
//! A signal that lands just before `KVM_RUN` would be lost, and the guest would run on. So the
//! handler, which runs on the vCPU thread itself, also sets `kvm_run->immediate_exit`: then the next
//! `KVM_RUN` returns `EINTR` at once (KVM API, section 5, `immediate_exit`). The thread clears the
//! flag *before* it looks at what its controller wants, and the controller states its wish *before*
//! it sends the signal; whichever way they interleave, one of the two is seen.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::marker::PhantomData;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_ioctls::VcpuFd;
use vmm_sys_util::errno;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

thread_local! {
    /// `immediate_exit` of the vCPU that this thread runs; null on every other thread.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(std::ptr::null_mut()) };
}

/// The vCPU thread's side: the flag of the vCPU it runs, registered for the signal handler.
///
/// It is bound to the thread that made it.
#[derive(Debug)]
pub(crate) struct KickTarget {
    flag: *mut u8,
    _bound_to_thread: PhantomData<*mut ()>,
}

impl KickTarget {
    /// Makes this thread's kicks interrupt `vcpu`.
    ///
    /// # Safety
    /// `vcpu` must not be dropped before the returned value.
    pub(crate) unsafe fn register(vcpu: &mut VcpuFd) -> Self {
        let flag = std::ptr::from_mut(&mut vcpu.get_kvm_run().immediate_exit);
        IMMEDIATE_EXIT.set(flag);
        Self {
            flag,
            _bound_to_thread: PhantomData,
        }
    }

    /// Forgets earlier kicks. What the controller wants must be looked at after this.
    pub(crate) fn clear(&self) {
        self.atomic().store(0, Ordering::SeqCst);
    }

    /// Makes the next `KVM_RUN` finish the pending exit and return without entering the guest.
    pub(crate) fn set(&self) {
        self.atomic().store(1, Ordering::SeqCst);
    }

    fn atomic(&self) -> &AtomicU8 {
        // SAFETY: `flag` points into the `kvm_run` mapping, which lives as long as the vCPU and
        // therefore longer than `self`. This crate only ever accesses that byte atomically.
        unsafe { AtomicU8::from_ptr(self.flag) }
    }
}

impl Drop for KickTarget {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(std::ptr::null_mut());
    }
}

extern "C" fn on_kick(_: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: a non-null flag belongs to a live `KickTarget` of this thread (its drop sets
        // null), so the byte is mapped. An atomic store is async-signal-safe.
        unsafe { AtomicU8::from_ptr(flag) }.store(1, Ordering::SeqCst);
    }
}

/// Installs the handler of the kick signal (`SIGRTMIN`), once per process.
pub(crate) fn install_handler() -> Result<(), errno::Error> {
    static INSTALLED: OnceLock<Result<(), errno::Error>> = OnceLock::new();
    *INSTALLED.get_or_init(|| register_signal_handler(SIGRTMIN(), on_kick))
}

/// A vCPU thread as others reach it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KickHandle {
    thread: libc::pid_t,
}

impl KickHandle {
    /// Of the calling thread.
    pub(crate) fn of_this_thread() -> Self {
        Self {
            thread: nix::unistd::gettid().as_raw(),
        }
    }

    /// Interrupts the thread's vCPU, wherever it is.
    pub(crate) fn kick(self) -> Result<(), errno::Error> {
        let process = nix::unistd::getpid().as_raw();
        // SAFETY: the call takes numbers only. A thread that has ended is not found; should its
        // number be that of another thread of this process by now, the handler does nothing there.
        let result = unsafe { libc::syscall(libc::SYS_tgkill, process, self.thread, SIGRTMIN()) };
        if result != 0 {
            return errno::errno_result();
        }
        Ok(())
    }
}
