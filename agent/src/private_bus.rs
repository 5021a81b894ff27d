// SPDX-License-Identifier: Apache-2.0
//! A bus of a test's own: a real dbus-daemon that nobody else knows of.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

/// Ends with its owner.
pub(crate) struct PrivateBus {
    daemon: Child,
    address: String,
}

impl PrivateBus {
    /// `None`, and a word about it, on a machine without dbus-daemon.
    pub fn start() -> Option<Self> {
        let daemon = Command::new("dbus-daemon")
            .args(["--session", "--nofork", "--nopidfile", "--print-address"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn();
        let Ok(mut daemon) = daemon else {
            eprintln!("SKIPPED: this machine has no dbus-daemon");
            return None;
        };
        let mut address = String::new();
        let stdout = daemon.stdout.take().expect("it is a pipe");
        BufReader::new(stdout)
            .read_line(&mut address)
            .expect("dbus-daemon prints its address");
        Some(Self {
            daemon,
            address: address.trim().to_owned(),
        })
    }

    /// Its address, for programs.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// For a connection to it.
    pub fn builder(&self) -> zbus::connection::Builder<'_> {
        zbus::connection::Builder::address(self.address.as_str())
    }

    /// A connection.
    pub async fn connect(&self) -> zbus::Connection {
        self.builder().build().await.expect("the bus runs")
    }
}

impl Drop for PrivateBus {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}
