// SPDX-License-Identifier: Apache-2.0
//! Pacemaker's scheduler, asked what it would do now: crm_simulate(8) on the live cluster.

use std::process::Stdio;

use quick_xml::events::BytesStart;
use tokio::process::Command;

/// Its plan and where that leads, as XML.
///
/// # Errors
/// Why it cannot be asked.
pub(crate) async fn simulate() -> Result<String, String> {
    let mut command = Command::new("crm_simulate");
    command
        .args(["--live-check", "--simulate", "--output-as=xml"])
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = command.output().await.map_err(|error| error.to_string())?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }
}

/// An attribute of an element of it.
pub(crate) fn attribute(tag: &BytesStart<'_>, name: &str) -> Option<String> {
    let attribute = tag.try_get_attribute(name).ok()??;
    Some(attribute.value.into_owned())
}
