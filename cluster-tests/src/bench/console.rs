// SPDX-License-Identifier: Apache-2.0
//! The outside of a measured guest: what it prints, and how long it takes to answer.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// Nothing here takes longer on a sound machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A console sink that is read by the measurement itself.
#[derive(Debug)]
pub struct Console {
    listener: TcpListener,
    stream: Option<TcpStream>,
}

impl Console {
    /// Listens on loopback.
    ///
    /// # Errors
    /// When no port can be had.
    pub fn listen() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("Cannot listen on loopback")?;
        Ok(Self {
            listener,
            stream: None,
        })
    }

    /// `tcp:HOST:PORT`, for the description of a VM.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn sink(&self) -> Result<String> {
        Ok(format!("tcp:{}", self.listener.local_addr()?))
    }

    /// Waits until the guest has printed this.
    ///
    /// # Errors
    /// When the engine ends or says something else for too long.
    pub fn wait_for(&mut self, words: &str) -> Result<()> {
        let begun = Instant::now();
        let mut seen = Vec::new();
        while !String::from_utf8_lossy(&seen).contains(words) {
            ensure!(
                begun.elapsed() < PATIENCE,
                "The guest did not print {words:?}, but {:?}",
                String::from_utf8_lossy(&seen)
            );
            seen.push(self.read_byte()?);
        }
        Ok(())
    }

    /// Types a byte and waits until the guest has printed it.
    ///
    /// # Errors
    /// When the connection ends or nothing comes.
    pub fn echo(&mut self, byte: u8) -> Result<Duration> {
        let stream = self
            .stream
            .as_mut()
            .context("The engine is not connected")?;
        let begun = Instant::now();
        stream.write_all(&[byte])?;
        while self.read_byte()? != byte {}
        Ok(begun.elapsed())
    }

    /// The next byte, which may be one of a header.
    fn read_byte(&mut self) -> Result<u8> {
        loop {
            if self.stream.is_none() {
                let (stream, _) = self.listener.accept()?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                self.stream = Some(stream);
            }
            let Some(stream) = &mut self.stream else {
                continue;
            };
            let mut byte = [0];
            if stream.read(&mut byte).context("The console is silent")? == 1 {
                return Ok(byte[0]);
            }
            // The generation has changed: the engine connects again.
            self.stream = None;
        }
    }
}
