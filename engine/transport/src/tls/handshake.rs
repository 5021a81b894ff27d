// SPDX-License-Identifier: Apache-2.0
//! From a socket to a session, until a deadline.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::channel::TlsChannel;
use super::{Means, TlsError};
use crate::{Connection, left};

/// How long a refused side may take to hear why.
const LAST_WORD: Duration = Duration::from_millis(500);

/// Makes the session. Whatever the other side does, it ends soon after `deadline`.
pub(super) fn run(
    mut session: rustls::Connection,
    socket: TcpStream,
    deadline: Instant,
    means: &Arc<Means>,
) -> Result<Connection, TlsError> {
    let begun = Instant::now();
    let broken = |error: io::Error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            TlsError::Slow(deadline.saturating_duration_since(begun))
        }
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::BrokenPipe => TlsError::Closed,
        _ => TlsError::Io(error.to_string()),
    };
    while session.is_handshaking() || session.wants_write() {
        if Instant::now() >= deadline {
            return Err(broken(io::ErrorKind::TimedOut.into()));
        }
        if let Err(error) = step(&mut session, &socket, deadline) {
            return Err(match error {
                Failure::Io(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Failure::Io(error) => broken(error),
                Failure::Tls(error) => {
                    say_why(&mut session, &socket);
                    TlsError::of(&error, means)
                }
            });
        }
    }
    Ok(Connection::new(TlsChannel::new(
        session,
        socket,
        Arc::clone(means),
    )))
}

enum Failure {
    Io(io::Error),
    Tls(rustls::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// One write or one read.
fn step(
    session: &mut rustls::Connection,
    mut socket: &TcpStream,
    deadline: Instant,
) -> Result<(), Failure> {
    if session.wants_write() {
        socket.set_write_timeout(Some(left(deadline)))?;
        session.write_tls(&mut socket)?;
        return Ok(());
    }
    socket.set_read_timeout(Some(left(deadline)))?;
    if session.read_tls(&mut socket)? == 0 {
        return Err(Failure::Io(io::ErrorKind::UnexpectedEof.into()));
    }
    session.process_new_packets().map_err(Failure::Tls)?;
    Ok(())
}

/// Sends the alert that tells the other side what is wrong. A socket that is closed while something
/// lies unread in it takes back what it has sent, so this waits for the other side to close it.
fn say_why(session: &mut rustls::Connection, mut socket: &TcpStream) {
    let deadline = Instant::now() + LAST_WORD;
    let mut try_it = || -> io::Result<()> {
        socket.set_write_timeout(Some(LAST_WORD))?;
        while session.wants_write() {
            session.write_tls(&mut socket)?;
        }
        socket.flush()?;
        socket.shutdown(Shutdown::Write)?;
        let mut rest = [0; 4096];
        while Instant::now() < deadline {
            socket.set_read_timeout(Some(left(deadline)))?;
            if socket.read(&mut rest)? == 0 {
                break;
            }
        }
        Ok(())
    };
    // Then it hears less.
    let _ = try_it();
}
