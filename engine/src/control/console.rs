// SPDX-License-Identifier: Apache-2.0
//! Terminals that are attached to the guest's console.
//!
//! Each is one task on the control thread: it reads the history and sends, and hands what was typed
//! to the typist. None can hold up the guest, the outputs or each other.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use kemari_api::Role;
use kemari_api::console::{PIECE_BYTES_MAX, piece};
use kemari_api::replica::ReplicaStatus;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;

use crate::conductor::ConductorHandle;
use crate::outputs::{Cursor, History, Next, Typist};

/// Typed bytes that are taken from a terminal at once.
const TYPED_BYTES: usize = 256;

/// The console of this replica, for terminals.
#[derive(Debug, Clone)]
pub struct Consoles {
    history: Arc<History>,
    typist: Typist,
    /// How many terminals are attached.
    attached: watch::Sender<usize>,
    /// The engine ends.
    closing: watch::Sender<bool>,
}

impl Consoles {
    /// Nobody is attached.
    pub fn new(history: Arc<History>, typist: Typist) -> Self {
        Self {
            history,
            typist,
            attached: watch::Sender::new(0),
            closing: watch::Sender::new(false),
        }
    }

    /// Attaches a terminal, whose end of the connection is returned.
    ///
    /// # Errors
    /// Why there is no console here, or that the process has no more file descriptors.
    pub fn attach(&self, conductor: &ConductorHandle, from: u64) -> Result<OwnedFd, String> {
        no_console(&conductor.status()).map_or(Ok(()), Err)?;
        let connect = || {
            let (ours, theirs) = UnixStream::pair()?;
            Ok((ours, theirs.into_std()?))
        };
        let (ours, theirs) = connect()
            .map_err(|error: io::Error| format!("The console cannot be attached: {error}"))?;
        self.attached.send_modify(|count| *count += 1);
        let attached = Attached(self.attached.clone());
        let terminal = Terminal {
            cursor: self.history.cursor(from),
            history: Arc::clone(&self.history),
            status: conductor.watch(),
            closing: self.closing.subscribe(),
        };
        let typist = self.typist.clone();
        tokio::spawn(async move {
            if let Err(error) = terminal.serve(ours, &typist).await {
                tracing::debug!(%error, "an attached terminal went away");
            }
            drop(attached);
        });
        Ok(theirs.into())
    }

    /// The guest has ended: waits at most this long until its last words are on the terminals' way.
    pub async fn finish(&self, limit: Duration) {
        self.closing.send_replace(true);
        let mut attached = self.attached.subscribe();
        let gone = attached.wait_for(|count| *count == 0);
        let _ = tokio::time::timeout(limit, gone).await;
    }
}

/// Why this replica has no console to show.
fn no_console(status: &ReplicaStatus) -> Option<String> {
    let ReplicaStatus { vm, role, peer, .. } = status;
    match role {
        Role::Active => None,
        Role::Passive if !peer.is_empty() => Some(format!(
            "The replica of VM {vm} on this node is passive and has no console: the active one is \
             on {peer}, attach there"
        )),
        Role::Passive | Role::Waiting | Role::Outdated => Some(format!(
            "The replica of VM {vm} on this node is {role} and has no console: attach where the \
             active one is, which kemarictl status shows"
        )),
    }
}

/// Counts a terminal as long as it is attached.
struct Attached(watch::Sender<usize>);

impl Drop for Attached {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count = count.saturating_sub(1));
    }
}

struct Terminal {
    history: Arc<History>,
    cursor: Cursor,
    status: watch::Receiver<ReplicaStatus>,
    closing: watch::Receiver<bool>,
}

impl Terminal {
    /// Shows and types until the replica is no longer active, the engine ends, or all that was to
    /// be typed is and the terminal was shown what was let out until then.
    async fn serve(self, connection: UnixStream, typist: &Typist) -> io::Result<()> {
        let (typed, shown) = connection.into_split();
        let (tell, all_typed) = watch::channel(false);
        let typing = async {
            let result = type_all(typed, typist).await;
            tell.send_replace(true);
            match result {
                // It may still be shown something.
                Ok(()) => std::future::pending().await,
                Err(error) => Err(error),
            }
        };
        tokio::select! {
            result = typing => result,
            result = self.show(shown, all_typed) => result,
        }
    }

    async fn show(
        mut self,
        mut shown: OwnedWriteHalf,
        mut all_typed: watch::Receiver<bool>,
    ) -> io::Result<()> {
        let mut more = self.history.watch();
        // Once this is over: up to where the stream is shown.
        let mut last: Option<u64> = None;
        loop {
            more.borrow_and_update();
            let over = *all_typed.borrow_and_update()
                || *self.closing.borrow_and_update()
                || self.status.borrow_and_update().role != Role::Active;
            if over {
                last.get_or_insert_with(|| self.history.end());
            }
            if last.is_some_and(|last| self.cursor.position() >= last) {
                return Ok(());
            }
            match self.history.next(&mut self.cursor, PIECE_BYTES_MAX) {
                Next::Bytes { position, bytes } => {
                    let piece = piece(position, &bytes).unwrap_or_default();
                    shown.write_all(&piece).await?;
                }
                Next::Ended => return Ok(()),
                Next::Nothing => {
                    let changed = tokio::select! {
                        changed = more.changed() => changed,
                        changed = all_typed.changed() => changed,
                        changed = self.closing.changed() => changed,
                        changed = self.status.changed() => changed,
                    };
                    if changed.is_err() {
                        // What tells of changes is gone: so is the replica.
                        last.get_or_insert_with(|| self.history.end());
                    }
                }
            }
        }
    }
}

async fn type_all(mut typed: OwnedReadHalf, typist: &Typist) -> io::Result<()> {
    let mut buffer = [0; TYPED_BYTES];
    loop {
        let count = typed.read(&mut buffer).await?;
        match buffer.get(..count) {
            None | Some([]) => return Ok(()),
            Some(bytes) => typist.type_bytes(bytes.to_owned()).await,
        }
    }
}
