// SPDX-License-Identifier: Apache-2.0
//! Machine checks that the processors took, from `/proc/interrupts`
//! (`arch/x86/kernel/irq.c`, `arch_show_interrupts`): `MCE` are exceptions the kernel survived, `DFR`
//! errors found in memory or a cache before anybody used them (AMD), `THR` interrupts for corrected ones.

use std::fs;
use std::path::Path;

use super::counted::Counts;

/// Where the kernel counts interrupts.
pub const INTERRUPTS: &str = "/proc/interrupts";

/// The counts of all processors together; none where the kernel counts no machine checks.
#[must_use]
pub fn read(interrupts: &Path) -> Vec<Counts> {
    let text = fs::read_to_string(interrupts).unwrap_or_default();
    let Some(exceptions) = total(&text, "MCE") else {
        return Vec::new();
    };
    let deferred = total(&text, "DFR").unwrap_or(0);
    vec![Counts {
        part: "The processors".into(),
        corrected: total(&text, "THR").unwrap_or(0),
        uncorrected: exceptions.saturating_add(deferred),
    }]
}

/// One number for each processor follows the name, and then words.
fn total(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| {
        let (found, counts) = line.trim_start().split_once(':')?;
        (found == name).then_some(counts)
    })?;
    let counts = line
        .split_ascii_whitespace()
        .map_while(|count| count.parse::<u64>().ok());
    Some(counts.fold(0, u64::saturating_add))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_processors_are_added_up() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("interrupts");
        let text = "            CPU0       CPU1       \n\
                    \x20  0:         32          0   IO-APIC    2-edge      timer\n\
                    \x20TRM:          7          7   Thermal event interrupts\n\
                    \x20THR:          3          4   Threshold APIC interrupts\n\
                    \x20DFR:          0          1   Deferred Error APIC interrupts\n\
                    \x20MCE:          1          0   Machine check exceptions\n\
                    \x20MCP:         77         77   Machine check polls\n";
        fs::write(&path, text).unwrap();
        let expected = Counts {
            part: "The processors".into(),
            corrected: 7,
            uncorrected: 2,
        };
        assert_eq!(read(&path), [expected]);
        fs::write(&path, "  0:  32\n").unwrap();
        assert_eq!(read(&path), []);
        assert_eq!(read(&root.path().join("nothing")), []);
    }

    #[test]
    fn this_kernels_own_format_is_read() {
        let text = fs::read_to_string(INTERRUPTS).unwrap();
        assert_eq!(
            read(Path::new(INTERRUPTS)).len(),
            usize::from(text.contains("MCE:"))
        );
    }
}
