// SPDX-License-Identifier: Apache-2.0
//! `kemari-engine check`: whether descriptions are right and this node has what they need.
//!
//! Nothing is started, made or changed. Every problem is told, one a line, in the form of a
//! compiler's: `FILE:LINE: key: problem; remedy`. A warning is what will work, but not well.
//!
//! One file for each part of the description looks at the host through [`Host`], whose root a test
//! can move. What a VM that runs on this node already holds (memory, disks, its port) is not
//! counted against its own description.

mod boot;
mod console;
mod disk;
mod host;
mod link;
mod memory;
mod network;
mod sandbox;
mod vm;

use std::fmt;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use kemari_api::config::{Description, KeyLines, VmConfig, shown};

use crate::CheckArguments;
use crate::exit::FailureKind;
use crate::machine_config::unsupported;
use host::Host;

/// How much a problem matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Severity {
    /// The VM cannot start here.
    Error(FailureKind),
    /// It can.
    Warning,
}

/// Something about this node that does not fit a description.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Problem {
    /// The path of the key, as [`KeyLines`] knows it.
    key: String,
    severity: Severity,
    /// What is wrong and what would help.
    text: String,
}

impl Problem {
    /// Something is missing on this node.
    fn missing(key: impl Into<String>, text: impl Into<String>) -> Self {
        Self::new(key, Severity::Error(FailureKind::NotInstalled), text)
    }

    fn warning(key: impl Into<String>, text: impl Into<String>) -> Self {
        Self::new(key, Severity::Warning, text)
    }

    /// A file of this node that cannot be used.
    fn inaccessible(key: impl Into<String>, path: &Path, error: &io::Error, remedy: &str) -> Self {
        let kind = match error.kind() {
            io::ErrorKind::PermissionDenied => FailureKind::Permission,
            _ => FailureKind::NotInstalled,
        };
        let text = format!("cannot open {}: {error}; {remedy}", path.display());
        Self::new(key, Severity::Error(kind), text)
    }

    fn new(key: impl Into<String>, severity: Severity, text: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            severity,
            text: text.into(),
        }
    }
}

/// What was found about one description: lines to print, and how they count.
#[derive(Debug, Default)]
struct Findings {
    lines: Vec<(usize, String)>,
    worst: Option<FailureKind>,
    errors: usize,
    warnings: usize,
}

impl Findings {
    fn of(file: &Path, host: Option<&Host>) -> Self {
        let mut findings = Self::default();
        match Description::load(file) {
            Err(problems) => {
                for problem in problems {
                    findings.count(Severity::Error(FailureKind::Configuration));
                    findings.lines.push((problem.line(), problem.to_string()));
                }
            }
            Ok(Description { config, lines }) => {
                for problem in problems(&config, host) {
                    findings.add(file, &lines, &problem);
                }
            }
        }
        findings.lines.sort_by_key(|(line, _)| *line);
        findings
    }

    fn add(&mut self, file: &Path, lines: &KeyLines, problem: &Problem) {
        self.count(problem.severity);
        let mark = match problem.severity {
            Severity::Error(_) => "",
            Severity::Warning => "warning: ",
        };
        let line = lines.line(&problem.key);
        let (file, key) = (file.display(), shown(&problem.key));
        let told = format!("{file}:{line}: {mark}{key}: {}", problem.text);
        self.lines.push((line, told));
    }

    fn count(&mut self, severity: Severity) {
        match severity {
            Severity::Warning => self.warnings += 1,
            Severity::Error(kind) => {
                self.errors += 1;
                self.worst = Some(self.worst.map_or(kind, |worst| worst.min(kind)));
            }
        }
    }
}

/// The count at the end: "ok", or how many of what.
impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = |number: usize| if number == 1 { "" } else { "s" };
        match self.errors {
            0 => f.write_str("ok")?,
            errors => write!(f, "{errors} error{}", plural(errors))?,
        }
        match self.warnings {
            0 => Ok(()),
            warnings => write!(f, ", {warnings} warning{}", plural(warnings)),
        }
    }
}

/// Checks every file and says what is wrong. The status is that of the gravest error.
pub fn run(arguments: &CheckArguments) -> ExitCode {
    let host = (!arguments.no_host).then(Host::this);
    let mut worst = None;
    let mut text = String::new();
    for file in &arguments.files {
        let findings = Findings::of(file, host.as_ref());
        for (_, line) in &findings.lines {
            text.push_str(line);
            text.push('\n');
        }
        text.push_str(&format!("{}: {findings}\n", file.display()));
        worst = [worst, findings.worst].into_iter().flatten().min();
    }
    // Who closes the pipe early has read enough; the status tells the rest.
    let _ = io::stdout().write_all(text.as_bytes());
    worst.map_or(ExitCode::SUCCESS, FailureKind::exit_code)
}

/// Everything that does not fit: first what this engine lacks, then what this node lacks.
fn problems(config: &VmConfig, host: Option<&Host>) -> Vec<Problem> {
    let unsupported = unsupported(config).into_iter().map(|it| {
        let severity = Severity::Error(FailureKind::Configuration);
        Problem::new(it.key, severity, it.told())
    });
    let mut found: Vec<_> = unsupported.collect();
    if let Some(host) = host {
        let running = host.runs(&config.vm.name);
        found.extend(vm::problems(config, host));
        found.extend(memory::problems(config, host, running));
        found.extend(boot::problems(config));
        found.extend(disk::problems(config, host, running));
        found.extend(network::problems(config, host, running));
        found.extend(link::problems(config));
        found.extend(console::problems(config, running));
        found.extend(sandbox::problems(config));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(text: &str) -> (tempfile::TempDir, Findings) {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("vm.toml");
        std::fs::write(&file, text).unwrap();
        let findings = Findings::of(&file, None);
        (directory, findings)
    }

    #[test]
    fn a_right_text_is_ok_and_a_wrong_one_counted() {
        let good = "[vm]\nname = \"vm\"\nmemory_mib = 64\n[boot]\nkernel = \"/k\"\n";
        let (_directory, found) = findings(good);
        assert_eq!((found.to_string(), found.worst), ("ok".into(), None));
        let (_directory, found) = findings(&good.replace("64", "4").replace("/k", "/k\"\nx = \""));
        assert_eq!(found.to_string(), "2 errors");
        assert_eq!(found.worst, Some(FailureKind::Configuration));
    }

    #[test]
    fn a_problem_is_told_with_file_line_and_key_and_a_warning_is_marked() {
        let text = "[vm]\nname = \"vm\"\n\n[[disk]]\nid = \"a\"\n";
        let path = Path::new("vm.toml");
        let lines = Description::parse(
            path,
            &format!("{text}path = \"/a\"\n[boot]\nkernel = \"/k\"\n")
                .replace("\n\n", "\nmemory_mib = 64\n"),
        )
        .unwrap()
        .lines;
        let mut found = Findings::default();
        found.add(
            path,
            &lines,
            &Problem::missing("disk[0].path", "gone; find it"),
        );
        found.add(
            path,
            &lines,
            &Problem::warning("sandbox.user", "odd; even it"),
        );
        let told: Vec<_> = found.lines.iter().map(|(_, line)| line.as_str()).collect();
        assert_eq!(
            told,
            [
                "vm.toml:6: disk.path: gone; find it",
                "vm.toml:1: warning: sandbox.user: odd; even it"
            ]
        );
        assert_eq!(found.to_string(), "1 error, 1 warning");
    }

    #[test]
    fn the_gravest_error_gives_the_status() {
        let mut found = Findings::default();
        for kind in [
            FailureKind::Permission,
            FailureKind::NotInstalled,
            FailureKind::Other,
        ] {
            found.count(Severity::Error(kind));
        }
        assert_eq!(found.worst, Some(FailureKind::NotInstalled));
    }
}
