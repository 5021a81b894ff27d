// SPDX-License-Identifier: Apache-2.0
//! What disks say of themselves (SMART), asked with smartmontools' `smartctl`, which knows the drives.

use std::io;
use std::process::{Output, Stdio};
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::process::Command;
use tokio::time::timeout;

use super::{Health, Judgement, worst};

/// Longest wait for one disk; a failing one may take its time.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// `smartctl` shares this bit of its exit status between all "cannot be asked" (smartctl(8), bits 0 and 1).
const NOT_ASKED: i32 = 0b11;

/// Attributes that count sectors which cannot be read: 197 waits for a write, 198 was found by a self-test.
const UNREADABLE_SECTORS: [u16; 2] = [197, 198];

#[derive(Deserialize)]
struct Scan {
    #[serde(default)]
    devices: Vec<Device>,
}

#[derive(Deserialize)]
struct Device {
    name: String,
    r#type: String,
}

/// The parts of `smartctl --json` that matter here.
#[derive(Debug, Default, Deserialize)]
struct Report {
    smart_status: Option<Status>,
    nvme_smart_health_information_log: Option<Nvme>,
    ata_smart_attributes: Option<Attributes>,
}

#[derive(Debug, Deserialize)]
struct Status {
    passed: bool,
}

#[derive(Debug, Deserialize)]
struct Nvme {
    critical_warning: u32,
    percentage_used: u32,
}

#[derive(Debug, Deserialize)]
struct Attributes {
    #[serde(default)]
    table: Vec<Attribute>,
}

#[derive(Debug, Deserialize)]
struct Attribute {
    id: u16,
    raw: Raw,
}

#[derive(Debug, Deserialize)]
struct Raw {
    value: u64,
}

/// Bits of an NVMe drive's critical warning (NVM Express Base Specification, "SMART / Health
/// Information").
const WARNINGS: [(u32, Health, &str); 5] = [
    (1 << 2, Health::Red, "its reliability is degraded"),
    (1 << 3, Health::Red, "it can only be read"),
    (1 << 0, Health::Red, "its spare blocks run out"),
    (1 << 4, Health::Yellow, "its memory backup has failed"),
    (1 << 1, Health::Yellow, "its temperature is out of range"),
];

/// Asks every disk that `smartctl` finds. `None` where there are none, or none that can be asked.
///
/// # Errors
/// When `smartctl` cannot be run, or says nothing that can be read.
pub async fn look() -> io::Result<Option<Judgement>> {
    let scan: Scan = ask(&["--scan", "--json=c"]).await?.1;
    let mut judged = Vec::new();
    for disk in scan.devices {
        // A disk that sleeps is left alone.
        let asked = [
            "--json=c",
            "--health",
            "--attributes",
            "--nocheck=standby",
            "--device",
            &disk.r#type,
            &disk.name,
        ];
        let (output, report): (Output, Report) = ask(&asked).await?;
        let status = output.status.code().unwrap_or(NOT_ASKED);
        if status & NOT_ASKED == 0 {
            judged.push(judge(&disk.name, &report));
        }
    }
    Ok(worst(judged.into_iter()))
}

async fn ask<T: DeserializeOwned>(arguments: &[&str]) -> io::Result<(Output, T)> {
    let mut command = Command::new("smartctl");
    command
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = timeout(ANSWER_MAX, command.output())
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "smartctl took too long"))??;
    let answer = serde_json::from_slice(&output.stdout)?;
    Ok((output, answer))
}

fn judge(disk: &str, report: &Report) -> Judgement {
    let says = |health, what: &str| Judgement {
        health,
        why: format!("Disk {disk} says that {what}"),
    };
    if let Some(nvme) = &report.nvme_smart_health_information_log
        && let Some((_, health, what)) = WARNINGS
            .iter()
            .find(|(bit, ..)| nvme.critical_warning & bit != 0)
    {
        return says(*health, what);
    }
    if report
        .smart_status
        .as_ref()
        .is_some_and(|status| !status.passed)
    {
        return says(Health::Red, "it fails, or is about to");
    }
    if let Some(nvme) = &report.nvme_smart_health_information_log
        && nvme.percentage_used >= 100
    {
        let what = format!("{} % of its life is used", nvme.percentage_used);
        return says(Health::Yellow, &what);
    }
    let unreadable: u64 = report
        .ata_smart_attributes
        .iter()
        .flat_map(|attributes| &attributes.table)
        .filter(|attribute| UNREADABLE_SECTORS.contains(&attribute.id))
        .map(|attribute| attribute.raw.value)
        .max()
        .unwrap_or(0);
    if unreadable > 0 {
        let what = format!("{unreadable} of its sectors cannot be read");
        return says(Health::Yellow, &what);
    }
    Judgement::green()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(json: &str) -> (Health, String) {
        let Judgement { health, why } = judge("/dev/sda", &serde_json::from_str(json).unwrap());
        (health, why)
    }

    #[test]
    fn a_sound_disk_is_green() {
        let ata = r#"{"json_format_version":[1,0],"smart_status":{"passed":true},
            "ata_smart_attributes":{"revision":1,"table":[
                {"id":5,"name":"Reallocated_Sector_Ct","raw":{"value":9,"string":"9"}},
                {"id":197,"name":"Current_Pending_Sector","raw":{"value":0,"string":"0"}}]}}"#;
        assert_eq!(judged(ata), (Health::Green, String::new()));
        let nvme = r#"{"smart_status":{"passed":true,"nvme":{"value":0}},
            "nvme_smart_health_information_log":{"critical_warning":0,"percentage_used":3}}"#;
        assert_eq!(judged(nvme).0, Health::Green);
        assert_eq!(judged("{}").0, Health::Green);
    }

    #[test]
    fn what_a_disk_warns_of_is_told() {
        let pending = r#"{"smart_status":{"passed":true},"ata_smart_attributes":{"table":[
            {"id":197,"raw":{"value":8}},{"id":198,"raw":{"value":2}}]}}"#;
        assert_eq!(
            judged(pending),
            (
                Health::Yellow,
                "Disk /dev/sda says that 8 of its sectors cannot be read".into()
            )
        );
        let failing = r#"{"smart_status":{"passed":false}}"#;
        assert_eq!(judged(failing).0, Health::Red);
        let nvme = |warning, used| {
            format!(
                r#"{{"smart_status":{{"passed":{}}},"nvme_smart_health_information_log":
                {{"critical_warning":{warning},"percentage_used":{used}}}}}"#,
                warning == 0
            )
        };
        assert_eq!(judged(&nvme(0, 100)).0, Health::Yellow);
        assert_eq!(judged(&nvme(2, 1)).0, Health::Yellow);
        assert_eq!(
            judged(&nvme(2 | 8, 1)),
            (
                Health::Red,
                "Disk /dev/sda says that it can only be read".into()
            )
        );
    }
}
