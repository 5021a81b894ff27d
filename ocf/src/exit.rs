// SPDX-License-Identifier: Apache-2.0
//! How an action ends: the exit codes of OCF 1.1 ("Return codes") and the reason beside an error.
//!
//! Every error carries a reason for people; Pacemaker shows it in `crm_mon` beside the failed
//! action. Nothing here decides which code fits.

use std::fmt;
use std::process::ExitCode;

/// The exit codes of OCF 1.1 this agent uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Code {
    /// `OCF_SUCCESS`: done; for `monitor`: running, not promoted.
    Success = 0,
    /// `OCF_ERR_GENERIC`: failed; Pacemaker recovers.
    Generic = 1,
    /// `OCF_ERR_ARGS`: what Pacemaker says makes no sense.
    Arguments = 2,
    /// `OCF_ERR_UNIMPLEMENTED`: there is no such action.
    Unimplemented = 3,
    /// `OCF_ERR_PERM`: a permission is missing on this node.
    Permission = 4,
    /// `OCF_ERR_INSTALLED`: something is missing on this node.
    Installed = 5,
    /// `OCF_ERR_CONFIGURED`: the parameters or the description are wrong on every node.
    Configured = 6,
    /// `OCF_NOT_RUNNING`: cleanly stopped.
    NotRunning = 7,
    /// `OCF_RUNNING_PROMOTED`: running as assigned.
    RunningPromoted = 8,
    /// `OCF_FAILED_PROMOTED`: it should be active and is not.
    FailedPromoted = 9,
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(code as u8)
    }
}

/// An action that failed, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// What Pacemaker is told.
    pub(crate) code: Code,
    /// What people are told: what is wrong and what would help.
    pub(crate) reason: String,
}

impl Failure {
    /// A failure with this code; a reason is not optional.
    pub(crate) fn new(code: Code, reason: impl Into<String>) -> Self {
        let reason = reason.into();
        Self { code, reason }
    }

    /// `OCF_ERR_GENERIC` with this reason.
    pub(crate) fn generic(reason: impl Into<String>) -> Self {
        Self::new(Code::Generic, reason)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

/// How an action ended.
pub(crate) type Outcome = Result<Code, Failure>;

/// Hands the exit reason to Pacemaker: a line on standard error with this prefix (OCF 1.1, "Exit
/// reasons"). Only one line is read, so the reason is made one.
pub(crate) fn tell_reason(reason: &str) {
    eprintln!("ocf-exit-reason:{}", one_line(reason));
}

/// A line for Pacemaker's log, which records an action's standard error.
pub(crate) fn warn(text: impl fmt::Display) {
    eprintln!("WARNING: {}", one_line(&text.to_string()));
}

/// A line for Pacemaker's log about something in order.
pub(crate) fn inform(text: impl fmt::Display) {
    eprintln!("INFO: {}", one_line(&text.to_string()));
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_codes_are_those_of_ocf_1_1() {
        let codes = [
            Code::Success,
            Code::Generic,
            Code::Unimplemented,
            Code::Permission,
            Code::Installed,
            Code::Configured,
            Code::NotRunning,
            Code::RunningPromoted,
            Code::FailedPromoted,
        ];
        assert_eq!(codes.map(|code| code as u8), [0, 1, 3, 4, 5, 6, 7, 8, 9]);
    }

    #[test]
    fn a_reason_is_one_line() {
        assert_eq!(one_line(" a\n  b\tc "), "a b c");
    }
}
