// SPDX-License-Identifier: Apache-2.0
//! Why the process ended, and the exit status that says so.
//!
//! The statuses are those of sysexits(3); the resource agent translates them into OCF codes.

use std::fmt;
use std::process::ExitCode;

use sd_notify::NotifyState;

/// What kind of failure ended the process, the gravest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FailureKind {
    /// The VM description is wrong (EX_CONFIG, 78; OCF_ERR_CONFIGURED).
    Configuration,
    /// Something needed is not on this node (EX_UNAVAILABLE, 69; OCF_ERR_INSTALLED).
    NotInstalled,
    /// This process may not do what it must (EX_NOPERM, 77; OCF_ERR_PERM).
    Permission,
    /// The host's memory failed under the guest (EX_OSERR, 71; OCF_ERR_GENERIC).
    Memory,
    /// Anything else (1; OCF_ERR_GENERIC).
    Other,
}

impl FailureKind {
    /// The status for the parent process.
    pub fn status(self) -> u8 {
        match self {
            Self::Configuration => 78,
            Self::NotInstalled => 69,
            Self::Permission => 77,
            Self::Memory => 71,
            Self::Other => 1,
        }
    }

    /// The same, for `main`.
    pub fn exit_code(self) -> ExitCode {
        ExitCode::from(self.status())
    }
}

/// A failure with the sentence that names the thing, the value and the remedy.
#[derive(Debug)]
pub struct Failure {
    kind: FailureKind,
    text: String,
}

impl Failure {
    /// A failure of this kind, described by an error and everything below it.
    pub fn new(kind: FailureKind, error: &dyn std::error::Error) -> Self {
        Self {
            kind,
            text: chain(error),
        }
    }

    /// A failure of this kind in our own words.
    pub fn told(kind: FailureKind, text: impl Into<String>) -> Self {
        Self {
            kind,
            text: text.into(),
        }
    }

    /// The status for the parent process.
    pub fn status(&self) -> u8 {
        self.kind.status()
    }

    /// The same, for `main`.
    pub fn exit_code(&self) -> ExitCode {
        self.kind.exit_code()
    }

    /// As the last words of this process, which the resource agent passes on.
    pub fn tell_systemd(&self) {
        let _ = sd_notify::notify(&[NotifyState::Status(&self.text)]);
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// An error and its sources in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
