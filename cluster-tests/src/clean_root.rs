// SPDX-License-Identifier: Apache-2.0
//! A Debian root that nobody has used, to install packages in: the shared root below an overlay of its own.
//!
//! There is no systemd in it, no network, and nothing of it is left afterwards. What needs running services belongs into
//! a test bed.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::cache;
use crate::rootfs::{self, Extras};

const ENTER: &str = include_str!("clean_root/enter.sh");

/// Where [`CleanRoot::share`] is seen inside.
pub const SHARE: &str = "/mnt";

/// One such root. What commands change in it lasts until it is dropped.
#[derive(Debug)]
pub struct CleanRoot {
    place: TempDir,
    lower: PathBuf,
}

/// Who runs a command of [`CleanRoot`].
#[derive(Debug, Clone, Copy)]
enum Where {
    /// The root's own programs.
    Inside,
    /// The host's programs, which find the root at `$ROOT`.
    Host,
}

impl CleanRoot {
    /// A new one.
    ///
    /// # Errors
    /// When this is not root, or the shared root cannot be made.
    pub fn new() -> Result<Self> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "A clean root is made of mounts; run this as root"
        );
        let lower = rootfs::ensure(Extras::None)?;
        // Beside the other trees: an overlay's upper layer cannot lie on every file system.
        let place = TempDir::with_prefix_in("clean-root-", cache::directory())
            .context("Cannot make a directory in the cache")?;
        for part in ["upper", "work", "merged", "share"] {
            std::fs::create_dir(place.path().join(part))?;
        }
        Ok(Self { place, lower })
    }

    /// A directory of this machine that is [`SHARE`] inside.
    pub fn share(&self) -> PathBuf {
        self.place.path().join("share")
    }

    /// Copies a file into [`Self::share`] and gives its path inside.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn lend(&self, file: &Path) -> Result<String> {
        let name = file.file_name().context("It has no name")?;
        std::fs::copy(file, self.share().join(name))
            .with_context(|| format!("Cannot copy {}", file.display()))?;
        Ok(format!("{SHARE}/{}", name.to_string_lossy()))
    }

    /// Runs a shell script inside and gives what it printed.
    ///
    /// # Errors
    /// When it cannot be started or its status is not 0; the error shows everything.
    pub fn run(&self, script: &str) -> Result<String> {
        success(script, &self.enter(Where::Inside, script)?)
    }

    /// The same, whatever its status is.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn attempt(&self, script: &str) -> Result<Output> {
        self.enter(Where::Inside, script)
    }

    /// Runs a shell script with the host's programs; the root is at `$ROOT`.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_on_host(&self, script: &str) -> Result<String> {
        success(script, &self.enter(Where::Host, script)?)
    }

    fn enter(&self, place: Where, script: &str) -> Result<Output> {
        Command::new("unshare")
            .args(["--mount", "--pid", "--net", "--uts", "--fork"])
            .args(["--propagation", "private", "--kill-child=SIGKILL"])
            .args(["--", "sh", "-c", ENTER, "enter"])
            .arg(&self.lower)
            .arg(self.place.path())
            .arg(match place {
                Where::Inside => "inside",
                Where::Host => "host",
            })
            .arg(script)
            .output()
            .context("Cannot run unshare")
    }
}

fn success(script: &str, output: &Output) -> Result<String> {
    let stdout = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "{script}\nended with {}\nstdout: {stdout}\nstderr: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(stdout.into_owned())
}
