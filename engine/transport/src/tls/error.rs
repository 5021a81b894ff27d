// SPDX-License-Identifier: Apache-2.0
//! What a failed handshake means for an administrator.
//!
//! The side that refuses knows why; the other one hears an alert of one word. Both log a sentence,
//! and the first place to look is the same in both.

use std::time::Duration;

use kemari_api::cluster_key::Fingerprint;
use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError, Error as Cause};
use thiserror::Error;

use super::Means;
use super::raw_key::UnknownKey;

/// Why there is no TLS session, or no longer one.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TlsError {
    /// This node has nothing to prove itself with.
    #[error(
        "this node has neither a cluster key nor certificates: copy /etc/kemari/cluster.key from \
         another node, or make the first one with kemarictl keygen"
    )]
    NoIdentity,
    /// The other side has another cluster key.
    #[error(
        "the other side shows the key {shown}, and here is {means}: copy one key file to both \
         nodes, and start engines again that were started before"
    )]
    UnknownKey {
        /// Of its key.
        shown: Fingerprint,
        /// What is known here.
        means: String,
    },
    /// The other side does not know this node's key.
    #[error(
        "the other side does not accept {means}: copy one key file to both nodes, and start \
         engines again that were started before"
    )]
    KeyRefused {
        /// What was shown.
        means: String,
    },
    /// One side has a cluster key, the other certificates.
    #[error(
        "the two sides know each other by different means: here is {means}, and the other side \
         has the other of the two; use a cluster key on both nodes, or certificates on both"
    )]
    MeansDiffer {
        /// What is used here.
        means: String,
    },
    /// What came was no TLS.
    #[error(
        "what the other side sends is no TLS: if it is a replica, it uses kemari:tcp: and this \
         side kemari:tls:. Put the same cluster key on both nodes (kemarictl keygen), or set \
         replication.transport = \"tcp\" on both"
    )]
    NotTls,
    /// A certificate whose time is over or has not come.
    #[error(
        "the other side's certificate {when} by this node's clock: compare the clocks of both \
         nodes (timedatectl), or renew that certificate"
    )]
    Time {
        /// In words.
        when: String,
    },
    /// A certificate that does not hold here.
    #[error("the other side's certificate is not accepted by {means}: {cause}")]
    Certificate {
        /// What it was judged by.
        means: String,
        /// Why.
        cause: String,
    },
    /// The other side does not accept this node's certificate.
    #[error("the other side does not accept this node's certificate ({means}): {cause}")]
    CertificateRefused {
        /// What was shown.
        means: String,
        /// What it may have against it.
        cause: &'static str,
    },
    /// The handshake began and did not end.
    #[error("the TLS handshake did not end within {0:?}")]
    Slow(Duration),
    /// The connection was closed before.
    #[error(
        "the other side closed the connection during the TLS handshake: its log says why. If it \
         says nothing, it may use kemari:tcp:"
    )]
    Closed,
    /// The name cannot be that of a certificate.
    #[error("{0:?} is no name or address that a certificate could have; name the host otherwise")]
    Name(String),
    /// The socket failed.
    #[error("the connection failed during the TLS handshake: {0}")]
    Io(String),
    /// Anything else.
    #[error("TLS failed: {0}")]
    Other(String),
}

impl TlsError {
    pub(super) fn of(error: &Cause, means: &Means) -> Self {
        let told = || means.to_string();
        match error {
            Cause::InvalidMessage(_) => Self::NotTls,
            Cause::PeerIncompatible(
                rustls::PeerIncompatible::IncorrectCertificateTypeExtension
                | rustls::PeerIncompatible::UnsolicitedCertificateTypeExtension,
            ) => Self::MeansDiffer { means: told() },
            Cause::InvalidCertificate(problem) => Self::of_certificate(problem, means),
            Cause::AlertReceived(alert) => Self::of_alert(*alert, means),
            Cause::NoApplicationProtocol => {
                Self::Other("the other side is a server of something else".into())
            }
            other => Self::Other(other.to_string()),
        }
    }

    fn of_certificate(problem: &CertificateError, means: &Means) -> Self {
        let when = |words, now: &UnixTime, then: &UnixTime| Self::Time {
            when: format!("{words} {}", apart(now, then)),
        };
        match problem {
            CertificateError::ExpiredContext { time, not_after } => {
                when("has expired since", time, not_after)
            }
            CertificateError::NotValidYetContext { time, not_before } => {
                when("will not be valid for another", not_before, time)
            }
            CertificateError::Other(other) => match other.0.downcast_ref::<UnknownKey>() {
                Some(UnknownKey(shown)) => Self::UnknownKey {
                    shown: *shown,
                    means: means.to_string(),
                },
                None => Self::Other(other.to_string()),
            },
            other => Self::Certificate {
                means: means.to_string(),
                cause: other.to_string(),
            },
        }
    }

    fn of_alert(alert: AlertDescription, means: &Means) -> Self {
        let told = means.to_string();
        match (alert, means) {
            (AlertDescription::HandshakeFailure, _) => Self::MeansDiffer { means: told },
            (
                AlertDescription::CertificateUnknown
                | AlertDescription::AccessDenied
                | AlertDescription::BadCertificate
                | AlertDescription::DecryptError,
                Means::ClusterKey { .. },
            ) => Self::KeyRefused { means: told },
            (other, Means::Certificates { .. }) if certificate_fault(other).is_some() => {
                Self::CertificateRefused {
                    means: told,
                    cause: certificate_fault(other).unwrap_or_default(),
                }
            }
            (other, _) => Self::Other(format!("the other side ended it ({other:?})")),
        }
    }
}

/// What an alert says of a certificate (RFC 8446, 6.2), as rustls uses them.
fn certificate_fault(alert: AlertDescription) -> Option<&'static str> {
    Some(match alert {
        AlertDescription::CertificateExpired => {
            "it has expired or is not yet valid by the other node's clock; compare the clocks \
             (timedatectl), or renew it"
        }
        AlertDescription::UnknownCA => {
            "the other side does not know its authority; give both nodes the same tls_authority"
        }
        AlertDescription::BadCertificate => {
            "it is not for the name or address that was connected to; make one with that name"
        }
        AlertDescription::UnsupportedCertificate => {
            "it is not meant for this use; its extended key usage must allow both servers and \
             clients"
        }
        AlertDescription::CertificateRequired => "none was shown",
        AlertDescription::DecryptError
        | AlertDescription::CertificateUnknown
        | AlertDescription::AccessDenied => "the other side's log says why",
        _ => return None,
    })
}

/// How long `later` is after `earlier`, in the largest unit that fits.
fn apart(later: &UnixTime, earlier: &UnixTime) -> String {
    let seconds = later.as_secs().saturating_sub(earlier.as_secs());
    match seconds {
        0..120 => format!("{seconds} seconds"),
        120..7_200 => format!("{} minutes", seconds / 60),
        7_200..172_800 => format!("{} hours", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}
