// SPDX-License-Identifier: Apache-2.0
//! The host as the checks see it: files of /proc, /sys and /dev below a root that tests can move.

use std::fs;
use std::path::{Path, PathBuf};

use kemari_api::{VmName, place};

/// A host.
#[derive(Debug, Clone)]
pub(super) struct Host {
    root: PathBuf,
    run: PathBuf,
}

impl Host {
    /// The one this process runs on.
    pub(super) fn this() -> Self {
        Self {
            root: "/".into(),
            run: place::run_dir(),
        }
    }

    /// One whose files lie below a directory.
    #[cfg(test)]
    pub(super) fn below(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            run: root.join("run"),
        }
    }

    /// Where a file of the host's system lies; `path` without the leading '/'.
    pub(super) fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root.join(path)
    }

    /// The content of a small file, without white space around it.
    pub(super) fn text(&self, path: impl AsRef<Path>) -> Option<String> {
        let text = fs::read_to_string(self.path(path)).ok()?;
        Some(text.trim().to_owned())
    }

    /// The content of a file that is one number.
    pub(super) fn number(&self, path: impl AsRef<Path>) -> Option<u64> {
        self.text(path)?.parse().ok()
    }

    /// Whether an engine of this VM runs here: then it holds what its description names.
    pub(super) fn runs(&self, vm: &VmName) -> Running {
        if self.run.join(format!("{vm}.sock")).exists() {
            Running::Here
        } else {
            Running::No
        }
    }
}

/// Whether the described VM has an engine on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Running {
    /// It has.
    Here,
    /// It has none.
    No,
}

/// A host in a directory, for tests.
#[cfg(test)]
pub(super) struct FakeHost {
    directory: tempfile::TempDir,
}

#[cfg(test)]
impl FakeHost {
    /// A host with these files.
    pub(super) fn with(files: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = directory.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        Self { directory }
    }

    pub(super) fn host(&self) -> Host {
        Host::below(self.directory.path())
    }

    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }
}

/// A description with these lines beside the required ones.
#[cfg(test)]
pub(super) fn described(more: &str) -> kemari_api::config::VmConfig {
    let text = format!("[vm]\nname = \"vm\"\nmemory_mib = 64\n[boot]\nkernel = \"/k\"\n{more}");
    kemari_api::config::VmConfig::parse(Path::new("vm.toml"), &text).unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_runs_here_while_it_has_a_control_socket() {
        let fake = FakeHost::with(&[("run/web.sock", "")]);
        assert_eq!(fake.host().runs(&"web".parse().unwrap()), Running::Here);
        assert_eq!(fake.host().runs(&"db".parse().unwrap()), Running::No);
    }
}
