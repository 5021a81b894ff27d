// SPDX-License-Identifier: Apache-2.0
//! The connection between two replicas: threads and sockets around the sessions of
//! `kemari-replication`.
//!
//! [`active`] makes a connection and feeds acknowledgements to the conductor; [`passive`] accepts
//! one and keeps the shadow RAM. Neither decides anything: the sessions judge the frames, the
//! conductor the roles.

pub mod active;
pub mod passive;
mod stream;

pub use stream::{COPY_PATIENCE, FrameReader, LinkError};
