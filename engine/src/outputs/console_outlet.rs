// SPDX-License-Identifier: Apache-2.0
//! An open console sink: a file, or a stream that speaks the console stream protocol.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::Duration;

use kemari_api::config::ConsoleSink;
use kemari_api::{Generation, NodeName, VmName};

use super::InputSlot;
use crate::sandbox;

/// A stream that takes nothing for this long is opened anew.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection that is not accepted within this time is tried again.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Where the console goes, ready to be opened by an engine that can open no files any more.
#[derive(Debug)]
pub struct Sink {
    to: ConsoleSink,
    file: Option<File>,
}

impl Sink {
    /// Opens what is a file; streams are opened when there is output.
    pub fn prepare(to: ConsoleSink) -> Self {
        let file = match &to {
            ConsoleSink::File(path) => match append_to(path) {
                Ok(file) => Some(file),
                Err(error) => {
                    tracing::warn!(sink = %to, %error, "cannot open the console's file now");
                    None
                }
            },
            ConsoleSink::None | ConsoleSink::Unix(_) | ConsoleSink::Tcp(_) => None,
        };
        Self { to, file }
    }
}

impl fmt::Display for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to.fmt(f)
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

/// Somewhere bytes can be written.
#[derive(Debug)]
pub enum Outlet {
    /// Nowhere.
    Discard,
    /// The end of a file.
    File(File),
    /// A listener on a Unix socket.
    Unix(UnixStream),
    /// A listener on a TCP port.
    Tcp(TcpStream),
}

/// What a stream's header line says.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The VM.
    pub vm: VmName,
    /// This node.
    pub node: NodeName,
}

impl Outlet {
    /// Opens a sink; a stream then carries bytes from `position` on, under `generation`, and what
    /// comes back on it is typed at the console.
    pub fn open(
        sink: &Sink,
        origin: &Origin,
        generation: Generation,
        position: u64,
        input: &InputSlot,
    ) -> io::Result<Self> {
        let header = format!(
            "KEMARI-CONSOLE 1 vm={} node={} generation={generation} position={position}\n",
            origin.vm, origin.node
        );
        match &sink.to {
            ConsoleSink::None => Ok(Self::Discard),
            ConsoleSink::File(path) => match &sink.file {
                Some(file) => file.try_clone().map(Self::File),
                None => append_to(path).map(Self::File),
            },
            ConsoleSink::Unix(path) => {
                let mut stream = UnixStream::connect(path)?;
                stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
                stream.write_all(header.as_bytes())?;
                forward_input(stream.try_clone()?, input.clone())?;
                Ok(Self::Unix(stream))
            }
            ConsoleSink::Tcp(address) => {
                let mut stream = connect(address)?;
                stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
                stream.set_nodelay(true)?;
                stream.write_all(header.as_bytes())?;
                forward_input(stream.try_clone()?, input.clone())?;
                Ok(Self::Tcp(stream))
            }
        }
    }

    /// Writes all of it.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Discard => Ok(()),
            Self::File(file) => file.write_all(bytes),
            Self::Unix(stream) => stream.write_all(bytes),
            Self::Tcp(stream) => stream.write_all(bytes),
        }
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        // The thread that reads the stream holds a copy of it.
        match self {
            Self::Discard | Self::File(_) => {}
            Self::Unix(stream) => drop(stream.shutdown(std::net::Shutdown::Both)),
            Self::Tcp(stream) => drop(stream.shutdown(std::net::Shutdown::Both)),
        }
    }
}

fn connect(address: &str) -> io::Result<TcpStream> {
    let mut last = io::Error::other("the name has no address");
    for place in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&place, CONNECT_TIMEOUT) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn forward_input(mut stream: impl Read + Send + 'static, input: InputSlot) -> io::Result<()> {
    thread::Builder::new()
        .name("console-input".into())
        .spawn(move || {
            sandbox::enter(sandbox::Kind::ConsoleInput);
            let mut buffer = [0; 256];
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                // The sender is held back by its socket.
                input.push_all(buffer.get(..length).unwrap_or_default(), || true);
            }
        })
        .map(drop)
}
