// SPDX-License-Identifier: Apache-2.0
//! Two engine processes that meet over each transport, and what both logs say where they cannot.
#![allow(
    clippy::unwrap_used,
    reason = "a test ends where something is not as it must be"
)]

#[allow(dead_code, reason = "each test file uses its part")]
mod replica_process;

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use kemari_api::cluster_key::{ClusterKeys, ClusterSecret};
use kemari_api::replica::Promotion;
use kemari_api::{Licence, Role};
use kemari_cluster_tests::{guests, ledger};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;

use replica_process::{Description, PATIENCE, ReplicaProcess, kvm_or_skip, outside};

/// Nodes of a test: their files, and how their engines begin.
struct Nodes {
    directory: TempDir,
}

impl Nodes {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn private(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        path
    }

    /// A new key; the line of the description that names it.
    fn key(&self, name: &str) -> String {
        let keys = ClusterKeys::of(ClusterSecret::generate().unwrap());
        let path = self.private(name, &keys.to_text());
        format!("cluster_key = {path:?}\n")
    }

    /// Of a key of these nodes.
    fn fingerprint(&self, name: &str) -> String {
        let keys = ClusterKeys::read(&self.path(name)).unwrap();
        keys.shown().public_key().fingerprint().to_string()
    }

    /// A node's certificate, valid until so many days from now; the lines that name its files.
    fn certificate(&self, name: &str, authority: &Authority, days: i64) -> String {
        let mut params = CertificateParams::new(vec!["127.0.0.1".into()]).unwrap();
        let now = std::time::SystemTime::now();
        let day = |days: i64| {
            let length = std::time::Duration::from_secs(86_400 * days.unsigned_abs());
            let then = if days < 0 { now - length } else { now + length };
            then.into()
        };
        params.not_before = day(-100);
        params.not_after = day(days);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, authority).unwrap();
        let ca = self.private("ca.pem", &authority.pem());
        let pem = self.private(&format!("{name}.pem"), &certificate.pem());
        let key = self.private(&format!("{name}.key"), &key.serialize_pem());
        format!("tls_authority = {ca:?}\ntls_certificate = {pem:?}\ntls_key = {key:?}\n")
    }
}

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn description<'a>(console: &'a str, replication: &'a str) -> Description<'a> {
    Description {
        memory_mib: 32,
        kernel: guests::ledger(),
        cmdline: "",
        console,
        replication,
        sections: "",
    }
}

/// An engine with a console of its own that nobody reads.
fn engine(node: &str, incoming: &str, replication: &str) -> ReplicaProcess {
    ReplicaProcess::start_at(node, &description("none", replication), incoming)
}

const TCP: &str = "kemari:tcp:127.0.0.1:PORT";
const TLS: &str = "kemari:tls:127.0.0.1:PORT";

/// What the active side says of its attempt to make a pair, and both logs.
fn refused(active: &ReplicaProcess, passive: &ReplicaProcess, address: &str) -> [String; 2] {
    active.promote(Promotion::ColdStart, 1).unwrap();
    let _ = active.monitor(&format!("migrate -d {address}"));
    let said = active.wait("a refusal", |status| {
        status.detail.starts_with("not replicating")
    });
    assert!(active.log().contains(&said.detail), "it is logged too");
    let word = "refused a replication connection";
    let begun = std::time::Instant::now();
    while !passive.log().contains(word) {
        assert!(begun.elapsed() < PATIENCE, "{}", passive.log());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    [said.detail, passive.log()]
}

fn names(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "{word:?} is not in: {text}");
    }
}

/// A pair over this transport survives the loss of its active replica.
fn fails_over(incoming: &str, replication: [&str; 2], listens: &str) {
    let (observer, console) = outside();
    let [a, b] = [("a", replication[0]), ("b", replication[1])].map(|(node, replication)| {
        ReplicaProcess::start_at(node, &description(&console, replication), incoming)
    });
    assert!(b.status().listen.starts_with(listens), "{:?}", b.status());
    let mut a = a;
    a.promote(Promotion::ColdStart, 1).unwrap();
    a.protect(&b);
    observer.wait_for_more(1_000, PATIENCE).unwrap();
    a.kill();
    b.wait("the loss noticed", |status| status.detail.contains("lost"));
    b.promote(Promotion::TakeOver, 2).unwrap();
    let status = b.status();
    assert_eq!((status.role, status.licence), (Role::Active, Licence::Solo));
    observer.wait_for_more(500, PATIENCE).unwrap();
    assert_eq!(observer.violations(), []);
    ledger::check(&observer.bytes()).unwrap();
}

#[test]
fn a_pair_over_tls_with_a_cluster_key_fails_over() {
    if !kvm_or_skip() {
        return;
    }
    let key = Nodes::new();
    let line = key.key("cluster.key");
    fails_over("auto", [&line, &line], "kemari:tls:127.0.0.1:");
}

#[test]
fn a_pair_over_tls_with_certificates_fails_over() {
    if !kvm_or_skip() {
        return;
    }
    let (nodes, authority) = (Nodes::new(), authority());
    let a = nodes.certificate("a", &authority, 30);
    let b = nodes.certificate("b", &authority, 30);
    fails_over("auto", [&a, &b], "kemari:tls:127.0.0.1:");
}

#[test]
fn a_pair_over_a_unix_socket_fails_over() {
    if !kvm_or_skip() {
        return;
    }
    fails_over("kemari:unix:DIRECTORY/link", ["", ""], "kemari:unix:/");
}

#[test]
fn another_key_is_named_in_both_logs() {
    if !kvm_or_skip() {
        return;
    }
    let nodes = Nodes::new();
    let (a, b) = (nodes.key("a.key"), nodes.key("b.key"));
    let (active, passive) = (engine("a", TLS, &a), engine("b", TLS, &b));
    let [said, logged] = refused(&active, &passive, &passive.address);
    let (a, b) = (nodes.fingerprint("a.key"), nodes.fingerprint("b.key"));
    names(&said, &["a.key", &a, &b, "copy one key file to both nodes"]);
    names(&logged, &["does not accept", "b.key", &b]);
}

#[test]
fn a_side_without_tls_is_named_in_both_logs() {
    if !kvm_or_skip() {
        return;
    }
    let nodes = Nodes::new();
    let key = nodes.key("cluster.key");
    let plain = engine("a", TCP, "transport = \"tcp\"\n");
    let tls = engine("b", TLS, &key);
    let [said, logged] = refused(&plain, &tls, &tls.address.replace(":tls:", ":tcp:"));
    names(&said, &["other side uses kemari:tls:", "kemarictl keygen"]);
    names(&logged, &["is no TLS", "kemari:tcp:", "kemarictl keygen"]);

    let plain = engine("a", TCP, "transport = \"tcp\"\n");
    let tls = engine("b", TLS, &key);
    let [said, logged] = refused(&tls, &plain, &plain.address.replace(":tcp:", ":tls:"));
    names(&said, &["is no TLS", "kemari:tcp:"]);
    names(&logged, &["other side uses kemari:tls:", "transport"]);
}

#[test]
fn an_expired_certificate_is_named_in_both_logs_with_the_clock() {
    if !kvm_or_skip() {
        return;
    }
    let (nodes, authority) = (Nodes::new(), authority());
    let good = nodes.certificate("a", &authority, 30);
    let expired = nodes.certificate("b", &authority, -3);
    let (active, passive) = (engine("a", TLS, &good), engine("b", TLS, &expired));
    let [said, logged] = refused(&active, &passive, &passive.address);
    names(&said, &["has expired since 3 days", "clock"]);
    names(
        &logged,
        &["does not accept this node's certificate", "b.pem", "clock"],
    );
    // The other way round: the passive side looks at the caller's.
    let (active, passive) = (engine("b", TLS, &expired), engine("a", TLS, &good));
    let [said, logged] = refused(&active, &passive, &passive.address);
    names(&said, &["does not accept this node's certificate", "clock"]);
    names(&logged, &["has expired since 3 days", "clock"]);
}

#[test]
fn a_node_without_the_key_warns_and_one_with_it_does_not_fall_back() {
    if !kvm_or_skip() {
        return;
    }
    if Path::new("/etc/kemari/cluster.key").exists() {
        println!("SKIPPED: this machine has a cluster key of its own");
        return;
    }
    let nodes = Nodes::new();
    let (keyed, bare) = (
        engine("a", "auto", &nodes.key("cluster.key")),
        engine("b", "auto", ""),
    );
    assert!(bare.status().listen.starts_with("kemari:tcp:"));
    names(&bare.log(), &["neither encrypted", "kemarictl keygen"]);
    assert!(!keyed.log().contains("neither encrypted"));
    keyed.promote(Promotion::ColdStart, 1).unwrap();
    let address = bare.status().listen;
    let told = keyed.monitor(&format!("migrate -d {address}")).unwrap_err();
    names(
        &told.to_string(),
        &["copy the key to the other node", "cluster.key"],
    );
    names(&keyed.status().detail, &["not replicating", "without TLS"]);
    // And the other way round.
    bare.promote(Promotion::ColdStart, 1).unwrap();
    let address = keyed.status().listen;
    let told = bare.monitor(&format!("migrate -d {address}")).unwrap_err();
    names(
        &told.to_string(),
        &["no cluster key /etc/kemari/cluster.key"],
    );
}

#[test]
fn callers_that_say_nothing_or_nonsense_keep_nobody_waiting() {
    if !kvm_or_skip() {
        return;
    }
    let nodes = Nodes::new();
    // Long enough that waiting for one of them would be a failure of this test.
    let replication = format!("peer_timeout_ms = 60000\n{}", nodes.key("cluster.key"));
    for incoming in [TCP, TLS] {
        let lines = match incoming {
            TCP => "peer_timeout_ms = 60000\ntransport = \"tcp\"\n",
            _ => &replication,
        };
        let (active, passive) = (engine("a", TCP, lines), engine("b", incoming, lines));
        let place = passive.address.rsplit_once(':').unwrap().1.parse().unwrap();
        let strangers: Vec<_> = (0..60)
            .map(|number: u8| {
                let mut stranger = TcpStream::connect(("127.0.0.1", place)).unwrap();
                if number.is_multiple_of(4) {
                    stranger.write_all(&[number; 200]).unwrap();
                }
                stranger
            })
            .collect();
        active.promote(Promotion::ColdStart, 1).unwrap();
        active.protect(&passive);
        names(&passive.log(), &["refused a replication connection"]);
        // Too many at a time: the oldest had to go.
        let mut oldest = &strangers[1];
        oldest.set_read_timeout(Some(PATIENCE)).unwrap();
        assert!(matches!(oldest.read(&mut [0; 64]), Ok(0)));
    }
}

#[test]
fn a_key_that_others_can_read_keeps_an_engine_from_starting() {
    let nodes = Nodes::new();
    let line = nodes.key("cluster.key");
    fs::set_permissions(nodes.path("cluster.key"), Permissions::from_mode(0o644)).unwrap();
    let config = nodes.path("vm.toml");
    let kernel = guests::ledger();
    let text = format!(
        "[vm]\nname = \"vm\"\nmemory_mib = 32\n[boot]\nkernel = {kernel:?}\n[replication]\n{line}"
    );
    fs::write(&config, text).unwrap();
    let run = |incoming: &[&str]| {
        let output = assert_cmd::Command::new(env!("CARGO_BIN_EXE_kemari-engine"))
            .args(["run", "--no-sandbox", "--config"])
            .arg(&config)
            .args(incoming)
            .env("KEMARI_RUN_DIR", nodes.directory.path())
            .env("KEMARI_STATE_DIR", nodes.directory.path())
            .output()
            .unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        (output.status.code(), text)
    };
    let (status, text) = run(&["--incoming", "auto"]);
    assert_eq!(status, Some(77), "{text}");
    names(&text, &["cluster.key", "mode 0644", "chmod 0600"]);
    let (status, text) = run(&["--incoming", "kemari:tls:127.0.0.1:4444"]);
    assert_eq!(status, Some(78), "{text}");
    names(&text, &["--incoming", "chmod 0600"]);
}
