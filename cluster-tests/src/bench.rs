// SPDX-License-Identifier: Apache-2.0
//! What `make bench` measures: each figure beside its baseline, from the same run on the same guest.
//!
//! Two engine processes on one host, joined by loopback, with a bare guest that writes to as many pages as it is told
//! ([`crate::guests::pages`]). What the outside sees is measured outside; how long a guest stood still, only its VMM knows.

pub mod colo;
pub mod console;
pub mod engine_pair;
pub mod figure;
pub mod initial_copy;
pub mod memcpy;
pub mod pauses;
pub mod quantiles;
pub mod release;
