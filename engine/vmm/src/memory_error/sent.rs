// SPDX-License-Identifier: Apache-2.0
//! For tests: the content of a signal as the kernel sends it, which the libc crate cannot make.

use std::mem::{ManuallyDrop, MaybeUninit};

use libc::{c_int, siginfo_t};

use super::signal::BusError;

/// A SIGBUS for the page of `1 << shift` bytes at this address of the process that gets it.
#[must_use]
pub fn bus_error(code: c_int, address: u64, shift: i16) -> siginfo_t {
    #[repr(C)]
    union Info {
        bus: ManuallyDrop<BusError>,
        whole: MaybeUninit<siginfo_t>,
    }
    let mut info = Info {
        whole: MaybeUninit::zeroed(),
    };
    info.bus = ManuallyDrop::new(BusError::new(code, address, shift));
    // SAFETY: all bytes of a `siginfo_t` were zeroed and some given other values; it is plain data.
    unsafe { info.whole.assume_init() }
}
