// SPDX-License-Identifier: Apache-2.0
//! A node as the agent sees it, in a directory: run directory, description, no system bus.
#![allow(dead_code, reason = "each test binary uses a part")]

pub mod stand_in;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

/// The directory that stands for a node.
#[derive(Debug)]
pub struct Node {
    directory: TempDir,
}

impl Node {
    /// A node on which nothing runs.
    pub fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        Self { directory }
    }

    /// A file of the node.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Describes a VM "vm" with this line about its memory.
    pub fn describe(&self, memory: &str) {
        let kernel = self.path("kernel");
        fs::write(&kernel, "x").expect("writable");
        let text = format!(
            "[vm]\nname = \"vm\"\n{memory}\n[boot]\nkernel = \"{}\"\n",
            kernel.display()
        );
        fs::write(self.path("vm.toml"), text).expect("writable");
    }

    /// The agent, about to run this action.
    pub fn agent(&self, action: &str) -> Command {
        let mut agent = Command::new(env!("CARGO_BIN_EXE_kemari-ocf"));
        agent
            .env_clear()
            .env("KEMARI_RUN_DIR", self.directory.path())
            .env("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent")
            .env("OCF_RESKEY_config", self.path("vm.toml"))
            .env("OCF_RESKEY_CRM_meta_timeout", "10000")
            .arg(action);
        agent
    }

    /// The exit code of this action.
    pub fn exit(&self, action: &str) -> i32 {
        let output = self.agent(action).output().expect("it runs");
        output.status.code().expect("no signal")
    }
}

/// The agent must end with `code` and give a reason that contains `word`.
pub fn fails(agent: &mut Command, code: i32, word: &str) {
    let output = agent.output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    let reasons: Vec<_> = said
        .lines()
        .filter_map(|line| line.strip_prefix("ocf-exit-reason:"))
        .collect();
    assert!(
        matches!(reasons.as_slice(), [reason] if reason.contains(word)),
        "one reason with {word:?} in {said}"
    );
}
