// SPDX-License-Identifier: Apache-2.0
//! Tells Pacemaker a node attribute of this node (attrd_updater(8)).

use tracing::debug;

use super::command::run;

/// Whether Pacemaker has heard it.
pub(crate) async fn tell(attribute: &str, value: &str) -> bool {
    // In one word: `-INFINITY` by itself would be read as options.
    ask(attribute, &format!("--update={value}")).await
}

/// Whether Pacemaker has forgotten it.
pub(crate) async fn forget(attribute: &str) -> bool {
    ask(attribute, "--delete").await
}

async fn ask(attribute: &str, what: &str) -> bool {
    let asked = run("attrd_updater", &["--name", attribute, what]).await;
    if let Err(reason) = &asked {
        debug!(what, "Pacemaker does not take {attribute} yet: {reason}");
    }
    asked.is_ok()
}
