// SPDX-License-Identifier: Apache-2.0
//! What is looked at, and nothing made of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::ToSocketAddrs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kemari_api::agent::ClusterView;
use kemari_api::config::VmConfig;
use kemari_api::place;
use kemari_api::replica::{self, LinkView};
use tokio::process::Command;
use tokio::time::timeout;

use crate::corosync::advice::Settings as CorosyncSettings;
use crate::operator::ask_agent;
use crate::operator::status::{links, local_replicas};
use crate::settings::{self, Settings};

/// Where descriptions lie.
const DESCRIPTIONS: &str = "/etc/kemari";
/// How long a command may take.
const COMMAND_MAX: Duration = Duration::from_secs(10);

/// The device of KVM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kvm {
    Usable,
    Missing,
    Refused(String),
}

/// One description in /etc/kemari.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DescribedVm {
    pub path: PathBuf,
    /// What is wrong with it, or what is in it.
    pub read: Result<Described, String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Described {
    pub vm: String,
    pub port: u16,
    /// Whether the node names under `replication.addresses` can be resolved: those that cannot.
    pub unresolved: Vec<String>,
    /// Files it names that are not here.
    pub missing: Vec<String>,
}

/// A licence record of an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LicenceRecord {
    pub path: PathBuf,
    pub read: Result<(u64, String), String>,
}

/// A program's own word on its version; `None` if it is not there.
pub(super) type Version = Option<String>;

/// Everything.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Facts {
    pub root: bool,
    pub kvm: Kvm,
    /// Flags of the first CPU.
    pub cpu_flags: BTreeSet<String>,
    pub cpus: usize,
    pub host_name: String,
    pub corosync: Result<CorosyncSettings, String>,
    pub agent: Result<ClusterView, String>,
    /// `crm_mon` ran and what it printed.
    pub pacemaker: Result<String, String>,
    /// Properties of the cluster that matter: `stonith-enabled` and the number of stonith resources.
    pub stonith_enabled: Option<bool>,
    pub stonith_devices: Option<usize>,
    /// timedatectl's words by name.
    pub clock: BTreeMap<String, String>,
    /// An NTP daemon's own word on its offset, in seconds.
    pub clock_offset_s: Option<f64>,
    pub engine: Version,
    pub own_version: &'static str,
    pub corosync_version: Version,
    pub pacemaker_version: Version,
    /// Whether the agent's own settings can be used.
    pub settings: Result<(), String>,
    pub descriptions: Vec<DescribedVm>,
    pub licences: Vec<LicenceRecord>,
    /// Ports of this node on which something listens, of the whole network.
    pub listening: BTreeSet<u16>,
    /// VMs whose engines answer here.
    pub engines: BTreeSet<String>,
    /// The links of each of them.
    pub links: BTreeMap<String, Vec<LinkView>>,
}

impl Facts {
    /// The package kemari-witness is here, or nothing that would need another one.
    pub(super) fn is_witness(&self) -> bool {
        self.engine.is_none() && self.descriptions.is_empty()
    }
}

/// Looks everywhere.
pub(super) async fn gather() -> Facts {
    let corosync = tokio::task::spawn_blocking(CorosyncSettings::read);
    // Who does not answer has no port of its own either; `status` says why.
    let engines = local_replicas(&mut Vec::new()).await.unwrap_or_default();
    let stonith = output("cibadmin", &["--query"]).await.ok();
    let mut links_of = BTreeMap::new();
    for status in &engines {
        if let Ok((proxy, _)) = replica::connect(&status.vm).await {
            links_of.insert(status.vm.to_string(), links(&proxy).await);
        }
    }
    Facts {
        root: nix::unistd::geteuid().is_root(),
        kvm: kvm(),
        cpu_flags: cpu_flags(),
        cpus: std::thread::available_parallelism().map_or(0, usize::from),
        host_name: nix::unistd::gethostname()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default(),
        corosync: match timeout(COMMAND_MAX, corosync).await {
            Ok(Ok(result)) => result.map_err(|error| error.to_string()),
            _ => Err("no answer".to_owned()),
        },
        agent: ask_agent().await.map_err(|error| format!("{error:#}")),
        pacemaker: output("crm_mon", &["--one-shot"]).await,
        stonith_enabled: stonith
            .as_deref()
            .map(|cib| property(cib, "stonith-enabled")),
        stonith_devices: stonith
            .as_deref()
            .map(|cib| cib.matches("class=\"stonith\"").count()),
        clock: output("timedatectl", &["show"])
            .await
            .map(|text| pairs(&text, '='))
            .unwrap_or_default(),
        clock_offset_s: output("chronyc", &["-n", "tracking"])
            .await
            .ok()
            .and_then(|text| offset(&text)),
        engine: output("kemari-engine", &["--version"]).await.ok(),
        own_version: env!("CARGO_PKG_VERSION"),
        corosync_version: output("corosync", &["-v"]).await.ok(),
        pacemaker_version: output("crm_mon", &["--version"]).await.ok(),
        settings: Settings::load(&Path::new(DESCRIPTIONS).join(settings::FILE))
            .map(drop)
            .map_err(|error| format!("{:#}", anyhow::Error::new(error))),
        descriptions: descriptions(Path::new(DESCRIPTIONS)),
        licences: licences(&place::state_dir()),
        listening: listening(),
        engines: engines.iter().map(|status| status.vm.to_string()).collect(),
        links: links_of,
    }
}

fn kvm() -> Kvm {
    let opened = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm");
    match opened {
        Ok(_) => Kvm::Usable,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Kvm::Missing,
        Err(error) => Kvm::Refused(error.to_string()),
    }
}

fn cpu_flags() -> BTreeSet<String> {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    pairs(&text, ':')
        .get("flags")
        .map(|flags| flags.split_whitespace().map(str::to_owned).collect())
        .unwrap_or_default()
}

/// `name SEPARATOR value`, a line each; of a name that comes again the first counts.
fn pairs(text: &str, separator: char) -> BTreeMap<String, String> {
    let mut pairs = BTreeMap::new();
    for line in text.lines() {
        if let Some((name, value)) = line.split_once(separator) {
            pairs
                .entry(name.trim().to_owned())
                .or_insert_with(|| value.trim().to_owned());
        }
    }
    pairs
}

/// `System time     : 0.000012 seconds fast of NTP time` of chronyc(1).
fn offset(text: &str) -> Option<f64> {
    let value = pairs(text, ':').get("System time")?.clone();
    value.split_whitespace().next()?.parse().ok()
}

/// Whether a property of the CIB is on; Pacemaker's default for `stonith-enabled` is yes.
fn property(cib: &str, name: &str) -> bool {
    let named = format!("name=\"{name}\"");
    cib.split('<')
        .find(|tag| tag.starts_with("nvpair") && tag.contains(&named))
        .is_none_or(|tag| !tag.contains("value=\"false\""))
}

async fn output(program: &str, arguments: &[&str]) -> Result<String, String> {
    let run = Command::new(program).args(arguments).output();
    match timeout(COMMAND_MAX, run).await {
        Err(_) => Err(format!("{program} does not answer")),
        Ok(Err(error)) => Err(format!("{program}: {error}")),
        Ok(Ok(output)) if output.status.success() => {
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        }
        Ok(Ok(output)) => {
            let words = String::from_utf8_lossy(&output.stderr).into_owned();
            Err(words.trim().lines().last().unwrap_or(program).to_owned())
        }
    }
}

fn descriptions(directory: &Path) -> Vec<DescribedVm> {
    files(directory)
        .into_iter()
        .filter(|path| path.extension().is_some_and(|end| end == "toml"))
        // Not a VM.
        .filter(|path| path.file_name().is_none_or(|name| name != settings::FILE))
        .map(|path| DescribedVm {
            read: described(&path),
            path,
        })
        .collect()
}

fn described(path: &Path) -> Result<Described, String> {
    let config = VmConfig::load(path).map_err(|error| error.to_string())?;
    let named = config.boot_files().chain(config.disk_files());
    let missing = named
        .filter(|file| !file.path.exists())
        .map(|file| format!("{} {}", file.key, file.path.display()))
        .collect();
    let unresolved = config
        .replication
        .addresses
        .values()
        .flat_map(|hosts| hosts.iter())
        .map(ToString::to_string)
        .filter(|host| (host.as_str(), 0).to_socket_addrs().is_err())
        .collect();
    Ok(Described {
        vm: config.vm.name.to_string(),
        port: config.replication.port.number(),
        unresolved,
        missing,
    })
}

fn licences(state_dir: &Path) -> Vec<LicenceRecord> {
    files(&state_dir.join("replicas"))
        .into_iter()
        .map(|directory| directory.join("licence"))
        .filter(|path| path.exists())
        .map(|path| LicenceRecord {
            read: licence(&path),
            path,
        })
        .collect()
}

fn licence(path: &Path) -> Result<(u64, String), String> {
    let bytes = fs::read(path).map_err(|error| error.to_string())?;
    let json: serde_json::Value =
        serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
    let generation = json.get("generation").and_then(serde_json::Value::as_u64);
    let kind = json.get("kind").and_then(serde_json::Value::as_str);
    match (generation, kind) {
        (Some(generation), Some(kind)) => Ok((generation, kind.to_owned())),
        _ => Err("it has no generation and kind".to_owned()),
    }
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(directory)
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    paths.sort();
    paths
}

/// Local ports of sockets in state LISTEN (0A), from proc(5)'s `net/tcp`.
fn listening() -> BTreeSet<u16> {
    ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .flat_map(|path| ports(&fs::read_to_string(path).unwrap_or_default()))
        .collect()
}

fn ports(text: &str) -> Vec<u16> {
    let port = |line: &str| {
        let mut fields = line.split_whitespace();
        let (local, state) = (fields.nth(1)?, fields.nth(1)?);
        let (_, port) = local.rsplit_once(':')?;
        u16::from_str_radix(port, 16).ok().filter(|_| state == "0A")
    };
    text.lines().filter_map(port).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_other_programs_are_understood() {
        let tcp = "  sl  local_address rem_address   st\n   \
                   0: 0100007F:115C 00000000:0000 0A 0 0\n   \
                   1: 0100007F:0016 0100007F:9999 01 0 0\n";
        assert_eq!(ports(tcp), [4444]);
        let tracking = "Stratum         : 3\nSystem time     : 0.000120 seconds fast of NTP time\n";
        assert_eq!(offset(tracking), Some(0.00012));
        let cib = r#"<nvpair id="a" name="stonith-enabled" value="false"/>"#;
        assert!(!property(cib, "stonith-enabled"));
        assert!(property("<cib/>", "stonith-enabled"));
    }

    #[test]
    fn a_damaged_licence_record_is_named_as_such() {
        let directory = tempfile::tempdir().unwrap();
        let replica = directory.path().join("replicas/web");
        fs::create_dir_all(&replica).unwrap();
        let path = replica.join("licence");
        fs::write(&path, r#"{"generation":3,"kind":"solo"}"#).unwrap();
        let all = licences(directory.path());
        assert_eq!(all.first().unwrap().read, Ok((3, "solo".to_owned())));
        fs::write(&path, "{").unwrap();
        assert!(licences(directory.path()).first().unwrap().read.is_err());
    }
}
