// SPDX-License-Identifier: Apache-2.0
//! The connection between two replicas: threads around the sessions of `kemari-replication` and
//! the connections of `kemari-transport`.
//!
//! [`active`] makes a connection and feeds acknowledgements to the conductor; [`door`] accepts
//! connections and hears who calls; [`passive`] serves one of them and keeps the shadow RAM. None
//! decides anything: the sessions judge the frames, the conductor the roles. An active replica that
//! calls again, over another link, takes the place of its older call ([`arrivals`]). [`security`] says
//! which transport there is to be, and by what the other side is known.

pub mod active;
mod arrivals;
mod door;
pub mod passive;
pub mod recorded;
pub mod security;
mod stream;

pub use stream::{COPY_PATIENCE, FrameReader, LinkError};
