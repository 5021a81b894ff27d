// SPDX-License-Identifier: Apache-2.0
//! `[boot]`: files that are there and that the machine can start from.

use std::fs::File;

use kemari_api::config::VmConfig;
use kemari_vmm::BootError;

use super::Problem;
use crate::exit::chain;
use crate::machine_config::{BootDisk, MachineConfigError, machine_config};

/// What keeps the machine from starting.
pub(super) fn problems(config: &VmConfig) -> Vec<Problem> {
    let remedy = "put the file on this node or correct the description";
    let mut found: Vec<_> = config
        .boot_files()
        .filter_map(|file| {
            let error = File::open(file.path).err()?;
            Some(Problem::inaccessible(file.key, file.path, &error, remedy))
        })
        .collect();
    // What this engine cannot be given is told already; a file that is missing too.
    if !found.is_empty() {
        return found;
    }
    match machine_config(config, BootDisk::MustBoot) {
        Err(MachineConfigError::Unsupported(_)) => {}
        Err(error) => found.push(Problem::missing("boot.disk", chain(&error))),
        Ok(machine) => found.extend(
            kemari_vmm::check_boot(&machine)
                .err()
                .map(|error| told(&error)),
        ),
    }
    found
}

fn told(error: &BootError) -> Problem {
    let key = match error {
        BootError::Read { what, .. } | BootError::MemoryTooSmall { what, .. } => {
            format!("boot.{what}")
        }
        BootError::NotAKernel { .. } => "boot.kernel".into(),
        BootError::CommandLineTooLong { .. } | BootError::CommandLineNul => "boot.cmdline".into(),
        _ => "boot".into(),
    };
    Problem::missing(key, chain(error))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::Severity;
    use super::*;
    use crate::exit::FailureKind;

    fn problems_of(kernel: &std::path::Path, more: &str) -> Vec<Problem> {
        let text =
            format!("[vm]\nname = \"vm\"\nmemory_mib = 64\n[boot]\nkernel = {kernel:?}\n{more}");
        problems(&VmConfig::parse(kernel, &text).unwrap())
    }

    #[test]
    fn files_that_are_missing_are_told_each() {
        let missing = std::path::Path::new("/nonexistent/kernel");
        let found = problems_of(missing, "initrd = \"/nonexistent/initrd\"\n");
        let keys: Vec<_> = found.iter().map(|problem| problem.key.as_str()).collect();
        assert_eq!(keys, ["boot.kernel", "boot.initrd"]);
        assert_eq!(
            found[0].severity,
            Severity::Error(FailureKind::NotInstalled)
        );
    }

    #[test]
    fn a_file_that_is_no_kernel_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let kernel = directory.path().join("kernel");
        fs::write(&kernel, "no kernel").unwrap();
        let found = problems_of(&kernel, "");
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].key, "boot.kernel");
        assert!(found[0].text.contains("bzImage"), "{found:?}");
    }
}
