// SPDX-License-Identifier: Apache-2.0
//! What the sandboxed engine may open by name, by Landlock (`landlock(7)`).
//!
//! Descriptors that are open stay usable: disks, TAPs, `/dev/kvm`, sockets and the console's file
//! need no rule. A rule names an inode, not a path. `/etc/hosts` and its like are replaced, not
//! written to, so the whole of `/etc` may be read (by what its permissions let the engine's user
//! read): a replica must still find its peer after an administrator has changed an address.

use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, make_bitflags,
};

use super::Paths;

/// The newest Landlock whose rights these rules were written for; an older kernel gets what it has.
const KNOWN: ABI = ABI::V6;

/// Where names are resolved from, and what machines and the C library ask of the host.
const READ: [&str; 9] = [
    "/etc",
    "/run/systemd/resolve",
    "/run/NetworkManager",
    "/run/resolvconf",
    "/sys/devices/system",
    "/sys/kernel/mm/hugepages",
    "/sys/module",
    "/proc/cpuinfo",
    "/proc/sys/vm/overcommit_memory",
];

/// Where the modules of the name service are loaded from.
const LIBRARIES: [&str; 4] = ["/usr/lib", "/lib", "/usr/lib64", "/lib64"];

/// Restricts this thread and those it will start. Returns how well, in words.
pub(super) fn restrict(paths: &Paths) -> Result<&'static str, RulesetError> {
    let read = make_bitflags!(AccessFs::{ReadFile | ReadDir});
    let write = read | make_bitflags!(AccessFs::{WriteFile | Truncate | MakeReg | RemoveFile});
    let ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(KNOWN))?
        // Nothing listens that does not listen already. Whom to connect to is the description's
        // choice and changes with the addresses of names.
        .handle_access(AccessNet::BindTcp)?
        .scope(Scope::Signal)?
        .create()?;
    let ruleset = allow(ruleset, READ, read)?;
    let ruleset = allow(ruleset, LIBRARIES, read | AccessFs::Execute)?;
    let ruleset = allow(ruleset, &paths.boot, read)?;
    let ruleset = allow(ruleset, &paths.written, write)?;
    let ruleset = allow(ruleset, &paths.cleaned, AccessFs::RemoveFile.into())?;
    Ok(match ruleset.restrict_self()?.ruleset {
        RulesetStatus::FullyEnforced => "enforced",
        RulesetStatus::PartiallyEnforced => "enforced as far as this kernel can",
        RulesetStatus::NotEnforced => "this kernel has none",
    })
}

/// Rules for those of the paths that exist; for a file only the rights a file can have.
fn allow<P: AsRef<Path>>(
    mut ruleset: RulesetCreated,
    paths: impl IntoIterator<Item = P>,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    for path in paths {
        let path = path.as_ref();
        let Ok(opened) = PathFd::new(path) else {
            continue;
        };
        let access = if path.is_dir() {
            access
        } else {
            access & AccessFs::from_file(KNOWN)
        };
        ruleset = ruleset.add_rule(PathBeneath::new(opened, access))?;
    }
    Ok(ruleset)
}
