// SPDX-License-Identifier: Apache-2.0
//! The agent of a node: Corosync's membership, claims, and the operator's view of Kemari.
//!
//! [`arbitration`] decides and touches nothing; [`corosync`], [`engines`], [`records`] and [`bus`]
//! carry events in and actions out; [`daemon`] joins them. [`health`] tells Pacemaker
//! what is wrong with the node's hardware, [`score`] which replica it must not promote; [`kept`] keeps the passive
//! replica of a plain primitive. The agent may crash or be replaced
//! without touching a running VM.
#![forbid(unsafe_code)]

pub mod arbitration;
pub mod bus;
pub mod command;
pub mod corosync;
pub mod daemon;
pub mod engines;
pub mod handover;
pub mod health;
pub mod journal;
pub mod kept;
pub mod metrics;
pub mod operator;
mod pacemaker;
#[cfg(test)]
mod private_bus;
pub mod records;
pub mod score;
pub mod settings;
pub mod systemd;
