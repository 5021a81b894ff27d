// SPDX-License-Identifier: Apache-2.0
//! What carries the bytes between the two replicas of a virtual machine.
//!
//! `kemari:tcp:`, `kemari:tls:` and `kemari:unix:` differ in how a connection is made
//! ([`connect`], [`Listener`]); what is made is a [`Channel`] in every case. A channel is used by
//! blocking threads, one that receives and one that sends, and ended by any third. Nothing here
//! knows of frames, epochs or roles.
//!
//! A connection over which nobody has proved anything yet costs its listener a socket and a
//! deadline: [`Listener::accept`] does no more than accept, and [`Caller::greet`], which waits for
//! the other side, is meant for a thread of its own.
#![forbid(unsafe_code)]

mod channel;
mod connect;
mod listen;
mod plain;
mod tls;

use std::time::{Duration, Instant};

pub use channel::{Channel, Connection};
pub use connect::{ConnectError, Patience, connect};
pub use listen::{Caller, Hangup, ListenError, Listener, Owner};
pub use tls::{Tls, TlsError, TlsFileError, TlsFiles};

/// What is left of the time until `deadline`: never nothing, which a socket would take for ever.
fn left(deadline: Instant) -> Duration {
    deadline
        .saturating_duration_since(Instant::now())
        .max(Duration::from_millis(1))
}
