// SPDX-License-Identifier: Apache-2.0
//! What goes over the connection between two replicas, byte by byte.
//!
//! A connection is a stream of frames in each direction: a 48-byte header and a payload of at most
//! 1 MiB. All numbers are little endian.
//!
//! | offset | bytes | field |
//! | ---: | ---: | --- |
//! | 0 | 4 | magic, `KMRI` |
//! | 4 | 2 | protocol version the frame is written in |
//! | 6 | 2 | kind ([`FrameKind`]) |
//! | 8 | 4 | length of the payload in bytes |
//! | 12 | 4 | CRC-32C of the payload |
//! | 16 | 8 | generation of the session |
//! | 24 | 8 | epoch the frame is about, 0 for none |
//! | 32 | 8 | sequence: frames sent before it in this direction of this connection |
//! | 40 | 4 | reserved, 0 |
//! | 44 | 4 | CRC-32C of bytes 0 to 43 |
//!
//! Page entry in CopyPages and Pages (12 bytes, then `length` bytes):
//!
//! | offset | bytes | field |
//! | ---: | ---: | --- |
//! | 0 | 8 | page number: guest-physical address / 4096 |
//! | 8 | 1 | encoding: 0 zero, 1 raw, 2 LZ4, 3 delta, 4 delta packed with LZ4 |
//! | 9 | 1 | reserved, 0 |
//! | 10 | 2 | length: 0 for zero, 4096 for raw, less than 4096 for the others |
//!
//! Output entry in Outputs (16 bytes, then `length` bytes):
//!
//! | offset | bytes | field |
//! | ---: | ---: | --- |
//! | 0 | 8 | position of the first byte in its stream |
//! | 8 | 4 | length, 1 to 65,536 |
//! | 12 | 1 | kind: 1 console |
//! | 13 | 3 | reserved, 0 |
//!
//! Change entry in DiskCopy and DiskLog (24 bytes, then the data of a write):
//!
//! | offset | bytes | field |
//! | ---: | ---: | --- |
//! | 0 | 8 | where it begins on the disk, in bytes |
//! | 8 | 8 | how many bytes of the disk it is about |
//! | 16 | 1 | the disk's place in the description, 0 to 15 |
//! | 17 | 1 | 1 write (at most 256 KiB), 2 zeroes, 3 zeroes that free space, 4 discard, 5 flush |
//! | 18 | 6 | reserved, 0 |
//!
//! DiskProbe and DiskDiffers: where the first block begins (8 bytes), the disk (1), reserved (7);
//! then the XXH3-128 of each 64 KiB block, or a bit a block (8 bytes).
//!
//! DiskBase, DiskSync, DiskSynced: a base, 16 bytes. DiskChanges: a code (1 byte, 0 for regions that
//! follow), reserved (7).
//!
//! Begin: delivered_up_to, base, pages, console position, 8 bytes each. Commit: pages, state bytes,
//! outputs, payload bytes, digest, 8 bytes each. Hello: oldest and newest protocol version, 2 bytes
//! each, then postcard. Welcome, Refuse, Goodbye: postcard. Ack, Heartbeat, Delivered: empty.
//!
//! The order of frames, the limits and the meaning of each are in `docs/wire-protocol.md`.

pub mod changes;
pub mod delta;
pub mod digest;
pub mod disks;
pub mod error;
pub mod frame;
pub mod header;
pub mod message;
pub mod outputs;
pub mod pages;

pub use changes::{DiskChanges, NoChanges};
pub use digest::TransactionDigest;
pub use disks::{Differing, Probe};
pub use error::WireError;
pub use frame::{FrameDecoder, FrameWriter};
pub use header::{
    FrameHeader, FrameKind, HEADER_BYTES, PAYLOAD_BYTES_MAX, PROTOCOL_OLDEST, PROTOCOL_VERSION,
    VERSION_OF_CHANGE_RECORDS, VERSION_OF_ENCODINGS,
};
pub use message::{
    Begin, Commit, Goodbye, Held, Hello, HelloBody, Purpose, Refusal, VmIdentity, Welcome,
};
