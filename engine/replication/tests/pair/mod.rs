// SPDX-License-Identifier: Apache-2.0
//! A pair of replicas in memory: a small guest, both sessions and the bytes between them.
//!
//! The guest is an array of pages, a little machine state and a console. Nothing here knows
//! sockets or time; the tests decide which bytes arrive.
#![allow(dead_code)] // Each test file uses a part of it.

use std::collections::BTreeMap;

use kemari_replication::active::{
    ActiveConfig, ActiveEvent, ActiveSession, Base, BeginTransaction,
};
use kemari_replication::event_tap::{Carry, ClosedEpoch};
use kemari_replication::passive::{
    Checkpoint, PassiveAction, PassiveConfig, PassiveSession, Replica,
};
use kemari_replication::protocol::ProtocolError;
use kemari_replication::storage::{
    BLOCK_BYTES, BaseId, Change, DiskChange, DiskLayout, Regions, block_digest,
};
use kemari_replication::wire::{
    Differing, DiskChanges, FrameDecoder, NoChanges, Probe, VmIdentity,
};
use kemari_replication::{Epoch, Generation, GuestPages, PAGE_BYTES, PageIndex, RamLayout};

/// Pages of the little guest.
pub const PAGES: u64 = 8;
/// Size of the little guest's only disk: two blocks and a rest.
pub const DISK_BYTES: u64 = 2 * BLOCK_BYTES + 1024;
/// Generation of most tests.
pub const G: Generation = Generation::new(3);

/// The VM of all tests.
pub fn identity() -> VmIdentity {
    VmIdentity {
        vm: "vm".parse().expect("a valid name"),
        fingerprint: vec![1, 2, 3],
    }
}

/// Two stretches of RAM with a hole between them.
pub fn layout() -> RamLayout {
    RamLayout::new(vec![0..5, 16..19]).expect("ascending ranges")
}

/// The page numbers of [`layout`].
pub fn indices() -> impl Iterator<Item = PageIndex> {
    (0..5).chain(16..19).map(PageIndex)
}

/// Applies changes to a disk in memory.
pub fn apply<'a>(disk: &mut [u8], changes: impl Iterator<Item = DiskChange<&'a [u8]>>) {
    for change in changes {
        let start = usize::try_from(change.offset).expect("checked by the session");
        let length = usize::try_from(change.length()).expect("checked by the session");
        let range = disk
            .get_mut(start..start + length)
            .expect("checked by the session");
        match change.change {
            Change::Write(data) => range.copy_from_slice(data),
            Change::Zeroes { .. } | Change::Discard { .. } => range.fill(0),
            Change::Flush => (),
        }
    }
}

/// Answers a probe.
pub fn compare(disk: &[u8], probe: &Probe) -> Differing {
    let start = usize::try_from(probe.offset).expect("checked by the session");
    let block = usize::try_from(BLOCK_BYTES).expect("it is small");
    let ours = disk[start..].chunks(block).map(block_digest);
    let differing = ours.zip(&probe.digests).enumerate();
    let blocks = differing
        .filter(|(_, (ours, theirs))| ours != *theirs)
        .fold(0, |blocks, (place, _)| blocks | 1 << place);
    Differing {
        disk: probe.disk,
        offset: probe.offset,
        blocks,
    }
}

/// RAM and machine state of one replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    /// RAM.
    pub ram: BTreeMap<PageIndex, Box<[u8; PAGE_BYTES]>>,
    /// Everything that is not RAM.
    pub state: Vec<u8>,
}

impl Guest {
    /// All zero.
    pub fn new() -> Self {
        let ram = indices()
            .map(|index| (index, Box::new([0; PAGE_BYTES])))
            .collect();
        Self {
            ram,
            state: Vec::new(),
        }
    }

    /// Writes a byte pattern over a page.
    pub fn write(&mut self, index: PageIndex, value: u8) {
        self.ram.get_mut(&index).expect("a page of RAM").fill(value);
    }

    /// What a passive process does with a checkpoint it accepted.
    pub fn merge(&mut self, checkpoint: &Checkpoint) {
        for (index, content) in checkpoint.pages.iter() {
            **self.ram.get_mut(&index).expect("a page of RAM") = *content.bytes();
        }
        self.state.clone_from(&checkpoint.state);
    }
}

impl GuestPages for Guest {
    fn read(&self, index: PageIndex, page: &mut [u8; PAGE_BYTES]) -> bool {
        self.ram
            .get(&index)
            .map(|bytes| page.copy_from_slice(&**bytes))
            .is_some()
    }
}

/// An active session that has said Hello.
pub fn active(sent: u64, acked: u64) -> ActiveSession {
    active_of(G, sent, acked)
}

fn active_of(generation: Generation, sent: u64, acked: u64) -> ActiveSession {
    ActiveSession::new(ActiveConfig {
        purpose: kemari_replication::wire::Purpose::Replication,
        identity: identity(),
        node: "a".parse().expect("a valid name"),
        generation,
        sent: Epoch::new(sent),
        acked: Epoch::new(acked),
    })
}

/// A passive session.
pub fn passive(replica: Replica) -> PassiveSession {
    let config = PassiveConfig {
        identity: identity(),
        node: "b".parse().expect("a valid name"),
        disks: vec![DiskLayout::Replicated {
            capacity_bytes: DISK_BYTES,
        }],
        ram: layout(),
        difference: |_, _| Some("the fingerprint differs".to_owned()),
    };
    PassiveSession::new(config, replica)
}

/// The passive side's process: session, guest memory and what it sends.
#[derive(Debug)]
pub struct PassiveSide {
    /// The session.
    pub session: PassiveSession,
    /// Shadow RAM and state.
    pub guest: Guest,
    /// Its disk.
    pub disk: Vec<u8>,
    /// The base it has recorded, and where its disk may differ from it.
    pub base: Option<BaseId>,
    /// See `base`.
    pub changes: Regions,
    /// Bytes towards the active side.
    pub out: Vec<u8>,
    /// Epochs accepted in this session.
    pub accepted: Vec<Epoch>,
    decoder: FrameDecoder,
}

impl PassiveSide {
    /// A process whose connection was just accepted.
    pub fn new(replica: Replica, guest: Guest) -> Self {
        Self {
            session: passive(replica),
            guest,
            disk: vec![0; usize::try_from(DISK_BYTES).expect("a small disk")],
            base: None,
            changes: Regions::none(&[DiskLayout::Replicated {
                capacity_bytes: DISK_BYTES,
            }]),
            out: Vec::new(),
            accepted: Vec::new(),
            decoder: FrameDecoder::new(),
        }
    }

    /// Takes bytes, and answers as the process would.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<(), ProtocolError> {
        self.decoder.push(bytes);
        while let Some((header, payload)) = self.decoder.next_frame()? {
            match self.session.on_frame(&header, payload, &self.guest)? {
                PassiveAction::Answer(_) => self.session.welcome(&mut self.out),
                PassiveAction::Refuse(refusal) => self.session.refuse(&mut self.out, &refusal),
                PassiveAction::Copy(pages) => {
                    let ram = &mut self.guest.ram;
                    let copied = pages.apply(|index, content| {
                        **ram.get_mut(&index).ok_or(())? = *content.bytes();
                        Ok::<_, ()>(())
                    });
                    copied.expect("pages of RAM");
                }
                PassiveAction::CopyDisk(changes) => apply(&mut self.disk, changes),
                PassiveAction::Compare(probe) => {
                    let differing = compare(&self.disk, &probe);
                    self.session.compared(differing, &mut self.out);
                }
                PassiveAction::TellChanges(base) => {
                    let ours = if self.base == Some(base) {
                        DiskChanges::since(self.changes.clone())
                    } else {
                        DiskChanges::Unknown(NoChanges::OtherBase)
                    };
                    self.session.disk_changes(&ours, &mut self.out);
                }
                PassiveAction::MakeDurable(base) => {
                    self.base = Some(base);
                    self.session.disks_durable(base, &mut self.out);
                }
                PassiveAction::Complete(mut checkpoint) => {
                    self.session.accept(&mut checkpoint, &mut self.out);
                    self.accepted.push(checkpoint.epoch);
                    self.guest.merge(&checkpoint);
                    apply(&mut self.disk, checkpoint.changes.iter());
                    self.session.recycle(checkpoint);
                }
                PassiveAction::Continue | PassiveAction::Alive | PassiveAction::Goodbye(_) => (),
            }
        }
        Ok(())
    }
}

/// The active side's process: session and what it sends.
#[derive(Debug)]
pub struct ActiveSide {
    /// The session.
    pub session: ActiveSession,
    /// Bytes towards the passive side.
    pub out: Vec<u8>,
    decoder: FrameDecoder,
    base: Base,
}

impl ActiveSide {
    /// A process that has just connected; the Hello is in `out`.
    pub fn new(sent: u64, acked: u64) -> Self {
        Self::of_generation(G, sent, acked)
    }

    /// The same, with a licence of another generation.
    pub fn of_generation(generation: Generation, sent: u64, acked: u64) -> Self {
        let mut session = active_of(generation, sent, acked);
        let mut out = Vec::new();
        session.hello(&mut out);
        Self {
            session,
            out,
            decoder: FrameDecoder::new(),
            base: Base::Copy,
        }
    }

    /// Takes bytes from the passive side.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<Vec<ActiveEvent>, ProtocolError> {
        self.decoder.push(bytes);
        let mut events = Vec::new();
        while let Some((header, payload)) = self.decoder.next_frame()? {
            events.push(self.session.on_frame(&header, payload)?);
        }
        Ok(events)
    }

    /// Sends all of RAM outside of a transaction.
    pub fn copy(&mut self, guest: &Guest) {
        let mut pages = guest.ram.iter().map(|(index, page)| (*index, &**page));
        while self.session.sender().copy_pages(&mut self.out, &mut pages) > 0 {}
    }

    /// The first transaction builds on what the peer holds.
    pub const fn build_on(&mut self, held: Epoch) {
        self.base = Base::Epoch(held);
    }

    /// Sends a checkpoint with these pages.
    pub fn checkpoint(&mut self, closed: &ClosedEpoch, guest: &Guest, dirty: &[PageIndex]) {
        let sender = self.session.sender();
        let begin = BeginTransaction {
            epoch: closed.epoch,
            base: self.base,
            pages: dirty.len() as u64,
            delivered_up_to: closed.delivered_up_to,
            console_position: closed.console_position,
        };
        sender.begin(&mut self.out, begin);
        let mut pages = dirty.iter().map(|index| (*index, &*guest.ram[index]));
        while sender.pages(&mut self.out, &mut pages) > 0 {}
        sender.state(&mut self.out, &guest.state);
        sender.outputs(&mut self.out, &closed.outputs);
        self.base = Base::Epoch(sender.commit(&mut self.out));
    }

    /// What was sent since the last call.
    pub fn take_out(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.out)
    }
}

/// An epoch without outputs.
pub fn silent(epoch: u64) -> ClosedEpoch {
    ClosedEpoch {
        epoch: Epoch::new(epoch),
        outputs: Vec::new(),
        delivered_up_to: Epoch::new(0),
        console_position: 0,
    }
}

/// Both sides, greeted, with the guest copied but nothing committed.
pub fn greeted(guest: &Guest) -> (ActiveSide, PassiveSide) {
    let mut active = ActiveSide::new(0, 0);
    let mut passive = PassiveSide::new(Replica::new(G), Guest::new());
    passive.receive(&active.take_out()).expect("right frames");
    active
        .receive(&std::mem::take(&mut passive.out))
        .expect("right frames");
    active.copy(guest);
    passive.receive(&active.take_out()).expect("right frames");
    (active, passive)
}

/// What [`Carry`] the first and the later transactions of a session use.
pub const fn carry(first: bool) -> Carry {
    if first {
        Carry::Undelivered
    } else {
        Carry::Epoch
    }
}
