// SPDX-License-Identifier: Apache-2.0
//! The quorum service: quorate or not, and with whom.
//!
//! Only the quorum callback counts, never the node list callback: that one comes earlier, with
//! new members beside an old quorum.

use std::cell::RefCell;

use rust_corosync::quorum::{self, Handle, Model1Data, Model1Flags, ModelData, RingId};
use rust_corosync::{DispatchFlags, NodeId, TrackFlags};

use super::{CorosyncError, failed};

/// One call of the callback.
#[derive(Debug)]
pub(super) struct Change {
    pub quorate: bool,
    pub members: Vec<NodeId>,
}

thread_local! {
    /// Where the callback, a bare function that runs inside `dispatch`, leaves what it was told.
    static CHANGES: RefCell<Vec<Change>> = const { RefCell::new(Vec::new()) };
}

fn on_quorum(_: &Handle, quorate: bool, _: RingId, members: Vec<NodeId>) {
    CHANGES.with_borrow_mut(|changes| changes.push(Change { quorate, members }));
}

/// The connection.
pub(super) struct Quorum(Handle);

impl Quorum {
    pub fn open() -> Result<Self, CorosyncError> {
        CHANGES.with_borrow_mut(Vec::clear);
        let model = ModelData::ModelV1(Model1Data {
            flags: Model1Flags::None,
            quorum_notification_fn: Some(on_quorum),
            nodelist_notification_fn: None,
        });
        let (handle, _) =
            quorum::initialize(&model, 0).map_err(failed("connecting to the quorum service"))?;
        quorum::trackstart(&handle, TrackFlags::Changes).map_err(failed("following quorum"))?;
        Ok(Self(handle))
    }

    /// Waits for Corosync to say something. Fails when Corosync ends.
    pub fn wait(&self) -> Result<Vec<Change>, CorosyncError> {
        quorum::dispatch(&self.0, DispatchFlags::One).map_err(failed("following quorum"))?;
        Ok(CHANGES.take())
    }
}
