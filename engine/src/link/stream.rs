// SPDX-License-Identifier: Apache-2.0
//! Whole frames from a connection, or from a file that holds a recorded session.

use std::io::{self, BufReader, Read};
use std::time::{Duration, Instant};

use kemari_replication::protocol::ProtocolError;
use kemari_replication::wire::{FrameHeader, HEADER_BYTES, WireError};
use kemari_transport::{ConnectError, Connection, TlsError};
use thiserror::Error;

/// Read ahead this much: a header and its payload then cost one system call, not two. What is read ahead of a long payload is copied
/// once more, so no more than that.
const READ_AHEAD_BYTES: usize = 32 * 1024;

/// Before the first commit of a session nobody depends on noticing a loss fast, and the copy keeps
/// both sides and the link busy: silence may be this many times longer.
pub const COPY_PATIENCE: u32 = 10;

/// A greeting is shorter; whoever sends it may not have proved anything.
const GREETING_BYTES_MAX: usize = 64 * 1024;

/// What a TLS handshake and a TLS alert begin with (RFC 8446, 5.1); no frame does.
const TLS_BEGINS: [[u8; 2]; 2] = [[0x16, 0x03], [0x15, 0x03]];

/// Why a link ended.
#[derive(Debug, Error)]
pub enum LinkError {
    /// No connection was made.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// TLS ended it.
    #[error("The connection failed: {0}")]
    Tls(TlsError),
    /// TLS came where frames were expected.
    #[error(
        "The other side uses kemari:tls: and this side kemari:tcp:. Put the same cluster key on both \
         nodes (kemarictl keygen), or set replication.transport = \"tcp\" on both"
    )]
    SpeaksTls,
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
    /// The same active replica has called again, over another link or after one that it gave up.
    #[error("The active replica has called anew")]
    CalledAnew,
    /// The engine itself ended the link.
    #[error("The link was ended: {0}")]
    Ended(&'static str),
}

impl From<WireError> for LinkError {
    fn from(error: WireError) -> Self {
        Self::Protocol(error.into())
    }
}

impl LinkError {
    /// What a failure of the connection means.
    pub fn of(error: io::Error) -> Self {
        let tls = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<TlsError>());
        match tls {
            Some(tls) => Self::Tls(tls.clone()),
            None => Self::Io(error),
        }
    }
}

/// Reads frames; the payload stays valid until the next one.
#[derive(Debug)]
pub struct FrameReader<R = Connection> {
    stream: BufReader<R>,
    /// Of a frame that was read and not yet taken.
    header: Option<FrameHeader>,
    payload: Vec<u8>,
    silence_max: Duration,
}

impl<R: Read> FrameReader<R> {
    /// A reader of something that never keeps it waiting.
    pub fn of(stream: R) -> Self {
        Self {
            stream: BufReader::with_capacity(READ_AHEAD_BYTES, stream),
            header: None,
            payload: Vec::new(),
            silence_max: Duration::MAX,
        }
    }
}

impl FrameReader {
    /// A reader that fails when a read waits longer than `silence_max`.
    pub fn new(stream: Connection, silence_max: Duration) -> io::Result<Self> {
        stream.set_receive_patience(silence_max)?;
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
            .set_receive_patience(silence_max)
            .map_err(LinkError::Io)
    }

    /// Reads a short first frame, which [`Self::next`] then gives, until `deadline` at the longest.
    pub fn read_greeting(&mut self, deadline: Instant) -> Result<(), LinkError> {
        let mut header = [0; HEADER_BYTES];
        self.read_until(deadline, Part::Header(&mut header))?;
        let header = FrameHeader::decode(&header)?;
        if header.payload_len() > GREETING_BYTES_MAX {
            return Err(LinkError::Ended("what it begins with is no greeting"));
        }
        self.payload.resize(header.payload_len(), 0);
        self.read_until(deadline, Part::Payload)?;
        self.header = Some(header);
        Ok(())
    }

    /// The greeting that was read and not yet taken.
    pub fn greeting(&self) -> Option<(FrameHeader, &[u8])> {
        self.header.map(|header| (header, self.payload.as_slice()))
    }

    /// One read at a time, each with what is left of the time.
    fn read_until(&mut self, deadline: Instant, part: Part<'_>) -> Result<(), LinkError> {
        let Self {
            stream, payload, ..
        } = self;
        fill(part, payload, |buffer| {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            stream.get_ref().set_receive_patience(left)?;
            stream.read(buffer)
        })
        .map_err(|error| self.ended(error))
    }
}

impl<R: Read> FrameReader<R> {
    /// The next frame.
    pub fn next(&mut self) -> Result<(FrameHeader, &[u8]), LinkError> {
        let header = match self.header.take() {
            Some(header) => header,
            None => self.read_frame()?,
        };
        Ok((header, &self.payload))
    }

    fn read_frame(&mut self) -> Result<FrameHeader, LinkError> {
        let mut header = [0; HEADER_BYTES];
        self.read_part(Part::Header(&mut header))?;
        let header = FrameHeader::decode(&header)?;
        self.payload.resize(header.payload_len(), 0);
        self.read_part(Part::Payload)?;
        Ok(header)
    }

    fn read_part(&mut self, part: Part<'_>) -> Result<(), LinkError> {
        let Self {
            stream, payload, ..
        } = self;
        fill(part, payload, |buffer| stream.read(buffer)).map_err(|error| self.ended(error))
    }

    fn ended(&self, error: Ended) -> LinkError {
        match error {
            Ended::Tls => LinkError::SpeaksTls,
            Ended::Io(error) => match error.kind() {
                io::ErrorKind::UnexpectedEof => LinkError::Closed,
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                    LinkError::Silent(self.silence_max)
                }
                _ => LinkError::of(error),
            },
        }
    }
}

enum Part<'a> {
    Header(&'a mut [u8; HEADER_BYTES]),
    Payload,
}

/// Why a part was not read.
enum Ended {
    /// It is the beginning of TLS.
    Tls,
    Io(io::Error),
}

/// Reads a whole part of a frame. Another protocol may be shorter than a header.
fn fill(
    part: Part<'_>,
    payload: &mut [u8],
    mut read: impl FnMut(&mut [u8]) -> io::Result<usize>,
) -> Result<(), Ended> {
    let (buffer, begins) = match part {
        Part::Header(header) => (header.as_mut_slice(), true),
        Part::Payload => (payload, false),
    };
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match read(rest) {
            Ok(0) => return Err(Ended::Io(io::ErrorKind::UnexpectedEof.into())),
            Ok(length) => filled += length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Ended::Io(error)),
        }
        if begins && filled >= 2 && TLS_BEGINS.iter().any(|tls| buffer.starts_with(tls)) {
            return Err(Ended::Tls);
        }
    }
    Ok(())
}
