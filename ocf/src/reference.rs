// SPDX-License-Identifier: Apache-2.0
//! The page of the book about parameters and actions, made from what the meta-data is made from.
//!
//! `KEMARI_WRITE_DOCS=1 cargo test -p kemari-ocf reference` writes `docs/resource-agent.md`; without
//! it the test compares.

use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs};

use crate::action::Action;
use crate::exit::Code;
use crate::metadata::{Change, LONG, Monitor, PARAMETERS, Parameter, monitors};

const HEAD: &str = "\
<!-- SPDX-License-Identifier: Apache-2.0 -->
<!-- Generated from ocf/src/metadata.rs and action.rs: KEMARI_WRITE_DOCS=1 cargo test -p kemari-ocf reference -->
# The resource agent `ocf:kemari:vm`

";

const AFTER_PARAMETERS: &str = "
A reloadable parameter can be changed while the VM runs (`crm resource param vm set …`, `pcs resource update vm …`). A change of
any other restarts the resource.

";

const AFTER_ACTIONS: &str = "
Every action is safe to repeat, ends before its time-out (half a second to three of it are kept back) and gives a reason with every error. The time-out here is
the one the meta-data advises, and what an action takes at most when it is run by hand; Pacemaker's own default is 20 s.

";

const AFTER_MONITORS: &str = "
The intervals differ because Pacemaker tells a resource's monitors apart by them. A monitor without a role is for a resource without a
clone, and for an unpromoted instance. The deep ones are advised, not needed ([what they see](pacemaker.md#a-deeper-look)).

";

const AFTER_CODES: &str = "
What helps against each: [Under Pacemaker](pacemaker.md#exit-codes-and-remedies).
";

const CODES: [Code; 10] = [
    Code::Success,
    Code::Generic,
    Code::Arguments,
    Code::Unimplemented,
    Code::Permission,
    Code::Installed,
    Code::Configured,
    Code::NotRunning,
    Code::RunningPromoted,
    Code::FailedPromoted,
];

/// The name of OCF 1.1, and what it means from this agent.
fn told(code: Code) -> (&'static str, &'static str) {
    match code {
        Code::Success => (
            "OCF_SUCCESS",
            "done; from `monitor`: as assigned, and unpromoted or without a clone",
        ),
        Code::Generic => (
            "OCF_ERR_GENERIC",
            "failed, refused, or not done in time: the reason says what",
        ),
        Code::Arguments => (
            "OCF_ERR_ARGS",
            "`migrate_to` was told no node to migrate to",
        ),
        Code::Unimplemented => ("OCF_ERR_UNIMPLEMENTED", "no such action"),
        Code::Permission => (
            "OCF_ERR_PERM",
            "a file or device of this node may not be opened",
        ),
        Code::Installed => ("OCF_ERR_INSTALLED", "something is missing on this node"),
        Code::Configured => (
            "OCF_ERR_CONFIGURED",
            "parameters or description are wrong, so on every node",
        ),
        Code::NotRunning => (
            "OCF_NOT_RUNNING",
            "not running; with a reason, it should be",
        ),
        Code::RunningPromoted => ("OCF_RUNNING_PROMOTED", "promoted, as assigned"),
        Code::FailedPromoted => (
            "OCF_FAILED_PROMOTED",
            "it should be promoted and is not, or does not work",
        ),
    }
}

fn page() -> String {
    let mut text = HEAD.to_owned();
    for paragraph in LONG.split("\n\n") {
        let _ = writeln!(text, "{paragraph}\n");
    }
    text.push_str("## Parameters\n\n");
    text.push_str("| name | type | default | reloadable | |\n| --- | --- | --- | --- | --- |\n");
    PARAMETERS.iter().for_each(|one| parameter(&mut text, one));
    text.push_str(AFTER_PARAMETERS);
    text.push_str("## Actions\n\n| action | time-out | it does |\n| --- | --- | --- |\n");
    for action in Action::ALL {
        let seconds = action.timeout().as_secs();
        let _ = writeln!(text, "| `{action}` | {seconds} s | {} |", action.meaning());
    }
    text.push_str(AFTER_ACTIONS);
    text.push_str("## Monitors\n\n");
    text.push_str(
        "| role | `OCF_CHECK_LEVEL` | interval | time-out |\n| --- | --- | --- | --- |\n",
    );
    monitors().iter().for_each(|one| monitor(&mut text, one));
    text.push_str(AFTER_MONITORS);
    text.push_str("## Exit codes\n\n| | | |\n| --- | --- | --- |\n");
    for code in CODES {
        let (name, meaning) = told(code);
        let _ = writeln!(text, "| {} | `{name}` | {meaning} |", code as u8);
    }
    text.push_str(AFTER_CODES);
    text
}

fn parameter(text: &mut String, parameter: &Parameter) {
    let default = parameter
        .default
        .map_or_else(|| "required".to_owned(), |default| default.to_string());
    let reloadable = match parameter.change {
        Change::Reload => "yes",
        Change::Restart => "no",
    };
    let _ = writeln!(
        text,
        "| `{}` | {} | {default} | {reloadable} | {} |",
        parameter.name, parameter.content, parameter.long
    );
}

fn monitor(text: &mut String, monitor: &Monitor) {
    let _ = writeln!(
        text,
        "| {} | {} | {} s | {} s |",
        monitor.role.unwrap_or("none"),
        monitor.depth,
        monitor.interval_s,
        monitor.timeout_s
    );
}

#[test]
fn the_page_of_the_book_is_the_one_the_code_makes() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/resource-agent.md");
    if env::var_os("KEMARI_WRITE_DOCS").is_some() {
        fs::write(&path, page()).unwrap();
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        committed,
        page(),
        "docs/resource-agent.md is old: KEMARI_WRITE_DOCS=1 cargo test -p kemari-ocf reference"
    );
}
