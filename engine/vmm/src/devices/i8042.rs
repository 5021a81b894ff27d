// SPDX-License-Identifier: Apache-2.0
//! The keyboard controller, as far as a guest without keyboard needs it: command 0xfe pulses the
//! reset line. It has no state. The status register reads "nothing to read, ready for a command",
//! so that a guest that waits for readiness before a reset does not wait long.

use super::PortRequest;

/// Data port.
pub(crate) const DATA: u16 = 0x60;
/// Command (write) and status (read) port.
pub(crate) const COMMAND: u16 = 0x64;
/// The command that pulses the reset line.
pub(crate) const RESET_COMMAND: u8 = 0xfe;

pub(crate) fn read() -> u8 {
    0
}

pub(crate) fn write(port: u16, value: u8) -> Option<PortRequest> {
    (port == COMMAND && value == RESET_COMMAND).then_some(PortRequest::Reset)
}
