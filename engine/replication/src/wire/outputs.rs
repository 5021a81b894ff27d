// SPDX-License-Identifier: Apache-2.0
//! Outputs in a payload: a 16-byte entry each, then the output's bytes.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::error::WireError;
use super::header::{FrameKind, PAYLOAD_BYTES_MAX, check_counter};
use crate::output::{OUTPUT_BYTES_MAX, Output, OutputKind};

/// What stands before each output.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct OutputEntry {
    position: U64,
    length: U32,
    kind: u8,
    reserved: [u8; 3],
}

/// Size of the entry before each output, in bytes.
pub const OUTPUT_ENTRY_BYTES: usize = 16;
const _: () = assert!(size_of::<OutputEntry>() == OUTPUT_ENTRY_BYTES);

/// Whether a payload of this length certainly has room for one more output.
#[must_use]
pub const fn has_room_for_output(payload_bytes: usize) -> bool {
    payload_bytes + OUTPUT_ENTRY_BYTES + OUTPUT_BYTES_MAX <= PAYLOAD_BYTES_MAX
}

/// Appends an output to a payload.
///
/// # Panics
/// When the output is longer than [`OUTPUT_BYTES_MAX`], which the event-tap never makes.
pub fn encode_output(payload: &mut Vec<u8>, output: &Output) {
    assert!(
        output.bytes.len() <= OUTPUT_BYTES_MAX,
        "the event-tap splits long outputs"
    );
    let length = u32::try_from(output.bytes.len()).expect("bounded by the assertion above");
    let entry = OutputEntry {
        position: U64::new(output.position),
        length: U32::new(length),
        kind: output.kind.code(),
        reserved: [0; 3],
    };
    payload.extend_from_slice(entry.as_bytes());
    payload.extend_from_slice(&output.bytes);
}

/// Reads the outputs of a payload and appends them to `outputs`.
///
/// # Errors
/// When an entry is cut, too long or of unknown kind. `outputs` may then hold some of them.
pub fn decode_outputs(mut payload: &[u8], outputs: &mut Vec<Output>) -> Result<(), WireError> {
    while !payload.is_empty() {
        let (output, rest) = decode_output(payload)?;
        outputs.push(output);
        payload = rest;
    }
    Ok(())
}

fn decode_output(payload: &[u8]) -> Result<(Output, &[u8]), WireError> {
    let malformed = |what| WireError::Malformed {
        kind: FrameKind::Outputs,
        what,
    };
    let (entry, rest) = OutputEntry::ref_from_prefix(payload)
        .map_err(|_| malformed("it ends inside an output's entry"))?;
    if entry.reserved != [0; 3] {
        return Err(WireError::ReservedNotZero {
            kind: FrameKind::Outputs,
        });
    }
    let kind = OutputKind::from_code(entry.kind)
        .ok_or(WireError::UnknownOutputKind { code: entry.kind })?;
    let length = entry.length.get() as usize;
    if length == 0 || length > OUTPUT_BYTES_MAX {
        return Err(malformed("an output is empty or longer than 65 KiB"));
    }
    let (bytes, rest) = rest
        .split_at_checked(length)
        .ok_or_else(|| malformed("it ends inside an output"))?;
    let position = check_counter("output position", entry.position.get())?;
    Ok((
        Output {
            kind,
            position,
            bytes: bytes.to_vec(),
        },
        rest,
    ))
}
