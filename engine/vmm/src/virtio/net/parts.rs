// SPDX-License-Identifier: Apache-2.0
//! Walking the descriptors of a chain, without allocating and without believing it.
//!
//! virtio-queue ends a chain silently where it makes no sense. Here that is a fault: a packet whose
//! second half is lost would otherwise go out as if it were whole.

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

use crate::ram::Mapping;
use crate::virtio::queues::{Chain, QueueFault, UsedChain};

/// Most descriptors in one chain. A driver may use as many as the queue has entries (section
/// 2.7.5.3.1), and there are no larger queues.
const PARTS_MAX: usize = 1024;

/// The descriptors of a chain up to its end or first fault.
struct Parts {
    chain: Chain,
    seen: usize,
    over: bool,
}

impl Parts {
    fn of(chain: Chain) -> Self {
        Self {
            chain,
            seen: 0,
            over: false,
        }
    }
}

impl Iterator for Parts {
    type Item = Result<Descriptor, QueueFault>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        self.seen += 1;
        let next = match self.chain.next() {
            Some(_) if self.seen > PARTS_MAX => Err("it has too many descriptors"),
            Some(part) => Ok(part),
            None => Err("it leads nowhere"),
        };
        self.over = next.as_ref().map_or(true, |part| !part.has_next());
        Some(next.map_err(QueueFault::Shape))
    }
}

/// What a driver wrote for the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gathered {
    /// Bytes of it, all of which are in the buffer. None: it is longer than the buffer.
    pub(super) length: Option<usize>,
    /// The first byte that the device may write.
    pub(super) answer: Option<GuestAddress>,
}

/// Copies what the driver wrote to the start of `buffer`.
///
/// # Errors
/// The chain makes no sense, or is not in guest memory.
pub(super) fn gather(
    memory: &Mapping,
    chain: Chain,
    buffer: &mut [u8],
) -> Result<Gathered, QueueFault> {
    let mut start = Some(0);
    let mut answer = None;
    let mut writable = false;
    for part in Parts::of(chain) {
        let part = part?;
        let bytes = usize::try_from(part.len()).unwrap_or(usize::MAX);
        if part.is_write_only() {
            writable = true;
            answer = answer.or_else(|| (bytes > 0).then(|| part.addr()));
            continue;
        }
        if writable {
            return Err(QueueFault::Shape(
                "what is read comes after what is written",
            ));
        }
        let end = start.and_then(|start: usize| start.checked_add(bytes));
        let range = start.zip(end).map(|(start, end)| start..end);
        match range.and_then(|range| buffer.get_mut(range)) {
            Some(target) => {
                memory.read_slice(target, part.addr()).map_err(fault)?;
                start = end;
            }
            None => start = None,
        }
    }
    Ok(Gathered {
        length: start,
        answer,
    })
}

/// Places in guest memory that a packet goes to, from one chain or from several.
#[derive(Debug, Default)]
pub(super) struct Places {
    parts: Vec<(GuestAddress, usize)>,
    chains: Vec<UsedChain>,
    bytes: usize,
}

impl Places {
    /// Bytes that there is a place for.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The chains, with what is written into each.
    pub(super) fn chains(&self) -> &[UsedChain] {
        &self.chains
    }

    /// Starts anew. What was allocated stays.
    pub(super) fn clear(&mut self) {
        self.parts.clear();
        self.chains.clear();
        self.bytes = 0;
    }

    /// Adds what the device may write of a chain, up to `wanted` bytes in all, and returns how much
    /// that is.
    ///
    /// # Errors
    /// The chain makes no sense, as far as it was looked at.
    pub(super) fn add(&mut self, chain: Chain, wanted: usize) -> Result<usize, QueueFault> {
        let head = chain.head_index();
        let before = self.bytes;
        for part in Parts::of(chain) {
            let part = part?;
            if !part.is_write_only() {
                continue;
            }
            let bytes = usize::try_from(part.len()).unwrap_or(usize::MAX);
            let taken = bytes.min(wanted.saturating_sub(self.bytes));
            self.parts.push((part.addr(), taken));
            self.bytes += taken;
            if self.bytes >= wanted {
                break;
            }
        }
        let added = self.bytes - before;
        self.chains.push(UsedChain {
            head,
            written: u32::try_from(added).unwrap_or(u32::MAX),
        });
        Ok(added)
    }

    /// Writes a packet for which there is a place.
    ///
    /// # Errors
    /// A place is not in guest memory.
    pub(super) fn write(&self, memory: &Mapping, packet: &[u8]) -> Result<(), QueueFault> {
        let mut rest = packet;
        for (address, bytes) in &self.parts {
            let (now, later) = rest.split_at((*bytes).min(rest.len()));
            memory.write_slice(now, *address).map_err(fault)?;
            rest = later;
        }
        Ok(())
    }
}

fn fault(error: vm_memory::GuestMemoryError) -> QueueFault {
    QueueFault::Memory(std::io::Error::other(error))
}
