// SPDX-License-Identifier: Apache-2.0
//! What the rooms of Kemari know of each other.
//!
//! Roles, counters, the description of a VM and the two D-Bus interfaces: `org.kemari.Replica1`,
//! spoken peer to peer on each engine's control socket, and `org.kemari.Agent1` on the system bus.
//! The agent and the resource agent know the engine through this crate only. No policy lives here.
#![forbid(unsafe_code)]

pub mod agent;
pub mod assigned;
#[cfg(feature = "cluster-key")]
pub mod cluster_key;
pub mod config;
pub mod console;
pub mod counter;
pub mod figures;
pub mod name;
pub mod note;
pub mod place;
pub mod replica;
pub mod role;
pub mod unit;

pub use assigned::Assigned;
pub use counter::{Epoch, Generation};
pub use name::{NodeName, VmName};
pub use role::{Licence, Role};
