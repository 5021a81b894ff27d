// SPDX-License-Identifier: Apache-2.0
//! The cluster key: the secret that replicas of one cluster share, by which they know each other.
//!
//! The secret itself never leaves its file. From it every node derives the same Ed25519 key pair
//! (RFC 8032), and in a TLS handshake each side shows the public key and proves that it has the
//! private one: whoever can do that knows the secret. See `docs/replication-link.md`.

mod file;

use std::fmt;

use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{Ed25519KeyPair, KeyPair};
use ring::{digest, hkdf};

pub use file::{ClusterKeyError, ClusterKeys, DEFAULT_PATH, KEYS_MAX, check_private};

/// Length of the secret and of the seed derived from it.
const SECRET_BYTES: usize = 32;
/// Bytes of a fingerprint.
const FINGERPRINT_BYTES: usize = 8;

/// HKDF's salt and info (RFC 5869). Another way to use the secret would get others.
const SALT: &[u8] = b"kemari cluster key 1";
const INFO: &[u8] = b"ed25519 key of the replication link";

/// 32 random bytes known to the nodes of one cluster and to nobody else.
#[derive(Clone, PartialEq, Eq)]
pub struct ClusterSecret([u8; SECRET_BYTES]);

/// The system has no random numbers, or a key could not be derived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("The system gives no random numbers")]
pub struct NoRandomNumbers;

impl ClusterSecret {
    /// A new one.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub fn generate() -> Result<Self, NoRandomNumbers> {
        let mut bytes = [0; SECRET_BYTES];
        SystemRandom::new()
            .fill(&mut bytes)
            .map_err(|_| NoRandomNumbers)?;
        Ok(Self(bytes))
    }

    /// The seed of the Ed25519 key pair. As secret as the secret.
    #[must_use]
    pub fn seed(&self) -> [u8; SECRET_BYTES] {
        let mut seed = [0; SECRET_BYTES];
        hkdf::Salt::new(hkdf::HKDF_SHA256, SALT)
            .extract(&self.0)
            .expand(&[INFO], hkdf::HKDF_SHA256)
            .and_then(|material| material.fill(&mut seed))
            .expect("HKDF-SHA256 gives 32 bytes");
        seed
    }

    /// The public key.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        let pair = Ed25519KeyPair::from_seed_unchecked(&self.seed()).expect("a seed of 32 bytes");
        let mut bytes = [0; SECRET_BYTES];
        bytes.copy_from_slice(pair.public_key().as_ref());
        PublicKey(bytes)
    }
}

/// Says nothing of the secret.
impl fmt::Debug for ClusterSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterSecret({})", self.public_key().fingerprint())
    }
}

/// What a node shows of its cluster key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PublicKey(pub [u8; SECRET_BYTES]);

impl PublicKey {
    /// By which people compare keys.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.0)
    }
}

/// The first bytes of SHA-256 of a public key. No secret, and for people only: what is compared
/// is the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; FINGERPRINT_BYTES]);

impl Fingerprint {
    /// Of any public key, in whatever form it came.
    #[must_use]
    pub fn of(key: &[u8]) -> Self {
        let digest = digest::digest(&digest::SHA256, key);
        let mut bytes = [0; FINGERPRINT_BYTES];
        bytes
            .iter_mut()
            .zip(digest.as_ref())
            .for_each(|(to, from)| *to = *from);
        Self(bytes)
    }
}

/// As `1a2b-3c4d-5e6f-7081`.
impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, pair) in self.0.chunks(2).enumerate() {
            let dash = if index == 0 { "" } else { "-" };
            f.write_str(dash)?;
            pair.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_always_gives_the_same_key_and_another_one_another() {
        let secret = ClusterSecret([7; 32]);
        // Changing how keys are derived would cut upgraded nodes off from the others. The value was
        // made with HMAC of another library and openssl pkey.
        let known = "37ac-55f9-2b44-7e56";
        assert_eq!(secret.public_key().fingerprint().to_string(), known);
        assert_eq!(secret.public_key(), secret.clone().public_key());
        let (one, other) = (ClusterSecret::generate(), ClusterSecret::generate());
        assert_ne!(one.unwrap().public_key(), other.unwrap().public_key());
    }

    #[test]
    fn nothing_printed_holds_the_secret_or_the_seed() {
        let secret = ClusterSecret([0x5a; 32]);
        let printed = format!("{secret:?}");
        assert!(
            !printed.contains("5a5a") && !printed.contains("90, 90"),
            "{printed}"
        );
        assert_ne!(secret.seed(), [0x5a; 32]);
    }
}
