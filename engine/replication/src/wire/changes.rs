// SPDX-License-Identifier: Apache-2.0
//! The records of changes in a payload: a base, and where disks may differ from it.

use super::error::WireError;
use super::header::{FrameKind, PAYLOAD_BYTES_MAX};
use crate::storage::{BaseId, Regions};

const CODE_SINCE: u8 = 0;

/// Why a replica cannot say where its disks may differ from a base.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NoChanges {
    /// It has no record, or one that cannot be used.
    NoRecord,
    /// Its record is of another base.
    OtherBase,
    /// Its disks were being overwritten when that ended early.
    Incomplete,
    /// They are more than a frame holds.
    TooMany,
}

impl NoChanges {
    const ALL: [Self; 4] = [
        Self::NoRecord,
        Self::OtherBase,
        Self::Incomplete,
        Self::TooMany,
    ];

    const fn code(self) -> u8 {
        match self {
            Self::NoRecord => 1,
            Self::OtherBase => 2,
            Self::Incomplete => 3,
            Self::TooMany => 4,
        }
    }
}

/// What a passive side says of its disks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskChanges {
    /// They may differ from the base here, and nowhere else.
    Since(Regions),
    /// They may differ everywhere.
    Unknown(NoChanges),
}

impl DiskChanges {
    /// These regions, if a frame holds them.
    #[must_use]
    pub fn since(regions: Regions) -> Self {
        if regions.encoded_bytes() + 8 > PAYLOAD_BYTES_MAX {
            return Self::Unknown(NoChanges::TooMany);
        }
        Self::Since(regions)
    }

    /// Appends the payload of a frame.
    pub fn encode(&self, payload: &mut Vec<u8>) {
        let code = match self {
            Self::Since(_) => CODE_SINCE,
            Self::Unknown(why) => why.code(),
        };
        payload.extend_from_slice(&[code, 0, 0, 0, 0, 0, 0, 0]);
        if let Self::Since(regions) = self {
            regions.encode(payload);
        }
    }

    /// Reads the payload of a frame.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn decode(payload: &[u8]) -> Result<Self, WireError> {
        let kind = FrameKind::DiskChanges;
        let malformed = |what| WireError::Malformed { kind, what };
        let (&[code, reserved @ ..], rest) = payload
            .split_first_chunk::<8>()
            .ok_or_else(|| malformed("it ends before its code"))?;
        if reserved != [0; 7] {
            return Err(WireError::ReservedNotZero { kind });
        }
        if code == CODE_SINCE {
            let regions = Regions::decode(rest);
            return regions
                .map(Self::Since)
                .map_err(|_| malformed("its regions are malformed"));
        }
        let why = NoChanges::ALL.into_iter().find(|why| why.code() == code);
        match why {
            Some(why) if rest.is_empty() => Ok(Self::Unknown(why)),
            _ => Err(malformed("its code is unknown, or has no regions")),
        }
    }
}

/// Reads the payload of a frame that is a base.
pub(crate) fn decode_base(kind: FrameKind, payload: &[u8]) -> Result<BaseId, WireError> {
    let base = payload.try_into().map_err(|_| WireError::Malformed {
        kind,
        what: "a base has 16 bytes",
    });
    base.map(BaseId)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::storage::DiskLayout;

    #[test]
    fn every_answer_reads_back() {
        let capacity_bytes = 1 << 40;
        let regions = Regions::all(&[DiskLayout::Replicated { capacity_bytes }]);
        let unknown = NoChanges::ALL.map(DiskChanges::Unknown);
        for answer in unknown.into_iter().chain([DiskChanges::since(regions)]) {
            let mut payload = Vec::new();
            answer.encode(&mut payload);
            assert_eq!(DiskChanges::decode(&payload), Ok(answer));
        }
    }

    #[test]
    fn more_than_a_frame_holds_is_not_said() {
        let capacity_bytes = 1 << 46;
        let regions = Regions::none(&[DiskLayout::Replicated { capacity_bytes }]);
        let answer = DiskChanges::since(regions);
        assert_eq!(answer, DiskChanges::Unknown(NoChanges::TooMany));
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_answer_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            if let Ok(answer) = DiskChanges::decode(&bytes) {
                let mut again = Vec::new();
                answer.encode(&mut again);
                prop_assert_eq!(again, bytes);
            }
        }
    }
}
