// SPDX-License-Identifier: Apache-2.0
//! A thread for requests that io_uring cannot do, or did only in part: it does them the blocking
//! way, one after another. It is started when the first such request comes; many disks never do.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, JoinHandle};

use super::bounce::BouncePool;
use super::file::RawFile;
use super::{DiskCompletion, DiskRequest};
use crate::backend::doorbell::Doorbell;

#[derive(Debug)]
pub(super) struct SlowLane {
    file: Arc<RawFile>,
    bell: Arc<Doorbell>,
    worker: Option<Worker>,
    pending: usize,
}

#[derive(Debug)]
struct Worker {
    requests: Sender<(u32, DiskRequest)>,
    results: Receiver<DiskCompletion>,
    thread: JoinHandle<()>,
}

impl SlowLane {
    /// `bell` is rung for each completion.
    pub(super) fn new(file: Arc<RawFile>, bell: Arc<Doorbell>) -> Self {
        Self {
            file,
            bell,
            worker: None,
            pending: 0,
        }
    }

    /// Takes a request. If no thread can be had it is done right here, and the completion returned.
    pub(super) fn push(&mut self, tag: u32, request: DiskRequest) -> Option<DiskCompletion> {
        if self.worker.is_none() {
            match Worker::start(Arc::clone(&self.file), Arc::clone(&self.bell)) {
                Ok(worker) => self.worker = Some(worker),
                Err(error) => tracing::warn!(%error, "No thread for slow disk requests"),
            }
        }
        let request = match &self.worker {
            Some(worker) => match worker.requests.send((tag, request)) {
                Ok(()) => {
                    self.pending += 1;
                    return None;
                }
                Err(refused) => refused.0.1,
            },
            None => request,
        };
        Some(run(&self.file, tag, request, &mut BouncePool::default()))
    }

    /// Appends what is done.
    pub(super) fn collect(&mut self, into: &mut Vec<DiskCompletion>) {
        let Some(worker) = &self.worker else {
            return;
        };
        while let Ok(completion) = worker.results.try_recv() {
            self.pending = self.pending.saturating_sub(1);
            into.push(completion);
        }
    }

    /// Waits until everything is done, and appends it.
    pub(super) fn wait(&mut self, into: &mut Vec<DiskCompletion>) -> io::Result<()> {
        while self.pending > 0 {
            let received = self.worker.as_ref().map(|worker| worker.results.recv());
            let Some(Ok(completion)) = received else {
                return Err(io::Error::other("The thread for slow disk requests died"));
            };
            self.pending -= 1;
            into.push(completion);
        }
        Ok(())
    }
}

impl Worker {
    fn start(file: Arc<RawFile>, bell: Arc<Doorbell>) -> io::Result<Self> {
        let (requests, incoming) = channel::<(u32, DiskRequest)>();
        let (outgoing, results) = channel();
        let thread = Builder::new().name("disk-slow".to_owned()).spawn(move || {
            let mut pool = BouncePool::default();
            while let Ok((tag, request)) = incoming.recv() {
                let completion = run(&file, tag, request, &mut pool);
                if outgoing.send(completion).is_err() {
                    return;
                }
                bell.ring();
            }
        })?;
        Ok(Self {
            requests,
            results,
            thread,
        })
    }
}

impl Drop for SlowLane {
    fn drop(&mut self) {
        if let Some(worker) = self.worker.take() {
            drop(worker.requests);
            // It panicked: then it has said so, and there is nothing to wait for.
            let _ = worker.thread.join();
        }
    }
}

fn run(file: &RawFile, tag: u32, request: DiskRequest, pool: &mut BouncePool) -> DiskCompletion {
    let (result, buffer) = file.run(request, pool);
    DiskCompletion {
        tag,
        result,
        buffer,
    }
}
