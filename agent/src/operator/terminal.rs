// SPDX-License-Identifier: Apache-2.0
//! A terminal in raw mode, and back: every key goes to the guest, which echoes it.

use std::io::{self, stdin};
use std::sync::{Mutex, PoisonError};

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

/// How the terminal was. A panic puts it back too; it does not unwind in the released program.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// The terminal of standard input, in raw mode until this is dropped.
#[derive(Debug)]
pub(super) struct RawTerminal(());

impl RawTerminal {
    /// Switches.
    ///
    /// # Errors
    /// What the system said.
    pub(super) fn enter() -> io::Result<Self> {
        let before = tcgetattr(stdin())?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        let said = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            restore();
            said(panic);
        }));
        let entered = Self(());
        tcsetattr(stdin(), SetArg::TCSADRAIN, &raw)?;
        Ok(entered)
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    let before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(before) = before {
        // Not after what is written, which may be stuck. What was typed for the guest is no command.
        let _ = tcsetattr(stdin(), SetArg::TCSANOW, &before);
    }
}
