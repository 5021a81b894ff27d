// SPDX-License-Identifier: Apache-2.0
//! Who the sandboxed engine is: a user of its own, in no further group, without any capability.

use std::fmt;

use caps::CapSet;
use kemari_api::config::UserName;
use nix::unistd::{Gid, Uid, User, geteuid, setgroups, setresgid, setresuid};

use super::SandboxError;

/// A user the engine becomes.
#[derive(Debug)]
pub(super) struct Account {
    name: UserName,
    uid: Uid,
    gid: Gid,
}

impl Account {
    /// The user that root becomes; anyone else stays who they are.
    pub(super) fn to_become(name: &UserName) -> Result<Option<Self>, SandboxError> {
        if !geteuid().is_root() {
            return Ok(None);
        }
        let user = User::from_name(name.as_str()).map_err(|cause| SandboxError::Lookup {
            user: name.clone(),
            cause,
        })?;
        let user = user.ok_or_else(|| SandboxError::NoUser(name.clone()))?;
        if user.uid.is_root() {
            return Err(SandboxError::Root(name.clone()));
        }
        Ok(Some(Self {
            name: name.clone(),
            uid: user.uid,
            gid: user.gid,
        }))
    }

    pub(super) fn owner(&self) -> (Uid, Gid) {
        (self.uid, self.gid)
    }

    /// Becomes this user, for good.
    pub(super) fn assume(&self) -> Result<(), SandboxError> {
        // While it is root still: nobody else may.
        caps::clear(None, CapSet::Bounding)
            .map_err(|error| SandboxError::step("bounding set")(&error))?;
        // Not even kvm: /dev/kvm is open.
        setgroups(&[]).map_err(|error| SandboxError::step("setgroups")(&error))?;
        setresgid(self.gid, self.gid, self.gid)
            .map_err(|error| SandboxError::step("setresgid")(&error))?;
        setresuid(self.uid, self.uid, self.uid)
            .map_err(|error| SandboxError::step("setresuid")(&error))?;
        drop_capabilities()
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)
    }
}

/// Drops what is left of them, and keeps other processes of the user from looking into this one.
pub(super) fn drop_capabilities() -> Result<(), SandboxError> {
    for set in [
        CapSet::Ambient,
        CapSet::Effective,
        CapSet::Permitted,
        CapSet::Inheritable,
    ] {
        caps::clear(None, set).map_err(|error| SandboxError::step("capabilities")(&error))?;
    }
    nix::sys::prctl::set_dumpable(false).map_err(|error| SandboxError::step("dumpable")(&error))
}
