// SPDX-License-Identifier: Apache-2.0
//! Two nodes with a disk and a record of changes each. The guest writes, epochs are committed, disks
//! and records reach their medium when they like, processes and power go, roles change. Whenever the
//! two meet and their records name the same base, copying what these name makes the disks equal.
#![allow(
    clippy::unwrap_used,
    reason = "a test ends where something is not as it must be"
)]

use std::collections::VecDeque;

use kemari_replication::Generation;
use kemari_replication::storage::{
    BaseId, ChangeEnd, ChangeRecord, DiskLayout, DiskNumber, DisksIdentity, REGION_BYTES,
    WriteIntents,
};
use proptest::prelude::*;

const DISK: DiskNumber = DiskNumber::new(0).unwrap();
/// More than is recorded ahead for one that is written at random.
const REGIONS: usize = 12;
const LAYOUTS: [DiskLayout; 1] = [DiskLayout::Replicated {
    capacity_bytes: REGIONS as u64 * REGION_BYTES,
}];

/// A byte stands for each region.
type Content = [u8; REGIONS];

fn offset(region: usize) -> u64 {
    region as u64 * REGION_BYTES
}

struct Node {
    up: bool,
    /// What reads return, and what a power cut leaves.
    cached: Content,
    durable: Content,
    intents: WriteIntents,
    /// On disk, and being written.
    record: Option<ChangeRecord>,
    writing: Option<ChangeRecord>,
    /// Recorded: it was being overwritten.
    incomplete: bool,
    /// It could run from the last commit.
    in_sync: bool,
    /// Passive: a base to be recorded and then confirmed.
    to_confirm: Option<BaseId>,
}

impl Node {
    fn new(content: u8) -> Self {
        Self {
            up: true,
            cached: [content; REGIONS],
            durable: [content; REGIONS],
            intents: WriteIntents::new(&LAYOUTS, DisksIdentity(1)),
            record: None,
            writing: None,
            incomplete: false,
            in_sync: false,
            to_confirm: None,
        }
    }

    fn begin_record(&mut self) {
        if self.writing.is_none() {
            self.writing = self.intents.to_write();
        }
    }

    fn end_record(&mut self) {
        if let Some(record) = self.writing.take() {
            self.record = Some(record.clone());
            self.intents.written(record);
        }
    }

    fn forget(&mut self) {
        self.end_record();
        self.record = None;
        self.intents.forgotten();
    }

    fn end(&mut self, power: bool, record_arrives: bool) {
        self.up = false;
        self.in_sync = false;
        self.to_confirm = None;
        if let Some(record) = self.writing.take().filter(|_| record_arrives) {
            self.record = Some(record);
        }
        if power {
            self.cached = self.durable;
        }
    }

    fn start(&mut self) {
        self.up = true;
        self.intents = WriteIntents::new(&LAYOUTS, DisksIdentity(1));
        if self.incomplete {
            self.record = None;
        }
        if let Some(record) = self.record.clone() {
            self.intents.resume(record);
        }
    }
}

#[derive(Debug)]
enum ToPassive {
    Log(Vec<(usize, u8)>),
    Sync(BaseId),
}

struct World {
    nodes: [Node; 2],
    /// The node whose disk the guest is to run from; whether it does.
    owner: usize,
    runs: bool,
    in_flight: Vec<(usize, u8)>,
    /// In sync, with a log; and connected.
    paired: bool,
    connected: bool,
    log: Vec<(usize, u8)>,
    to_passive: VecDeque<ToPassive>,
    to_active: VecDeque<BaseId>,
    synced_here: bool,
    bases: u128,
    /// How often records fitted, and how many regions they spared.
    met: usize,
    spared: usize,
}

#[derive(Debug, Clone)]
enum Event {
    Write(usize, u8),
    /// The disk has it, but has not said so.
    Land,
    Complete,
    /// Reaches the medium by itself.
    WriteBack(usize, usize),
    RecordBegins(usize),
    RecordIsThere(usize),
    Cut,
    SyncHere,
    ToPassive,
    ToActive,
    LinkLost,
    LinkBack,
    Solo,
    End {
        node: usize,
        power: bool,
        record_arrives: bool,
        lands: bool,
    },
    Start(usize),
    TakeOver,
    ColdStart,
    Protect {
        copied: usize,
    },
}

fn event() -> impl Strategy<Value = Event> {
    let node = 0_usize..2;
    prop_oneof![
        8 => (0..REGIONS, any::<u8>()).prop_map(|(region, value)| Event::Write(region, value)),
        2 => Just(Event::Land),
        8 => Just(Event::Complete),
        3 => (node.clone(), 0..REGIONS).prop_map(|(node, region)| Event::WriteBack(node, region)),
        5 => node.clone().prop_map(Event::RecordBegins),
        5 => node.clone().prop_map(Event::RecordIsThere),
        6 => Just(Event::Cut),
        4 => Just(Event::SyncHere),
        8 => Just(Event::ToPassive),
        4 => Just(Event::ToActive),
        1 => Just(Event::LinkLost),
        2 => Just(Event::LinkBack),
        1 => Just(Event::Solo),
        2 => (node.clone(), any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
            |(node, power, record_arrives, lands)| Event::End { node, power, record_arrives, lands }
        ),
        4 => node.prop_map(Event::Start),
        3 => Just(Event::TakeOver),
        3 => Just(Event::ColdStart),
        5 => prop_oneof![3 => Just(usize::MAX), 1 => 0..REGIONS]
            .prop_map(|copied| Event::Protect { copied }),
    ]
}

impl World {
    fn new() -> Self {
        Self {
            nodes: [Node::new(1), Node::new(2)],
            owner: 0,
            runs: true,
            in_flight: Vec::new(),
            paired: false,
            connected: false,
            log: Vec::new(),
            to_passive: VecDeque::new(),
            to_active: VecDeque::new(),
            synced_here: false,
            bases: 0,
            met: 0,
            spared: 0,
        }
    }

    fn active(&mut self) -> &mut Node {
        &mut self.nodes[self.owner]
    }

    fn passive(&mut self) -> &mut Node {
        &mut self.nodes[1 - self.owner]
    }

    fn base(&mut self) -> BaseId {
        self.bases += 1;
        BaseId(self.bases.to_be_bytes())
    }

    fn write(&mut self, region: usize, value: u8) {
        let busy = self.in_flight.iter().any(|(other, _)| *other == region);
        if !self.runs || busy {
            return;
        }
        let at = offset(region);
        let intents = &mut self.active().intents;
        if !intents.may_start(DISK, at, 512) {
            // It waits; the guest may try it again.
            return intents.want(DISK, at, 512);
        }
        intents.starts(DISK, at, 512);
        self.in_flight.push((region, value));
        if self.paired {
            self.log.push((region, value));
        }
    }

    fn complete(&mut self) {
        if self.in_flight.is_empty() {
            return;
        }
        let (region, value) = self.in_flight.remove(0);
        let active = self.active();
        active.cached[region] = value;
        active
            .intents
            .ended(DISK, offset(region), 512, ChangeEnd::Done);
    }

    fn drain(&mut self) {
        while !self.in_flight.is_empty() {
            self.complete();
        }
    }

    fn cut(&mut self) {
        if !self.connected || !self.runs {
            return;
        }
        let log = std::mem::take(&mut self.log);
        self.to_passive.push_back(ToPassive::Log(log));
        let new = self.base();
        let intents = &mut self.active().intents;
        if intents.needs_base() || intents.can_let_go() {
            intents.begin_round(new);
            self.synced_here = false;
        }
    }

    fn sync_here(&mut self) {
        let active = self.active();
        let Some(base) = active.intents.round() else {
            return;
        };
        active.durable = active.cached;
        if !std::mem::replace(&mut self.synced_here, true) {
            self.to_passive.push_back(ToPassive::Sync(base));
        }
    }

    fn deliver_to_passive(&mut self) {
        let message = self.to_passive.pop_front();
        let passive = self.passive();
        match message {
            Some(ToPassive::Log(log)) => {
                for (region, value) in log {
                    passive.cached[region] = value;
                }
            }
            Some(ToPassive::Sync(base)) => {
                passive.durable = passive.cached;
                passive.intents.adopt(base, Generation::new(1));
                passive.to_confirm = Some(base);
            }
            None => {}
        }
        self.confirm();
    }

    fn confirm(&mut self) {
        let passive = self.passive();
        let recorded = passive.writing.is_none() && !passive.intents.is_stale();
        if recorded && let Some(base) = passive.to_confirm.take() {
            self.to_active.push_back(base);
        }
    }

    fn link_lost(&mut self) {
        if !std::mem::replace(&mut self.connected, false) {
            return;
        }
        let mut log = Vec::new();
        for message in std::mem::take(&mut self.to_passive) {
            if let ToPassive::Log(lost) = message {
                log.extend(lost);
            }
        }
        log.append(&mut self.log);
        self.log = log;
        self.to_active.clear();
        self.passive().to_confirm = None;
        self.active().intents.abort_round();
    }

    fn pair_over(&mut self) {
        self.link_lost();
        self.active().intents.abort_round();
        self.paired = false;
        self.log.clear();
    }

    fn end(&mut self, node: usize, power: bool, record_arrives: bool, lands: bool) {
        self.link_lost();
        if node == self.owner {
            for (region, value) in std::mem::take(&mut self.in_flight) {
                if lands {
                    self.active().cached[region] = value;
                }
            }
            self.runs = false;
            self.paired = false;
            self.log.clear();
        }
        self.nodes[node].end(power, record_arrives);
    }

    fn take_over(&mut self) {
        if self.connected || !self.passive().up || !self.passive().in_sync {
            return;
        }
        self.passive().in_sync = false;
        if self.runs {
            // The other one learns of it and stops.
            self.drain();
        }
        self.pair_over();
        self.owner = 1 - self.owner;
        self.runs = true;
    }

    fn protect(&mut self, copied: usize) {
        if !self.runs || self.paired || !self.passive().up {
            return;
        }
        self.drain();
        let base = self.active().intents.base();
        let theirs = self.passive().intents.base();
        let fits = base.is_some() && theirs == base && !self.passive().incomplete;
        let mut regions = self.nodes[0].intents.named().clone();
        regions.unite(self.nodes[1].intents.named());
        if !fits {
            regions.fill();
            self.passive().forget();
        }
        let content = self.active().cached;
        let passive = self.passive();
        passive.in_sync = false;
        let named = (0..REGIONS).filter(|region| regions.contains(DISK, offset(*region), 512));
        for (done, region) in named.enumerate() {
            passive.incomplete = true;
            if done == copied {
                return;
            }
            passive.cached[region] = content[region];
        }
        assert_eq!(passive.cached, content, "with records that fit: {fits}");
        passive.incomplete = false;
        passive.in_sync = true;
        if fits {
            self.met += 1;
            self.spared += REGIONS - usize::try_from(regions.len()).unwrap();
        }
        self.active().intents.pair_begins();
        self.paired = true;
        self.connected = true;
        self.cut();
    }

    fn happens(&mut self, event: &Event) {
        match *event {
            Event::Write(region, value) => self.write(region, value),
            Event::Land => {
                if let Some((region, value)) = self.in_flight.first().copied() {
                    self.active().cached[region] = value;
                }
            }
            Event::Complete => self.complete(),
            Event::WriteBack(node, region) => {
                let node = &mut self.nodes[node];
                node.durable[region] = node.cached[region];
            }
            Event::RecordBegins(node) if self.nodes[node].up => self.nodes[node].begin_record(),
            Event::RecordIsThere(node) => {
                self.nodes[node].end_record();
                self.confirm();
            }
            Event::Cut => self.cut(),
            Event::SyncHere if self.connected => self.sync_here(),
            Event::ToPassive => self.deliver_to_passive(),
            Event::ToActive => {
                if let Some(base) = self.to_active.pop_front() {
                    self.active().intents.end_round(base);
                }
            }
            Event::LinkLost => self.link_lost(),
            Event::LinkBack => {
                let held = self.passive().up && self.passive().in_sync;
                self.connected |= self.paired && self.runs && held;
            }
            Event::Solo if self.runs => {
                self.pair_over();
                self.passive().in_sync = false;
            }
            Event::End {
                node,
                power,
                record_arrives,
                lands,
            } if self.nodes[node].up => self.end(node, power, record_arrives, lands),
            Event::Start(node) if !self.nodes[node].up => self.nodes[node].start(),
            Event::TakeOver => self.take_over(),
            Event::ColdStart => {
                let both_lost = !self.passive().in_sync;
                self.runs |= both_lost && self.active().up && !self.active().incomplete;
            }
            Event::Protect { copied } => self.protect(copied),
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]
    #[test]
    fn what_the_records_name_is_all_that_differs(
        events in proptest::collection::vec(event(), 0..300),
    ) {
        let mut world = World::new();
        for event in &events {
            world.happens(event);
        }
        // They meet again at last, if both are there.
        world.pair_over();
        for node in 0..2 {
            if !world.nodes[node].up {
                world.nodes[node].start();
            }
        }
        world.take_over();
        world.happens(&Event::ColdStart);
        world.protect(usize::MAX);
    }
}

fn settle(world: &mut World) {
    for _ in 0..20 {
        for node in 0..2 {
            world.happens(&Event::RecordBegins(node));
            world.happens(&Event::RecordIsThere(node));
        }
        for event in [
            Event::Cut,
            Event::SyncHere,
            Event::ToPassive,
            Event::ToActive,
        ] {
            world.happens(&event);
        }
        world.happens(&Event::Complete);
    }
}

#[test]
fn the_old_active_gets_only_what_was_written_since_the_disks_were_equal() {
    let mut world = World::new();
    world.protect(usize::MAX);
    settle(&mut world);
    assert_eq!(world.met, 0, "there was no record");
    for round in 0..6 {
        for region in [2, 7] {
            world.write(region, round);
            settle(&mut world);
            world.write(region, round);
        }
        let owner = world.owner;
        world.end(owner, true, false, true);
        world.take_over();
        world.write(5, round);
        settle(&mut world);
        world.write(5, round);
        settle(&mut world);
        world.happens(&Event::Start(owner));
        world.protect(usize::MAX);
        settle(&mut world);
    }
    assert_eq!(world.met, 6);
    assert!(world.spared >= 6 * (REGIONS - 6), "{}", world.spared);
}
