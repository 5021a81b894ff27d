// SPDX-License-Identifier: Apache-2.0
//! A disk that both hosts see: a change goes there only when the epoch in which the guest asked for
//! it is committed, or under a solo licence.
//!
//! A change that waits is not told to be done, so it is in flight, and every checkpoint names it
//! (the block device's state): the passive replica makes it again from guest memory. So it need not
//! go over the link, and nothing of it has to be shown to reads: between requests in flight the
//! guest can expect no order. What is told to be done *is* on the disk.
//!
//! The disk is a block device without this host's page cache: what was written is there for the
//! other host, whatever becomes of this one.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use kemari_api::Epoch;
use kemari_vmm::backend::{DiskBackend, DiskCompletion, DiskGeometry, DiskRequest};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::outputs::Outputs;

/// A change that waits.
#[derive(Debug)]
struct Held {
    epoch: Epoch,
    tag: u32,
    request: DiskRequest,
}

/// The back end of one machine's device. The device bounds what waits.
pub struct HeldDisk {
    disk: Box<dyn DiskBackend>,
    outputs: Arc<Outputs>,
    /// Oldest first; epochs never decrease.
    held: VecDeque<Held>,
    /// Changes that were given up.
    done: Vec<DiskCompletion>,
    wake: Arc<EventFd>,
    /// The disk's own descriptor and `wake`.
    readable: Epoll,
}

impl std::fmt::Debug for HeldDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HeldDisk")
            .field("held", &self.held)
            .finish_non_exhaustive()
    }
}

impl HeldDisk {
    /// A back end whose changes wait for these outputs' licence.
    ///
    /// # Errors
    /// The process has no more file descriptors.
    pub fn new(disk: Box<dyn DiskBackend>, outputs: Arc<Outputs>) -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let wake = Arc::new(EventFd::from_flags(flags)?);
        let readable = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        readable.add(disk.readable(), EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
        readable.add(wake.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, 1))?;
        Ok(Self {
            disk,
            outputs,
            held: VecDeque::new(),
            done: Vec::new(),
            wake,
            readable,
        })
    }

    /// Lets go what may leave; asks to be woken for the rest.
    fn let_go(&mut self) {
        while let Some(first) = self.held.front()
            && self.outputs.may_change_shared_disk(first.epoch, &self.wake)
            && let Some(Held { tag, request, .. }) = self.held.pop_front()
        {
            self.disk.submit(tag, request);
        }
    }
}

impl DiskBackend for HeldDisk {
    fn geometry(&self) -> DiskGeometry {
        self.disk.geometry()
    }

    fn submit(&mut self, tag: u32, request: DiskRequest) {
        if !request.changes() {
            return self.disk.submit(tag, request);
        }
        match self.outputs.change_of_shared_disk() {
            None => {
                self.let_go();
                self.disk.submit(tag, request);
            }
            Some(epoch) => {
                self.held.push_back(Held {
                    epoch,
                    tag,
                    request,
                });
                self.let_go();
            }
        }
    }

    fn completed(&mut self, into: &mut Vec<DiskCompletion>) {
        // Nothing there is fine.
        let _ = self.wake.read();
        self.let_go();
        self.disk.completed(into);
        into.append(&mut self.done);
    }

    fn readable(&self) -> BorrowedFd<'_> {
        self.readable.0.as_fd()
    }

    /// What may not leave is given up: whoever drains before its commit is not interested in it any
    /// more, because the guest is reset or will never run again here.
    fn drain(&mut self) -> io::Result<()> {
        self.let_go();
        self.disk.drain()?;
        self.done.extend(self.held.drain(..).map(given_up));
        if !self.done.is_empty() {
            self.wake.write(1)?;
        }
        Ok(())
    }
}

fn given_up(held: Held) -> DiskCompletion {
    DiskCompletion {
        tag: held.tag,
        result: Err(io::Error::other(
            "given up before its checkpoint was committed",
        )),
        buffer: held.request.into_buffer(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use kemari_api::Generation;
    use kemari_replication::event_tap::Carry;
    use kemari_replication::licence::LicenceEvent;
    use kemari_vmm::backend::{MemoryDisk, MemoryDiskControl};

    use super::*;

    struct Bench {
        disk: HeldDisk,
        control: MemoryDiskControl,
        outputs: Arc<Outputs>,
        inputs: mpsc::Receiver<crate::conductor::Input>,
    }

    impl Bench {
        /// Under a solo licence.
        fn new() -> Self {
            let (sender, inputs) = mpsc::channel();
            let outputs = Outputs::new(1 << 20, Vec::new(), sender);
            let (disk, control) = MemoryDisk::new(vec![0; 4096]).unwrap();
            let bench = Self {
                disk: HeldDisk::new(Box::new(disk), Arc::clone(&outputs)).unwrap(),
                control,
                outputs,
                inputs,
            };
            bench.tell(LicenceEvent::SoloGranted {
                generation: Generation::new(1),
            });
            bench
        }

        fn paired() -> Self {
            let bench = Self::new();
            bench.tell(LicenceEvent::Hold);
            bench.tell(LicenceEvent::PairedRecorded);
            bench.cut();
            bench.tell(LicenceEvent::CommitSent);
            bench.commit(1);
            bench
        }

        fn tell(&self, event: LicenceEvent) {
            self.outputs.with_gate(|gate| gate.handle(event)).unwrap();
        }

        fn cut(&self) {
            self.outputs
                .with_gate(|gate| gate.close_epoch(Carry::Epoch));
        }

        fn commit(&self, epoch: u64) {
            let committed = |gate: &mut kemari_replication::gate::OutputGate| {
                gate.committed(Epoch::new(epoch)).map(drop)
            };
            self.outputs.with_gate(committed).unwrap();
        }

        fn write(&mut self, tag: u32, sector: u64, fill: u8) {
            let request = DiskRequest::Write {
                offset: sector * 512,
                buffer: vec![fill; 512],
            };
            self.disk.submit(tag, request);
        }

        /// Tags that completed, and whether well.
        fn done(&mut self) -> Vec<(u32, bool)> {
            let mut done = Vec::new();
            self.disk.completed(&mut done);
            done.iter().map(|c| (c.tag, c.result.is_ok())).collect()
        }

        fn first_bytes(&self) -> Vec<u8> {
            self.control
                .content()
                .iter()
                .step_by(512)
                .copied()
                .collect()
        }

        fn is_readable(&self) -> bool {
            let mut events = [EpollEvent::empty()];
            let timeout = nix::sys::epoll::EpollTimeout::ZERO;
            self.disk.readable.wait(&mut events, timeout).unwrap() > 0
        }
    }

    #[test]
    fn a_change_reaches_the_disk_when_its_epoch_is_committed_and_not_before() {
        let mut bench = Bench::paired();
        bench.write(1, 0, 1);
        assert!(matches!(
            bench.inputs.try_recv(),
            Ok(crate::conductor::Input::OutputQueued)
        ));
        bench.cut();
        bench.write(2, 1, 2);
        bench.disk.submit(3, DiskRequest::Flush);
        assert_eq!(bench.done(), [(3, true)]);
        assert_eq!(bench.first_bytes()[..2], [0, 0]);
        bench.cut();
        assert!(!bench.is_readable());
        bench.commit(2);
        assert!(bench.is_readable());
        assert_eq!(bench.done(), [(1, true)]);
        assert_eq!(bench.first_bytes()[..2], [1, 0]);
        bench.commit(3);
        assert!(bench.is_readable());
        assert_eq!(bench.done(), [(2, true)]);
        assert_eq!(bench.first_bytes()[..2], [1, 2]);
    }

    #[test]
    fn nothing_reaches_the_disk_of_a_replica_that_is_cut_off_until_it_is_solo() {
        let mut bench = Bench::paired();
        bench.write(1, 0, 1);
        bench.cut();
        bench.tell(LicenceEvent::SessionLost);
        assert_eq!(bench.done(), []);
        bench.write(2, 0, 2);
        assert_eq!(bench.first_bytes()[0], 0);
        bench.tell(LicenceEvent::SoloGranted {
            generation: Generation::new(2),
        });
        bench.write(3, 0, 3);
        // In the order they were made.
        assert_eq!(bench.done(), [(1, true), (2, true), (3, true)]);
        assert_eq!(bench.first_bytes()[0], 3);
    }

    #[test]
    fn a_drain_gives_up_what_may_not_leave() {
        let mut bench = Bench::paired();
        bench.write(1, 0, 1);
        bench.cut();
        bench.write(2, 1, 2);
        bench.commit(2);
        bench.disk.drain().unwrap();
        assert!(bench.is_readable());
        assert_eq!(bench.done(), [(1, true), (2, false)]);
        assert_eq!(bench.first_bytes()[..2], [1, 0]);
    }

    #[test]
    fn alone_changes_do_not_wait() {
        let mut bench = Bench::new();
        bench.write(1, 0, 1);
        assert_eq!(bench.done(), [(1, true)]);
        assert!(bench.inputs.try_recv().is_err());
    }
}
