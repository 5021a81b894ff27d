// SPDX-License-Identifier: Apache-2.0
//! The one line with which an engine introduces itself on a console stream.
//!
//! `KEMARI-CONSOLE 1 vm=<name> node=<node> generation=<g> position=<p>\n`, then raw console bytes.
//! `1` is the version of the format. Fields a reader does not know are skipped, so that later
//! engines can say more. See `docs/console-stream.md`.

use std::fmt;
use std::str::FromStr;

/// The longest header accepted, newline included, in bytes.
pub const MAX_HEADER: usize = 512;

const PROTOCOL: &str = "KEMARI-CONSOLE";
const VERSION: &str = "1";

/// Who sends a console stream, under which generation, and from where on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Name of the VM, without spaces.
    pub vm: String,
    /// Name of the node the engine runs on, without spaces.
    pub node: String,
    /// The generation under which the bytes are released.
    pub generation: u64,
    /// Offset of the first following byte, in bytes since the guest's first boot.
    pub position: u64,
}

/// Why a line is not a header.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// It does not begin with the protocol's name and version.
    #[error("Not a console stream of version 1: it begins with {start:?}")]
    Protocol {
        /// The first words of the line.
        start: String,
    },
    /// A field is missing.
    #[error("Console header has no field {field}")]
    Missing {
        /// Name of the field.
        field: &'static str,
    },
    /// A number is not one.
    #[error("Console header field {field} is {value:?}, want a decimal number below 2^64")]
    Number {
        /// Name of the field.
        field: &'static str,
        /// What it holds.
        value: String,
    },
}

impl FromStr for Header {
    type Err = HeaderError;

    fn from_str(line: &str) -> Result<Self, HeaderError> {
        let mut words = line.split_ascii_whitespace();
        let start = (words.next(), words.next());
        if start != (Some(PROTOCOL), Some(VERSION)) {
            return Err(HeaderError::Protocol {
                start: line.chars().take(32).collect(),
            });
        }
        let fields: Vec<(&str, &str)> = words.filter_map(|word| word.split_once('=')).collect();
        let text = |field: &'static str| {
            let found = fields.iter().find(|(name, _)| *name == field);
            found
                .map(|(_, value)| *value)
                .ok_or(HeaderError::Missing { field })
        };
        let number = |field: &'static str| {
            let value = text(field)?;
            value.parse().map_err(|_| HeaderError::Number {
                field,
                value: value.to_owned(),
            })
        };
        Ok(Self {
            vm: text("vm")?.to_owned(),
            node: text("node")?.to_owned(),
            generation: number("generation")?,
            position: number("position")?,
        })
    }
}

/// The header line without its newline.
impl fmt::Display for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            vm,
            node,
            generation,
            position,
        } = self;
        write!(
            f,
            "{PROTOCOL} {VERSION} vm={vm} node={node} generation={generation} position={position}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            vm: "web".into(),
            node: "node1".into(),
            generation: 3,
            position: 1 << 40,
        }
    }

    #[test]
    fn a_header_reads_as_it_was_written() {
        let line = header().to_string();
        assert_eq!(
            line,
            "KEMARI-CONSOLE 1 vm=web node=node1 generation=3 position=1099511627776"
        );
        assert_eq!(line.parse(), Ok(header()));
    }

    #[test]
    fn unknown_fields_are_skipped() {
        assert_eq!(format!("{} epoch=7 odd", header()).parse(), Ok(header()));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let error = |line: &str| line.parse::<Header>().unwrap_err();
        assert!(matches!(
            error("GET / HTTP/1.1"),
            HeaderError::Protocol { .. }
        ));
        assert!(matches!(
            error("KEMARI-CONSOLE 2 vm=a"),
            HeaderError::Protocol { .. }
        ));
        assert_eq!(
            error("KEMARI-CONSOLE 1 vm=a"),
            HeaderError::Missing { field: "node" }
        );
        assert_eq!(
            error("KEMARI-CONSOLE 1 vm=a node=b generation=-1 position=0"),
            HeaderError::Number {
                field: "generation",
                value: "-1".into()
            }
        );
    }
}
