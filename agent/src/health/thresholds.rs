// SPDX-License-Identifier: Apache-2.0
//! When the hardware of a node counts as worth a look, and when nothing should run on it: the section
//! `[health]` of `/etc/kemari/agent.toml`, every key of which has a default.

use std::num::NonZeroU64;

use serde::Deserialize;

/// Corrected errors of one part within 24 hours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "CorrectedErrorsSection")]
pub struct CorrectedErrors {
    /// Worth a look from here on.
    pub yellow: NonZeroU64,
    /// Nothing should run here from here on; not below `yellow`.
    pub red: NonZeroU64,
}

/// How near to its critical temperature a sensor may come, in degrees Celsius below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "MarginsSection")]
pub struct Margins {
    /// Worth a look from here on.
    pub yellow: u8,
    /// Nothing should run here from here on; not above `yellow`.
    pub red: u8,
}

/// Whether disks are asked for their own opinion (SMART).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Disks {
    /// With `smartctl`, where it is installed.
    Smartctl,
    /// They are not.
    Off,
}

/// The section `[health]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Thresholds {
    /// For each memory controller. mcelog's default for a module is 10 (mcelog.conf,
    /// `ce-error-threshold`); a cell that fails at every scrub makes some dozens a day, a row or a chip
    /// thousands.
    pub memory: CorrectedErrors,
    /// For all processors together: threshold interrupts of machine checks.
    pub processors: CorrectedErrors,
    /// For each PCI Express device. A noisy link corrects some errors an hour without harm.
    pub pcie: CorrectedErrors,
    /// For each sensor that knows its critical temperature.
    pub temperature: Margins,
    /// For all disks.
    pub disks: Disks,
}

impl Default for Thresholds {
    fn default() -> Self {
        let errors = |yellow, red| CorrectedErrors {
            yellow: NonZeroU64::new(yellow).unwrap_or(NonZeroU64::MIN),
            red: NonZeroU64::new(red).unwrap_or(NonZeroU64::MAX),
        };
        Self {
            memory: errors(10, 1_000),
            processors: errors(10, 1_000),
            pcie: errors(100, 10_000),
            temperature: Margins { yellow: 10, red: 3 },
            disks: Disks::Smartctl,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CorrectedErrorsSection {
    yellow: NonZeroU64,
    red: NonZeroU64,
}

impl TryFrom<CorrectedErrorsSection> for CorrectedErrors {
    type Error = String;

    fn try_from(section: CorrectedErrorsSection) -> Result<Self, String> {
        let CorrectedErrorsSection { yellow, red } = section;
        if red < yellow {
            return Err(format!(
                "red = {red} is below yellow = {yellow}; a node turns yellow first: set red to \
                 {yellow} or more"
            ));
        }
        Ok(Self { yellow, red })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MarginsSection {
    yellow: u8,
    red: u8,
}

impl TryFrom<MarginsSection> for Margins {
    type Error = String;

    fn try_from(section: MarginsSection) -> Result<Self, String> {
        let MarginsSection { yellow, red } = section;
        if red > yellow {
            return Err(format!(
                "red = {red} is above yellow = {yellow}; these are degrees below the critical \
                 temperature, and a node turns yellow first: set red to {yellow} or less"
            ));
        }
        Ok(Self { yellow, red })
    }
}
