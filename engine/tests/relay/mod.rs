// SPDX-License-Identifier: Apache-2.0
//! A network between two engines, at an address of its own, that a test can cut or silence.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

/// How long a thread looks away from the network's state.
const GLANCE: Duration = Duration::from_millis(5);

const OPEN: u8 = 0;
const SILENT: u8 = 1;
const CUT: u8 = 2;
const GONE: u8 = 3;

/// Forwards connections as long as it is open. Dropping it ends them.
pub struct Relay {
    /// Where to connect, as `kemari:tcp:HOST:PORT`.
    pub address: String,
    state: Arc<AtomicU8>,
}

impl Relay {
    /// Forwards from a port of this loopback address to `kemari:tcp:HOST:PORT`.
    pub fn start(host: &str, to: &str) -> Self {
        let target = to.strip_prefix("kemari:tcp:").unwrap().to_owned();
        let state = Arc::new(AtomicU8::new(OPEN));
        let (tell, told) = mpsc::channel();
        let (host, shared) = (host.to_owned(), Arc::clone(&state));
        thread::spawn(move || {
            let first = TcpListener::bind((host.as_str(), 0)).unwrap();
            let place = first.local_addr().unwrap();
            tell.send(place).unwrap();
            accept(first, place, &target, &shared);
        });
        Self {
            address: format!("kemari:tcp:{}", told.recv().unwrap()),
            state,
        }
    }

    /// Ends every connection and refuses new ones.
    pub fn cut(&self) {
        self.state.store(CUT, Ordering::SeqCst);
    }

    /// From now on nothing gets through, and nobody is told.
    pub fn silence(&self) {
        self.state.store(SILENT, Ordering::SeqCst);
    }

    /// Everything gets through again.
    pub fn open(&self) {
        self.state.store(OPEN, Ordering::SeqCst);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.state.store(GONE, Ordering::SeqCst);
    }
}

fn accept(first: TcpListener, place: SocketAddr, target: &str, state: &Arc<AtomicU8>) {
    let mut listener = Some(first);
    loop {
        thread::sleep(GLANCE);
        match state.load(Ordering::SeqCst) {
            GONE => return,
            CUT => listener = None,
            _ => {
                let listener = listener.get_or_insert_with(|| TcpListener::bind(place).unwrap());
                listener.set_nonblocking(true).unwrap();
                while let Ok((from, _)) = listener.accept() {
                    from.set_nonblocking(false).unwrap();
                    let to = TcpStream::connect(target).unwrap();
                    forward(&from, &to, state);
                    forward(&to, &from, state);
                }
            }
        }
    }
}

fn forward(from: &TcpStream, to: &TcpStream, state: &Arc<AtomicU8>) {
    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
    let state = Arc::clone(state);
    from.set_read_timeout(Some(GLANCE)).unwrap();
    to.set_nodelay(true).unwrap();
    thread::spawn(move || {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match state.load(Ordering::SeqCst) {
                OPEN => {}
                SILENT => {
                    thread::sleep(GLANCE);
                    continue;
                }
                _ => break,
            }
            match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) if to.write_all(&buffer[..length]).is_err() => break,
                Ok(_) => {}
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(_) => break,
            }
        }
        let _ = to.shutdown(Shutdown::Both);
        let _ = from.shutdown(Shutdown::Both);
    });
}
