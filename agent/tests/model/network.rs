// SPDX-License-Identifier: Apache-2.0
//! What lies between the nodes: Corosync's membership and the replication connections.
//!
//! The two may run over different networks, so they break apart as well as together.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A connection, as the kernels of both hosts see it. Bytes are lost with the path or the end.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Pipe {
    pub caller_open: bool,
    pub callee_open: bool,
    /// What one call of an engine wrote is one piece; cuts inside of one are tested elsewhere.
    pub to_callee: VecDeque<Vec<u8>>,
    pub to_caller: VecDeque<Vec<u8>>,
}

/// Everything between the nodes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Network {
    /// Corosync's partition of each node.
    partition: Vec<u8>,
    /// A node whose partition wrongly calls itself quorate, as seen with a qdevice.
    pub deluded: Option<usize>,
    /// Directions of the replication network in which everything is lost.
    pub lost: BTreeSet<(usize, usize)>,
    /// By caller and callee.
    pub pipes: BTreeMap<(usize, usize), Pipe>,
    /// Hosts with a running, thawed engine: bytes arrive there.
    pub engines: BTreeSet<usize>,
}

impl Network {
    pub fn new(nodes: usize) -> Self {
        Self {
            partition: vec![0; nodes],
            deluded: None,
            lost: BTreeSet::new(),
            pipes: BTreeMap::new(),
            engines: BTreeSet::new(),
        }
    }

    pub fn same_partition(&self, a: usize, b: usize) -> bool {
        self.partition[a] == self.partition[b]
    }

    /// Corosync reaches no other node from here.
    pub fn isolate(&mut self, node: usize) {
        self.partition[node] = u8::try_from(node + 1).expect("few nodes");
    }

    pub fn is_split(&self) -> bool {
        self.partition.iter().any(|&part| part != 0)
    }

    pub fn heal_corosync(&mut self) {
        self.partition.fill(0);
        self.deluded = None;
    }

    pub fn rejoin(&mut self, node: usize) {
        self.partition[node] = 0;
    }

    /// Both ways between two hosts, at this moment.
    pub fn is_open(&self, a: usize, b: usize) -> bool {
        !self.lost.contains(&(a, b)) && !self.lost.contains(&(b, a))
    }

    pub fn answers(&self, from: usize, to: usize) -> bool {
        self.is_open(from, to) && self.engines.contains(&to)
    }

    /// One end closes, or dies with its process.
    pub fn close(&mut self, key: (usize, usize), end: usize) {
        let Some(pipe) = self.pipes.get_mut(&key) else {
            return;
        };
        if end == key.0 {
            pipe.caller_open = false;
            pipe.to_caller.clear();
        } else {
            pipe.callee_open = false;
            pipe.to_callee.clear();
        }
        if !pipe.caller_open && !pipe.callee_open {
            self.pipes.remove(&key);
        }
    }

    /// Every connection of this host ends on its side.
    pub fn close_all(&mut self, host: usize) {
        let keys: Vec<_> = self.pipes.keys().copied().collect();
        for key in keys
            .into_iter()
            .filter(|key| key.0 == host || key.1 == host)
        {
            self.close(key, host);
        }
    }

    /// Whether this end, still open, would notice that the connection is dead: the other end is
    /// closed, or silent.
    pub fn is_dead(&self, key: (usize, usize), end: usize) -> bool {
        let Some(pipe) = self.pipes.get(&key) else {
            return false;
        };
        let (mine, theirs, other) = if end == key.0 {
            (pipe.caller_open, pipe.callee_open, key.1)
        } else {
            (pipe.callee_open, pipe.caller_open, key.0)
        };
        mine && (!theirs || !self.is_open(key.0, key.1) || !self.engines.contains(&other))
    }

    /// A piece that arrives at `to` on this connection, if that way works.
    pub fn has_piece(&self, key: (usize, usize), to: usize) -> bool {
        let Some(pipe) = self.pipes.get(&key) else {
            return false;
        };
        let (open, pieces, from) = if to == key.0 {
            (pipe.caller_open, &pipe.to_caller, key.1)
        } else {
            (pipe.callee_open, &pipe.to_callee, key.0)
        };
        open && !pieces.is_empty() && !self.lost.contains(&(from, to)) && self.engines.contains(&to)
    }

    pub fn take_piece(&mut self, key: (usize, usize), to: usize) -> Option<Vec<u8>> {
        let pipe = self.pipes.get_mut(&key)?;
        if to == key.0 {
            pipe.to_caller.pop_front()
        } else {
            pipe.to_callee.pop_front()
        }
    }

    pub fn send(&mut self, key: (usize, usize), from: usize, piece: Vec<u8>) {
        if piece.is_empty() {
            return;
        }
        if let Some(pipe) = self.pipes.get_mut(&key) {
            if from == key.0 && pipe.callee_open {
                pipe.to_callee.push_back(piece);
            } else if from == key.1 && pipe.caller_open {
                pipe.to_caller.push_back(piece);
            }
        }
    }
}
