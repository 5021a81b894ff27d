// SPDX-License-Identifier: Apache-2.0
//! The agent of a node: Corosync's membership, claims, and the operator's view of Kemari.
//!
//! [`arbitration`] decides and touches nothing; [`corosync`], [`engines`], [`records`] and [`bus`]
//! carry events in and actions out; [`daemon`] joins them. The agent may crash or be replaced
//! without touching a running VM.
#![forbid(unsafe_code)]

pub mod arbitration;
pub mod bus;
pub mod command;
pub mod corosync;
pub mod daemon;
pub mod engines;
pub mod journal;
pub mod metrics;
pub mod operator;
pub mod records;
