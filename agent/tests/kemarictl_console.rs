// SPDX-License-Identifier: Apache-2.0
//! `kemarictl console` against an engine that is a test, on a pipe and on a terminal.
#![allow(
    clippy::unwrap_used,
    reason = "a test ends where something is not as it must be"
)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use kemari_api::console::piece;
use kemari_api::replica::{DiskState, FailoverPolicy, PATH, ReplicaStatus};
use kemari_api::{Epoch, Generation, Licence, Role};
use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, Termios, tcgetattr};
use nix::unistd::Pid;

/// The engine's end of a console, and from where the terminal wanted it.
type Attached = (UnixStream, u64);

struct Engine {
    role: Role,
    attached: mpsc::Sender<Attached>,
}

#[zbus::interface(name = "org.kemari.Replica1")]
impl Engine {
    fn status(&self) -> ReplicaStatus {
        ReplicaStatus {
            vm: "vm".parse().unwrap(),
            node: "a".parse().unwrap(),
            pid: 1,
            role: self.role,
            licence: Licence::None,
            in_sync: false,
            running: true,
            generation: Generation::new(1),
            epoch: Epoch::new(1),
            peer: String::new(),
            listen: String::new(),
            detail: String::new(),
            disks: DiskState::None,
            failover: FailoverPolicy::Auto,
        }
    }

    fn console(&self, from: u64) -> zbus::fdo::Result<zbus::OwnedFd> {
        if self.role != Role::Active {
            return Err(zbus::fdo::Error::Failed("attach on node2".to_owned()));
        }
        let (ours, theirs) = UnixStream::pair().unwrap();
        self.attached.send((ours, from)).unwrap();
        Ok(OwnedFd::from(theirs).into())
    }
}

/// Serves one caller at the control socket in this directory.
fn engine(directory: &Path, role: Role) -> mpsc::Receiver<Attached> {
    let listener = UnixListener::bind(directory.join("vm.sock")).unwrap();
    let (attached, attachments) = mpsc::channel();
    thread::spawn(move || {
        let (caller, _) = listener.accept().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.unwrap().block_on(async {
            let _connection = zbus::connection::Builder::unix_stream(caller)
                .server(zbus::Guid::generate())
                .p2p()
                .serve_at(PATH, Engine { role, attached })
                .build()
                .await
                .unwrap();
            std::future::pending::<()>().await;
        });
    });
    attachments
}

fn kemarictl(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kemarictl"));
    command
        .args(["console", "vm"])
        .args(arguments)
        .env("KEMARI_RUN_DIR", directory)
        // No agent.
        .env("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent");
    command
}

fn said(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_script_types_its_input_and_reads_what_was_put_out() {
    let directory = tempfile::tempdir().unwrap();
    let attached = engine(directory.path(), Role::Active);
    let mut child = kemarictl(directory.path(), &["--from", "5"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"root\n\x1dls\n")
        .unwrap();
    let (mut console, from) = attached.recv().unwrap();
    assert_eq!(from, 5);
    let mut typed = Vec::new();
    console.read_to_end(&mut typed).unwrap();
    assert_eq!(typed, b"root\n\x1dls\n");
    console.write_all(&piece(9, b"login: ").unwrap()).unwrap();
    console.write_all(&piece(16, b"$ ").unwrap()).unwrap();
    drop(console);
    let output = child.wait_with_output().unwrap();
    let (shown, told) = said(&output);
    assert!(output.status.success(), "{told}");
    assert_eq!(shown, "login: $ ");
    assert!(
        told.contains("4 bytes of the console's output were passed over"),
        "{told}"
    );
}

#[test]
fn without_a_console_here_it_says_where() {
    let directory = tempfile::tempdir().unwrap();
    let _attached = engine(directory.path(), Role::Passive);
    let output = kemarictl(directory.path(), &[]).output().unwrap();
    assert_eq!(output.status.code(), Some(5));
    assert_eq!(said(&output).1, "kemarictl: attach on node2\n");
    let empty = tempfile::tempdir().unwrap();
    let output = kemarictl(empty.path(), &[]).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    let told = said(&output).1;
    assert!(
        told.contains("No engine of VM vm runs on this node"),
        "{told}"
    );
}

#[test]
fn a_reader_types_nothing_and_reads_to_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let attached = engine(directory.path(), Role::Active);
    let child = kemarictl(directory.path(), &["--read-only"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut console, from) = attached.recv().unwrap();
    assert_eq!(from, 0);
    console
        .write_all(&piece(0, b"last words").unwrap())
        .unwrap();
    console.shutdown(std::net::Shutdown::Write).unwrap();
    let output = child.wait_with_output().unwrap();
    let mut typed = Vec::new();
    let _ = console.read_to_end(&mut typed);
    let (shown, told) = said(&output);
    assert_eq!((shown.as_str(), typed), ("last words", Vec::new()));
    assert!(told.contains("kemarictl console vm --from 10"), "{told}");
}

/// `kemarictl` on a terminal of its own.
struct OnTerminal {
    child: Child,
    keys: File,
    terminal: OwnedFd,
    before: Termios,
    /// Everything that appeared on the terminal.
    seen: thread::JoinHandle<String>,
    console: UnixStream,
}

impl OnTerminal {
    fn attach(directory: &Path) -> Self {
        let attached = engine(directory, Role::Active);
        let pty = openpty(None, None).unwrap();
        let before = tcgetattr(&pty.slave).unwrap();
        let end = || Stdio::from(pty.slave.try_clone().unwrap());
        let child = kemarictl(directory, &[])
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .unwrap();
        let (mut console, _) = attached.recv().unwrap();
        console.write_all(&piece(0, b"login: ").unwrap()).unwrap();
        let keys = File::from(pty.master);
        let mut screen = keys.try_clone().unwrap();
        let (tell, shown) = mpsc::channel();
        let seen = thread::spawn(move || {
            let mut seen = Vec::new();
            let mut buffer = [0; 256];
            // EIO when the last holder of the terminal has closed it.
            while let Ok(count @ 1..) = screen.read(&mut buffer) {
                seen.extend(&buffer[..count]);
                if seen.ends_with(b"login: ") {
                    let _ = tell.send(());
                }
            }
            String::from_utf8(seen).unwrap()
        });
        shown.recv_timeout(Duration::from_secs(60)).unwrap();
        Self {
            child,
            keys,
            terminal: pty.slave,
            before,
            seen,
            console,
        }
    }

    fn raw(&self) -> bool {
        let now = tcgetattr(&self.terminal).unwrap();
        !now.local_flags
            .intersects(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG)
    }

    /// Waits for the end: its success, and everything that appeared.
    fn end(mut self) -> (bool, String) {
        let status = self.child.wait().unwrap();
        assert!(tcgetattr(&self.terminal).unwrap() == self.before);
        drop(self.terminal);
        drop(self.console);
        (status.success(), self.seen.join().unwrap())
    }
}

#[test]
fn a_person_types_raw_keys_and_detaches() {
    let directory = tempfile::tempdir().unwrap();
    let mut attached = OnTerminal::attach(directory.path());
    assert!(attached.raw());
    attached.keys.write_all(b"a\x03\r").unwrap();
    let mut typed = [0; 3];
    attached.console.read_exact(&mut typed).unwrap();
    assert_eq!(&typed, b"a\x03\r");
    attached.keys.write_all(b"\x1d").unwrap();
    let (success, seen) = attached.end();
    assert!(success, "{seen}");
    assert!(seen.contains("Detach with Ctrl-]."), "{seen}");
    assert!(seen.contains("kemarictl console vm --from 7"), "{seen}");
}

#[test]
fn the_terminal_is_as_before_when_the_engine_or_the_program_ends() {
    for signal in [None, Some(Signal::SIGTERM), Some(Signal::SIGHUP)] {
        let directory = tempfile::tempdir().unwrap();
        let attached = OnTerminal::attach(directory.path());
        assert!(attached.raw());
        let pid = Pid::from_raw(i32::try_from(attached.child.id()).unwrap());
        match signal {
            Some(signal) => kill(pid, signal).unwrap(),
            None => attached
                .console
                .shutdown(std::net::Shutdown::Write)
                .unwrap(),
        }
        let (success, seen) = attached.end();
        assert_eq!(success, signal.is_none(), "{signal:?} {seen}");
        assert!(seen.contains("--from 7"), "{signal:?} {seen}");
    }
}
