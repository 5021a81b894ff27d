// SPDX-License-Identifier: Apache-2.0
//! A device's rings: taking requests out of them and giving them back used.
//!
//! The ring logic is virtio-queue's. This adds what every device needs around it: a fault instead
//! of silence for a ring that makes no sense, notifications suppressed while the device is at work,
//! and interrupts gathered until the end of a batch.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress};

use crate::pci::msix::{Msix, NO_VECTOR};
use crate::ram::Mapping;
use crate::virtio::DeviceFault;
use crate::virtio::walk::Walk;

/// A chain of descriptors that the guest made available.
pub(crate) type Chain = DescriptorChain<Arc<Mapping>>;

/// A ring, or a chain in it, that makes no sense.
#[derive(Debug, Error)]
pub(crate) enum QueueFault {
    /// Its addresses are not in guest memory.
    #[error("the ring is not in guest memory")]
    Placement,
    /// The ring's indexes or the chain's descriptors are impossible.
    #[error("the ring or a chain in it is malformed")]
    Ring(#[source] virtio_queue::Error),
    /// Reading or writing a chain's memory failed.
    #[error("a chain's memory cannot be accessed")]
    Memory(#[source] std::io::Error),
    /// A chain is too short, too long, or lacks a part.
    #[error("a chain has the wrong shape: {0}")]
    Shape(&'static str),
    /// The state names a chain that cannot have been in flight at its cut.
    #[error("a request that was in flight at the cut cannot be made again: {0}")]
    Carried(&'static str),
}

impl From<virtio_queue::Error> for QueueFault {
    fn from(error: virtio_queue::Error) -> Self {
        Self::Ring(error)
    }
}

/// A chain that is given back to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct UsedChain {
    pub(crate) head: u16,
    /// Bytes written into it.
    pub(crate) written: u32,
}

#[derive(Debug)]
struct Ring {
    queue: Queue,
    vector: u16,
    /// Chains put into the used ring since the last interrupt was considered.
    used: u16,
}

impl Ring {
    /// Puts chains into the used ring; the guest sees all of them at once, or none.
    fn push(&mut self, memory: &Mapping, chains: &[UsedChain]) -> Result<(), virtio_queue::Error> {
        let Some((last, before)) = chains.split_last() else {
            return Ok(());
        };
        let published = self.queue.next_used();
        let mut next = published;
        for chain in before {
            if chain.head >= self.queue.size() {
                return Err(virtio_queue::Error::InvalidDescriptorIndex);
            }
            // Section 2.7.8: flags and index, then elements of head and length.
            let place = 4 + 8 * u64::from(next % self.queue.size());
            let element = [u32::from(chain.head).to_le(), chain.written.to_le()];
            let at = GuestAddress(self.queue.used_ring().wrapping_add(place));
            memory
                .write_obj(element, at)
                .map_err(virtio_queue::Error::GuestMemory)?;
            next = next.wrapping_add(1);
        }
        // This one is written at its place, and then the index moves over all of them.
        self.queue.set_next_used(next);
        if let Err(error) = self.queue.add_used(memory, last.head, last.written) {
            self.queue.set_next_used(published);
            return Err(error);
        }
        let count = u16::try_from(chains.len()).unwrap_or(u16::MAX);
        self.used = self.used.saturating_add(count);
        Ok(())
    }

    /// Whether the driver wants an interrupt for the last `added` chains (section 2.7.7.2).
    fn wants_interrupt(&self, memory: &Mapping, added: u16) -> Result<bool, virtio_queue::Error> {
        // What was given back must be visible before the driver's wish is read, or both wait.
        fence(Ordering::SeqCst);
        let by_index = self.queue.event_idx_enabled();
        let place = if by_index {
            4 + 2 * u64::from(self.queue.size())
        } else {
            0
        };
        let at = GuestAddress(self.queue.avail_ring().wrapping_add(place));
        let wish = memory
            .load(at, Ordering::Relaxed)
            .map(u16::from_le)
            .map_err(virtio_queue::Error::GuestMemory)?;
        if by_index {
            let since = self.queue.next_used().wrapping_sub(wish).wrapping_sub(1);
            return Ok(since < added);
        }
        Ok(u32::from(wish) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }
}

/// State of one queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RingState {
    size: u16,
    next_avail: u16,
    next_used: u16,
    event_idx: bool,
    ready: bool,
    descriptors: u64,
    available: u64,
    used: u64,
    vector: u16,
}

/// All queues of a device, and the memory they are in.
#[derive(Debug)]
pub(crate) struct Queues {
    memory: Arc<Mapping>,
    rings: Vec<Ring>,
}

impl Queues {
    pub(crate) fn new(memory: Arc<Mapping>, sizes: &[u16]) -> Self {
        let rings = sizes
            .iter()
            .map(|size| Ring {
                queue: Queue::new(*size).expect("devices have queues of a power of two"),
                vector: NO_VECTOR,
                used: 0,
            })
            .collect();
        Self { memory, rings }
    }

    pub(crate) fn len(&self) -> usize {
        self.rings.len()
    }

    /// The memory that chains point into.
    pub(crate) fn memory(&self) -> Arc<Mapping> {
        Arc::clone(&self.memory)
    }

    /// Entries that the driver gave the queue.
    pub(crate) fn size(&self, index: usize) -> u16 {
        self.rings.get(index).map_or(0, |ring| ring.queue.size())
    }

    /// Takes the next chain; `None` when there is none, and then the doorbell rings for the next.
    ///
    /// # Errors
    /// The ring makes no sense.
    pub(crate) fn pop(&mut self, index: usize) -> Result<Option<Chain>, DeviceFault> {
        let memory = Arc::clone(&self.memory);
        let Some(ring) = self.rings.get_mut(index).filter(|ring| ring.queue.ready()) else {
            return Ok(None);
        };
        let fault = |error| DeviceFault::Queue {
            queue: index,
            fault: QueueFault::Ring(error),
        };
        let queue = &mut ring.queue;
        loop {
            if let Some(chain) = queue.iter(Arc::clone(&memory)).map_err(fault)?.next() {
                return Ok(Some(chain));
            }
            if !queue.enable_notification(&*memory).map_err(fault)? {
                return Ok(None);
            }
        }
    }

    /// A chain that was popped before, in this machine or in the one whose state was loaded, and
    /// was not given back since. None where the queue cannot have such a chain.
    pub(crate) fn popped_before(&self, index: usize, head: u16) -> Option<Walk> {
        let queue = &self.rings.get(index)?.queue;
        (queue.ready() && head < queue.size()).then(|| {
            Walk::new(
                Arc::clone(&self.memory),
                queue.desc_table(),
                queue.size(),
                head,
            )
        })
    }

    /// Puts the chain that [`pop`](Self::pop) gave last back: it will be popped again. Calling it
    /// as often as chains were popped puts all of them back.
    pub(crate) fn put_back(&mut self, index: usize) {
        if let Some(ring) = self.rings.get_mut(index) {
            ring.queue.go_to_previous_position();
        }
    }

    /// Gives a chain back to the guest, with how many bytes were written into it.
    ///
    /// # Errors
    /// The ring makes no sense.
    pub(crate) fn push_used(
        &mut self,
        index: usize,
        head: u16,
        written: u32,
    ) -> Result<(), DeviceFault> {
        self.push_used_together(index, &[UsedChain { head, written }])
    }

    /// Gives chains back that belong together: the guest sees all of them at once. (A driver that
    /// polls would otherwise find a packet's first part, miss the rest, and drop it.)
    ///
    /// # Errors
    /// The ring makes no sense.
    pub(crate) fn push_used_together(
        &mut self,
        index: usize,
        chains: &[UsedChain],
    ) -> Result<(), DeviceFault> {
        let Some(ring) = self.rings.get_mut(index) else {
            return Ok(());
        };
        ring.push(&self.memory, chains)
            .map_err(|error| DeviceFault::Queue {
                queue: index,
                fault: QueueFault::Ring(error),
            })
    }

    /// Interrupts the guest for what was given back, where the guest wants that.
    pub(crate) fn interrupt(&mut self, msix: &mut Msix) -> Result<(), DeviceFault> {
        for (index, ring) in self.rings.iter_mut().enumerate() {
            let added = std::mem::take(&mut ring.used);
            if added == 0 {
                continue;
            }
            let wanted =
                ring.wants_interrupt(&self.memory, added)
                    .map_err(|error| DeviceFault::Queue {
                        queue: index,
                        fault: QueueFault::Ring(error),
                    })?;
            if wanted {
                msix.trigger(ring.vector);
            }
        }
        Ok(())
    }

    pub(crate) fn reset(&mut self) {
        for ring in &mut self.rings {
            ring.queue.reset();
            ring.vector = NO_VECTOR;
            ring.used = 0;
        }
    }

    /// The driver negotiated whether it wants interrupts by index.
    pub(crate) fn set_event_idx(&mut self, enabled: bool) {
        for ring in &mut self.rings {
            ring.queue.set_event_idx(enabled);
        }
    }

    /// The driver's view of a queue, for the transport's registers.
    pub(crate) fn registers(&self, index: usize) -> Option<(&Queue, u16)> {
        self.rings.get(index).map(|ring| (&ring.queue, ring.vector))
    }

    /// Changes a queue that the driver has not enabled yet.
    pub(crate) fn configure(&mut self, index: usize, change: impl FnOnce(&mut Queue)) {
        if let Some(ring) = self.rings.get_mut(index)
            && !ring.queue.ready()
        {
            change(&mut ring.queue);
        }
    }

    pub(crate) fn set_vector(&mut self, index: usize, vector: u16) {
        if let Some(ring) = self.rings.get_mut(index) {
            ring.vector = vector;
        }
    }

    /// The driver enables a queue.
    ///
    /// # Errors
    /// It is not in guest memory; the queue stays disabled.
    pub(crate) fn enable(&mut self, index: usize) -> Result<(), DeviceFault> {
        let Some(ring) = self.rings.get_mut(index) else {
            return Ok(());
        };
        ring.queue.set_ready(true);
        if ring.queue.is_valid(&*self.memory) {
            return Ok(());
        }
        ring.queue.set_ready(false);
        Err(DeviceFault::Queue {
            queue: index,
            fault: QueueFault::Placement,
        })
    }

    pub(crate) fn save(&self) -> Vec<RingState> {
        self.rings
            .iter()
            .map(|ring| {
                let state = ring.queue.state();
                RingState {
                    size: state.size,
                    next_avail: state.next_avail,
                    next_used: state.next_used,
                    event_idx: state.event_idx_enabled,
                    ready: state.ready,
                    descriptors: state.desc_table,
                    available: state.avail_ring,
                    used: state.used_ring,
                    vector: ring.vector,
                }
            })
            .collect()
    }

    /// Loads the queues; a state with another number of queues, or an impossible one, is refused
    /// and changes nothing.
    pub(crate) fn restore(&mut self, states: &[RingState]) -> Result<(), &'static str> {
        if states.len() != self.rings.len() {
            return Err("another number of queues");
        }
        let mut rings = Vec::with_capacity(states.len());
        for (ring, state) in self.rings.iter().zip(states) {
            let queue = Queue::try_from(QueueState {
                max_size: ring.queue.max_size(),
                next_avail: state.next_avail,
                next_used: state.next_used,
                event_idx_enabled: state.event_idx,
                size: state.size,
                ready: state.ready,
                desc_table: state.descriptors,
                avail_ring: state.available,
                used_ring: state.used,
            })
            .map_err(|_| "an impossible queue")?;
            if queue.ready() && !queue.is_valid(&*self.memory) {
                return Err("a queue outside guest memory");
            }
            rings.push(Ring {
                queue,
                vector: state.vector,
                used: 0,
            });
        }
        self.rings = rings;
        Ok(())
    }
}
