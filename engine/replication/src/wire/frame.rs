// SPDX-License-Identifier: Apache-2.0
//! Whole frames: written straight into the buffer that is sent, read from bytes as they come.
//!
//! [`FrameWriter`] numbers frames of one direction of one connection; [`FrameDecoder`] takes a
//! stream in pieces of any size. A process with blocking reads needs no decoder: it reads
//! [`HEADER_BYTES`], calls [`FrameHeader::decode`], reads the payload and calls
//! [`FrameHeader::verify_payload`].

use kemari_api::{Epoch, Generation};

use super::error::WireError;
use super::header::{FrameHeader, FrameKind, HEADER_BYTES, PAYLOAD_BYTES_MAX, PROTOCOL_VERSION};

/// Writes the frames of one direction of one connection.
#[derive(Debug, Clone)]
pub struct FrameWriter {
    version: u16,
    generation: Generation,
    sequence: u64,
}

impl FrameWriter {
    /// A writer whose first frame has number 0.
    #[must_use]
    pub const fn new(generation: Generation) -> Self {
        Self {
            version: PROTOCOL_VERSION,
            generation,
            sequence: 0,
        }
    }

    /// Writes later frames in the protocol version both sides agreed on.
    pub const fn set_version(&mut self, version: u16) {
        self.version = version;
    }

    /// Puts later frames into the session's generation.
    pub const fn set_generation(&mut self, generation: Generation) {
        self.generation = generation;
    }

    /// Appends a frame to `out`; `payload` appends the payload. Returns where in `out` it lies.
    ///
    /// # Panics
    /// When the payload grows beyond [`PAYLOAD_BYTES_MAX`]; callers ask for room first.
    pub fn frame(
        &mut self,
        out: &mut Vec<u8>,
        kind: FrameKind,
        epoch: Epoch,
        payload: impl FnOnce(&mut Vec<u8>),
    ) -> std::ops::Range<usize> {
        let header_at = out.len();
        out.extend_from_slice(&[0; HEADER_BYTES]);
        let payload_at = out.len();
        payload(out);
        let length = out.len() - payload_at;
        assert!(
            length <= PAYLOAD_BYTES_MAX,
            "{kind:?} payload of {length} bytes"
        );
        let header = FrameHeader {
            version: self.version,
            kind,
            payload_bytes: u32::try_from(length).expect("bounded by the assertion above"),
            payload_crc: crc32c::crc32c(&out[payload_at..]),
            generation: self.generation,
            epoch,
            sequence: self.sequence,
        };
        self.sequence += 1;
        out[header_at..payload_at].copy_from_slice(&header.encode());
        payload_at..out.len()
    }
}

/// Cuts a stream of bytes into verified frames.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    buffer: Vec<u8>,
    taken: usize,
    failed: Option<WireError>,
}

impl FrameDecoder {
    /// A decoder at the start of a connection.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes as they arrive. What is buffered is bounded by what is handed in here plus one
    /// frame, if [`Self::next_frame`] is called until it gives nothing.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.taken);
        self.taken = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, or `None` when more bytes are needed.
    ///
    /// # Errors
    /// When the stream is no stream of frames. Every later call gives the same error.
    pub fn next_frame(&mut self) -> Result<Option<(FrameHeader, &[u8])>, WireError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        match self.complete_frame() {
            Ok(None) => Ok(None),
            Ok(Some((header, end))) => {
                let start = end - header.payload_len();
                self.taken = end;
                Ok(Some((header, self.buffer.get(start..end).unwrap_or(&[]))))
            }
            Err(error) => {
                self.failed = Some(error.clone());
                Err(error)
            }
        }
    }

    fn complete_frame(&self) -> Result<Option<(FrameHeader, usize)>, WireError> {
        let rest = self.buffer.get(self.taken..).unwrap_or(&[]);
        let Some((header, rest)) = rest.split_first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let header = FrameHeader::decode(header)?;
        let Some(payload) = rest.get(..header.payload_len()) else {
            return Ok(None);
        };
        header.verify_payload(payload)?;
        Ok(Some((
            header,
            self.taken + HEADER_BYTES + header.payload_len(),
        )))
    }
}
