// SPDX-License-Identifier: Apache-2.0
//! The console between the guest and the outside.
//!
//! The vCPU thread writes into the event-tap; the sink thread takes out of it what may leave. Both
//! meet in [`Console`], which the conductor also uses to tell the tap what may leave.

mod input;
mod outlet;
mod sink;
mod tap;

pub use input::InputSlot;
pub use outlet::Origin;
pub use sink::start as start_sink;
pub use tap::Console;
