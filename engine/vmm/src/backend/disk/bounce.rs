// SPDX-License-Identifier: Apache-2.0
//! Memory that direct I/O accepts: it starts at a page boundary. Data is copied to and from it,
//! because the buffers of requests start anywhere.

/// Alignment of the memory. No device needs more than its logical block, and that is at most a page.
const ALIGNMENT_BYTES: usize = 4096;

/// Buffers kept for the next request, and the longest one worth keeping.
const KEPT_BUFFERS: usize = 32;
const KEPT_BYTES: usize = 1 << 20;

/// Aligned memory of a certain length.
#[derive(Debug, Default)]
pub(super) struct AlignedBuffer {
    /// Longer than needed; what counts begins at `start`. Never reallocated.
    storage: Vec<u8>,
    start: usize,
    length: usize,
}

impl AlignedBuffer {
    fn new(length: usize) -> Self {
        let storage = vec![0; length + ALIGNMENT_BYTES];
        let start = storage.as_ptr().align_offset(ALIGNMENT_BYTES);
        Self {
            storage,
            start,
            length,
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.storage
            .get(self.start..self.start + self.length)
            .unwrap_or_default()
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        self.storage
            .get_mut(self.start..self.start + self.length)
            .unwrap_or_default()
    }
}

/// Aligned buffers for reuse.
#[derive(Debug, Default)]
pub(super) struct BouncePool(Vec<AlignedBuffer>);

impl BouncePool {
    /// A buffer of this length, with any content.
    pub(super) fn take(&mut self, length: usize) -> AlignedBuffer {
        let fits = |kept: &AlignedBuffer| kept.storage.len() - ALIGNMENT_BYTES >= length;
        let Some(index) = self.0.iter().position(fits) else {
            // Short ones are made long enough for most later requests.
            let mut buffer = AlignedBuffer::new(length.max(64 << 10));
            buffer.length = length;
            return buffer;
        };
        let mut buffer = self.0.swap_remove(index);
        buffer.length = length;
        buffer
    }

    /// Gives a buffer back.
    pub(super) fn put(&mut self, buffer: AlignedBuffer) {
        if self.0.len() < KEPT_BUFFERS && buffer.storage.len() <= KEPT_BYTES + ALIGNMENT_BYTES {
            self.0.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_reused() {
        let mut pool = BouncePool::default();
        for length in [512, 4096, 100_000, 512, 3 << 20] {
            let mut buffer = pool.take(length);
            assert_eq!(buffer.bytes().len(), length);
            assert_eq!(buffer.bytes_mut().len(), length);
            assert_eq!(buffer.bytes().as_ptr().align_offset(ALIGNMENT_BYTES), 0);
            pool.put(buffer);
        }
        assert_eq!(pool.0.len(), 2, "the longest one is not kept");
    }
}
