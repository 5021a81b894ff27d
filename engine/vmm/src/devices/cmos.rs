// SPDX-License-Identifier: Apache-2.0
//! CMOS memory with a real-time clock (MC146818 register layout), as the guest's firmware clock.
//!
//! The time is the host's wall-clock (UTC), read when the guest reads it; writes to the time are
//! ignored. There are no alarms and no periodic interrupts. "Update in progress" never reads 1.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Index port; bit 7 (NMI mask) is ignored.
pub(crate) const INDEX: u16 = 0x70;
/// Data port.
pub(crate) const DATA: u16 = 0x71;

const REGISTER_B_24_HOURS: u8 = 0x02;
const REGISTER_D_BATTERY_GOOD: u8 = 0x80;
const REGISTER_A_32768_HZ: u8 = 0x26;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub(crate) struct CmosState {
    index: u8,
}

#[derive(Debug)]
pub(crate) struct Cmos {
    state: CmosState,
}

impl Cmos {
    pub(crate) fn new() -> Self {
        Self {
            state: CmosState::default(),
        }
    }

    pub(crate) fn read(&self, port: u16) -> u8 {
        if port == INDEX {
            return 0xff;
        }
        let seconds = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |elapsed| elapsed.as_secs());
        register(self.state.index, seconds)
    }

    pub(crate) fn write(&mut self, port: u16, value: u8) {
        if port == INDEX {
            self.state.index = value & 0x7f;
        }
    }

    pub(crate) fn save(&self) -> CmosState {
        self.state
    }

    pub(crate) fn restore(&mut self, state: CmosState) {
        self.state = state;
    }
}

/// Value of a register at a time in seconds since 1970, in BCD as register B says.
fn register(index: u8, seconds: u64) -> u8 {
    let date = Date::at(seconds / 86_400);
    match index {
        0x00 => bcd(seconds % 60),
        0x02 => bcd(seconds / 60 % 60),
        0x04 => bcd(seconds / 3600 % 24),
        // 1970-01-01 was a Thursday; Sunday is 1.
        0x06 => bcd((seconds / 86_400 + 4) % 7 + 1),
        0x07 => bcd(date.day),
        0x08 => bcd(date.month),
        0x09 => bcd(date.year % 100),
        0x32 => bcd(date.year / 100),
        0x0a => REGISTER_A_32768_HZ,
        0x0b => REGISTER_B_24_HOURS,
        0x0d => REGISTER_D_BATTERY_GOOD,
        _ => 0,
    }
}

/// A date of the Gregorian calendar.
#[derive(Debug, PartialEq, Eq)]
struct Date {
    year: u64,
    month: u64,
    day: u64,
}

impl Date {
    /// The date `days` after 1970-01-01.
    fn at(mut days: u64) -> Self {
        let mut year = 1970;
        while days >= days_in_year(year) {
            days -= days_in_year(year);
            year += 1;
        }
        let february = if days_in_year(year) == 366 { 29 } else { 28 };
        let mut month = 1;
        for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
            if days < length {
                break;
            }
            days -= length;
            month += 1;
        }
        Self {
            year,
            month,
            day: days + 1,
        }
    }
}

fn days_in_year(year: u64) -> u64 {
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    if leap { 366 } else { 365 }
}

/// Two decimal digits, one in each half of the byte.
fn bcd(value: u64) -> u8 {
    u8::try_from(value / 10 % 10 * 16 + value % 10).unwrap_or(0xff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_reads_a_known_moment() {
        // 2024-02-29 23:59:58 UTC, a Thursday.
        let moment = 1_709_251_198;
        let read = |index| register(index, moment);
        assert_eq!(
            [0x32, 0x09, 0x08, 0x07, 0x06, 0x04, 0x02, 0x00].map(read),
            [0x20, 0x24, 0x02, 0x29, 0x05, 0x23, 0x59, 0x58]
        );
    }

    #[test]
    fn days_become_dates_at_year_ends() {
        let date = |year, month, day| Date { year, month, day };
        assert_eq!(Date::at(0), date(1970, 1, 1));
        assert_eq!(Date::at(364), date(1970, 12, 31));
        assert_eq!(Date::at(365), date(1971, 1, 1));
        assert_eq!(Date::at(19_782), date(2024, 2, 29));
    }

    #[test]
    fn no_update_is_ever_in_progress() {
        assert_eq!(register(0x0a, 0) & 0x80, 0);
    }
}
