// SPDX-License-Identifier: Apache-2.0
//! Where console output goes: `none`, `file:PATH`, `unix:PATH` or `tcp:HOST:PORT`.

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Why a console sink was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "{0:?} is no console output: give \"none\", \"file:/PATH\", \"unix:/PATH\" or \"tcp:HOST:PORT\""
)]
pub struct SinkError(String);

/// Where the bytes of the serial console go when they may leave.
///
/// The stream sinks speak the console stream protocol (`docs/console-stream.md`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ConsoleSink {
    /// Nowhere.
    #[default]
    None,
    /// Appended to a file.
    File(PathBuf),
    /// To a listener on a Unix stream socket.
    Unix(PathBuf),
    /// To a listener on a TCP port, `HOST:PORT`.
    Tcp(String),
}

impl TryFrom<String> for ConsoleSink {
    type Error = SinkError;

    fn try_from(text: String) -> Result<Self, SinkError> {
        let absolute = |path: &str| path.starts_with('/').then(|| PathBuf::from(path));
        match text.split_once(':') {
            None if text == "none" => Some(Self::None),
            Some(("file", path)) => absolute(path).map(Self::File),
            Some(("unix", path)) => absolute(path).map(Self::Unix),
            Some(("tcp", host)) => host
                .rsplit_once(':')
                .filter(|(host, port)| {
                    !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0)
                })
                .map(|_| Self::Tcp(host.to_owned())),
            _ => None,
        }
        .ok_or(SinkError(text))
    }
}

impl From<ConsoleSink> for String {
    fn from(sink: ConsoleSink) -> Self {
        sink.to_string()
    }
}

impl JsonSchema for ConsoleSink {
    fn schema_name() -> Cow<'static, str> {
        "ConsoleSink".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": "^(none|(file|unix):/.*|tcp:.+:[0-9]{1,5})$",
        })
    }
}

impl fmt::Display for ConsoleSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(host) => write!(f, "tcp:{host}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sinks_read_back_as_they_were_written() {
        for text in [
            "none",
            "file:/var/log/c",
            "unix:/run/c.sock",
            "tcp:10.0.0.1:7000",
        ] {
            assert_eq!(
                ConsoleSink::try_from(text.to_owned()).unwrap().to_string(),
                text
            );
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "file:relative",
            "tcp:host",
            "tcp:host:0",
            "pty",
            "udp:a:1",
        ] {
            let message = ConsoleSink::try_from(text.to_owned())
                .unwrap_err()
                .to_string();
            assert!(message.contains("file:/PATH"), "{message}");
        }
    }
}
