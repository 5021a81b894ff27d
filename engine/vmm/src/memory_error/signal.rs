// SPDX-License-Identifier: Apache-2.0
//! The handler of SIGBUS.
//!
//! It may have interrupted anything, so it calls async-signal-safe functions only
//! (signal-safety(7)): it reads and writes atomics and an eventfd.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::OnceLock;

use libc::{c_int, c_void, siginfo_t};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::{MemoryErrorKind, noticed, places};

/// Rung for each error.
static BELL: OnceLock<EventFd> = OnceLock::new();

/// The beginning of `siginfo_t` for SIGBUS on 64-bit Linux (sigaction(2)): the libc crate does not have
/// `si_addr_lsb`.
#[repr(C)]
#[derive(Debug)]
pub(super) struct BusError {
    signal: c_int,
    error: c_int,
    code: c_int,
    _padding: c_int,
    address: u64,
    /// Binary logarithm of the bytes that are lost.
    shift: i16,
}

#[cfg(any(test, feature = "test-support"))]
impl BusError {
    pub(super) fn new(code: c_int, address: u64, shift: i16) -> Self {
        Self {
            signal: libc::SIGBUS,
            error: 0,
            code,
            _padding: 0,
            address,
            shift,
        }
    }
}

/// What waits for the handler's news, once there is one.
pub(super) fn bell() -> Option<&'static EventFd> {
    BELL.get()
}

/// Catches SIGBUS, once per process.
pub(super) fn install() -> io::Result<()> {
    let bell = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC)?;
    if BELL.set(bell).is_err() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = on_bus_error;
    // An error that nobody touched interrupts no system call for good.
    set_action(
        handler as *const () as usize,
        libc::SA_SIGINFO | libc::SA_RESTART,
    )
}

/// Asks to be told of errors before anybody touches them; threads started later inherit it.
pub(super) fn ask_early() -> io::Result<()> {
    // SAFETY: the call takes numbers only.
    let result = unsafe {
        libc::prctl(
            libc::PR_MCE_KILL,
            libc::PR_MCE_KILL_SET,
            libc::PR_MCE_KILL_EARLY,
            0,
            0,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Async-signal-safe.
fn set_action(action_of: usize, flags: c_int) -> io::Result<()> {
    // SAFETY: a `sigaction` is plain data for which all zeroes is a valid value (no flags, no mask).
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = action_of;
    action.sa_flags = flags;
    // SAFETY: `action` is initialised; `action_of` is `SIG_DFL` or a handler of the type that
    // SA_SIGINFO demands, which calls async-signal-safe functions only.
    let result = unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

extern "C" fn on_bus_error(_: c_int, info: *mut siginfo_t, _: *mut c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes a valid `siginfo_t`, which for SIGBUS begins like this;
    // for one that a process sent, these bytes are there, too, whatever they mean.
    let (code, address, shift) = unsafe {
        let error = info.cast::<BusError>();
        ((*error).code, (*error).address, (*error).shift)
    };
    let kind = match code {
        libc::BUS_MCEERR_AR => MemoryErrorKind::Touched,
        libc::BUS_MCEERR_AO => MemoryErrorKind::Found,
        _ => return end_by_default(),
    };
    let Some(address) = places::guest_address(address) else {
        return end_by_default();
    };
    noticed::note(kind, address, u8::try_from(shift).unwrap_or(0));
    ring();
    if kind == MemoryErrorKind::Touched {
        stand_still();
    }
}

/// Ends the process as if nobody had caught the signal: it is raised again, and since it is blocked here,
/// it is delivered when the handler returns.
fn end_by_default() {
    // Should that fail, the handler is called for ever, which is no worse than going on.
    let _ = set_action(libc::SIG_DFL, 0);
    // SAFETY: raise(3) is async-signal-safe and takes a number.
    unsafe { libc::raise(libc::SIGBUS) };
}

fn ring() {
    let Some(bell) = BELL.get() else { return };
    let one = 1u64.to_ne_bytes();
    // SAFETY: `__errno_location` points to this thread's errno; the interrupted code must find it as it
    // was. write(2) is async-signal-safe and is given the 8 bytes that an eventfd takes.
    unsafe {
        let errno = libc::__errno_location();
        let before = *errno;
        libc::write(bell.as_fd().as_raw_fd(), one.as_ptr().cast(), one.len());
        *errno = before;
    }
}

/// Never returns to the instruction that touched the page: it would touch it again, or the system call
/// that did would fail for a reason that nobody expects. The process ends soon.
fn stand_still() -> ! {
    let an_hour = libc::timespec {
        tv_sec: 3600,
        tv_nsec: 0,
    };
    loop {
        // SAFETY: nanosleep(2) is async-signal-safe; it reads `an_hour` and is given no place for the rest.
        unsafe { libc::nanosleep(&raw const an_hour, std::ptr::null_mut()) };
    }
}

#[cfg(test)]
mod tests;
