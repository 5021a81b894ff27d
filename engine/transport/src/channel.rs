// SPDX-License-Identifier: Apache-2.0
//! A connection, whatever carries it.

use std::fmt;
use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

/// Bytes in both directions, in order. One thread may receive while another sends; neither waits
/// for the other, so two sides that both send and receive never wait for each other.
pub trait Channel: fmt::Debug + Send + Sync {
    /// Waits for bytes and takes some. 0: the other side has ended its direction, in good order.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] or [`io::ErrorKind::TimedOut`] when nothing came for as long
    /// as [`Self::set_receive_patience`] says; [`io::ErrorKind::UnexpectedEof`] when the connection
    /// was cut; a [`crate::TlsError`] inside the error when the session failed.
    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Sends all of it.
    ///
    /// # Errors
    /// As [`Self::receive`], when the other side takes nothing for as long as
    /// [`Self::set_send_patience`] says. Some of it may have been sent.
    fn send(&self, bytes: &[u8]) -> io::Result<()>;

    /// How long [`Self::receive`] waits at most; more than zero.
    ///
    /// # Errors
    /// The socket failed.
    fn set_receive_patience(&self, patience: Duration) -> io::Result<()>;

    /// How long [`Self::send`] waits at most for the other side to take something; more than zero.
    ///
    /// # Errors
    /// The socket failed.
    fn set_send_patience(&self, patience: Duration) -> io::Result<()>;

    /// Ends this side's direction after what was sent; the other side's goes on.
    fn finish(&self);

    /// Ends both directions at once, also for a thread that waits in one of them.
    fn shut(&self);
}

/// A shared [`Channel`].
#[derive(Debug, Clone)]
pub struct Connection(Arc<dyn Channel>);

impl Connection {
    pub(crate) fn new(channel: impl Channel + 'static) -> Self {
        Self(Arc::new(channel))
    }
}

impl std::ops::Deref for Connection {
    type Target = dyn Channel;

    fn deref(&self) -> &Self::Target {
        self.0.as_ref()
    }
}

impl Read for Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.receive(buffer)
    }
}
