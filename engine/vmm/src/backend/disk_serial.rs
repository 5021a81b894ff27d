// SPDX-License-Identifier: Apache-2.0
//! A disk's serial: the name by which the guest finds it, whatever its slot is.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// Longest serial (VIRTIO 1.x, 5.2.6: the identification is 20 bytes, filled up with zeroes).
const BYTES_MAX: usize = 20;

/// A serial of 1 to 20 printable characters of ASCII, none of them a blank at either end. A Linux
/// guest finds the disk as `/dev/disk/by-id/virtio-SERIAL`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DiskSerial(String);

/// A text that cannot be a disk's serial.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[error(
    "{text:?} cannot be a disk's serial; give 1 to {BYTES_MAX} printable ASCII characters, none of them \
     a blank at the beginning or end"
)]
pub struct DiskSerialError {
    /// The text.
    pub text: String,
}

impl DiskSerial {
    /// As the guest gets it.
    pub(crate) fn padded(&self) -> [u8; BYTES_MAX] {
        let mut padded = [0; BYTES_MAX];
        for (byte, value) in padded.iter_mut().zip(self.0.bytes()) {
            *byte = value;
        }
        padded
    }
}

impl FromStr for DiskSerial {
    type Err = DiskSerialError;

    fn from_str(text: &str) -> Result<Self, DiskSerialError> {
        let fits = (1..=BYTES_MAX).contains(&text.len());
        let printable = text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
        if !fits || !printable || text.trim() != text {
            return Err(DiskSerialError {
                text: text.chars().take(2 * BYTES_MAX).collect(),
            });
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for DiskSerial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_is_short_and_printable() {
        let serial: DiskSerial = "root-disk.1".parse().unwrap();
        assert_eq!(&serial.padded()[..12], b"root-disk.1\0");
        assert_eq!(serial.to_string(), "root-disk.1");
        assert!("1234567890 234567890".parse::<DiskSerial>().is_ok());
        for bad in ["", "123456789012345678901", "a ", " b", "ä", "a\n"] {
            let error = bad.parse::<DiskSerial>().unwrap_err();
            assert_eq!(error.text, bad);
        }
    }
}
