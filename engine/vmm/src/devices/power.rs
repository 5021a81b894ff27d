// SPDX-License-Identifier: Apache-2.0
//! ACPI fixed hardware: the PM1a event and control registers (ACPI 6.5, section 4.8.3).
//!
//! They give the guest a power button (status bit 8, interrupt 9) and the guest a way to switch
//! itself off (`SLP_EN` with `SLP_TYP` 5, as the DSDT's `_S5` says). The interrupt is a level: high
//! while an enabled status bit is set. KVM does not save the level of a line, so restoring asserts
//! it again.

use serde::{Deserialize, Serialize};
use vmm_sys_util::errno;

use super::{InterruptLine, PortRequest};

/// Status register, 16 bits; the enable register follows.
pub(crate) const EVENT_BLOCK: u16 = 0x600;
/// Length of the event block: status and enable.
pub(crate) const EVENT_BLOCK_LENGTH: u8 = 4;
/// Control register, 16 bits.
pub(crate) const CONTROL_BLOCK: u16 = 0x604;
/// Length of the control block.
pub(crate) const CONTROL_BLOCK_LENGTH: u8 = 2;
/// First port of the device.
pub(crate) const FIRST: u16 = EVENT_BLOCK;
/// Last port of the device.
pub(crate) const LAST: u16 = CONTROL_BLOCK + 1;
/// The system control interrupt.
pub(crate) const SCI_IRQ: u8 = 9;
/// Sleep type that means "off", announced in `_S5`.
pub(crate) const SLEEP_TYPE_OFF: u8 = 5;

const POWER_BUTTON: u16 = 1 << 8;
const SCI_ENABLED: u16 = 1;
const SLEEP_ENABLE: u16 = 1 << 13;
const SLEEP_TYPE_SHIFT: u16 = 10;
const SLEEP_TYPE_MASK: u16 = 7;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub(crate) struct PowerState {
    status: u16,
    enable: u16,
    control: u16,
}

#[derive(Debug)]
pub(crate) struct PowerManagement {
    state: PowerState,
    sci: InterruptLine,
}

impl PowerManagement {
    pub(crate) fn new(sci: InterruptLine) -> Self {
        Self {
            state: PowerState::default(),
            sci,
        }
    }

    pub(crate) fn read(&self, port: u16, data: &mut [u8]) {
        let image = self.state.image();
        let offset = usize::from(port - FIRST);
        let mut bytes = image.iter().skip(offset);
        for byte in data {
            *byte = bytes.next().copied().unwrap_or(0xff);
        }
    }

    pub(crate) fn write(&mut self, port: u16, data: &[u8]) -> Option<PortRequest> {
        let request = self.state.write(usize::from(port - FIRST), data);
        self.drive_line();
        request
    }

    pub(crate) fn press_button(&mut self) {
        self.state.status |= POWER_BUTTON;
        self.drive_line();
    }

    pub(crate) fn save(&self) -> PowerState {
        self.state
    }

    pub(crate) fn restore(&mut self, state: PowerState) -> Result<(), errno::Error> {
        self.state = state;
        self.sci.set(self.state.interrupts())
    }

    fn drive_line(&self) {
        if let Err(error) = self.sci.set(self.state.interrupts()) {
            tracing::error!(irq = self.sci.number(), %error, "Cannot set the interrupt line");
        }
    }
}

impl PowerState {
    fn interrupts(self) -> bool {
        self.status & self.enable != 0
    }

    /// The registers as the guest reads them.
    fn image(self) -> [u8; 6] {
        let [s0, s1] = self.status.to_le_bytes();
        let [e0, e1] = self.enable.to_le_bytes();
        // There is no legacy mode to leave, so SCI_EN always reads set.
        let [c0, c1] = (self.control | SCI_ENABLED).to_le_bytes();
        [s0, s1, e0, e1, c0, c1]
    }

    fn write(&mut self, offset: usize, data: &[u8]) -> Option<PortRequest> {
        let mut sleep = false;
        for (at, byte) in (offset..).zip(data) {
            let value = u16::from(*byte);
            match at {
                // Status bits are cleared by writing ones.
                0 => self.status &= !value,
                1 => self.status &= !(value << 8),
                2 => self.enable = self.enable & 0xff00 | value,
                3 => self.enable = self.enable & 0x00ff | value << 8,
                4 => self.control = self.control & 0xff00 | value,
                5 => {
                    let control = self.control & 0x00ff | value << 8;
                    sleep = control & SLEEP_ENABLE != 0;
                    // SLP_EN is write-only.
                    self.control = control & !SLEEP_ENABLE;
                }
                _ => {}
            }
        }
        let sleep_type = self.control >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK;
        (sleep && sleep_type == u16::from(SLEEP_TYPE_OFF)).then_some(PortRequest::PowerOff)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleep_type_five_switches_off_and_others_do_not() {
        let mut state = PowerState::default();
        assert_eq!(state.write(4, &[0x00, 0x20 | 1 << 2]), None);
        assert_eq!(state.write(4, &[0x00, 5 << 2]), None);
        assert_eq!(
            state.write(4, &[0x01, 0x20 | 5 << 2]),
            Some(PortRequest::PowerOff)
        );
    }

    #[test]
    fn the_button_interrupts_only_when_enabled_and_until_acknowledged() {
        let mut state = PowerState {
            status: POWER_BUTTON,
            ..PowerState::default()
        };
        assert!(!state.interrupts());
        state.write(2, &[0x00, 0x01]);
        assert!(state.interrupts());
        state.write(0, &[0x00, 0x01]);
        assert!(!state.interrupts());
    }

    #[test]
    fn acpi_mode_is_always_on() {
        assert_eq!(PowerState::default().image()[4] & 1, 1);
    }
}
