// SPDX-License-Identifier: Apache-2.0
//! Errors that memory controllers have counted, from the kernel's EDAC drivers
//! (`Documentation/ABI/testing/sysfs-devices-edac`).

use std::fs;
use std::path::Path;

use super::counted::Counts;

/// Where the kernel shows memory controllers.
pub const CONTROLLERS: &str = "/sys/devices/system/edac/mc";

/// The counts of every controller in this directory, by name; none where there is no EDAC.
/// A controller that cannot be read is left out.
#[must_use]
pub fn read(controllers: &Path) -> Vec<Counts> {
    let Ok(entries) = fs::read_dir(controllers) else {
        return Vec::new();
    };
    let mut all: Vec<_> = entries
        .filter_map(|entry| controller(&entry.ok()?.path()))
        .collect();
    all.sort_by(|one, other| one.part.cmp(&other.part));
    all
}

fn controller(directory: &Path) -> Option<Counts> {
    let name = directory.file_name()?.to_str()?;
    let number = name.strip_prefix("mc")?;
    number.parse::<u32>().ok()?;
    let count = |file| {
        let text = fs::read_to_string(directory.join(file)).ok()?;
        text.trim().parse().ok()
    };
    Some(Counts {
        part: format!("Memory controller {name}"),
        corrected: count("ce_count")?,
        uncorrected: count("ue_count")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_controller_is_read_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let put = |name: &str, corrected: &str, uncorrected: &str| {
            let directory = root.path().join(name);
            fs::create_dir(&directory).unwrap();
            fs::write(directory.join("ce_count"), corrected).unwrap();
            fs::write(directory.join("ue_count"), uncorrected).unwrap();
        };
        put("mc1", "7\n", "1\n");
        put("mc0", "0\n", "0\n");
        put("mc2", "many\n", "0\n");
        put("power", "1\n", "1\n");
        fs::create_dir(root.path().join("mc3")).unwrap();
        fs::write(root.path().join("uevent"), "").unwrap();
        let counts = |name: &str, corrected, uncorrected| Counts {
            part: format!("Memory controller {name}"),
            corrected,
            uncorrected,
        };
        assert_eq!(
            read(root.path()),
            [counts("mc0", 0, 0), counts("mc1", 7, 1)]
        );
    }

    #[test]
    fn a_node_without_edac_has_no_controllers() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(read(&root.path().join("mc")), []);
    }
}
