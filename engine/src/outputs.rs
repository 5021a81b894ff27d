// SPDX-License-Identifier: Apache-2.0
//! Everything the guest lets out, on its way through the event-tap.
//!
//! ```text
//!  vCPU ──console bytes──▶ ┐                        ┌──▶ console sink
//!  virtio-net ──packets──▶ ┴ gate (tap + licence) ──┴──▶ TAP
//!                              ▲ conductor: epochs,      carrier thread
//!                                commits, licence
//! ```
//!
//! There is one queue for all of them, because outputs leave in the order the guest made them. Under
//! a solo licence with nothing queued a packet goes to its TAP at once, without the carrier. What
//! the console's sink has taken is kept for a while in the history, which attached terminals read.

mod carrier;
mod console_input;
mod console_outlet;
mod gate;
mod history;
mod network;
mod virtio_console;

pub use carrier::start as start_carrier;
pub use console_input::{InputSlot, Typist};
pub use console_outlet::{Origin, Sink};
pub use gate::Outputs;
pub use history::{Cursor, History, Next};
pub use network::{Interface, TappedNetwork};
pub use virtio_console::{TappedConsole, TypedInput};
