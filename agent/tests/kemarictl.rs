// SPDX-License-Identifier: Apache-2.0
//! `kemarictl` against an engine that is a test, without an agent: exit statuses, JSON, no colours.
#![allow(
    clippy::unwrap_used,
    reason = "a test ends where something is not as it must be"
)]

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use kemari_api::figures::{Comparison, ReplicaFigures};
use kemari_api::replica::{DiskState, FailoverPolicy, PATH, ReplicaStatus};
use kemari_api::{Epoch, Generation, Licence, Role};
use serde_json::Value;

#[derive(Clone)]
struct Engine {
    role: Role,
    licence: Licence,
}

#[zbus::interface(name = "org.kemari.Replica1")]
impl Engine {
    fn status(&self) -> ReplicaStatus {
        ReplicaStatus {
            vm: "vm".parse().unwrap(),
            node: "a".parse().unwrap(),
            pid: 1,
            role: self.role,
            licence: self.licence,
            in_sync: self.licence == Licence::Paired,
            running: true,
            generation: Generation::new(4),
            epoch: Epoch::new(9),
            disks: DiskState::Own,
            failover: FailoverPolicy::Auto,
            peer: "b".to_owned(),
            listen: String::new(),
            detail: "as the test says".to_owned(),
        }
    }

    fn figures(&self) -> ReplicaFigures {
        ReplicaFigures {
            lag_us: 7_000,
            ..ReplicaFigures::default()
        }
    }

    fn verify(&self) -> zbus::fdo::Result<Comparison> {
        if self.role != Role::Active {
            return Err(zbus::fdo::Error::Failed(
                "on the active one only".to_owned(),
            ));
        }
        Ok(Comparison {
            equal: false,
            detail: "Of 2 blocks 1 differs".to_owned(),
        })
    }

    fn monitor(&self, line: &str) -> String {
        line.to_owned()
    }
}

/// Serves every caller at the control socket in this directory.
fn engine(directory: &Path, role: Role, licence: Licence) {
    let listener = UnixListener::bind(directory.join("vm.sock")).unwrap();
    let engine = Engine { role, licence };
    thread::spawn(move || {
        for caller in listener.incoming() {
            let (caller, engine) = (caller.unwrap(), engine.clone());
            thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build();
                runtime.unwrap().block_on(async {
                    let _connection = zbus::connection::Builder::unix_stream(caller)
                        .server(zbus::Guid::generate())
                        .p2p()
                        .serve_at(PATH, engine)
                        .build()
                        .await
                        .unwrap();
                    std::future::pending::<()>().await;
                });
            });
        }
    });
}

/// Exit status, standard output and standard error.
fn kemarictl(directory: &Path, arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_kemarictl"))
        .args(arguments)
        .env("KEMARI_RUN_DIR", directory)
        .env("KEMARI_STATE_DIR", directory)
        // Neither agent nor Pacemaker.
        .env("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent")
        .env("PATH", directory)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (
        output.status.code().unwrap(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[test]
fn scripts_can_tell_the_exit_statuses_apart() {
    let here = tempfile::tempdir().unwrap();
    engine(here.path(), Role::Active, Licence::Solo);
    let nobody = tempfile::tempdir().unwrap();
    let passive = tempfile::tempdir().unwrap();
    engine(passive.path(), Role::Passive, Licence::None);
    for (directory, arguments, status) in [
        (&here, &["list"][..], 0),
        (&here, &["monitor", "vm", "info", "status"], 0),
        (&here, &["nonsense"], 2),
        (&here, &["status", "a/b"], 2),
        (&here, &["status", "other"], 3),
        (&nobody, &["monitor", "vm", "help"], 3),
        (&nobody, &["verify", "vm"], 3),
        (&nobody, &["console", "vm"], 3),
        (&nobody, &["force-active", "vm", "--yes-i-lose", "vm"], 3),
        (&here, &["handover", "vm"], 4),
        (&here, &["outdate", "vm"], 4),
        (&passive, &["verify", "vm"], 5),
        (&passive, &["protect", "vm"], 5),
        (&here, &["unprotect", "vm"], 5),
        (&here, &["verify", "vm"], 6),
        (&here, &["status", "--check"], 6),
    ] {
        let (ended, _, told) = kemarictl(directory.path(), arguments);
        assert_eq!(ended, status, "{arguments:?}: {told}");
        assert_eq!(status == 0, told.is_empty(), "{arguments:?}: {told}");
    }
}

#[test]
fn a_protected_vm_passes_the_check_and_is_shown_without_colours() {
    let directory = tempfile::tempdir().unwrap();
    engine(directory.path(), Role::Active, Licence::Paired);
    let (ended, shown, told) = kemarictl(directory.path(), &["status", "--check"]);
    assert_eq!(ended, 0, "{told}");
    assert!(shown.contains("7.0 ms"), "{shown}");
    assert!(!shown.contains('\u{1b}'), "{shown}");
    assert!(told.contains("Showing this node's engines only"), "{told}");
}

#[test]
fn json_is_what_the_page_says() {
    let directory = tempfile::tempdir().unwrap();
    engine(directory.path(), Role::Active, Licence::Solo);
    let json = |arguments: &[&str]| -> Value {
        let (_, shown, told) = kemarictl(directory.path(), arguments);
        serde_json::from_str(&shown).unwrap_or_else(|error| panic!("{error}: {shown}{told}"))
    };
    let status = json(&["status", "--json"]);
    assert_eq!(status["format"], 1);
    assert_eq!(status["cluster"], Value::Null);
    assert_eq!(status["vms"][0]["protected"], false);
    assert_eq!(status["vms"][0]["replicas"][0]["figures"]["lag_us"], 7_000);
    assert_eq!(json(&["list", "--json"])["vms"][0]["role"], "active");
    assert_eq!(json(&["verify", "vm", "--json"])["equal"], false);
    let checks = json(&["doctor", "--json"]);
    let agent = checks["checks"]
        .as_array()
        .unwrap()
        .iter()
        .find(|check| check["name"] == "agent")
        .unwrap();
    assert_eq!(agent["level"], "fail");
}

#[test]
fn a_report_is_an_archive_and_is_never_written_over_a_file() {
    let directory = tempfile::tempdir().unwrap();
    engine(directory.path(), Role::Active, Licence::Solo);
    let file = directory.path().join("report.tar.gz");
    let path = file.to_str().unwrap();
    let (ended, _, told) = kemarictl(directory.path(), &["report", path]);
    assert_eq!(ended, 0, "{told}");
    let bytes = fs::File::open(&file).unwrap();
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(bytes));
    let names: Vec<String> = archive
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().path().unwrap().display().to_string())
        .collect();
    for name in [
        "/doctor",
        "/status",
        "/status.json",
        "/journal",
        "/crm_mon",
        "/cib.xml",
    ] {
        assert!(
            names.iter().any(|it| it.ends_with(name)),
            "{name} in {names:?}"
        );
    }
    let (ended, _, told) = kemarictl(directory.path(), &["report", path]);
    assert_eq!(ended, 1, "{told}");
}
