// SPDX-License-Identifier: Apache-2.0
//! A TLS session used by two threads.
//!
//! rustls keeps both directions in one state machine. It is locked only to encrypt or decrypt at
//! most [`PIECE_BYTES`], which takes some ten microseconds, and never while a thread waits for the
//! socket. So a sender whose bytes the other side does not take does not keep the receiver from
//! receiving, and the sockets' own time-outs go on to find a dead peer.
//!
//! ```text
//!  sender:    [outgoing    lock session: encrypt a piece, unlock ─▶ socket, may wait ]
//!  receiver:  [incoming    socket, may wait ─▶ lock session: decrypt a piece, unlock ]
//! ```
//!
//! Each direction has a lock of its own, taken first, so that two senders cannot mix records; the
//! session's lock is always the inner one. The receiver writes to the socket only to say why it
//! gives up, and only if no sender is at work.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Means, TlsError};
use crate::Channel;

/// How much is encrypted or decrypted at a time: four records.
const PIECE_BYTES: usize = 64 * 1024;
/// How much is read from the socket at a time.
const READ_BYTES: usize = 128 * 1024;

/// A session and its socket.
#[derive(Debug)]
pub(super) struct TlsChannel {
    socket: TcpStream,
    session: Mutex<rustls::Connection>,
    /// Encrypted, on its way to the socket; empty between two calls.
    outgoing: Mutex<Vec<u8>>,
    incoming: Mutex<Incoming>,
    means: Arc<Means>,
}

impl TlsChannel {
    pub(super) fn new(
        mut session: rustls::Connection,
        socket: TcpStream,
        means: Arc<Means>,
    ) -> Self {
        // What is written goes on at once; a piece and its records' frames must fit.
        session.set_buffer_limit(None);
        Self {
            socket,
            session: Mutex::new(session),
            outgoing: Mutex::new(Vec::new()),
            incoming: Mutex::new(Incoming::new()),
            means,
        }
    }

    /// Decrypts what is there. `None`: more must come first.
    fn decrypt(&self, incoming: &mut Incoming, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let mut session = lock(&self.session);
        let mut filled = 0;
        loop {
            let room = buffer.get_mut(filled..).unwrap_or_default();
            match session.reader().read(room) {
                // Full, or the end.
                Ok(0) => return Ok(Some(filled)),
                Ok(length) => {
                    filled += length;
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) if filled > 0 => return Ok(Some(filled)),
                Err(error) => return Err(error),
            }
            if incoming.is_used_up() {
                return Ok((filled > 0).then_some(filled));
            }
            session.read_tls(incoming)?;
            if let Err(error) = session.process_new_packets() {
                self.give_up(&mut session);
                return Err(io::Error::other(TlsError::of(&error, &self.means)));
            }
        }
    }

    /// Tells the other side what is wrong, if it can be told now.
    fn give_up(&self, session: &mut rustls::Connection) {
        let Ok(mut outgoing) = self.outgoing.try_lock() else {
            return;
        };
        let _ = encrypted(session, &mut outgoing).and_then(|()| self.write_out(&mut outgoing));
    }

    fn write_out(&self, outgoing: &mut Vec<u8>) -> io::Result<()> {
        let written = (&mut &self.socket).write_all(outgoing);
        outgoing.clear();
        written
    }
}

/// Moves what the session has to send to where the socket takes it from.
fn encrypted(session: &mut rustls::Connection, outgoing: &mut Vec<u8>) -> io::Result<()> {
    while session.wants_write() {
        session.write_tls(outgoing)?;
    }
    Ok(())
}

impl Channel for TlsChannel {
    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut incoming = lock(&self.incoming);
        let length = buffer.len().min(PIECE_BYTES);
        let piece = buffer.get_mut(..length).unwrap_or_default();
        loop {
            if let Some(length) = self.decrypt(&mut incoming, piece)? {
                return Ok(length);
            }
            incoming.read_from(&self.socket)?;
        }
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let mut outgoing = lock(&self.outgoing);
        for piece in bytes.chunks(PIECE_BYTES) {
            {
                let mut session = lock(&self.session);
                session.writer().write_all(piece)?;
                encrypted(&mut session, &mut outgoing)?;
            }
            self.write_out(&mut outgoing)?;
        }
        Ok(())
    }

    fn set_receive_patience(&self, patience: Duration) -> io::Result<()> {
        self.socket.set_read_timeout(Some(patience))
    }

    fn set_send_patience(&self, patience: Duration) -> io::Result<()> {
        self.socket.set_write_timeout(Some(patience))
    }

    fn finish(&self) {
        let mut outgoing = lock(&self.outgoing);
        let said = {
            let mut session = lock(&self.session);
            session.send_close_notify();
            encrypted(&mut session, &mut outgoing)
        };
        // Where it cannot be said any more, the end of the stream says it.
        let _ = said.and_then(|()| self.write_out(&mut outgoing));
        let _ = self.socket.shutdown(Shutdown::Write);
    }

    fn shut(&self) {
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

/// A thread that panicked has not left a lock's content half changed: rustls and the buffers are
/// whole between calls.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Encrypted bytes from the socket; rustls alone would ask for 4 KiB at a time.
#[derive(Debug)]
struct Incoming {
    bytes: Vec<u8>,
    from: usize,
    to: usize,
    ended: bool,
}

impl Incoming {
    fn new() -> Self {
        Self {
            bytes: vec![0; READ_BYTES],
            from: 0,
            to: 0,
            ended: false,
        }
    }

    /// Nothing is left to decrypt, and the end has not come.
    fn is_used_up(&self) -> bool {
        self.from == self.to && !self.ended
    }

    /// Waits for more, once everything is used up.
    fn read_from(&mut self, mut socket: &TcpStream) -> io::Result<()> {
        self.from = 0;
        self.to = 0;
        self.to = socket.read(&mut self.bytes)?;
        self.ended = self.to == 0;
        Ok(())
    }
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let there = self.bytes.get(self.from..self.to).unwrap_or_default();
        let length = there.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..length), there.get(..length)) {
            to.copy_from_slice(from);
        }
        self.from += length;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;
    use std::time::Instant;

    use kemari_api::cluster_key::{ClusterKeys, ClusterSecret, Fingerprint};
    use rustls::crypto::CryptoProvider;
    use rustls::{CipherSuiteCommon, SupportedCipherSuite, Tls13CipherSuite};

    use super::super::{Tls, provider, raw_key};
    use super::*;

    /// So many records may be encrypted with one key: a link that lives for long reaches the real
    /// limit, 2^24 (RFC 8446, 5.5).
    const RECORDS_A_KEY: u64 = 8;
    const BYTES: usize = 8 << 20;

    fn short_lived_keys() -> CryptoProvider {
        let suite = provider().cipher_suites[0].tls13().unwrap();
        let short = Tls13CipherSuite {
            common: CipherSuiteCommon {
                confidentiality_limit: RECORDS_A_KEY,
                ..suite.common
            },
            ..*suite
        };
        CryptoProvider {
            cipher_suites: vec![SupportedCipherSuite::Tls13(Box::leak(Box::new(short)))],
            ..provider()
        }
    }

    #[test]
    fn keys_are_renewed_under_way_in_both_directions() {
        let secret = ClusterSecret::generate().unwrap();
        let keys = ClusterKeys::of(secret);
        let (client, server) = raw_key::configs(&keys, short_lived_keys()).unwrap();
        let means = Means::ClusterKey {
            path: "cluster.key".into(),
            shown: Fingerprint::of(b""),
            accepted: Vec::new(),
        };
        let tls = Tls::of(client, server, means);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let place = listener.local_addr().unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        let accepting = tls.clone();
        let there = thread::spawn(move || {
            let (socket, _) = listener.accept().unwrap();
            accepting.accept(socket, deadline).unwrap()
        });
        let socket = TcpStream::connect(place).unwrap();
        let here = tls.connect(socket, "localhost", deadline).unwrap();
        let there = there.join().unwrap();
        thread::scope(|scope| {
            for (from, to) in [(&here, &there), (&there, &here)] {
                scope.spawn(move || from.send(&vec![0x5a; BYTES]).unwrap());
                scope.spawn(move || {
                    let mut received = vec![0; BYTES];
                    to.clone().read_exact(&mut received).unwrap();
                    assert!(received.iter().all(|byte| *byte == 0x5a));
                });
            }
        });
    }
}
