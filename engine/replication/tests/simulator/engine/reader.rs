// SPDX-License-Identifier: Apache-2.0
//! Whole frames from one end of a connection, and how long it was silent (`engine/src/link/stream`).

use std::time::Duration;

use kemari_replication::wire::{FrameDecoder, FrameHeader, Refusal};

use crate::env::{Env, Event, HostId, Life};
use crate::network::{ConnId, Found, Side};
use crate::schedule::{Nanos, US};

/// Why a link ended; what is inside is for the story.
#[derive(Debug)]
#[allow(dead_code, reason = "read by its Debug form only")]
pub enum LinkError {
    Connect,
    Closed,
    Silent,
    Protocol(String),
    Refused(Refusal),
    State,
}

/// What a reader finds.
#[derive(Debug)]
pub enum Next {
    Frame(FrameHeader, Vec<u8>),
    Nothing,
    Lost(LinkError),
}

/// One end of a connection.
#[derive(Debug)]
pub struct Reader {
    pub conn: ConnId,
    pub side: Side,
    decoder: FrameDecoder,
    heard: Duration,
    pub silence_max: Duration,
    timer: Nanos,
}

impl Reader {
    pub fn new(env: &Env, conn: ConnId, side: Side, silence_max: Duration) -> Self {
        let host = env.network.host(conn, side);
        Self {
            conn,
            side,
            decoder: FrameDecoder::new(),
            heard: env.local(host),
            silence_max,
            timer: 0,
        }
    }

    /// The next whole frame. A timer is set if there is none.
    pub fn next(&mut self, env: &mut Env, host: HostId, life: Life) -> Next {
        let found = env.network.read(self.conn, self.side);
        if let Found::Bytes(bytes) = &found {
            self.heard = env.local(host);
            self.decoder.push(bytes);
        }
        match self.decoder.next_frame() {
            Err(error) => return Next::Lost(LinkError::Protocol(error.to_string())),
            Ok(Some((header, payload))) => {
                let payload = payload.to_vec();
                let soon = env.delay(10 * US, 3_000 * US);
                let again = Event::Reader(host, life, self.conn);
                env.queue.put(soon, again);
                return Next::Frame(header, payload);
            }
            Ok(None) => {}
        }
        let deadline = self.heard + self.silence_max;
        if found == Found::End {
            Next::Lost(LinkError::Closed)
        } else if env.local(host) >= deadline {
            Next::Lost(LinkError::Silent)
        } else {
            if self.timer <= env.now() {
                self.timer = env.clocks[host].when(deadline);
                let again = Event::Reader(host, life, self.conn);
                env.queue.put_at(self.timer, again);
            }
            Next::Nothing
        }
    }
}
