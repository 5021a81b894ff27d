// SPDX-License-Identifier: Apache-2.0
//! Writes initramfs archives: cpio in the "newc" format, as Linux' `Documentation/driver-api/early-userspace/buffer-format.rst` has it.
//!
//! Archives are not compressed: under emulation, unpacking gzip takes longer than loading the larger file.

use std::fmt::Write as _;

/// An archive being written.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;

impl Archive {
    /// Adds a directory; its parent must have been added before.
    #[must_use]
    pub(crate) fn directory(mut self, path: &str) -> Self {
        self.entry(path, DIRECTORY | 0o755, &[]);
        self
    }

    /// Adds a regular file.
    #[must_use]
    pub(crate) fn file(mut self, path: &str, permissions: u32, contents: &[u8]) -> Self {
        self.entry(path, FILE | permissions, contents);
        self
    }

    /// The whole archive, ended properly.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, contents: &[u8]) {
        self.entries += 1;
        let mut header = String::from("070701");
        // Inode, mode, uid, gid, links, mtime, size, device (2), special device (2), length of the name, checksum.
        let fields = [
            u64::from(self.entries),
            u64::from(mode),
            0,
            0,
            1,
            0,
            contents.len() as u64,
            0,
            0,
            0,
            0,
            path.len() as u64 + 1,
            0,
        ];
        for field in fields {
            let _ = write!(header, "{field:08x}");
        }
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(contents);
        self.pad();
    }

    /// Names and contents begin at multiples of four.
    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::Archive;

    #[test]
    fn an_entry_is_padded_to_four_bytes() {
        let archive = Archive::default().file("init", 0o755, b"abc").finish();
        assert_eq!(archive.len() % 4, 0);
        let text = String::from_utf8_lossy(&archive).into_owned();
        assert!(text.starts_with("07070100000001000081ed"));
        assert_eq!(text.find("abc"), Some(116));
        assert!(text.contains("TRAILER!!!"));
    }
}
