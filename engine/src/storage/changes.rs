// SPDX-License-Identifier: Apache-2.0
//! The record of where this node's disks may differ from the other replica's: kept on disk before the
//! guest changes anything there ([`WriteIntents`] says when, this does it).
//!
//! A thread of its own writes it, so that a device's thread never waits for a file: a request whose
//! place is not recorded yet waits in its disk's back end until the record is on disk.

use std::fmt::Display;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use kemari_api::Generation;
use kemari_replication::storage::{
    BaseId, ChangeEnd, ChangeRecord, DiskLayout, DiskNumber, DisksIdentity, Regions, WriteIntents,
};
use kemari_replication::wire::{DiskChanges, NoChanges};
use kemari_vmm::backend::DiskContent;
use xxhash_rust::xxh3::xxh3_64;

use super::log::DiskLog;
use crate::record::{ChangeRecordFile, FoundChanges, RecordError};
use crate::sandbox;

/// Until a record that could not be written is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Whether what is found on disk may count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// The replica goes on where it was.
    Full,
    /// A person started it from what is on this node's disks.
    StartedByHand,
}

/// What another record on this node says of its disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wholeness {
    /// They were not being overwritten when the engine ended.
    Whole,
    /// They were.
    Incomplete,
}

/// Which connection of an active replica an order came with; that of another one is void.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    session: u64,
    base: BaseId,
    generation: Generation,
}

#[derive(Debug)]
struct State {
    intents: WriteIntents,
    file: Option<Arc<ChangeRecordFile>>,
    /// The thread is writing.
    is_writing: bool,
    /// The record can neither be written nor removed.
    is_failing: bool,
    wholeness: Wholeness,
    /// Why there is none.
    why_none: String,
    session: u64,
    /// What the active side waits to hear.
    to_confirm: Option<BaseId>,
}

/// The record of one VM.
#[derive(Debug)]
pub struct Changes {
    state: Mutex<State>,
    /// Something is to be written, or was.
    news: Condvar,
    log: Arc<DiskLog>,
    layouts: Vec<DiskLayout>,
    identity: DisksIdentity,
}

impl Changes {
    pub(super) fn new(
        contents: &[Option<DiskContent>],
        layouts: &[DiskLayout],
        log: Arc<DiskLog>,
    ) -> io::Result<Self> {
        let identity = identity(contents)?;
        Ok(Self {
            state: Mutex::new(State {
                intents: WriteIntents::new(layouts, identity),
                file: None,
                is_writing: false,
                is_failing: false,
                wholeness: Wholeness::Whole,
                why_none: "this node has no record of changes".into(),
                session: 0,
                to_confirm: None,
            }),
            news: Condvar::new(),
            log,
            layouts: layouts.to_vec(),
            identity,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the thread that writes the record to this file.
    pub(super) fn start_thread(self: &Arc<Self>, file: ChangeRecordFile) -> io::Result<()> {
        self.lock().file = Some(Arc::new(file));
        let changes = Arc::clone(self);
        thread::Builder::new()
            .name("changes".into())
            .spawn(move || changes.write_on_and_on())
            .map(drop)
    }

    /// Goes on from what was found on disk, if it can be trusted. `newest` is the newest generation
    /// that this node's other records name.
    ///
    /// # Errors
    /// What cannot be trusted cannot be removed.
    pub fn remember(
        &self,
        found: FoundChanges,
        newest: Generation,
        wholeness: Wholeness,
        trust: Trust,
    ) -> Result<(), RecordError> {
        self.lock().wholeness = wholeness;
        let why = match found {
            FoundChanges::None => return Ok(()),
            _ if trust == Trust::StartedByHand => {
                "the guest was started by hand on this node".to_owned()
            }
            FoundChanges::Unusable(why) => format!("this node's record of changes: {why}"),
            FoundChanges::Record(record) => match self.trouble_with(&record, newest, wholeness) {
                None => {
                    tracing::debug!(base = %record.base, regions = record.regions.len(), "found a record of changes");
                    self.lock().intents.resume(record);
                    return Ok(());
                }
                Some(why) => why.to_owned(),
            },
        };
        tracing::warn!("all of the disks will be compared with the other replica's: {why}");
        self.forget(&why)
    }

    fn trouble_with(
        &self,
        record: &ChangeRecord,
        newest: Generation,
        wholeness: Wholeness,
    ) -> Option<&'static str> {
        if !record.regions.is_of(&self.layouts) {
            Some("this node's disks have other sizes than its record of changes says")
        } else if record.disks != self.identity {
            Some("other files are in the place of the disks of this node's record of changes")
        } else if wholeness == Wholeness::Incomplete {
            Some("this node's disks were being overwritten")
        } else if record.generation < newest {
            Some("this node's record of changes is older than its other records")
        } else {
            None
        }
    }

    /// The disks may differ everywhere from now on. On return the record is gone from the disk.
    ///
    /// # Errors
    /// It may still be there.
    pub fn forget(&self, why: &str) -> Result<(), RecordError> {
        let mut state = self.lock();
        while state.is_writing {
            state = self.wait(state);
        }
        if let Some(file) = &state.file {
            file.remove()?;
        }
        if state.intents.base().is_some() {
            tracing::info!("the record of changes of disks is void: {why}");
        }
        why.clone_into(&mut state.why_none);
        state.intents.forgotten();
        state.to_confirm = None;
        drop(state);
        self.told();
        Ok(())
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.news
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The record has changed, on disk too.
    fn told(&self) {
        self.news.notify_all();
        self.log.tell_room();
    }

    fn write_on_and_on(&self) {
        sandbox::enter(sandbox::Kind::Changes);
        loop {
            let mut state = self.lock();
            let (record, file) = loop {
                let file = state.file.clone();
                if let Some(file) = file
                    && let Some(record) = state.intents.to_write()
                {
                    break (record, file);
                }
                state = self.wait(state);
            };
            state.is_writing = true;
            drop(state);
            let written = file.write(&record);
            // Without a record the guest need not wait, and the next comparison is of everything.
            let removed = written.as_ref().err().map(|_| file.remove());
            let mut state = self.lock();
            state.is_writing = false;
            match (written, removed) {
                (Ok(()), _) => {
                    state.intents.written(record);
                    state.is_failing = false;
                }
                (Err(error), Some(Ok(()))) => {
                    tracing::error!(
                        "{error}. When the other replica comes back, all of the disks will be compared"
                    );
                    state.why_none = error.to_string();
                    state.intents.forgotten();
                    state.to_confirm = None;
                    state.is_failing = false;
                }
                (Err(error), _) => {
                    state.intents.write_failed();
                    if !std::mem::replace(&mut state.is_failing, true) {
                        tracing::error!(
                            "{error}. The guest waits where it writes to a part of its disks that is not recorded yet"
                        );
                    }
                }
            }
            let failing = state.is_failing;
            drop(state);
            self.told();
            if failing {
                thread::sleep(RETRY);
            }
        }
    }
}

/// For the back ends of disks.
impl Changes {
    /// Whether a change of these bytes may go to the disk now. If not, it is recorded soon, and the
    /// log's room is told.
    pub(super) fn may_start(&self, disk: DiskNumber, offset: u64, length: u64) -> bool {
        let mut state = self.lock();
        if state.intents.may_start(disk, offset, length) {
            return true;
        }
        state.intents.want(disk, offset, length);
        drop(state);
        self.news.notify_all();
        false
    }

    /// Waits until a change of these bytes may go to the disk.
    pub(super) fn wait_to_start(
        &self,
        disk: DiskNumber,
        offset: u64,
        length: u64,
    ) -> io::Result<()> {
        let mut state = self.lock();
        while !state.intents.may_start(disk, offset, length) {
            if state.is_failing {
                return Err(io::Error::other("the record of changes cannot be written"));
            }
            state.intents.want(disk, offset, length);
            self.news.notify_all();
            state = self.wait(state);
        }
        Ok(())
    }

    pub(super) fn starts(&self, disk: DiskNumber, offset: u64, length: u64) {
        self.change(|intents| intents.starts(disk, offset, length));
    }

    pub(super) fn ended(&self, disk: DiskNumber, offset: u64, length: u64, end: ChangeEnd) {
        self.change(|intents| intents.ended(disk, offset, length, end));
    }

    /// A disk could not be made durable.
    pub(super) fn sync_failed(&self) {
        self.change(WriteIntents::sync_failed);
    }

    fn change<T>(&self, what: impl FnOnce(&mut WriteIntents) -> T) -> T {
        let mut state = self.lock();
        let result = what(&mut state.intents);
        let stale = state.intents.is_stale();
        drop(state);
        if stale {
            self.news.notify_all();
        }
        result
    }
}

/// For the active side.
impl Changes {
    /// This node's licence names this generation.
    pub fn knows(&self, generation: Generation) {
        self.change(|intents| intents.knows(generation));
    }

    /// Since when is recorded what may differ, or why nothing is.
    pub fn base(&self) -> Result<BaseId, String> {
        let state = self.lock();
        state.intents.base().ok_or_else(|| state.why_none.clone())
    }

    /// Where this node's disks may differ from the base.
    pub fn named(&self) -> Regions {
        self.lock().intents.named().clone()
    }

    /// These bytes differ.
    pub fn spoilt(&self, disk: DiskNumber, offset: u64, length: u64) {
        self.change(|intents| intents.spoil(disk, offset, length));
    }

    /// The disks of both replicas are equal, and nothing is in flight.
    pub fn pair_begins(&self) {
        self.change(WriteIntents::pair_begins);
    }

    /// The pair has no base yet.
    pub fn needs_base(&self) -> bool {
        self.lock().intents.needs_base()
    }

    /// A round would let regions go.
    pub fn can_let_go(&self) -> bool {
        self.lock().intents.can_let_go()
    }

    /// Begins a round at a cut, while the guest stands still.
    ///
    /// # Errors
    /// The host gives no random numbers.
    pub fn begin_round(&self) -> io::Result<()> {
        let mut new = [0; 16];
        getrandom::fill(&mut new).map_err(io::Error::other)?;
        self.change(|intents| intents.begin_round(BaseId(new)));
        Ok(())
    }

    /// The base of the round under way.
    pub fn round(&self) -> Option<BaseId> {
        self.lock().intents.round()
    }

    /// Its session is over.
    pub fn abort_round(&self) {
        self.change(WriteIntents::abort_round);
    }

    /// The other side's disks are durable, and it has recorded this base. How many regions went; `None`
    /// if it was not asked.
    pub fn end_round(&self, base: BaseId) -> Option<u64> {
        self.change(|intents| intents.end_round(base))
    }

    /// Neither can the record be written nor removed.
    pub fn is_failing(&self) -> bool {
        self.lock().is_failing
    }
}

/// For the passive side.
impl Changes {
    /// An active replica is served from now on, or none; orders of another one are void.
    pub fn new_session(&self) {
        let mut state = self.lock();
        state.session += 1;
        state.to_confirm = None;
    }

    /// What the other record says of the disks from now on.
    pub(super) fn disks_are(&self, wholeness: Wholeness) {
        self.lock().wholeness = wholeness;
    }

    /// Where the disks may differ from this base.
    pub(super) fn since(&self, base: BaseId) -> DiskChanges {
        let state = self.lock();
        match state.intents.base() {
            _ if state.wholeness == Wholeness::Incomplete => {
                DiskChanges::Unknown(NoChanges::Incomplete)
            }
            None => DiskChanges::Unknown(NoChanges::NoRecord),
            Some(ours) if ours != base => DiskChanges::Unknown(NoChanges::OtherBase),
            Some(_) => DiskChanges::since(state.intents.named().clone()),
        }
    }

    /// An order to make the disks durable and record a base.
    pub(super) fn order(&self, base: BaseId, generation: Generation) -> Order {
        Order {
            session: self.lock().session,
            base,
            generation,
        }
    }

    /// The disks are durable.
    pub(super) fn durable(&self, order: Order) {
        let mut state = self.lock();
        if state.session != order.session {
            return;
        }
        if state.intents.adopt(order.base, order.generation) {
            state.to_confirm = Some(order.base);
        }
        drop(state);
        self.news.notify_all();
    }

    /// The base that is recorded by now, once.
    pub(super) fn confirmed(&self) -> Option<BaseId> {
        let mut state = self.lock();
        let recorded = !state.is_writing && !state.intents.is_stale();
        state.to_confirm.take_if(|_| recorded)
    }
}

/// What the disks are known by.
fn identity(contents: &[Option<DiskContent>]) -> io::Result<DisksIdentity> {
    let mut text = String::new();
    for content in contents.iter().flatten() {
        let file = content.file_identity()?;
        text += &format!("{} {file:?}\n", content.capacity_bytes());
    }
    Ok(DisksIdentity(xxh3_64(text.as_bytes())))
}

/// Why a peer's record does not help.
pub fn told_by_peer(why: NoChanges) -> impl Display {
    match why {
        NoChanges::NoRecord => "the other replica has no record of changes",
        NoChanges::OtherBase => "the other replica's record of changes is of another base",
        NoChanges::Incomplete => "the other replica's disks were being overwritten",
        NoChanges::TooMany => "the other replica's record of changes is too long",
    }
}

#[cfg(test)]
mod tests {
    use kemari_replication::storage::REGION_BYTES;

    use super::*;
    use crate::record::LicenceFile;

    const DISK: DiskNumber = DiskNumber::new(0).unwrap();
    const BASE: BaseId = BaseId([7; 16]);
    const LAYOUTS: [DiskLayout; 1] = [DiskLayout::Replicated {
        capacity_bytes: 100 * REGION_BYTES,
    }];

    fn file(directory: &tempfile::TempDir) -> ChangeRecordFile {
        let licence = LicenceFile::in_state_dir(directory.path(), &"vm".parse().unwrap());
        ChangeRecordFile::beside(&licence.open(None).unwrap()).unwrap()
    }

    fn changes(directory: &tempfile::TempDir) -> Arc<Changes> {
        let log = Arc::new(DiskLog::new(&LAYOUTS).unwrap());
        let changes = Arc::new(Changes::new(&[], &LAYOUTS, log).unwrap());
        changes.start_thread(file(directory)).unwrap();
        changes
    }

    fn adopted(changes: &Changes) {
        changes.new_session();
        changes.durable(changes.order(BASE, Generation::new(3)));
        while changes.confirmed().is_none() {
            thread::yield_now();
        }
    }

    fn found(directory: &tempfile::TempDir) -> ChangeRecord {
        match file(directory).read().unwrap() {
            FoundChanges::Record(record) => record,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_region_is_on_disk_before_a_change_of_it_may_start() {
        let directory = tempfile::tempdir().unwrap();
        let changes = changes(&directory);
        assert!(changes.may_start(DISK, 0, 512), "there is no base");
        adopted(&changes);
        assert!(found(&directory).regions.is_empty());
        assert!(!changes.may_start(DISK, 0, 512));
        changes.wait_to_start(DISK, 0, 512).unwrap();
        assert!(found(&directory).regions.contains(DISK, 0, 512));
        let again = self::changes(&directory);
        let remember = |newest, trust| {
            let record = FoundChanges::Record(found(&directory));
            let newest = Generation::new(newest);
            again
                .remember(record, newest, Wholeness::Whole, trust)
                .unwrap();
            again.since(BASE)
        };
        assert!(matches!(remember(3, Trust::Full), DiskChanges::Since(_)));
        let other = again.since(BaseId([8; 16]));
        assert_eq!(other, DiskChanges::Unknown(NoChanges::OtherBase));
        // An engine that kept no record has run.
        let unknown = DiskChanges::Unknown(NoChanges::NoRecord);
        assert_eq!(remember(4, Trust::Full), unknown);
        assert_eq!(file(&directory).read().unwrap(), FoundChanges::None);
        assert!(again.base().unwrap_err().contains("older"));
    }

    #[test]
    fn an_order_of_a_session_that_is_over_is_void() {
        let directory = tempfile::tempdir().unwrap();
        let changes = changes(&directory);
        let order = changes.order(BASE, Generation::new(3));
        changes.new_session();
        changes.durable(order);
        assert_eq!(changes.confirmed(), None);
        assert!(changes.base().is_err());
        // Nor is one believed after a sync that failed.
        changes.sync_failed();
        changes.durable(changes.order(BASE, Generation::new(3)));
        assert_eq!(changes.confirmed(), None);
    }

    #[test]
    fn a_guest_does_not_wait_for_a_record_that_can_only_be_removed() {
        let directory = tempfile::tempdir().unwrap();
        let changes = changes(&directory);
        adopted(&changes);
        std::fs::remove_dir_all(directory.path().join("replicas")).unwrap();
        changes.wait_to_start(DISK, 0, 512).unwrap();
        assert!(changes.base().unwrap_err().contains("Cannot write"));
        assert!(!changes.is_failing());
    }
}
