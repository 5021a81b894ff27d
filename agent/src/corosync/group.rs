// SPDX-License-Identifier: Apache-2.0
//! The CPG group: who is in it, and messages in one total order.

use std::cell::RefCell;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rust_corosync::cpg::{self, Address, Guarantee, Handle, Model1Data, Model1Flags, ModelData};
use rust_corosync::{CsError, DispatchFlags, NodeId};
use tracing::{debug, warn};

use super::{CorosyncError, failed};

/// Pause before a message is offered again. Short: right after a membership change, when a claim
/// must get out, Corosync refuses for some milliseconds.
const FLOW_CONTROL_PAUSE: Duration = Duration::from_micros(200);

/// One call of a callback.
#[derive(Debug)]
pub(super) enum Change {
    Members {
        agents: Vec<NodeId>,
        left: Vec<(NodeId, String)>,
    },
    Message {
        from: NodeId,
        bytes: Vec<u8>,
    },
}

impl Change {
    /// Every node this is about, one of which may be new.
    pub fn node_ids(&self) -> &[NodeId] {
        match self {
            Self::Members { agents, .. } => agents,
            Self::Message { from, .. } => std::slice::from_ref(from),
        }
    }
}

thread_local! {
    /// Where the callbacks, bare functions that run inside `dispatch`, leave what they were told.
    static CHANGES: RefCell<Vec<Change>> = const { RefCell::new(Vec::new()) };
}

fn on_message(_: &Handle, _: String, from: NodeId, _: u32, bytes: &[u8], _: usize) {
    let bytes = bytes.to_vec();
    CHANGES.with_borrow_mut(|changes| changes.push(Change::Message { from, bytes }));
}

fn on_members(_: &Handle, _: &str, members: Vec<Address>, left: Vec<Address>, _: Vec<Address>) {
    let change = Change::Members {
        agents: members.into_iter().map(|member| member.nodeid).collect(),
        left: left
            .into_iter()
            .map(|member| (member.nodeid, member.reason.to_string()))
            .collect(),
    };
    CHANGES.with_borrow_mut(|changes| changes.push(change));
}

/// The connection. Leaves the group when dropped.
pub(super) struct Group(Handle);

impl Group {
    pub fn join(name: &str) -> Result<Self, CorosyncError> {
        CHANGES.with_borrow_mut(Vec::clear);
        let model = ModelData::ModelV1(Model1Data {
            flags: Model1Flags::None,
            deliver_fn: Some(on_message),
            confchg_fn: Some(on_members),
            totem_confchg_fn: None,
        });
        let handle = cpg::initialize(&model, 0).map_err(failed("connecting to CPG"))?;
        cpg::join(&handle, name).map_err(failed("joining the group"))?;
        Ok(Self(handle))
    }

    /// Waits for Corosync to say something. Fails when Corosync ends.
    pub fn wait(&self) -> Result<Vec<Change>, CorosyncError> {
        cpg::dispatch(&self.0, DispatchFlags::One).map_err(failed("following the group"))?;
        Ok(CHANGES.take())
    }
}

/// Where messages go out, as long as there is a group. Sending while another thread waits on the
/// same handle is how Corosync's own cpgbench does it: requests and events use separate rings.
#[derive(Clone, Default)]
pub(super) struct Outlet(Arc<Mutex<Option<Handle>>>);

impl Outlet {
    /// A clone of a handle does not end the connection when it is dropped.
    pub fn open(&self, group: &Group) {
        self.set(Some(group.0.clone()));
    }

    pub fn close(&self) {
        self.set(None);
    }

    fn set(&self, handle: Option<Handle>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = handle;
    }

    /// Sends one message in agreed order. Corosync pushes back during membership changes; the
    /// message is offered until it is taken, since a lost vote could stop a failover.
    pub fn multicast(&self, bytes: &[u8]) {
        loop {
            let handle = self
                .0
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone();
            let Some(handle) = handle else {
                return debug!("No group, message dropped");
            };
            match cpg::mcast_joined(&handle, Guarantee::TypeAgreed, bytes) {
                Ok(()) => return,
                Err(CsError::CsErrTryAgain) => thread::sleep(FLOW_CONTROL_PAUSE),
                Err(code) => return warn!(%code, "Message to the other agents was not sent"),
            }
        }
    }
}
