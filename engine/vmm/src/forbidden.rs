// SPDX-License-Identifier: Apache-2.0
//! The end of a process that makes a system call its seccomp filter forbids.
//!
//! The filter traps the call: the kernel does not do it and sends SIGSYS to the thread instead
//! (seccomp(2), SECCOMP_RET_TRAP). The handler says which thread called what, then lets SIGSYS end
//! the process. It is here, and not where the filters are, because a handler needs unsafe code.

use std::io;

use libc::{c_int, c_void, siginfo_t, ucontext_t};

/// Longest line the handler writes.
const LINE_BYTES: usize = 256;

/// The beginning of `siginfo_t` for SIGSYS on 64-bit Linux (sigaction(2), `si_syscall`), which the
/// libc crate does not have.
#[repr(C)]
struct ForbiddenCall {
    signal: c_int,
    error: c_int,
    code: c_int,
    _padding: c_int,
    address: *mut c_void,
    number: c_int,
    architecture: u32,
}

/// From now on a forbidden system call of any thread ends the process with SIGSYS, after one line on
/// standard error that names the thread, the call and its first two arguments.
///
/// # Errors
/// The kernel refuses the handler.
pub fn report_forbidden_calls() -> io::Result<()> {
    // SAFETY: a `sigaction` is plain data for which all zeroes is a valid value (no flags, no mask).
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = on_forbidden_call;
    action.sa_sigaction = handler as *const () as usize;
    // One report is enough: a second call that is forbidden, in the handler too, ends the process.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESETHAND;
    // SAFETY: `action` is initialised, and the handler calls async-signal-safe functions only.
    let result = unsafe { libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

extern "C" fn on_forbidden_call(_: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes a valid `siginfo_t`; for SIGSYS it begins like this.
    let number = unsafe { (*info.cast::<ForbiddenCall>()).number };
    // SAFETY: with SA_SIGINFO the kernel passes the interrupted thread's `ucontext_t`.
    let registers = unsafe { &(*context.cast::<ucontext_t>()).uc_mcontext.gregs };
    let argument = |register: c_int| {
        let index = usize::try_from(register).unwrap_or(0);
        registers.get(index).copied().unwrap_or(0).cast_unsigned()
    };
    let mut line = Line::default();
    line.text(b"kemari: thread \"");
    line.text(thread_name(&mut [0; 16]));
    line.text(b"\" made system call ");
    line.number(u64::from(number.unsigned_abs()), 10);
    line.text(b" (0x");
    line.number(argument(libc::REG_RDI), 16);
    line.text(b", 0x");
    line.number(argument(libc::REG_RSI), 16);
    line.text(b", ...), which its sandbox forbids: ending the process\n");
    line.write_to_standard_error();
    // SAFETY: raise(3) is async-signal-safe. SIGSYS is blocked here and its handler is gone: it ends
    // the process when this handler returns.
    unsafe { libc::raise(libc::SIGSYS) };
}

fn thread_name(buffer: &mut [u8; 16]) -> &[u8] {
    // SAFETY: PR_GET_NAME writes at most 16 bytes, NUL included (prctl(2)).
    unsafe { libc::prctl(libc::PR_GET_NAME, buffer.as_mut_ptr()) };
    let length = buffer.iter().position(|byte| *byte == 0).unwrap_or(16);
    buffer.get(..length).unwrap_or_default()
}

/// A line made without allocating: the interrupted thread may have been in the allocator.
struct Line {
    bytes: [u8; LINE_BYTES],
    length: usize,
}

impl Default for Line {
    fn default() -> Self {
        Self {
            bytes: [0; LINE_BYTES],
            length: 0,
        }
    }
}

impl Line {
    fn text(&mut self, text: &[u8]) {
        for (target, byte) in self.bytes.iter_mut().skip(self.length).zip(text) {
            *target = *byte;
            self.length += 1;
        }
    }

    fn number(&mut self, mut number: u64, base: u64) {
        let mut digits = [b'0'; 20];
        let mut first = digits.len();
        for digit in digits.iter_mut().rev() {
            let value = u8::try_from(number % base).unwrap_or(0);
            *digit = if value < 10 {
                b'0' + value
            } else {
                b'a' + value - 10
            };
            first -= 1;
            number /= base;
            if number == 0 {
                break;
            }
        }
        self.text(digits.get(first..).unwrap_or_default());
    }

    fn write_to_standard_error(&self) {
        // SAFETY: write(2) is async-signal-safe, and the first `length` bytes are there. That it may
        // fail does not matter: there is nobody else to tell.
        unsafe { libc::write(libc::STDERR_FILENO, self.bytes.as_ptr().cast(), self.length) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(make: impl FnOnce(&mut Line)) -> String {
        let mut line = Line::default();
        make(&mut line);
        String::from_utf8(line.bytes[..line.length].to_vec()).unwrap()
    }

    #[test]
    fn numbers_are_written_in_both_bases_and_lines_end_in_time() {
        assert_eq!(made(|line| line.number(0, 10)), "0");
        assert_eq!(made(|line| line.number(u64::MAX, 10)), u64::MAX.to_string());
        assert_eq!(made(|line| line.number(0xae80, 16)), "ae80");
        assert_eq!(made(|line| line.text(&[b'x'; 300])).len(), LINE_BYTES);
    }

    #[test]
    fn the_thread_is_named() {
        let thread = std::thread::Builder::new().name("some-thread".to_owned());
        let name = thread.spawn(|| thread_name(&mut [0; 16]).to_vec());
        assert_eq!(name.unwrap().join().unwrap(), b"some-thread");
    }
}
