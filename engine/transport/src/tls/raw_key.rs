// SPDX-License-Identifier: Apache-2.0
//! Cluster keys in a handshake: raw public keys (RFC 7250), exactly those of the file.

use std::fmt;
use std::sync::Arc;

use kemari_api::cluster_key::{ClusterKeys, ClusterSecret, Fingerprint};
use rustls::client::AlwaysResolvesClientRawPublicKeys;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring::sign::any_eddsa_type;
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key,
};
use rustls::pki_types::{
    CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
};
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    PeerIncompatible, ServerConfig, SignatureScheme, version::TLS13,
};

/// What precedes the 32 bytes of an Ed25519 public key in its SubjectPublicKeyInfo (RFC 8410, 4).
const PUBLIC_PREFIX: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];
/// What precedes the 32 bytes of an Ed25519 seed in PKCS #8 (RFC 8410, 7).
const PRIVATE_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// Both sides' settings for these keys.
pub(super) fn configs(
    keys: &ClusterKeys,
    provider: CryptoProvider,
) -> Result<(ClientConfig, ServerConfig), Error> {
    let provider = Arc::new(provider);
    let verifier = Arc::new(KnownKeys {
        accepted: keys.accepted().iter().map(public).collect(),
        algorithms: provider.signature_verification_algorithms,
    });
    let shown = Arc::new(certified(keys.shown())?);
    let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&verifier) as _)
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(
            Arc::clone(&shown),
        )));
    client.enable_sni = false;
    let server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(shown)));
    Ok((client, server))
}

fn public(secret: &ClusterSecret) -> Vec<u8> {
    [&PUBLIC_PREFIX[..], &secret.public_key().0].concat()
}

fn certified(secret: &ClusterSecret) -> Result<CertifiedKey, Error> {
    let private = [&PRIVATE_PREFIX[..], &secret.seed()].concat();
    let key = any_eddsa_type(&PrivatePkcs8KeyDer::from(private))?;
    Ok(CertifiedKey::new(vec![public(secret).into()], key))
}

/// A key that is not in this node's file.
#[derive(Debug, Clone, Copy)]
pub(super) struct UnknownKey(pub(super) Fingerprint);

impl fmt::Display for UnknownKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the key {} is not known here", self.0)
    }
}

impl std::error::Error for UnknownKey {}

/// Accepts exactly these keys, from either side.
#[derive(Debug)]
struct KnownKeys {
    accepted: Vec<Vec<u8>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl KnownKeys {
    fn check(&self, shown: &CertificateDer<'_>) -> Result<(), Error> {
        let shown = shown.as_ref();
        if self.accepted.iter().any(|known| known == shown) {
            return Ok(());
        }
        let key = shown.strip_prefix(&PUBLIC_PREFIX).unwrap_or(shown);
        let unknown = Arc::new(UnknownKey(Fingerprint::of(key)));
        Err(CertificateError::Other(OtherError(unknown)).into())
    }

    fn check_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = SubjectPublicKeyInfoDer::from(key.as_ref());
        verify_tls13_signature_with_raw_key(message, &key, signature, &self.algorithms)
    }
}

/// Only TLS 1.3 is spoken.
fn too_old() -> Result<HandshakeSignatureValid, Error> {
    Err(PeerIncompatible::ServerDoesNotSupportTls12Or13.into())
}

impl ServerCertVerifier for KnownKeys {
    fn verify_server_cert(
        &self,
        key: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(key).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        too_old()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, key, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for KnownKeys {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        key: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(key).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        too_old()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, key, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
