// SPDX-License-Identifier: Apache-2.0
//! Whether this node has what secures the link to the other replica.

use kemari_api::config::{HostPort, VmConfig};

use super::{Problem, Severity};
use crate::link::security::{Security, failure_kind};

pub(super) fn problems(config: &VmConfig) -> Vec<Problem> {
    let section = &config.replication;
    let place = HostPort {
        host: "0.0.0.0".into(),
        port: section.port.number(),
    };
    let Err(error) = Security::read(section).address(place) else {
        return Vec::new();
    };
    let key = if section.tls_key.is_some() {
        "replication.tls_certificate"
    } else if section.cluster_key.is_some() {
        "replication.cluster_key"
    } else {
        "replication.transport"
    };
    let severity = Severity::Error(failure_kind(&error));
    vec![Problem::new(key, severity, error.to_string())]
}

#[cfg(test)]
mod tests {
    use super::super::host::described;
    use super::*;
    use crate::exit::FailureKind;

    fn told(lines: &str) -> Vec<Problem> {
        problems(&described(&format!("[replication]\n{lines}")))
    }

    #[test]
    fn a_key_that_is_named_and_missing_is_told_with_the_command() {
        let found = told("cluster_key = \"/nonexistent/cluster.key\"\n");
        assert_eq!(found[0].key, "replication.cluster_key");
        assert_eq!(
            found[0].severity,
            Severity::Error(FailureKind::NotInstalled)
        );
        assert!(found[0].text.contains("kemarictl keygen"), "{found:?}");
        assert_eq!(told("transport = \"tcp\"\n"), []);
    }

    #[test]
    fn certificates_that_are_none_are_told() {
        let found = told(
            "tls_authority = \"/etc/passwd\"\ntls_certificate = \"/etc/passwd\"\n\
             tls_key = \"/nonexistent\"\n",
        );
        assert_eq!(found[0].key, "replication.tls_certificate");
        assert!(found[0].text.contains("/etc/passwd"), "{found:?}");
    }
}
