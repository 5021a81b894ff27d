// SPDX-License-Identifier: Apache-2.0
//! `kemarictl report`: one archive with what a bug report needs.
//!
//! What cannot be had is in it as the words that say why. Secrets are left out by [`redact`]: of CIB and
//! configurations the values whose names sound secret, of descriptions the guest's command line.

mod redact;

use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use flate2::Compression;
use flate2::write::GzEncoder;
use kemari_api::place;
use tokio::process::Command;
use tokio::time::timeout;

use super::paint::Paint;
use super::{doctor, print, status, table};

/// How long a command may take.
const COMMAND_MAX: Duration = Duration::from_secs(20);
/// More of a file or of a command's output is not taken.
const BYTES_MAX: usize = 16 * 1024 * 1024;

/// Commands whose output belongs in it, by the name it gets.
const COMMANDS: [(&str, &[&str]); 12] = [
    (
        "journal",
        &[
            "journalctl",
            "--no-pager",
            "--output=short-iso-precise",
            "--since=-2 days",
            "--unit=kemari-agent",
            "--unit=kemari-vm@*",
            "--unit=corosync",
            "--unit=pacemaker",
        ],
    ),
    (
        "kernel",
        &[
            "journalctl",
            "--no-pager",
            "--dmesg",
            "--since=-2 days",
            "--priority=warning",
        ],
    ),
    (
        "units",
        &[
            "systemctl",
            "--no-pager",
            "status",
            "kemari-agent",
            "kemari-vm@*",
            "corosync",
            "pacemaker",
        ],
    ),
    ("corosync-cmap", &["corosync-cmapctl"]),
    ("corosync-quorum", &["corosync-quorumtool", "-s"]),
    ("corosync-links", &["corosync-cfgtool", "-s"]),
    ("crm_mon", &["crm_mon", "-1", "-r", "-A", "-f"]),
    ("cib.xml", &["cibadmin", "--query"]),
    (
        "packages",
        &[
            "dpkg-query",
            "-W",
            "kemari",
            "corosync",
            "pacemaker",
            "resource-agents",
            "linux-image-*",
        ],
    ),
    ("host", &["uname", "-a"]),
    ("cpu", &["lscpu"]),
    ("clock", &["timedatectl", "show"]),
];

/// Writes it.
pub(super) async fn report(file: Option<&Path>) -> anyhow::Result<()> {
    let seconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs());
    let host = nix::unistd::gethostname()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let name = format!("kemari-report-{host}-{seconds}");
    let path = file.map_or_else(|| PathBuf::from(format!("{name}.tar.gz")), Path::to_owned);
    let out = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("Cannot make {}", path.display()))?;
    let mut archive = tar::Builder::new(GzEncoder::new(out, Compression::default()));
    for (entry, bytes) in contents().await {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(seconds);
        archive
            .append_data(&mut header, format!("{name}/{entry}"), bytes.as_slice())
            .with_context(|| format!("Cannot write {}", path.display()))?;
    }
    archive
        .into_inner()
        .and_then(GzEncoder::finish)
        .and_then(|file| file.sync_all())
        .with_context(|| format!("Cannot write {}", path.display()))?;
    print(&format!(
        "{}\nIt is for you alone to read until you give it away; look through it before.\n",
        path.display()
    ))
}

/// Names and bytes of all entries.
async fn contents() -> Vec<(String, Vec<u8>)> {
    let mut all = vec![("doctor".to_owned(), doctor::diagnosis().await.into_bytes())];
    match status::look(None).await {
        Ok(looked) => {
            let screen = table::screen(&looked.overview, Paint::Plain);
            let text = format!("{}\n{screen}", looked.notes.join("\n"));
            all.push(("status".to_owned(), text.into_bytes()));
            let json = serde_json::to_vec_pretty(&looked.overview).unwrap_or_default();
            all.push(("status.json".to_owned(), json));
        }
        Err(error) => all.push(("status".to_owned(), format!("{error:#}\n").into_bytes())),
    }
    for (name, words) in COMMANDS {
        let text = output(words).await;
        all.push((name.to_owned(), redact::values(&text).into_bytes()));
    }
    if let Ok(text) = fs::read_to_string("/etc/corosync/corosync.conf") {
        all.push((
            "corosync.conf".to_owned(),
            redact::values(&text).into_bytes(),
        ));
    }
    for path in files(Path::new("/etc/kemari"), "toml") {
        let text = read(&path);
        all.push((
            format!("etc{}", shown(&path)),
            redact::description(&text).into_bytes(),
        ));
    }
    let state = place::state_dir();
    for path in files(&state.join("claims"), "json") {
        all.push((format!("claims/{}", shown(&path)), read(&path).into_bytes()));
    }
    for directory in directories(&state.join("replicas")) {
        for name in ["licence", "disks"] {
            let path = directory.join(name);
            if path.is_file() {
                let entry = format!("replicas{}/{name}", shown(&directory));
                all.push((entry, read(&path).into_bytes()));
            }
        }
    }
    all
}

async fn output(words: &[&str]) -> String {
    let Some((program, arguments)) = words.split_first() else {
        return String::new();
    };
    let run = Command::new(program)
        .args(arguments)
        .kill_on_drop(true)
        .output();
    match timeout(COMMAND_MAX, run).await {
        Err(_) => format!("{program} did not end within {} s\n", COMMAND_MAX.as_secs()),
        Ok(Err(error)) => format!("{program}: {error}\n"),
        Ok(Ok(output)) => {
            let mut text = tail(output.stdout);
            text.push_str(&tail(output.stderr));
            text
        }
    }
}

fn read(path: &Path) -> String {
    match fs::read(path) {
        Ok(bytes) => tail(bytes),
        Err(error) => format!("{error}\n"),
    }
}

/// The end of what is too long.
fn tail(mut bytes: Vec<u8>) -> String {
    let over = bytes.len().saturating_sub(BYTES_MAX);
    bytes.drain(..over);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn shown(path: &Path) -> String {
    path.file_name()
        .map_or_else(String::new, |name| format!("/{}", name.to_string_lossy()))
}

fn files(directory: &Path, end: &str) -> Vec<PathBuf> {
    let mut all = entries(directory);
    all.retain(|path| path.extension().is_some_and(|extension| extension == end));
    all
}

fn directories(directory: &Path) -> Vec<PathBuf> {
    let mut all = entries(directory);
    all.retain(|path| path.is_dir());
    all
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = fs::read_dir(directory)
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    all.sort();
    all
}
