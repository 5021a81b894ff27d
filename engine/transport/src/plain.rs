// SPDX-License-Identifier: Apache-2.0
//! Sockets whose bytes are the channel's bytes: TCP and Unix.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::Channel;

/// A socket that carries a channel.
#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Tcp(socket) => Self::Tcp(socket.try_clone()?),
            Self::Unix(socket) => Self::Unix(socket.try_clone()?),
        })
    }
}

impl Channel for Socket {
    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => (&mut &*socket).read(buffer),
            Self::Unix(socket) => (&mut &*socket).read(buffer),
        }
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => (&mut &*socket).write_all(bytes),
            Self::Unix(socket) => (&mut &*socket).write_all(bytes),
        }
    }

    fn set_receive_patience(&self, patience: Duration) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => socket.set_read_timeout(Some(patience)),
            Self::Unix(socket) => socket.set_read_timeout(Some(patience)),
        }
    }

    fn set_send_patience(&self, patience: Duration) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => socket.set_write_timeout(Some(patience)),
            Self::Unix(socket) => socket.set_write_timeout(Some(patience)),
        }
    }

    fn finish(&self) {
        self.end(Shutdown::Write);
    }

    fn shut(&self) {
        self.end(Shutdown::Both);
    }
}

impl Socket {
    /// A socket that is no longer connected has ended already.
    fn end(&self, how: Shutdown) {
        let _ = match self {
            Self::Tcp(socket) => socket.shutdown(how),
            Self::Unix(socket) => socket.shutdown(how),
        };
    }
}
