// SPDX-License-Identifier: Apache-2.0
//! What a tired administrator gets wrong: each ends with the right exit status and a sentence that
//! names the thing, the value and the remedy.
#![allow(
    clippy::unwrap_used,
    reason = "a test ends where something is not as it must be"
)]

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use tempfile::TempDir;

/// sysexits(3), which the resource agent translates.
const EX_UNAVAILABLE: i32 = 69;
const EX_CONFIG: i32 = 78;

struct Attempt {
    directory: TempDir,
    config: PathBuf,
}

impl Attempt {
    fn with(text: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("vm.toml");
        fs::write(&config, text).unwrap();
        Self { directory, config }
    }

    fn good(kernel: &Path) -> Self {
        Self::with(&format!(
            "[vm]\nname = \"vm\"\nmemory_mib = 64\n[boot]\nkernel = {kernel:?}\n[sandbox]\nuser = \"nobody\"\n"
        ))
    }

    fn run(&self, more: &[&str]) -> (i32, String) {
        let output = Command::cargo_bin("kemari-engine")
            .unwrap()
            .args(["run", "--node", "a", "--config"])
            .arg(&self.config)
            .args(more)
            .env("KEMARI_RUN_DIR", self.directory.path())
            .env("KEMARI_STATE_DIR", self.directory.path())
            .timeout(std::time::Duration::from_secs(60))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        println!("{text}");
        (output.status.code().unwrap_or(-1), text)
    }
}

fn ledger() -> &'static Path {
    kemari_cluster_tests::guests::ledger()
}

fn names(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "{word:?} is not in: {text}");
    }
}

#[test]
fn a_missing_description() {
    let attempt = Attempt::good(ledger());
    fs::remove_file(&attempt.config).unwrap();
    let (status, text) = attempt.run(&[]);
    assert_eq!(status, EX_CONFIG);
    names(&text, &["vm.toml", "create it"]);
}

#[test]
fn an_unknown_key_and_a_value_out_of_range() {
    let attempt = Attempt::with("[vm]\nname = \"vm\"\nmemory = 64\n");
    let (status, text) = attempt.run(&[]);
    assert_eq!(status, EX_CONFIG);
    names(&text, &["vm.toml:3", "vm.memory", "memory_mib"]);
    let attempt = Attempt::with("[vm]\nname = \"vm\"\nmemory_mib = 9999999\n");
    let (status, text) = attempt.run(&[]);
    assert_eq!(status, EX_CONFIG);
    names(&text, &["vm.toml:3", "9999999", "16 to 524288"]);
}

#[test]
fn a_kernel_that_is_missing() {
    let (status, text) = Attempt::good(Path::new("/nonexistent/vmlinuz")).run(&[]);
    assert_eq!(status, EX_UNAVAILABLE);
    names(
        &text,
        &[
            "boot.kernel",
            "/nonexistent/vmlinuz",
            "put the file on this node",
        ],
    );
}

#[test]
fn a_kernel_that_is_none() {
    // Also a replica that only waits says so at once.
    for incoming in [&[][..], &["--incoming", "auto"]] {
        let (status, text) = Attempt::good(Path::new("/etc/passwd")).run(incoming);
        assert_eq!(status, EX_UNAVAILABLE);
        names(&text, &["/etc/passwd", "bzImage", "PVH"]);
    }
}

#[test]
fn an_address_that_is_none() {
    let (status, text) = Attempt::good(ledger()).run(&["--incoming", "udp:0.0.0.0:4444"]);
    assert_eq!(status, EX_CONFIG);
    names(&text, &["udp:0.0.0.0:4444", "kemari:tcp:HOST:PORT"]);
    let (status, text) = Attempt::good(ledger()).run(&["--incoming", "kemari:rdma:0.0.0.0:4444"]);
    assert_eq!(status, EX_CONFIG);
    names(&text, &["rdma", "give kemari:tcp:HOST:PORT"]);
}

#[test]
fn a_port_in_use() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("kemari:tcp:{}", taken.local_addr().unwrap());
    let (status, text) = Attempt::good(ledger()).run(&["--incoming", &address]);
    assert_eq!(status, 1);
    names(&text, &[&address, "replication.port"]);
}

#[test]
fn a_damaged_licence_record() {
    let attempt = Attempt::good(ledger());
    fs::write(attempt.directory.path().join("vm.licence"), "{").unwrap();
    let (status, text) = attempt.run(&[]);
    assert_eq!(status, 1);
    names(&text, &["vm.licence", "file system"]);
}

#[test]
fn a_boot_by_hand_where_the_other_replica_may_have_gone_on() {
    let attempt = Attempt::good(ledger());
    let record = "{\"generation\":7,\"kind\":\"paired\"}";
    fs::write(attempt.directory.path().join("vm.licence"), record).unwrap();
    let (status, text) = attempt.run(&[]);
    assert_eq!(status, 1);
    names(&text, &["paired", "generation 7", "--incoming", "--force"]);
}

#[test]
fn a_user_of_the_sandbox_that_does_not_exist() {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED: only root becomes another user");
        return;
    }
    let attempt = Attempt::with(&format!(
        "[vm]\nname = \"vm\"\nmemory_mib = 64\n[boot]\nkernel = {:?}\n[sandbox]\nuser = \"n0b0dy\"\n",
        ledger()
    ));
    let (status, text) = attempt.run(&[]);
    assert_eq!(status, EX_UNAVAILABLE);
    names(
        &text,
        &[
            "n0b0dy",
            "systemd-sysusers",
            "[sandbox] user",
            "--no-sandbox",
        ],
    );
}
