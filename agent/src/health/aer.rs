// SPDX-License-Identifier: Apache-2.0
//! Errors of PCI Express devices, from the kernel's advanced error reporting
//! (`Documentation/ABI/testing/sysfs-bus-pci-devices-aer_stats`).

use std::fs;
use std::path::Path;

use super::counted::Counts;

/// Where the kernel shows PCI devices.
pub const DEVICES: &str = "/sys/bus/pci/devices";

/// The counts of every device that has any, by address; none where the platform does not report them.
#[must_use]
pub fn read(devices: &Path) -> Vec<Counts> {
    let Ok(entries) = fs::read_dir(devices) else {
        return Vec::new();
    };
    let mut all: Vec<_> = entries
        .filter_map(|entry| device(&entry.ok()?.path()))
        .collect();
    all.sort_by(|one, other| one.part.cmp(&other.part));
    all
}

fn device(directory: &Path) -> Option<Counts> {
    let address = directory.file_name()?.to_str()?;
    let total = |file, name| {
        let text = fs::read_to_string(directory.join(file)).ok()?;
        text.lines()
            .filter_map(|line| line.split_once(' '))
            .find(|(key, _)| *key == name)
            .and_then(|(_, count)| count.trim().parse::<u64>().ok())
    };
    let nonfatal = total("aer_dev_nonfatal", "TOTAL_ERR_NONFATAL")?;
    let fatal = total("aer_dev_fatal", "TOTAL_ERR_FATAL")?;
    Some(Counts {
        part: format!("PCI Express device {address}"),
        corrected: total("aer_dev_correctable", "TOTAL_ERR_COR")?,
        uncorrected: nonfatal.saturating_add(fatal),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_of_every_device_with_error_reporting_are_read() {
        let root = tempfile::tempdir().unwrap();
        let put = |name: &str, correctable: &str, nonfatal: &str, fatal: &str| {
            let directory = root.path().join(name);
            fs::create_dir(&directory).unwrap();
            fs::write(directory.join("aer_dev_correctable"), correctable).unwrap();
            fs::write(directory.join("aer_dev_nonfatal"), nonfatal).unwrap();
            fs::write(directory.join("aer_dev_fatal"), fatal).unwrap();
        };
        put(
            "0000:02:00.0",
            "RxErr 2\nBadTLP 1\nTOTAL_ERR_COR 3\n",
            "Undefined 0\nTOTAL_ERR_NONFATAL 1\n",
            "Undefined 0\nTOTAL_ERR_FATAL 4\n",
        );
        put(
            "0000:01:00.0",
            "TOTAL_ERR_COR 0\n",
            "TOTAL_ERR_NONFATAL 0\n",
            "TOTAL_ERR_FATAL 0\n",
        );
        put("0000:03:00.0", "RxErr many\n", "", "");
        fs::create_dir(root.path().join("0000:00:1f.0")).unwrap();
        let counts = |address: &str, corrected, uncorrected| Counts {
            part: format!("PCI Express device {address}"),
            corrected,
            uncorrected,
        };
        assert_eq!(
            read(root.path()),
            [counts("0000:01:00.0", 0, 0), counts("0000:02:00.0", 3, 5)]
        );
        assert_eq!(read(&root.path().join("nothing")), []);
    }
}
