// SPDX-License-Identifier: Apache-2.0
//! The input as a stream of numbers that never ends: zeroes follow the last byte.

/// What is left of an input.
#[derive(Debug, Clone)]
pub(super) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(super) fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Up to `count` bytes; fewer at the end.
    pub(super) fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    pub(super) fn rest(&mut self) -> &'a [u8] {
        self.bytes(usize::MAX)
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        for (byte, value) in array.iter_mut().zip(self.bytes(N)) {
            *byte = *value;
        }
        array
    }

    pub(super) fn u8(&mut self) -> u8 {
        let [byte] = self.array();
        byte
    }

    pub(super) fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    pub(super) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    pub(super) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// A number below `limit`, which is not zero.
    pub(super) fn below(&mut self, limit: u8) -> u8 {
        self.u8() % limit
    }

    /// 1, 2, 4 or 8 bytes, as an access of a CPU has.
    pub(super) fn access(&mut self) -> Vec<u8> {
        let width = 1 << self.below(4);
        let mut bytes = self.bytes(width).to_vec();
        bytes.resize(width, 0);
        bytes
    }

    /// Changes some bytes of `content`, then cuts it or appends what is left of the input.
    pub(super) fn damage(&mut self, content: &mut Vec<u8>) {
        for _ in 0..self.below(16) {
            let at = usize::from(self.u16());
            for (byte, value) in content.iter_mut().skip(at).zip(self.access()) {
                *byte = value;
            }
        }
        match self.below(4) {
            1 => content.truncate(usize::from(self.u16())),
            2 => {
                let at = usize::from(self.u16()).min(content.len());
                content.splice(at..at, self.rest().iter().copied());
            }
            _ => content.extend(self.rest()),
        }
    }
}
