// SPDX-License-Identifier: Apache-2.0
//! The engine confines itself: a guest that breaks out of its devices, or a peer that breaks into
//! the protocol, finds a process that can do next to nothing.
//!
//! What needs root is done first (KVM, disks, sockets, records are opened), in the only thread there
//! is. Then [`Plan::carry_out`] gives up, for the whole process: new privileges, most of the file
//! system (Landlock), root and every capability. Landlock and capabilities belong to a thread and
//! are inherited, so this comes before any other thread is started. Last, each thread calls
//! [`enter`] as the first thing it does (the main thread: once everything is set up) and from then
//! on makes only the system calls of its [`Kind`]; another one ends the process.
//!
//! A thread inherits the filter of the one that started it, so a kind's list contains those of the
//! kinds it starts. `docs/sandbox.md` tells the same to administrators, with a table.

mod account;
mod calls;
mod files;
mod filter;
mod kinds;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::OnceLock;

use kemari_api::config::{SandboxSection, UserName};
use kemari_vmm::{ThreadHook, ThreadKind};
use nix::errno::Errno;
use thiserror::Error;

use account::Account;
use filter::Filter;
pub use kinds::Kind;

/// The filters, once the engine is sandboxed.
static FILTERS: OnceLock<BTreeMap<Kind, Filter>> = OnceLock::new();

/// The engine could not be sandboxed, so it does not run.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// There is no such user.
    #[error(
        "The user {0} of the sandbox does not exist on this node: make it (systemd-sysusers \
         kemari.conf makes kemari), name another with [sandbox] user, or, for debugging only, give \
         --no-sandbox"
    )]
    NoUser(UserName),
    /// The user is root by another name.
    #[error(
        "The user {0} of the sandbox is root by another name: name another with [sandbox] user"
    )]
    Root(UserName),
    /// The user database could not be read.
    #[error("Cannot look up the user {user} of the sandbox: {cause}")]
    Lookup {
        /// The user.
        user: UserName,
        /// What the system said.
        cause: Errno,
    },
    /// A file the guest boots from cannot be read by the sandbox's user.
    #[error(
        "The sandbox's user cannot read {}: {cause}; let others read it (chmod o+r, and o+x for its \
         directories)", path.display()
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// A step failed.
    #[error(
        "Cannot enter the sandbox: {step}: {cause}; --no-sandbox runs without it, for debugging only"
    )]
    Step {
        /// What was tried.
        step: &'static str,
        /// What the system said.
        cause: String,
    },
}

impl SandboxError {
    fn step(step: &'static str) -> impl FnOnce(&dyn std::fmt::Display) -> Self {
        move |cause| Self::Step {
            step,
            cause: cause.to_string(),
        }
    }
}

/// What is going to be given up; made before anything is opened.
#[derive(Debug)]
pub struct Plan {
    enabled: bool,
    /// Who the engine becomes; `None`: it stays who it is.
    account: Option<Account>,
}

/// What a sandboxed engine still opens by name.
#[derive(Debug, Default)]
pub struct Paths {
    /// Files the guest boots from, read again at each boot.
    pub boot: Vec<PathBuf>,
    /// Directories it writes to.
    pub written: Vec<PathBuf>,
    /// Directories it removes its own files from.
    pub cleaned: Vec<PathBuf>,
}

impl Plan {
    /// What this description asks for. Says so where that is nothing.
    ///
    /// # Errors
    /// The sandbox's user does not exist.
    pub fn of(section: &SandboxSection) -> Result<Self, SandboxError> {
        if !section.enabled {
            tracing::warn!(
                "The sandbox is off (--no-sandbox or sandbox.enabled = false): a guest that breaks \
                 out has all rights of this process"
            );
            return Ok(Self {
                enabled: false,
                account: None,
            });
        }
        Ok(Self {
            enabled: true,
            account: Account::to_become(&section.user)?,
        })
    }

    /// Who must own what the engine goes on to write.
    pub fn owner(&self) -> Option<(nix::unistd::Uid, nix::unistd::Gid)> {
        self.account.as_ref().map(Account::owner)
    }

    /// Gives up everything that is given up at once; from now on [`enter`] confines threads. The
    /// process must have no other thread yet.
    ///
    /// # Errors
    /// A step failed; the process must not go on.
    pub fn carry_out(self, paths: &Paths) -> Result<(), SandboxError> {
        if !self.enabled {
            return Ok(());
        }
        nix::sys::prctl::set_no_new_privs()
            .map_err(|error| SandboxError::step("no_new_privs")(&error))?;
        kemari_vmm::report_forbidden_calls()
            .map_err(|error| SandboxError::step("handler of SIGSYS")(&error))?;
        let filters = kinds::filters().map_err(|error| SandboxError::step("seccomp")(&error))?;
        // Before the change of user, for which some of the directories may be out of sight.
        let landlock =
            files::restrict(paths).map_err(|error| SandboxError::step("Landlock")(&error))?;
        match &self.account {
            Some(account) => account.assume()?,
            None => account::drop_capabilities()?,
        }
        check_readable(&paths.boot)?;
        let _ = FILTERS.set(filters);
        let user = self.account.map_or_else(
            || nix::unistd::geteuid().to_string(),
            |account| account.to_string(),
        );
        tracing::info!(%user, %landlock, "sandboxed");
        Ok(())
    }
}

fn check_readable(files: &[PathBuf]) -> Result<(), SandboxError> {
    for path in files {
        std::fs::File::open(path).map_err(|cause| SandboxError::Unreadable {
            path: path.clone(),
            cause,
        })?;
    }
    Ok(())
}

/// Confines the calling thread to the system calls of this kind, for good. Does nothing where the
/// sandbox is off.
pub fn enter(kind: Kind) {
    let Some(filter) = FILTERS.get().and_then(|filters| filters.get(&kind)) else {
        return;
    };
    if let Err(error) = filter.apply() {
        // A thread that is not confined must not run, and without one of its threads neither may
        // the engine: the other replica goes on.
        tracing::error!(
            ?kind, %error,
            "Cannot confine a thread; --no-sandbox runs without the sandbox, for debugging only"
        );
        std::process::abort();
    }
}

/// Confines the machine's threads.
pub fn thread_hook() -> ThreadHook {
    ThreadHook::new(|kind| match kind {
        ThreadKind::Vcpu => enter(Kind::Vcpu),
        ThreadKind::Device => enter(Kind::Device),
    })
}
