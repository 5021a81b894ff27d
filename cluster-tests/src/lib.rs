// SPDX-License-Identifier: Apache-2.0
//! Nodes, scenarios, test guests, the demo and the benchmarks.
#![forbid(unsafe_code)]

pub mod bed;
pub mod cache;
pub mod rootfs;
pub mod supervisor;
pub mod switch;
