// SPDX-License-Identifier: Apache-2.0
//! `kemari-engine check` and `schema` as a person types them: what is printed, and the status.
#![allow(
    clippy::unwrap_used,
    reason = "a test ends where something is not as it must be"
)]

use std::fs;
use std::path::PathBuf;

use assert_cmd::Command;
use tempfile::TempDir;

/// sysexits(3), which `docs/vm-description.md` promises.
const EX_UNAVAILABLE: i32 = 69;
const EX_CONFIG: i32 = 78;

const GOOD: &str = "[vm]\nname = \"vm\"\nmemory_mib = 64\n[boot]\nkernel = \"/nonexistent/k\"\n";

struct Files(TempDir);

impl Files {
    fn with(files: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(directory.path().join(name), text).unwrap();
        }
        Self(directory)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The status, and what is printed with the directory's name taken out.
    fn check(&self, arguments: &[&str]) -> (i32, String) {
        let output = Command::cargo_bin("kemari-engine")
            .unwrap()
            .arg("check")
            .args(arguments)
            .current_dir(self.0.path())
            .env("KEMARI_RUN_DIR", self.0.path())
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        println!("{text}");
        (output.status.code().unwrap_or(-1), text)
    }
}

#[test]
fn a_right_text_is_ok() {
    let files = Files::with(&[("a.toml", GOOD), ("b.toml", GOOD)]);
    let (status, text) = files.check(&["--no-host", "a.toml", "b.toml"]);
    assert_eq!((status, text.as_str()), (0, "a.toml: ok\nb.toml: ok\n"));
}

#[test]
fn every_problem_of_every_file_is_a_line_and_each_file_is_counted() {
    let bad = GOOD
        .replace("64", "4")
        .replace("[boot]", "colour = 1\n[boot]");
    let files = Files::with(&[("good.toml", GOOD), ("bad.toml", &bad)]);
    let (status, text) = files.check(&["--no-host", "bad.toml", "good.toml", "none.toml"]);
    assert_eq!(status, EX_CONFIG);
    let lines: Vec<_> = text.lines().collect();
    let [memory, colour, bad, good, none, counted] = lines.as_slice() else {
        panic!("{text}");
    };
    assert!(memory.starts_with("bad.toml:3: vm.memory_mib: 4 is out of range"));
    assert!(colour.starts_with("bad.toml:4: vm.colour: unknown field"));
    assert_eq!((*bad, *good), ("bad.toml: 2 errors", "good.toml: ok"));
    assert!(none.contains("none.toml") && none.contains("create it"));
    assert_eq!(*counted, "none.toml: 1 error");
}

#[test]
fn what_this_node_lacks_is_told_at_the_key_that_names_it() {
    let files = Files::with(&[("vm.toml", GOOD)]);
    let more = format!("{GOOD}initrd = \"/nonexistent/i\"\n[sandbox]\nuser = \"no-such-user\"\n");
    fs::write(files.path("vm.toml"), more).unwrap();
    let (status, text) = files.check(&["vm.toml"]);
    // The user is one that this release refuses as well as this host.
    assert!([EX_UNAVAILABLE, EX_CONFIG].contains(&status), "{status}");
    for start in [
        "vm.toml:5: boot.kernel: cannot open /nonexistent/k: ",
        "vm.toml:6: boot.initrd: cannot open /nonexistent/i: ",
        "vm.toml:8: sandbox.user: there is no user no-such-user",
    ] {
        assert!(
            text.lines().any(|line| line.starts_with(start)),
            "{start} is not in {text}"
        );
    }
}

#[test]
fn the_schema_is_printed_as_json() {
    let output = Command::cargo_bin("kemari-engine")
        .unwrap()
        .arg("schema")
        .output()
        .unwrap();
    assert!(output.status.success());
    let schema: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(schema["title"], "VM description of Kemari");
    assert!(schema["properties"]["disk"].is_object());
}
