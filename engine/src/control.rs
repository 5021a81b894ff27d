// SPDX-License-Identifier: Apache-2.0
//! The control socket: `org.kemari.Replica1`, spoken peer to peer.
//!
//! Each connection is a D-Bus connection of its own. The socket is made under a temporary name and
//! renamed into place once it listens, so whoever sees it can connect, and is answered as soon as
//! the machine is made. The engine holds a lock beside it: a second engine for the same VM is
//! refused, the socket of a dead one replaced. A sandboxed engine may not write to the directory
//! any more and leaves its socket behind; a socket that refuses connections means the same as none.

mod console;
mod interface;
mod monitor;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use futures_util::StreamExt;
use kemari_api::{VmName, place, replica};
use nix::fcntl::{Flock, FlockArg};
use thiserror::Error;
use tokio::net::{UnixListener, UnixStream};
use zbus::MessageStream;

use crate::conductor::ConductorHandle;
pub use console::Consoles;
use interface::Interface;

/// The control socket could not be made.
#[derive(Debug, Error)]
pub enum ControlError {
    /// Another engine runs this VM on this node.
    #[error("Another engine already runs VM {vm} on this node (it holds {}); stop it first",
        lock.display())]
    InUse {
        /// The VM.
        vm: VmName,
        /// The lock file.
        lock: PathBuf,
    },
    /// The directory or the socket could not be made.
    #[error("Cannot make the control socket {}", path.display())]
    Io {
        /// The path at fault.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The socket, before and while it is served. Dropping it removes it.
#[derive(Debug)]
pub struct ControlSocket {
    path: PathBuf,
    listener: UnixListener,
    _lock: Flock<File>,
}

impl ControlSocket {
    /// Takes the VM's name on this node and makes the socket visible.
    pub fn bind(vm: &VmName) -> Result<Self, ControlError> {
        let path = place::control_socket(vm);
        let io_error = |path: &PathBuf| {
            let path = path.clone();
            move |source| ControlError::Io { path, source }
        };
        let directory = place::run_dir();
        fs::create_dir_all(&directory).map_err(io_error(&directory))?;
        let lock = lock(vm)?;
        let new = path.with_extension(format!("sock.{}", std::process::id()));
        let listener = UnixListener::bind(&new).map_err(io_error(&new))?;
        fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).map_err(io_error(&new))?;
        fs::rename(&new, &path).map_err(io_error(&path))?;
        Ok(Self {
            path,
            listener,
            _lock: lock,
        })
    }

    /// Serves connections for ever.
    pub async fn serve(&self, conductor: ConductorHandle, consoles: Consoles) {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    tokio::spawn(converse(stream, conductor.clone(), consoles.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "control socket: cannot accept a connection");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn lock(vm: &VmName) -> Result<Flock<File>, ControlError> {
    let path = place::run_dir().join(format!("{vm}.lock"));
    let file = File::create(&path).map_err(|source| ControlError::Io {
        path: path.clone(),
        source,
    })?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| ControlError::InUse {
        vm: vm.clone(),
        lock: path,
    })
}

/// One connection, until the other side closes it.
async fn converse(stream: UnixStream, conductor: ConductorHandle, consoles: Consoles) {
    if let Err(error) = try_converse(stream, conductor, consoles).await {
        tracing::debug!(%error, "control socket: connection ended");
    }
}

async fn try_converse(
    stream: UnixStream,
    conductor: ConductorHandle,
    consoles: Consoles,
) -> zbus::Result<()> {
    let stream = stream
        .into_std()
        .map_err(|error| zbus::Error::InputOutput(error.into()))?;
    let mut status = conductor.watch();
    status.mark_unchanged();
    let connection = zbus::connection::Builder::unix_stream(stream)
        .server(zbus::Guid::generate())
        .p2p()
        .serve_at(replica::PATH, Interface::new(conductor, consoles))
        .build()
        .await?;
    // Whatever else arrives is answered by the object server; the stream tells of the end.
    let mut messages = MessageStream::from(&connection);
    loop {
        tokio::select! {
            message = messages.next() => match message {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error),
                None => return Ok(()),
            },
            changed = status.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                let now = status.borrow_and_update().clone();
                let interface = connection
                    .object_server()
                    .interface::<_, Interface>(replica::PATH)
                    .await?;
                Interface::changed(interface.signal_emitter(), now).await?;
            }
        }
    }
}
