// SPDX-License-Identifier: Apache-2.0
//! A device's thread: waits for doorbells and the back end, and serves the device under its lock.
//!
//! Whoever wants to pause the device *holds* it first: a held worker does not take the lock, so
//! the pauser waits for one batch at most, however busy the device is.

use std::os::fd::AsRawFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::Wake;
use super::transport::VirtioFunction;
use crate::thread_hook::{ThreadHook, ThreadKind};

/// Events taken from the kernel at a time.
const EVENTS: usize = 16;
/// Tokens below this are queues, from here on sources.
const FIRST_SOURCE: u64 = 1 << 16;
/// Token of the descriptor by which others get the worker's attention.
const ATTENTION: u64 = u64::MAX;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Work,
    Hold,
    Exit,
}

/// What the worker is wanted to do.
#[derive(Debug)]
pub(crate) struct Hold {
    wish: Mutex<Wish>,
    changed: Condvar,
}

impl Hold {
    /// A worker that is held.
    pub(crate) fn new() -> Self {
        Self {
            wish: Mutex::new(Wish::Hold),
            changed: Condvar::new(),
        }
    }

    pub(crate) fn hold(&self) {
        self.wish(Wish::Hold);
    }

    pub(crate) fn release(&self) {
        self.wish(Wish::Work);
    }

    fn exit(&self) {
        self.wish(Wish::Exit);
    }

    fn wish(&self, wish: Wish) {
        let mut current = self.lock();
        if *current != Wish::Exit {
            *current = wish;
        }
        self.changed.notify_all();
    }

    /// Worker: waits while held. `false`: it shall exit.
    fn may_work(&self) -> bool {
        let wish = self
            .changed
            .wait_while(self.lock(), |wish| *wish == Wish::Hold)
            .unwrap_or_else(PoisonError::into_inner);
        *wish == Wish::Work
    }

    fn lock(&self) -> MutexGuard<'_, Wish> {
        // A plain value: a panic elsewhere cannot have left it half changed.
        self.wish.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The running thread; dropping it ends the thread.
#[derive(Debug)]
pub(crate) struct Worker {
    function: Arc<VirtioFunction>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts the thread; the device is held until it is resumed.
    ///
    /// # Errors
    /// The system has no more threads or descriptors.
    pub(crate) fn start(function: Arc<VirtioFunction>, hook: ThreadHook) -> std::io::Result<Self> {
        let epoll = watch(&function)?;
        let thread = std::thread::Builder::new()
            .name(function.thread_name())
            .spawn({
                let function = Arc::clone(&function);
                move || {
                    hook.begin(ThreadKind::Device);
                    run(&function, &epoll);
                }
            })?;
        Ok(Self {
            function,
            thread: Some(thread),
        })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.function.hold().exit();
        self.function.call_worker();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(
                device = self.function.label(),
                "The device's thread panicked"
            );
        }
    }
}

fn watch(function: &VirtioFunction) -> std::io::Result<Epoll> {
    let epoll = Epoll::new()?;
    let add = |fd, token, edge| {
        let set = EventSet::IN | edge;
        epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(set, token))
    };
    add(
        function.attention().as_raw_fd(),
        ATTENTION,
        EventSet::empty(),
    )?;
    for (doorbell, token) in function.doorbells().iter().zip(0..) {
        add(doorbell.as_raw_fd(), token, EventSet::empty())?;
    }
    function.with_sources(|sources| {
        sources
            .iter()
            .zip(FIRST_SOURCE..)
            .try_for_each(|(source, token)| {
                add(source.as_raw_fd(), token, EventSet::EDGE_TRIGGERED)
            })
    })?;
    Ok(epoll)
}

fn run(function: &VirtioFunction, epoll: &Epoll) {
    let mut events = [EpollEvent::default(); EVENTS];
    while function.hold().may_work() {
        let count = match epoll.wait(-1, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => {
                tracing::error!(device = function.label(), %error, "Cannot wait for the device");
                return;
            }
        };
        for event in events.iter().take(count) {
            let wake = wake_of(function, event.data());
            if !serve(function, wake) {
                return;
            }
        }
    }
}

fn wake_of(function: &VirtioFunction, token: u64) -> Wake {
    if token == ATTENTION {
        clear(function.attention());
        return Wake::All;
    }
    if let Some(source) = token.checked_sub(FIRST_SOURCE) {
        return Wake::Source(usize::try_from(source).unwrap_or(usize::MAX));
    }
    let queue = usize::try_from(token).unwrap_or(usize::MAX);
    if let Some(doorbell) = function.doorbells().get(queue) {
        clear(doorbell);
    }
    Wake::Queue(queue)
}

/// The descriptor is non-blocking; that it was cleared already does not matter.
fn clear(event: &EventFd) {
    let _ = event.read();
}

/// Serves one wake-up to its end, batch by batch. `false`: the thread shall end.
fn serve(function: &VirtioFunction, wake: Wake) -> bool {
    loop {
        if !function.hold().may_work() {
            return false;
        }
        match function.serve(wake) {
            Some(super::Progress::Done) => return true,
            // A batch is done, or the device was paused in between and is looked at again.
            Some(super::Progress::More) | None => {}
        }
    }
}
