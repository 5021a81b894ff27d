// SPDX-License-Identifier: Apache-2.0
//! One disk that two hosts see, on one host: two block devices over one file.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// Two loop devices.
pub struct SharedDevice {
    devices: Vec<PathBuf>,
    _directory: TempDir,
}

impl SharedDevice {
    /// Makes them; none, with a word, where this machine does not let us.
    pub fn make_or_skip(bytes: u64) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("image");
        let file = std::fs::File::create(&image).unwrap();
        file.set_len(bytes).unwrap();
        let mut shared = Self {
            devices: Vec::new(),
            _directory: directory,
        };
        for _ in 0..2 {
            let Some(device) = attach(&image) else {
                println!("SKIPPED: no loop device can be made here (root, losetup)");
                return None;
            };
            shared.devices.push(device);
        }
        Some(shared)
    }

    /// The device of one of the hosts.
    pub fn of_host(&self, host: usize) -> &Path {
        &self.devices[host]
    }
}

fn attach(image: &Path) -> Option<PathBuf> {
    let output = Command::new("losetup")
        .args(["--find", "--show"])
        .arg(image)
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    let name = String::from_utf8(output.stdout).ok()?;
    Some(PathBuf::from(name.trim()))
}

impl Drop for SharedDevice {
    fn drop(&mut self) {
        for device in &self.devices {
            let _ = Command::new("losetup").arg("--detach").arg(device).status();
        }
    }
}
