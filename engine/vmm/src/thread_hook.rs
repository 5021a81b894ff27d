// SPDX-License-Identifier: Apache-2.0
//! What every thread of a machine does first, as its owner wishes: confine itself, for example.
//!
//! The machine knows nothing of sandboxes. It tells what kind of thread begins, before that thread
//! has touched anything of the guest.

use std::fmt;
use std::sync::Arc;

/// What a thread of the machine is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThreadKind {
    /// Runs a virtual CPU.
    Vcpu,
    /// Serves a virtio device.
    Device,
}

/// Called by each thread of a machine as the first thing it does.
#[derive(Clone, Default)]
pub struct ThreadHook(Option<Arc<dyn Fn(ThreadKind) + Send + Sync>>);

impl ThreadHook {
    /// A hook that calls this.
    #[must_use]
    pub fn new(hook: impl Fn(ThreadKind) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(hook)))
    }

    /// For the thread that begins.
    pub(crate) fn begin(&self, kind: ThreadKind) {
        if let Some(hook) = &self.0 {
            hook(kind);
        }
    }
}

impl fmt::Debug for ThreadHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ThreadHook")
    }
}
