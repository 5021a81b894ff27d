// SPDX-License-Identifier: Apache-2.0
//! The power switch that Pacemaker's fence agent `fence_bed` talks to: TCP, one request line, one answer line.
//!
//! It listens on the outside world's address, in the cluster's network, so that a node without cables cannot
//! fence. `off` and `reboot` answer when the node has no power any more; a reboot's power-on goes on afterwards.
//! Requests are `list`, and `status`, `on`, `off`, `reboot` with a node's name. Answers are names, `on`, `off`,
//! `ok`, or `error` with the reason.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::socket::{Shutdown, shutdown};

/// The TCP port on the outside world's address.
pub const FENCING_PORT: u16 = 7001;

/// The fence agent has given up by then.
const HELD_MAX: Duration = Duration::from_secs(60);

/// What a power switch can do to the nodes of a bed.
pub trait Power: Send + Sync {
    /// The nodes' names.
    fn nodes(&self) -> Vec<String>;
    /// Takes a node's power; returns when it is gone. Already off is fine.
    fn off(&self, node: &str) -> Result<()>;
    /// Gives a node power; may wait until it has booted. Already on is fine.
    fn on(&self, node: &str) -> Result<()>;
    /// Whether a node has power.
    fn is_on(&self, node: &str) -> Result<bool>;
}

/// One request that was answered.
#[derive(Debug, Clone)]
pub struct Request {
    /// The request line, e.g. `reboot node1`.
    pub line: String,
    /// The answer line.
    pub answer: String,
    /// When it came in.
    pub received: Instant,
    /// When it was answered.
    pub answered: Instant,
}

/// How the switch serves requests that take power.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Manner {
    /// At once.
    #[default]
    Prompt,
    /// Not before the manner is another one; `fence_bed` waits for 60 s.
    Held,
    /// Not at all.
    Broken,
}

type Log = Arc<Mutex<Vec<Request>>>;

/// A running power switch; stops listening when dropped.
#[derive(Debug)]
pub struct FencingServer {
    listener: TcpListener,
    log: Log,
    manner: Arc<Mutex<Manner>>,
    thread: Option<JoinHandle<()>>,
}

impl FencingServer {
    /// Answers requests on `listener` until dropped.
    pub fn serve(listener: TcpListener, power: Arc<dyn Power>) -> Result<Self> {
        let log = Log::default();
        let manner = Arc::<Mutex<Manner>>::default();
        let (accepting, requests) = (listener.try_clone()?, Arc::clone(&log));
        let present = Arc::clone(&manner);
        let thread = std::thread::Builder::new()
            .name("fencing".into())
            .spawn(move || {
                while let Ok((client, _)) = accepting.accept() {
                    let (power, requests) = (Arc::clone(&power), Arc::clone(&requests));
                    let manner = Arc::clone(&present);
                    // A slow reboot of one node must not hold up the fencing of another.
                    std::thread::spawn(move || answer(&client, &power, &manner, &requests));
                }
            })
            .context("Cannot start a thread")?;
        Ok(Self {
            listener,
            log,
            manner,
            thread: Some(thread),
        })
    }

    /// How requests that come from now on are served.
    pub fn set_manner(&self, manner: Manner) {
        *self.manner.lock().unwrap_or_else(PoisonError::into_inner) = manner;
    }

    /// Every request so far, in the order of the answers.
    pub fn requests(&self) -> Vec<Request> {
        self.log
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Drop for FencingServer {
    fn drop(&mut self) {
        // On Linux this makes a waiting accept return an error, which ends the thread.
        let _ = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn answer(client: &TcpStream, power: &Arc<dyn Power>, manner: &Mutex<Manner>, log: &Log) {
    let received = Instant::now();
    let mut line = String::new();
    let _ = client.set_read_timeout(Some(Duration::from_secs(10)));
    if BufReader::new(client.take(256))
        .read_line(&mut line)
        .is_err()
    {
        return;
    }
    let line = line.trim().to_owned();
    let answer = match act(&line, power, manner) {
        Ok(answer) => answer,
        Err(error) => format!("error {error:#}").replace('\n', " "),
    };
    log.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(Request {
            line,
            answer: answer.clone(),
            received,
            answered: Instant::now(),
        });
    let _ = writeln!(&mut &*client, "{answer}");
}

fn act(line: &str, power: &Arc<dyn Power>, manner: &Mutex<Manner>) -> Result<String> {
    if line == "list" {
        return Ok(power.nodes().join(" "));
    }
    let Some((action, node)) = line.split_once(' ') else {
        bail!("The request {line:?} names no node");
    };
    let manner = || *manner.lock().unwrap_or_else(PoisonError::into_inner);
    if matches!(action, "off" | "reboot") {
        let begun = Instant::now();
        while manner() == Manner::Held && begun.elapsed() < HELD_MAX {
            std::thread::sleep(Duration::from_millis(50));
        }
        if manner() != Manner::Prompt {
            bail!("The power switch is broken");
        }
    }
    match action {
        "status" => {
            let on = power.is_on(node)?;
            return Ok(String::from(if on { "on" } else { "off" }));
        }
        "on" => power.on(node)?,
        "off" => power.off(node)?,
        "reboot" => {
            power.off(node)?;
            let (power, node) = (Arc::clone(power), node.to_owned());
            std::thread::spawn(move || {
                if let Err(error) = power.on(&node) {
                    eprintln!("fencing: {node} did not come back: {error:#}");
                }
            });
        }
        _ => bail!("The action {action:?} is not one of list, status, on, off, reboot"),
    }
    Ok(String::from("ok"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Switches(Mutex<bool>);

    impl Power for Switches {
        fn nodes(&self) -> Vec<String> {
            vec!["node1".into()]
        }
        fn off(&self, node: &str) -> Result<()> {
            anyhow::ensure!(node == "node1", "No node {node}");
            *self.0.lock().unwrap() = false;
            Ok(())
        }
        fn on(&self, _: &str) -> Result<()> {
            *self.0.lock().unwrap() = true;
            Ok(())
        }
        fn is_on(&self, _: &str) -> Result<bool> {
            Ok(*self.0.lock().unwrap())
        }
    }

    fn ask(server: &FencingServer, request: &str) -> String {
        let mut client = TcpStream::connect(server.listener.local_addr().unwrap()).unwrap();
        writeln!(client, "{request}").unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        answer.trim().to_owned()
    }

    #[test]
    fn requests_reach_the_switches_and_are_logged() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = FencingServer::serve(listener, Arc::new(Switches::default())).unwrap();
        let dialogue = [
            ("list", "node1"),
            ("status node1", "off"),
            ("on node1", "ok"),
            ("status node1", "on"),
            ("off node1", "ok"),
            ("off node2", "error No node node2"),
            ("off", "error The request \"off\" names no node"),
        ];
        for (request, expected) in dialogue {
            assert_eq!(ask(&server, request), expected);
        }
        server.set_manner(Manner::Broken);
        assert_eq!(ask(&server, "list"), "node1");
        let broken = "error The power switch is broken";
        assert_eq!(ask(&server, "reboot node1"), broken);
        server.set_manner(Manner::Held);
        std::thread::scope(|scope| {
            let asked = scope.spawn(|| ask(&server, "off node1"));
            server.set_manner(Manner::Prompt);
            assert_eq!(asked.join().unwrap(), "ok");
        });
        let logged: Vec<_> = server.requests().into_iter().map(|r| r.line).collect();
        let dialogue = dialogue.map(|(request, _)| request);
        assert_eq!(logged[..dialogue.len()], dialogue);
    }
}
