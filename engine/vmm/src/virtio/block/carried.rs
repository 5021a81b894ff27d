// SPDX-License-Identifier: Apache-2.0
//! The requests that were in flight at the cut this device goes on from.
//!
//! A state names them by the heads of their chains, in the order they were taken. The driver must
//! leave the chain and its memory alone until it is given back (section 2.7.13), so all the rest is
//! still there. They are made again, before anything new: reading, writing, zeroing, discarding and
//! flushing twice is like once, and between requests in flight the guest can expect no order.
//!
//! The heads are believed as little as anything from outside. Those that no device can have had in
//! flight together stop the device: it would answer a request twice, or one that nobody made. (A
//! driver that makes a chain available twice at a time, which none may do, comes to that, too.)

use std::collections::VecDeque;

use super::QUEUE;
use super::layout::QUEUE_SIZE;
use crate::virtio::DeviceFault;
use crate::virtio::queues::QueueFault;

/// Requests to be made again.
#[derive(Debug, Default)]
pub(super) struct Carried {
    heads: VecDeque<u16>,
    /// What is wrong with them.
    wrong: Option<&'static str>,
}

impl Carried {
    /// Those that a state names.
    pub(super) fn new(heads: &[u16]) -> Self {
        Self {
            wrong: what_is_wrong(heads),
            heads: heads.iter().copied().collect(),
        }
    }

    /// The next one to be made again, if there is one.
    ///
    /// # Errors
    /// They make no sense.
    pub(super) fn next(&self) -> Result<Option<u16>, DeviceFault> {
        match self.wrong {
            Some(reason) => Err(fault(reason)),
            None => Ok(self.heads.front().copied()),
        }
    }

    /// The next one was made again.
    pub(super) fn is_made(&mut self) {
        self.heads.pop_front();
    }

    /// What is not made again yet, for a state.
    pub(super) fn heads(&self) -> impl Iterator<Item = u16> {
        self.heads.iter().copied()
    }

    /// They are nobody's any more.
    pub(super) fn clear(&mut self) {
        self.heads.clear();
        self.wrong = None;
    }
}

/// A carried request cannot be made again.
pub(super) fn fault(reason: &'static str) -> DeviceFault {
    DeviceFault::Queue {
        queue: QUEUE,
        fault: QueueFault::Carried(reason),
    }
}

fn what_is_wrong(heads: &[u16]) -> Option<&'static str> {
    let mut seen = [false; QUEUE_SIZE as usize];
    for head in heads {
        match seen.get_mut(usize::from(*head)) {
            None => return Some("its head is beyond the queue"),
            Some(true) => return Some("it is named twice"),
            Some(seen) => *seen = true,
        }
    }
    None
}
