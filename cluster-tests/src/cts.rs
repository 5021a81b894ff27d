// SPDX-License-Identifier: Apache-2.0
//! The operations of Pacemaker's own cluster test suite (CTS), under its names, with a Kemari VM as the
//! resource.
//!
//! Debian has no package of CTS, so they are driven from here: [`Plan`] is which test is run on which node,
//! from a seed; [`Lab`] carries a test out in test bed A and waits until the cluster is stable; [`audit`] is what
//! CTS calls audits, and the outside observer's judgement.
//!
//! Of its tests, `RemoteBasic` does not apply: a Pacemaker Remote node has no Corosync, without which
//! kemari-agent knows of no other node, so no replica can run there.

mod audit;
mod lab;
mod plan;

pub use audit::audit;
pub use lab::{Lab, Memory};
pub use plan::{Component, Plan, Test};
