// SPDX-License-Identifier: Apache-2.0
//! The network between the two hosts: connections as TCP makes them, and what TCP should prevent.
//!
//! A connection is a stream of bytes each way. It can be delayed, stall, be cut at any byte with or
//! without either end being told, and its peer can be gone without a word. Below that, single
//! frames are lost, doubled, overtaken, shortened and changed, as broken hardware would do it.

use std::collections::{BTreeMap, VecDeque};

use super::env::{Env, Event, HostId};
use super::frames;
use super::schedule::{MS, Nanos};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConnId(u32);

/// One end of a connection, and the stream it writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The active side, which connects.
    Caller,
    /// The passive side, which listens.
    Callee,
}

impl Side {
    pub const BOTH: [Self; 2] = [Self::Caller, Self::Callee];

    pub const fn other(self) -> Self {
        match self {
            Self::Caller => Self::Callee,
            Self::Callee => Self::Caller,
        }
    }
}

#[derive(Debug)]
enum Piece {
    /// The connection is accepted by the other host's kernel.
    Open,
    Bytes(Vec<u8>),
    /// The end of the stream, in order or by a reset.
    End,
}

#[derive(Debug, Default)]
struct Pipe {
    on_the_way: VecDeque<(Nanos, Piece)>,
    arrived: Vec<u8>,
    ended: bool,
    stalled: bool,
    /// Nobody is left at the end that writes here; what comes the other way is answered by a reset.
    abandoned: bool,
    /// What the injector of stale acknowledgements knows.
    seen: frames::Seen,
}

#[derive(Debug)]
struct Connection {
    hosts: [HostId; 2],
    pipes: [Pipe; 2],
}

/// What a reader finds.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    Bytes(Vec<u8>),
    Nothing,
    End,
}

/// The network.
#[derive(Debug, Default)]
pub struct Network {
    connections: BTreeMap<ConnId, Connection>,
    next: u32,
    /// The replication link alone is cut.
    pub link_cut: bool,
    /// A host that reaches nobody at all.
    pub isolated: [bool; 2],
    pub up: [bool; 2],
}

impl Network {
    pub fn new() -> Self {
        Self {
            up: [true; 2],
            ..Self::default()
        }
    }

    fn passes(&self) -> bool {
        let hosts_reach = |flags: [bool; 2], good| flags == [good; 2];
        !self.link_cut && hosts_reach(self.isolated, false) && hosts_reach(self.up, true)
    }

    pub fn host(&self, conn: ConnId, side: Side) -> HostId {
        self.connections[&conn].hosts[side as usize]
    }

    fn pipe(&mut self, conn: ConnId, side: Side) -> &mut Pipe {
        let connection = self.connections.get_mut(&conn).expect("connections stay");
        &mut connection.pipes[side as usize]
    }

    /// What has arrived for this side.
    pub fn read(&mut self, conn: ConnId, side: Side) -> Found {
        let pipe = self.pipe(conn, side.other());
        if !pipe.arrived.is_empty() {
            Found::Bytes(std::mem::take(&mut pipe.arrived))
        } else if pipe.ended {
            Found::End
        } else {
            Found::Nothing
        }
    }

    /// Whether nothing was closed, for faults that want a living connection.
    fn living(&self) -> Vec<ConnId> {
        let lives = |connection: &Connection| connection.pipes.iter().all(|pipe| !pipe.ended);
        self.connections
            .iter()
            .filter(|(_, connection)| lives(connection))
            .map(|(id, _)| *id)
            .collect()
    }
}

impl Env {
    /// A new connection to the other host, if its kernel can be reached.
    pub fn connect(&mut self, from: HostId) -> Option<ConnId> {
        if !self.network.passes() {
            return None;
        }
        let id = ConnId(self.network.next);
        self.network.next += 1;
        let connection = Connection {
            hosts: [from, 1 - from],
            pipes: Default::default(),
        };
        self.network.connections.insert(id, connection);
        self.send_piece(id, Side::Caller, Piece::Open);
        Some(id)
    }

    /// Hands whole frames to the kernel.
    pub fn write(&mut self, conn: ConnId, side: Side, buffer: &[u8]) {
        let pipe = self.network.pipe(conn, side);
        if pipe.abandoned {
            return;
        }
        let commit = self.network.pipe(conn, side.other()).seen.last_commit();
        let mut seen = std::mem::take(&mut self.network.pipe(conn, side).seen);
        let bytes = frames::pass(self, &mut seen, commit, buffer);
        self.network.pipe(conn, side).seen = seen;
        // In up to three pieces, divided anywhere.
        let mut rest = bytes.as_slice();
        for _ in 0..self.rng.usize(0..3) {
            let (now, later) = rest.split_at(self.rng.usize(0..=rest.len()));
            self.send_piece(conn, side, Piece::Bytes(now.to_vec()));
            rest = later;
        }
        self.send_piece(conn, side, Piece::Bytes(rest.to_vec()));
    }

    /// Ends both streams from this side, as `shutdown` does.
    pub fn close(&mut self, conn: ConnId, side: Side) {
        let pipe = self.network.pipe(conn, side);
        if std::mem::replace(&mut pipe.abandoned, true) {
            return;
        }
        self.network.pipe(conn, side.other()).ended = true;
        self.send_piece(conn, side, Piece::End);
    }

    fn send_piece(&mut self, conn: ConnId, side: Side, piece: Piece) {
        let delay = self.delay(self.profile.network, 20 * MS);
        let now = self.now();
        let pipe = self.network.pipe(conn, side);
        let last = pipe.on_the_way.back().map_or(0, |(at, _)| *at);
        let at = (now + delay).max(last);
        pipe.on_the_way.push_back((at, piece));
        self.queue.put_at(at, Event::Arrive(conn, side));
    }

    /// Something written by `side` may have arrived. Returns whether somebody called.
    pub fn arrive(&mut self, conn: ConnId, side: Side) -> bool {
        let (now, passes) = (self.now(), self.network.passes());
        let mut called = false;
        loop {
            let pipe = self.network.pipe(conn, side);
            let due = pipe.on_the_way.front().is_some_and(|(at, _)| *at <= now);
            if !due || pipe.stalled || !passes {
                return called;
            }
            let Some((_, piece)) = pipe.on_the_way.pop_front() else {
                return called;
            };
            let reset = self.network.pipe(conn, side.other()).abandoned;
            let pipe = self.network.pipe(conn, side);
            match piece {
                Piece::Bytes(_) if pipe.ended => {}
                Piece::Bytes(bytes) => pipe.arrived.extend(bytes),
                Piece::End => pipe.ended = true,
                Piece::Open => called = true,
            }
            if reset {
                self.reset(conn, side);
            }
        }
    }

    /// The host at the other end does not know this connection (any more).
    pub fn reset(&mut self, conn: ConnId, side: Side) {
        let back = self.network.pipe(conn, side.other());
        if !back.ended && back.on_the_way.is_empty() {
            back.abandoned = true;
            self.send_piece(conn, side.other(), Piece::End);
        }
    }

    /// The processes of a host are gone. Its kernel says so, unless it is gone as well.
    pub fn abandon_connections(&mut self, host: HostId, kernel_lives: bool) {
        let mut ends = Vec::new();
        for (id, connection) in &self.network.connections {
            for side in Side::BOTH {
                if connection.hosts[side as usize] == host {
                    ends.push((*id, side));
                }
            }
        }
        for (conn, side) in ends {
            if kernel_lives {
                self.close(conn, side);
            } else {
                self.network.pipe(conn, side).abandoned = true;
                self.network.pipe(conn, side.other()).ended = true;
            }
        }
    }

    /// Cuts a connection at some byte. Each end hears of it, or not.
    pub fn cut_connection(&mut self) {
        let living = self.network.living();
        let Some(conn) = self.rng.choice(living) else {
            return;
        };
        self.counts.cuts += 1;
        self.line(|| format!("- connection {} is cut", conn.0));
        for side in Side::BOTH {
            let (told, part) = (self.rng.bool(), self.rng.bool());
            let at = self.rng.usize(0..=4096);
            let pipe = self.network.pipe(conn, side);
            let first = pipe.on_the_way.front_mut();
            if part && let Some((_, Piece::Bytes(bytes))) = first {
                bytes.truncate(at);
                pipe.on_the_way.truncate(1);
            } else {
                pipe.on_the_way.clear();
            }
            if told {
                self.send_piece(conn, side, Piece::End);
            }
            let pipe = self.network.pipe(conn, side);
            pipe.abandoned = true;
        }
    }

    /// One direction of a connection stands still, for a while or for good.
    pub fn stall_connection(&mut self) {
        let living = self.network.living();
        let Some(conn) = self.rng.choice(living) else {
            return;
        };
        let side = self.rng.choice(Side::BOTH).expect("two of them");
        self.counts.cuts += 1;
        self.line(|| format!("- connection {} stalls, what the {side:?} says", conn.0));
        self.network.pipe(conn, side).stalled = true;
        if self.rng.bool() {
            let delay = self.between(MS / 2, 60 * MS);
            self.queue.put(delay, Event::Unstall(conn, side));
        }
    }

    pub fn unstall(&mut self, conn: ConnId, side: Side) {
        self.network.pipe(conn, side).stalled = false;
        self.queue.put(0, Event::Arrive(conn, side));
    }

    /// What waited for the path goes on.
    pub fn path_changed(&mut self) {
        let all: Vec<_> = self.network.connections.keys().copied().collect();
        for conn in all {
            for side in Side::BOTH {
                self.queue.put(0, Event::Arrive(conn, side));
            }
        }
    }

    /// Everything gets well.
    pub fn heal_network(&mut self) {
        self.network.link_cut = false;
        self.network.isolated = [false; 2];
        for connection in self.network.connections.values_mut() {
            for pipe in &mut connection.pipes {
                pipe.stalled = false;
            }
        }
        self.path_changed();
    }
}
