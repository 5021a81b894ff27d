// SPDX-License-Identifier: Apache-2.0
//! Whole frames from a TCP stream, or from a file that holds a recorded session.

use std::io::{self, BufReader, Read};
use std::net::TcpStream;
use std::time::Duration;

use kemari_replication::protocol::ProtocolError;
use kemari_replication::wire::{FrameHeader, HEADER_BYTES, WireError};
use thiserror::Error;

/// Read ahead this much: a header and its payload then cost one system call, not two.
const READ_AHEAD_BYTES: usize = 256 * 1024;

/// Before the first commit of a session nobody depends on noticing a loss fast, and the copy keeps
/// both sides and the link busy: silence may be this many times longer.
pub const COPY_PATIENCE: u32 = 10;

/// Why a link ended.
#[derive(Debug, Error)]
pub enum LinkError {
    /// The address could not be resolved or connected to.
    #[error("Cannot connect to {address}: {source}; is the other engine running and waiting?")]
    Connect {
        /// Where to.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// The other side closed the connection.
    #[error("The other replica closed the connection")]
    Closed,
    /// Nothing was heard for too long.
    #[error("Nothing heard from the other replica for {0:?} (replication.peer_timeout_ms)")]
    Silent(Duration),
    /// The socket failed.
    #[error("The connection failed: {0}")]
    Io(io::Error),
    /// The other side broke the protocol.
    #[error("The other replica broke the protocol: {0}")]
    Protocol(#[from] ProtocolError),
    /// It refused.
    #[error("Refused by the other replica: {0}")]
    Refused(kemari_replication::wire::Refusal),
    /// A checkpoint's machine state could not be used.
    #[error("A checkpoint of the other replica does not decode: {0}")]
    State(String),
    /// A replicated disk failed.
    #[error("Replicated disks: {0}")]
    Disk(String),
    /// The engine itself ended the link.
    #[error("The link was ended: {0}")]
    Ended(&'static str),
}

impl From<WireError> for LinkError {
    fn from(error: WireError) -> Self {
        Self::Protocol(error.into())
    }
}

/// Reads frames; the payload stays valid until the next one.
#[derive(Debug)]
pub struct FrameReader<R = TcpStream> {
    stream: BufReader<R>,
    payload: Vec<u8>,
    silence_max: Duration,
}

impl<R: Read> FrameReader<R> {
    /// A reader of something that never keeps it waiting.
    pub fn of(stream: R) -> Self {
        Self {
            stream: BufReader::with_capacity(READ_AHEAD_BYTES, stream),
            payload: Vec::new(),
            silence_max: Duration::MAX,
        }
    }
}

impl FrameReader {
    /// A reader that fails when a read waits longer than `silence_max`.
    pub fn new(stream: TcpStream, silence_max: Duration) -> io::Result<Self> {
        stream.set_read_timeout(Some(silence_max))?;
        Ok(Self {
            silence_max,
            ..Self::of(stream)
        })
    }

    /// From now on a read that waits longer than this fails.
    pub fn set_silence_max(&mut self, silence_max: Duration) -> Result<(), LinkError> {
        self.silence_max = silence_max;
        self.stream
            .get_ref()
            .set_read_timeout(Some(silence_max))
            .map_err(LinkError::Io)
    }
}

impl<R: Read> FrameReader<R> {
    /// The next frame.
    pub fn next(&mut self) -> Result<(FrameHeader, &[u8]), LinkError> {
        let mut header = [0; HEADER_BYTES];
        self.fill(Part::Header(&mut header))?;
        let header = FrameHeader::decode(&header)?;
        self.payload.resize(header.payload_len(), 0);
        self.fill(Part::Payload)?;
        Ok((header, &self.payload))
    }

    fn fill(&mut self, part: Part<'_>) -> Result<(), LinkError> {
        let buffer = match part {
            Part::Header(header) => header.as_mut_slice(),
            Part::Payload => self.payload.as_mut_slice(),
        };
        self.stream
            .read_exact(buffer)
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => LinkError::Closed,
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                    LinkError::Silent(self.silence_max)
                }
                _ => LinkError::Io(error),
            })
    }
}

enum Part<'a> {
    Header(&'a mut [u8; HEADER_BYTES]),
    Payload,
}
