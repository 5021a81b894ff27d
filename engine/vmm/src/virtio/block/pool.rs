// SPDX-License-Identifier: Apache-2.0
//! Buffers that requests in flight own, used again and again.
//!
//! They come in powers of two, so that one fits the next request of about the same size. What a
//! pool keeps is bounded, and large buffers are given up before small ones, which are dear to
//! allocate for what they carry.

const SMALLEST_LOG2: u32 = 12;
/// Classes from 4 KiB to 4 MiB.
const CLASSES: usize = 11;

/// Idle buffers.
#[derive(Debug)]
pub(super) struct Pool {
    classes: [Vec<Vec<u8>>; CLASSES],
    idle_bytes: usize,
    idle_bytes_max: usize,
}

impl Pool {
    /// A pool that keeps at most so much.
    pub(super) fn new(idle_bytes_max: usize) -> Self {
        Self {
            classes: Default::default(),
            idle_bytes: 0,
            idle_bytes_max,
        }
    }

    /// A buffer of this length. What is in it is left over from an earlier request.
    pub(super) fn take(&mut self, length: usize) -> Vec<u8> {
        let bytes = length.next_power_of_two().max(1 << SMALLEST_LOG2);
        let idle = class_of(bytes).and_then(|class| self.classes.get_mut(class)?.pop());
        let mut buffer = match idle {
            Some(buffer) => {
                self.idle_bytes -= buffer.capacity();
                buffer
            }
            None => vec![0; bytes],
        };
        // Zeroes only what is beyond the buffer's last use, which is nothing for equal requests.
        buffer.resize(length, 0);
        buffer
    }

    /// Takes a buffer back.
    pub(super) fn put(&mut self, buffer: Vec<u8>) {
        let class = class_of(buffer.capacity());
        let Some(class) = class.and_then(|class| self.classes.get_mut(class)) else {
            return;
        };
        self.idle_bytes += buffer.capacity();
        class.push(buffer);
        while self.idle_bytes > self.idle_bytes_max {
            let Some(largest) = self.classes.iter_mut().rev().find_map(Vec::pop) else {
                return;
            };
            self.idle_bytes -= largest.capacity();
        }
    }
}

/// The class whose buffers have at most this capacity; none for what is too small to be of use or
/// larger than any request.
fn class_of(capacity: usize) -> Option<usize> {
    let class = capacity.checked_ilog2()?.checked_sub(SMALLEST_LOG2)?;
    usize::try_from(class).ok().filter(|class| *class < CLASSES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_for_a_request_of_its_size() {
        let mut pool = Pool::new(1 << 20);
        let buffer = pool.take(5000);
        assert_eq!((buffer.len(), buffer.capacity()), (5000, 8192));
        let place = buffer.as_ptr();
        pool.put(buffer);
        let again = pool.take(8192);
        assert_eq!((again.len(), again.as_ptr()), (8192, place));
        let other = pool.take(8192);
        assert_ne!(other.as_ptr(), place);
    }

    #[test]
    fn what_is_kept_is_bounded_and_the_largest_goes_first() {
        let mut pool = Pool::new(20_000);
        let (small, large) = (pool.take(512), pool.take(16_384));
        let place = small.as_ptr();
        pool.put(large);
        pool.put(small);
        assert_eq!(pool.idle_bytes, 4096);
        pool.put(Vec::new());
        pool.put(vec![0; 64 << 20]);
        assert_eq!(pool.idle_bytes, 4096);
        let again = pool.take(512);
        assert_eq!(again.as_ptr(), place);
    }
}
