// SPDX-License-Identifier: Apache-2.0
//! A connection that ends after a given number of bytes, wherever that is in a frame.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;

use crate::replica_process::PATIENCE;

/// Forwards one connection and cuts it; refuses later ones.
pub struct Cutter {
    /// Where to connect.
    pub address: String,
    cut: mpsc::Receiver<()>,
}

impl Cutter {
    /// Forwards to `kemari:tcp:HOST:PORT` and cuts after so many bytes in that direction.
    pub fn start(to: &str, bytes: usize) -> Self {
        let target = to.strip_prefix("kemari:tcp:").unwrap().to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("kemari:tcp:{}", listener.local_addr().unwrap());
        let (done, cut) = mpsc::channel();
        thread::spawn(move || {
            let (from, _) = listener.accept().unwrap();
            drop(listener);
            let to = TcpStream::connect(target).unwrap();
            let (mut back_from, mut back_to) = (to.try_clone().unwrap(), from.try_clone().unwrap());
            thread::spawn(move || std::io::copy(&mut back_from, &mut back_to));
            forward(from, to, bytes);
            let _ = done.send(());
        });
        Self { address, cut }
    }

    /// Waits until it was cut.
    pub fn wait_cut(&self) {
        self.cut.recv_timeout(PATIENCE).unwrap();
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream, mut left: usize) {
    let mut buffer = vec![0; 64 * 1024];
    while left > 0 {
        let room = buffer.len().min(left);
        match from.read(&mut buffer[..room]) {
            Ok(0) | Err(_) => break,
            Ok(length) => {
                to.write_all(&buffer[..length]).unwrap();
                left -= length;
            }
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
