// SPDX-License-Identifier: Apache-2.0
//! Transactions, event-tap and wire format of Kemari, without sockets, clocks, threads or KVM.
//!
//! Everything here is a value that is handed bytes, events and times and answers with bytes and
//! decisions. The same code runs in the engine process, in the simulator and in the fuzzer.
//!
//! * [`wire`]: what goes over the connection, byte by byte.
//! * [`active`]: the sender's half of `ft-transaction`; [`passive`]: the receiver's half.
//! * [`event_tap`]: where outputs wait for the commit; [`licence`]: when they may leave;
//!   [`gate`]: both put together, so that nothing leaves without a licence.
//! * [`storage`]: what of replicated disks goes to the passive side.
//! * [`trigger`]: when the next checkpoint is taken; [`compression`]: how much work is put into
//!   making it short.
//! * [`links`]: which of several links carries the pair.
//!
//! Invariants, asserted in release builds too: an acknowledged epoch was sent, a released output
//! belongs to an acknowledged epoch (or to a solo licence), epochs of a session grow by one, and
//! the generation of a session never changes.
//!
//! What this crate does not do: it decides no arbitration (who may run is told to it), it decodes
//! no machine state (the process does, before it lets the session acknowledge), and it writes
//! nothing to disk (it says what must be written before it goes on).
#![forbid(unsafe_code)]

pub mod active;
pub mod compression;
pub mod event_tap;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod gate;
pub mod licence;
pub mod links;
pub mod output;
pub mod page;
pub mod passive;
pub mod protocol;
pub mod storage;
pub mod trigger;
pub mod wire;

pub use kemari_api::{Epoch, Generation, NodeName, VmName};
pub use output::{NetworkPort, Output, OutputKind};
pub use page::{GuestPages, NoPages, PAGE_BYTES, PageContent, PageIndex, RamLayout};
