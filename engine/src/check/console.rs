// SPDX-License-Identifier: Apache-2.0
//! `[console]`: a file that can be made, a listener that is there. The engine goes on trying, so
//! these are warnings.

use std::path::Path;

use kemari_api::config::{ConsoleSink, VmConfig};

use super::Problem;
use super::host::Running;

/// What this node lacks for the console.
pub(super) fn problems(config: &VmConfig, running: Running) -> Option<Problem> {
    if running == Running::Here {
        return None;
    }
    let text = match &config.console.output {
        ConsoleSink::None | ConsoleSink::Tcp(_) => None,
        ConsoleSink::File(path) => {
            let directory = path.parent().unwrap_or_else(|| Path::new("/"));
            (!directory.is_dir())
                .then(|| format!("there is no directory {}; make it", directory.display()))
        }
        ConsoleSink::Unix(path) => (!path.exists()).then(|| {
            format!(
                "nobody listens at {}; start the listener, or the guest stands still when \
                 replication.queue_kib_max is full",
                path.display()
            )
        }),
    };
    text.map(|text| Problem::warning("console.output", text))
}

#[cfg(test)]
mod tests {
    use super::super::host::described;
    use super::*;

    #[test]
    fn a_console_that_leads_nowhere_is_a_warning() {
        let told = |output: &str| {
            let text = format!("[console]\noutput = {output:?}\n");
            problems(&described(&text), Running::No)
        };
        assert_eq!(told("none"), None);
        assert_eq!(told("file:/console.log"), None);
        assert!(
            told("file:/nonexistent/log")
                .unwrap()
                .text
                .contains("make it")
        );
        assert!(told("unix:/nonexistent").unwrap().text.contains("listener"));
    }
}
