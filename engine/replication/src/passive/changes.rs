// SPDX-License-Identifier: Apache-2.0
//! Changes of disks that have arrived, checked against the disks there are.

use crate::protocol::ProtocolError;
use crate::storage::{Change, DiskChange, DiskLayout};
use crate::wire::FrameKind;
use crate::wire::disks::ChangeReader;

/// Most bytes of disk changes that one transaction may carry. The active side ends an epoch long
/// before; what is above is what a guest can have in flight on all its disks when that happens.
pub const STAGED_CHANGES_BYTES_MAX: usize = 768 * 1024 * 1024;
/// A buffer larger than this is given back to the system after use.
const KEPT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Disks are read and written in units of this many bytes (VIRTIO 1.x, 5.2.6).
const SECTOR_BYTES: u64 = 512;

/// Changes that have been checked and may be applied as they are, in order.
#[derive(Debug, Clone)]
pub struct ChangeBatch<'a> {
    reader: ChangeReader<'a>,
}

impl<'a> ChangeBatch<'a> {
    /// Checks the changes of a payload as a whole.
    pub(super) fn check(
        disks: &[DiskLayout],
        kind: FrameKind,
        payload: &'a [u8],
    ) -> Result<Self, ProtocolError> {
        let reader = ChangeReader::new(kind, payload);
        for change in reader.clone() {
            check_change(disks, kind, &change?)?;
        }
        Ok(Self { reader })
    }
}

impl<'a> Iterator for ChangeBatch<'a> {
    type Item = DiskChange<&'a [u8]>;

    fn next(&mut self) -> Option<Self::Item> {
        self.reader.next()?.ok()
    }
}

/// Refuses a change that is not within a replicated disk.
fn check_change(
    disks: &[DiskLayout],
    kind: FrameKind,
    change: &DiskChange<&[u8]>,
) -> Result<(), ProtocolError> {
    let (offset, length) = (change.offset, change.length());
    let layout = disks.get(change.disk.index());
    let fits = match (layout, &change.change) {
        (Some(DiskLayout::Replicated { .. }), Change::Flush) => true,
        (Some(DiskLayout::Replicated { capacity_bytes }), _) => {
            offset
                .checked_add(length)
                .is_some_and(|end| end <= *capacity_bytes)
                && offset.is_multiple_of(SECTOR_BYTES)
                && length.is_multiple_of(SECTOR_BYTES)
        }
        (Some(DiskLayout::Apart) | None, _) => false,
    };
    if fits {
        return Ok(());
    }
    Err(ProtocolError::OutsideDisk {
        kind,
        disk: change.disk,
        offset,
        length,
    })
}

/// The disk changes of one transaction, as they came. They were checked.
#[derive(Debug, Clone, Default)]
pub struct StagedChanges {
    bytes: Vec<u8>,
}

impl StagedChanges {
    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The changes, in the order they are to be applied.
    #[must_use]
    pub fn iter(&self) -> ChangeBatch<'_> {
        ChangeBatch {
            reader: ChangeReader::new(FrameKind::DiskLog, &self.bytes),
        }
    }

    /// Keeps the changes of a payload; `false` if they are too many.
    pub(super) fn stage(
        &mut self,
        disks: &[DiskLayout],
        payload: &[u8],
    ) -> Result<bool, ProtocolError> {
        ChangeBatch::check(disks, FrameKind::DiskLog, payload)?;
        if self.bytes.len() + payload.len() > STAGED_CHANGES_BYTES_MAX {
            return Ok(false);
        }
        self.bytes.extend_from_slice(payload);
        Ok(true)
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        if self.bytes.capacity() > KEPT_BYTES_MAX {
            *self = Self::default();
        }
    }
}

impl<'a> IntoIterator for &'a StagedChanges {
    type Item = DiskChange<&'a [u8]>;
    type IntoIter = ChangeBatch<'a>;

    fn into_iter(self) -> ChangeBatch<'a> {
        self.iter()
    }
}
