// SPDX-License-Identifier: Apache-2.0
//! What Pacemaker calls the resource, noted for the agent.
//!
//! A replica that finds itself outdated must lose its promotion score before Pacemaker looks at it again, and
//! the agent is the first to know. It has the VM's name and not the resource's.

use std::fs;
use std::io;

use kemari_api::note::{remove, replace};
use kemari_api::{VmName, place};

/// Notes the resource's name; one that is noted already costs a look.
///
/// # Errors
/// What the file system said.
pub(crate) fn note(vm: &VmName, resource: &str) -> io::Result<()> {
    let path = place::resource(vm);
    let text = format!("{resource}\n");
    if fs::read_to_string(&path).is_ok_and(|noted| noted == text) {
        return Ok(());
    }
    replace(&path, &text)
}

/// Forgets it.
///
/// # Errors
/// What the file system said; a missing note is none.
pub(crate) fn forget(vm: &VmName) -> io::Result<()> {
    remove(&place::resource(vm))
}
