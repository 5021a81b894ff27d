// SPDX-License-Identifier: Apache-2.0
//! Which files this node proves itself with, and certificates among them.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kemari_api::cluster_key::{ClusterKeyError, check_private};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig, version::TLS13};
use thiserror::Error;

use super::provider;

/// Where the means of this node lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TlsFiles {
    /// A cluster key.
    ClusterKey(PathBuf),
    /// Certificates, as PEM.
    Certificates {
        /// Those of the authorities that are trusted.
        authority: PathBuf,
        /// This node's, then those between it and the authority.
        certificate: PathBuf,
        /// Its private key.
        key: PathBuf,
    },
}

/// The files cannot be used.
#[derive(Debug, Error)]
pub enum TlsFileError {
    /// The key file cannot.
    #[error(transparent)]
    Key(#[from] ClusterKeyError),
    /// A file cannot be read.
    #[error("Cannot read {}: {cause}; put the file on this node or correct the description",
        path.display())]
    Unreadable {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{} holds no {what} in PEM form; name the right file", path.display())]
    NotPem {
        /// Which one.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
    },
    /// They do not belong together, or TLS cannot work with them.
    #[error("TLS cannot use {}: {cause}; make the files anew or name others", path.display())]
    Unusable {
        /// The file at fault.
        path: PathBuf,
        /// What is wrong.
        cause: String,
    },
    /// The library refuses.
    #[error("TLS cannot be set up: {0}")]
    Library(#[from] rustls::Error),
}

impl TlsFileError {
    /// Whether there simply is no cluster key.
    #[must_use]
    pub fn is_missing_key(&self) -> bool {
        matches!(self, Self::Key(ClusterKeyError::Missing { .. }))
    }
}

/// Both sides' settings for these files.
pub(super) fn configs(
    authority: &Path,
    certificate: &Path,
    key: &Path,
) -> Result<(ClientConfig, ServerConfig), TlsFileError> {
    let unusable = |path: &Path| {
        let path = path.to_owned();
        move |cause: &dyn std::fmt::Display| TlsFileError::Unusable {
            path,
            cause: cause.to_string(),
        }
    };
    let mut roots = RootCertStore::empty();
    for root in certificates(authority)? {
        roots
            .add(root)
            .map_err(|error| unusable(authority)(&error))?;
    }
    let roots = Arc::new(roots);
    let chain = certificates(certificate)?;
    let private = private_key(key)?;
    let provider = Arc::new(provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
            .build()
            .map_err(|error| unusable(authority)(&error))?;
    let client = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain.clone(), private.clone_key())
        .map_err(|error| unusable(key)(&error))?;
    let server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, private)
        .map_err(|error| unusable(key)(&error))?;
    Ok((client, server))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsFileError> {
    let text = fs::read(path).map_err(|cause| TlsFileError::Unreadable {
        path: path.to_owned(),
        cause,
    })?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    found
        .ok()
        .filter(|found| !found.is_empty())
        .ok_or(TlsFileError::NotPem {
            path: path.to_owned(),
            what: "certificate",
        })
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsFileError> {
    let unreadable = |cause| TlsFileError::Unreadable {
        path: path.to_owned(),
        cause,
    };
    let mut file = File::open(path).map_err(unreadable)?;
    check_private(path, &file)?;
    let mut text = Vec::new();
    file.read_to_end(&mut text).map_err(unreadable)?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|_| TlsFileError::NotPem {
        path: path.to_owned(),
        what: "private key",
    })
}
