// SPDX-License-Identifier: Apache-2.0
//! What an attached terminal gets from an engine: the console's stream in pieces, each with the
//! position of its first byte, so that whoever reads knows what was passed over.
//!
//! A piece is its position and its length, little-endian, 8 and 4 bytes, then that many bytes. What
//! the terminal sends is typed, as it is.

use thiserror::Error;

/// What stands before the bytes of a piece.
pub const PIECE_HEADER_BYTES: usize = 12;
/// The longest piece.
pub const PIECE_BYTES_MAX: usize = 16 * 1024;

/// What stands before the bytes of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PieceHeader {
    /// Offset of the first byte in the stream, since the guest's first boot.
    pub position: u64,
    length: u32,
}

/// This is no piece.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "The engine announces {length} bytes of console output; 1 to {PIECE_BYTES_MAX} are possible"
)]
pub struct PieceError {
    length: u32,
}

/// A whole piece, header and bytes; `None` if there are no or too many bytes.
#[must_use]
pub fn piece(position: u64, bytes: &[u8]) -> Option<Vec<u8>> {
    let length = u32::try_from(bytes.len()).ok()?;
    let header = PieceHeader { position, length };
    header.check().ok()?;
    let mut piece = Vec::with_capacity(PIECE_HEADER_BYTES + bytes.len());
    piece.extend(position.to_le_bytes());
    piece.extend(length.to_le_bytes());
    piece.extend(bytes);
    Some(piece)
}

impl PieceHeader {
    /// Reads a header.
    ///
    /// # Errors
    /// It announces no piece.
    pub fn read(bytes: [u8; PIECE_HEADER_BYTES]) -> Result<Self, PieceError> {
        let [a, b, c, d, e, f, g, h, length @ ..] = bytes;
        let header = Self {
            position: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            length: u32::from_le_bytes(length),
        };
        header.check()?;
        Ok(header)
    }

    fn check(self) -> Result<(), PieceError> {
        match self.len() {
            1..=PIECE_BYTES_MAX => Ok(()),
            _ => Err(PieceError {
                length: self.length,
            }),
        }
    }

    /// How many bytes follow, at least one.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "there is no empty piece")]
    pub const fn len(self) -> usize {
        self.length as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_is_read_as_it_was_written() {
        let written = piece(1 << 40, b"login: ").unwrap();
        let (header, bytes) = written.split_at(PIECE_HEADER_BYTES);
        let header = PieceHeader::read(header.try_into().unwrap()).unwrap();
        assert_eq!((header.position, header.len()), (1 << 40, 7));
        assert_eq!(bytes, b"login: ");
    }

    #[test]
    fn a_length_that_no_piece_has_is_refused() {
        assert_eq!(piece(0, b""), None);
        assert_eq!(piece(0, &vec![0; PIECE_BYTES_MAX + 1]), None);
        assert!(piece(0, &vec![0; PIECE_BYTES_MAX]).is_some());
        for length in [0, 16 * 1024 + 1, u32::MAX] {
            let mut header = [0; PIECE_HEADER_BYTES];
            header[8..].copy_from_slice(&length.to_le_bytes());
            assert_eq!(PieceHeader::read(header), Err(PieceError { length }));
        }
    }
}
