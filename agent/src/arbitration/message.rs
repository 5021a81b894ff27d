// SPDX-License-Identifier: Apache-2.0
//! What agents say to each other in the CPG group `kemari`.
//!
//! A message is one byte of protocol version, then postcard. Corosync delivers it to every agent
//! of the partition, the sender too, in one total order; the sender's node is known from Corosync
//! and not part of the message. A version this build does not know is reported, never guessed at.

use std::collections::BTreeSet;

use kemari_api::replica::ReplicaStatus;
use kemari_api::{Generation, NodeName, Role, VmName};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The version this build speaks.
pub const VERSION: u8 = 3;

/// For what a generation is claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// A passive replica in sync continues from its last committed checkpoint.
    TakeOver,
    /// A waiting replica boots the guest from nothing.
    ColdStart,
    /// An active replica goes on without its passive one.
    Solo,
    /// A person started a replica whatever nodes that are away may hold.
    Forced,
}

impl std::fmt::Display for Purpose {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::TakeOver => "take-over",
            Self::ColdStart => "cold-start",
            Self::Solo => "solo",
            Self::Forced => "forced",
        })
    }
}

/// Who may run a VM from a generation on. An agent records at most one a (VM, generation).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Record {
    /// The VM.
    pub vm: VmName,
    /// The generation.
    pub generation: Generation,
    /// The node whose replica may use it.
    pub holder: NodeName,
    /// What it is used for.
    pub purpose: Purpose,
    /// For a take-over or solo, the generation of the state it goes on from; for a cold or forced
    /// start, the newest generation its holder knew of.
    pub after: Generation,
    /// For a cold start, the nodes whose replicas could still be using an earlier generation; for a
    /// forced one, those of them whose agents were there. It counts only with their votes. Empty
    /// otherwise.
    pub consent: BTreeSet<NodeName>,
}

impl Record {
    /// The nodes whose replicas could be using this generation or, as long as a cold start is not
    /// certain to have been granted, one before it.
    pub fn parties(&self) -> impl Iterator<Item = &NodeName> {
        self.consent.iter().chain([&self.holder])
    }

    /// Builds on no state that it could name, so it counts only with the consent of others.
    pub const fn is_start(&self) -> bool {
        matches!(self.purpose, Purpose::ColdStart | Purpose::Forced)
    }
}

/// A message between agents.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Message {
    /// All the sender knows at first hand; replaces its earlier announcement.
    Announce {
        /// Every replica on the sender's node.
        replicas: Vec<ReplicaStatus>,
        /// The newest record of the sender, a VM each.
        records: Vec<Record>,
    },
    /// The sender's own word that the engine process of `vm` on its node ended.
    EngineGone {
        /// The VM.
        vm: VmName,
        /// The generation the engine last had.
        generation: Generation,
        /// What it was. One that was demoted first has handed over: nothing is lost with it.
        role: Role,
    },
    /// The sender asks every agent to record this; it must be the holder.
    Claim(Record),
    /// The sender has recorded this durably.
    Recorded(Record),
    /// The sender will not record `claim`.
    Refused {
        /// The claim.
        claim: Record,
        /// The newest generation the sender knows.
        newest: Generation,
        /// Who holds it.
        holder: NodeName,
    },
    /// The sender's passive replica is to go on with the guest: the agent of the node that runs it has the engine
    /// hand over. It grants nothing; agents of an earlier release ignore it.
    Fetch {
        /// The VM.
        vm: VmName,
    },
}

/// Why a message was not understood.
#[derive(Debug, Error)]
pub enum MessageError {
    /// The message has no bytes.
    #[error("Empty message")]
    Empty,
    /// The sender speaks another version.
    #[error(
        "Message of protocol version {0}, this agent speaks {VERSION}: use the same release of kemari-agent on every node"
    )]
    Version(u8),
    /// The bytes are not such a message.
    #[error("Malformed message")]
    Malformed(#[source] postcard::Error),
    /// The message could not be put into bytes.
    #[error("Message cannot be encoded")]
    Encode(#[source] postcard::Error),
}

impl Message {
    /// The bytes for the group.
    ///
    /// # Errors
    /// [`MessageError::Encode`], which would be a defect of this program.
    pub fn encode(&self) -> Result<Vec<u8>, MessageError> {
        postcard::to_extend(self, vec![VERSION]).map_err(MessageError::Encode)
    }

    /// Reads the bytes of one message.
    ///
    /// # Errors
    /// When they are empty, of another version or malformed.
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        match bytes.split_first() {
            None => Err(MessageError::Empty),
            Some((&VERSION, body)) => postcard::from_bytes(body).map_err(MessageError::Malformed),
            Some((&version, _)) => Err(MessageError::Version(version)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record() -> Record {
        Record {
            vm: "vm".parse().unwrap(),
            generation: Generation::new(3),
            holder: "n1".parse().unwrap(),
            purpose: Purpose::Solo,
            after: Generation::default(),
            consent: BTreeSet::new(),
        }
    }

    #[test]
    fn a_message_survives_the_way() {
        let message = Message::Recorded(record());
        let bytes = message.encode().unwrap();
        assert_eq!(bytes.first(), Some(&VERSION));
        assert_eq!(Message::decode(&bytes).unwrap(), message);
    }

    #[test]
    fn another_version_is_named_and_not_guessed_at() {
        let mut bytes = Message::Recorded(record()).encode().unwrap();
        *bytes.first_mut().unwrap() = 9;
        let text = Message::decode(&bytes).unwrap_err().to_string();
        assert!(text.contains("version 9"), "{text}");
        assert!(matches!(Message::decode(&[]), Err(MessageError::Empty)));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Message::decode(&bytes);
        }
    }
}
