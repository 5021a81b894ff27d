// SPDX-License-Identifier: Apache-2.0
//! How near the node's sensors are to the temperature at which their hardware gives up
//! (`Documentation/hwmon/sysfs-interface`: `tempN_input`, `tempN_crit`, in thousandths of a degree).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::thresholds::Margins;
use super::{Health, Judgement, worst};

/// Where the kernel shows sensors.
pub const SENSORS: &str = "/sys/class/hwmon";

/// A colour is kept until the sensor is so much cooler than what made it, in thousandths of a degree:
/// a node at the limit shall not be emptied and filled again and again.
const RETREAT: i64 = 3_000;

/// A sensor that knows its critical temperature, in thousandths of a degree Celsius.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// Chip and sensor, such as `coretemp temp1 (Package id 0)`.
    pub sensor: String,
    /// As it is.
    pub now: i64,
    /// What it must not reach.
    pub critical: i64,
}

/// Every such sensor.
#[must_use]
pub fn read(sensors: &Path) -> Vec<Reading> {
    let Ok(chips) = fs::read_dir(sensors) else {
        return Vec::new();
    };
    let mut all: Vec<_> = chips
        .filter_map(|chip| Some(chip.ok()?.path()))
        .flat_map(|chip| of_chip(&chip))
        .collect();
    all.sort_by(|one, other| one.sensor.cmp(&other.sensor));
    all
}

fn of_chip(chip: &Path) -> Vec<Reading> {
    let text = |file: &str| {
        let text = fs::read_to_string(chip.join(file)).ok()?;
        Some(text.trim().to_owned())
    };
    let name = text("name").unwrap_or_default();
    let Ok(files) = fs::read_dir(chip) else {
        return Vec::new();
    };
    let sensors = files.filter_map(|file| {
        let file = file.ok()?.file_name();
        Some(file.to_str()?.strip_suffix("_input")?.to_owned())
    });
    sensors
        .filter(|sensor| sensor.starts_with("temp"))
        .filter_map(|sensor| {
            let number = |what: &str| text(&format!("{sensor}_{what}"))?.parse::<i64>().ok();
            let label = text(&format!("{sensor}_label"))
                .map(|label| format!(" ({label})"))
                .unwrap_or_default();
            Some(Reading {
                sensor: format!("{name} {sensor}{label}"),
                now: number("input")?,
                // Drivers show 0 or less for "not known".
                critical: number("crit").filter(|critical| *critical > 0)?,
            })
        })
        .collect()
}

/// Remembers what each sensor was said to be.
#[derive(Debug)]
pub struct TemperatureWatch {
    margins: Margins,
    said: BTreeMap<String, Health>,
}

impl TemperatureWatch {
    /// A watch that has seen nothing yet.
    #[must_use]
    pub const fn new(margins: Margins) -> Self {
        Self {
            margins,
            said: BTreeMap::new(),
        }
    }

    /// Judges what sensors show. `None` where there are none.
    pub fn look(&mut self, readings: &[Reading]) -> Option<Judgement> {
        let mut said = BTreeMap::new();
        let judged = worst(readings.iter().map(|reading| {
            let before = self.said.get(&reading.sensor).copied();
            let health = self.health(reading, before.unwrap_or(Health::Green));
            said.insert(reading.sensor.clone(), health);
            if health == Health::Green {
                return Judgement::green();
            }
            Judgement {
                health,
                why: format!(
                    "Sensor {} shows {} degrees, its critical temperature is {}",
                    reading.sensor,
                    reading.now / 1000,
                    reading.critical / 1000
                ),
            }
        }));
        self.said = said;
        judged
    }

    fn health(&self, reading: &Reading, before: Health) -> Health {
        let margin = reading.critical.saturating_sub(reading.now);
        let within = |limit: u8, colour: Health| {
            let retreat = if before >= colour { RETREAT } else { 0 };
            margin <= i64::from(limit) * 1000 + retreat
        };
        if within(self.margins.red, Health::Red) {
            Health::Red
        } else if within(self.margins.yellow, Health::Yellow) {
            Health::Yellow
        } else {
            Health::Green
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::thresholds::Thresholds;
    use proptest::prelude::*;

    fn at(now: i64) -> Reading {
        Reading {
            sensor: "coretemp temp1".into(),
            now,
            critical: 100_000,
        }
    }

    fn watch() -> TemperatureWatch {
        TemperatureWatch::new(Thresholds::default().temperature)
    }

    #[test]
    fn a_sensor_turns_yellow_and_red_and_must_cool_down_to_turn_back() {
        let mut watch = watch();
        let mut seen = Vec::new();
        for degrees in [60, 89, 90, 92, 88, 86, 97, 95, 93, 86] {
            let judged = watch.look(&[at(degrees * 1000)]).unwrap();
            seen.push((degrees, judged.health));
        }
        use Health::{Green, Red, Yellow};
        assert_eq!(
            seen,
            [
                (60, Green),
                (89, Green),
                (90, Yellow),
                (92, Yellow),
                (88, Yellow),
                (86, Green),
                (97, Red),
                (95, Red),
                (93, Yellow),
                (86, Green)
            ]
        );
        assert_eq!(watch.look(&[]), None);
    }

    #[test]
    fn the_hottest_sensor_is_named() {
        let hot = Reading {
            sensor: "nvme temp1 (Composite)".into(),
            ..at(98_000)
        };
        let judged = watch().look(&[at(91_000), hot]).unwrap();
        assert_eq!(judged.health, Health::Red);
        assert!(judged.why.contains("nvme temp1 (Composite) shows 98"));
    }

    #[test]
    fn sensors_that_know_their_critical_temperature_are_read() {
        let root = tempfile::tempdir().unwrap();
        let chip = root.path().join("hwmon0");
        fs::create_dir(&chip).unwrap();
        for (file, text) in [
            ("name", "coretemp\n"),
            ("temp1_input", "54000\n"),
            ("temp1_crit", "100000\n"),
            ("temp1_label", "Package id 0\n"),
            ("temp2_input", "50000\n"),
            ("temp3_input", "50000\n"),
            ("temp3_crit", "0\n"),
            ("fan1_input", "1200\n"),
        ] {
            fs::write(chip.join(file), text).unwrap();
        }
        let read = read(root.path());
        assert_eq!(read.len(), 1);
        assert_eq!(read[0].sensor, "coretemp temp1 (Package id 0)");
        assert_eq!((read[0].now, read[0].critical), (54_000, 100_000));
    }

    proptest! {
        /// Hotter is never better, whatever was said before.
        #[test]
        fn hotter_is_never_better(now in -300_000i64..300_000, more in 0i64..50_000) {
            for before in [Health::Green, Health::Yellow, Health::Red] {
                let watch = watch();
                prop_assert!(watch.health(&at(now + more), before) >= watch.health(&at(now), before));
            }
        }
    }
}
