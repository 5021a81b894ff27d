// SPDX-License-Identifier: Apache-2.0
//! Random histories of a protected VM: blows to nodes, engines, agents and Corosync, whenever, and
//! what an outside observer says of them.
//!
//! [`Plan`] is what will be done, from a seed and nothing else; [`carry_out`] does it in test bed A;
//! [`Lives`] judges. A history may well take the VM's memory from it, by a second loss before the
//! first one is made good: then the guest boots anew, which begins a *life*. Within a life the
//! rules hold as ever, and nothing of an earlier life may come out after a later one began.

mod course;
mod lives;
mod plan;

pub use course::{Course, carry_out, mend_all};
pub use lives::{Life, Lives, LivesError};
pub use plan::{Affliction, Blow, NodeNumber, Plan, Step};
