// SPDX-License-Identifier: Apache-2.0
//! A server guest in a bed of machines, and what the outside does with it: the steps of every scenario, whoever the VMM is.
//!
//! Clients run outside at this machine's speed ([`crate::clients`]), and where it matters that they are elsewhere in the cluster, in
//! another node. Time limits are generous; none is asserted on.

mod checks;
mod data;
mod figures;
mod history;
mod load;
pub mod scenario;

use std::ffi::OsStr;
use std::fmt::Debug;
use std::net::Ipv4Addr;
use std::ops::Deref;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use crate::bed::{Bed as _, Finished};
use crate::clients::{Clients, Lease, Running};
use crate::console::{ConsoleText, tail};
use crate::debian_guest::DebianGuest;
use crate::machines::Machines;
use crate::server_vmm::{ServerHardware, ServerVm, ServerVmm};

pub use checks::{Alarms, ClockReport};
pub(crate) use figures::iperf_mbit_per_s;
pub use figures::{DiskFigures, DiskJob, PingFigures};
pub use history::History;
pub use load::{Done, Load};

/// The guest's card and address, unless a scenario has several guests.
pub fn lease() -> Lease {
    Lease {
        mac: "52:54:00:73:72:01".to_owned(),
        address: Ipv4Addr::new(10, 77, 0, 100),
    }
}

/// How long anything may take. A boot in an emulated machine takes some minutes when the host is busy.
const PATIENCE: Duration = Duration::from_secs(900);
/// How long one client may take.
const CLIENT: Duration = Duration::from_secs(600);

/// Where a client of the server runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whence<'name> {
    /// Outside, at this machine's speed.
    Outside,
    /// In this node of the cluster.
    Node(&'name str),
}

/// A server as the outside knows it: an address, a console, and the clients that talk to it.
#[derive(Debug)]
pub struct Server<'bed> {
    bed: &'bed Machines,
    clients: Clients<'bed>,
    address: Ipv4Addr,
    console: Box<dyn ConsoleText>,
    begun: Instant,
    _dhcp: Running,
}

/// A server whose VMM is started, saved and moved by hand. What does not concern the VMM is [`Server`]'s.
#[derive(Debug)]
pub struct ServerGuest<'bed> {
    server: Server<'bed>,
    vm: ServerVm<'bed>,
}

impl<'bed> Deref for ServerGuest<'bed> {
    type Target = Server<'bed>;

    fn deref(&self) -> &Server<'bed> {
        &self.server
    }
}

impl<'bed> ServerGuest<'bed> {
    /// Starts the guest on a node, with a DHCP server outside that knows it.
    ///
    /// # Errors
    /// When a file cannot be written or the VMM or the DHCP server does not start.
    pub fn start(
        bed: &'bed Machines,
        node: &str,
        vmm: ServerVmm,
        guest: &DebianGuest,
        hardware: ServerHardware,
    ) -> Result<Self> {
        let lease = hardware.lease.clone();
        // Before the guest: it asks for its address while it boots.
        let (clients, dhcp) = outside(bed, guest, &lease)?;
        let begun = Instant::now();
        let (vm, console) = ServerVm::start(bed, node, vmm, guest, hardware)?;
        let server = Server {
            bed,
            clients,
            address: lease.address,
            console,
            begun,
            _dhcp: dhcp,
        };
        Ok(Self { server, vm })
    }

    /// The guest's VMM: to save and restore it, to move it, to end it.
    pub fn vm(&mut self) -> &mut ServerVm<'bed> {
        &mut self.vm
    }
}

/// The clients, and a DHCP server that knows the guest.
fn outside<'bed>(
    bed: &'bed Machines,
    guest: &DebianGuest,
    lease: &Lease,
) -> Result<(Clients<'bed>, Running)> {
    let clients = Clients::of(bed.supervisor(), &guest.ssh_key())?;
    let dhcp = clients.serve_dhcp(std::slice::from_ref(lease))?;
    Ok((clients, dhcp))
}

impl<'bed> Server<'bed> {
    /// A server that somebody else will start, a cluster manager perhaps.
    ///
    /// # Errors
    /// When the DHCP server does not start.
    pub fn of(
        bed: &'bed Machines,
        guest: &DebianGuest,
        lease: &Lease,
        console: Box<dyn ConsoleText>,
    ) -> Result<Self> {
        let (clients, dhcp) = outside(bed, guest, lease)?;
        Ok(Self {
            bed,
            clients,
            address: lease.address,
            console,
            begun: Instant::now(),
            _dhcp: dhcp,
        })
    }

    /// The guest's address.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// The programs outside.
    pub fn clients(&self) -> &Clients<'bed> {
        &self.clients
    }

    /// Everything the console said.
    pub fn console(&self) -> &dyn ConsoleText {
        self.console.as_ref()
    }

    /// What the console said at last, for error messages.
    pub fn last_words(&self) -> String {
        let text = String::from_utf8_lossy(&self.console.bytes()).into_owned();
        format!("The guest's console said at last:\n{}", tail(&text))
    }

    /// Waits for the login prompt after the first `from` bytes of the console: 0 for the first boot. Gives how long the guest has been
    /// running then.
    ///
    /// # Errors
    /// When the kernel panics or no prompt comes; the error has the console's last words.
    pub fn wait_login_prompt(&self, from: usize) -> Result<Duration> {
        let words = ["login: ", "Kernel panic", "end Kernel panic"];
        let found = self.console.wait_for(&words, from, PATIENCE);
        found?;
        let text = String::from_utf8_lossy(&self.console.bytes()).into_owned();
        ensure!(!text.contains("Kernel panic"), "{text}");
        Ok(self.begun.elapsed())
    }

    /// Waits until the guest answers at its address. Gives how long the guest has been running then.
    ///
    /// # Errors
    /// When it does not; the error has what the DHCP server said.
    pub fn wait_address(&self) -> Result<Duration> {
        let begin = Instant::now();
        let address = self.address().to_string();
        while begin.elapsed() < PATIENCE {
            let once = ["ping", "-c", "1", "-W", "2", &address];
            if self.clients.run(&once, CLIENT)?.status == 0 {
                return Ok(self.begun.elapsed());
            }
            std::thread::sleep(Duration::from_millis(300));
        }
        bail!(
            "{address} does not answer; the DHCP server said:\n{}",
            self.clients.dhcp_log()
        )
    }

    /// Pings the guest from outside.
    ///
    /// # Errors
    /// When no answer comes.
    pub fn ping(&self, count: u32, interval: Duration) -> Result<PingFigures> {
        let (count, interval) = (count.to_string(), format!("{:.3}", interval.as_secs_f64()));
        let address = self.address().to_string();
        let words = ["ping", "-q", "-c", &count, "-i", &interval, &address];
        PingFigures::read(&self.clients.run(&words, CLIENT)?.success()?)
    }

    /// Pings the guest from a node.
    ///
    /// # Errors
    /// When no answer comes.
    pub fn ping_from(&self, node: &str, count: u32) -> Result<PingFigures> {
        let (count, address) = (count.to_string(), self.address().to_string());
        let words = ["ping", "-q", "-c", &count, "-i", "0.2", &address];
        PingFigures::read(&self.bed.exec(node, &words)?.success()?)
    }

    /// Gets the web server's page from outside; waits for the server where it has not started yet.
    ///
    /// # Errors
    /// When it does not come.
    pub fn http_get(&self) -> Result<String> {
        let url = format!("http://{}/", self.address());
        let page = self.until(&["curl", "-sS", "--fail", "--max-time", "60", &url])?;
        ensure!(page.contains("nginx"), "Not nginx's page: {page}");
        Ok(page)
    }

    /// Gets it from a node.
    ///
    /// # Errors
    /// When it does not come.
    pub fn http_get_from(&self, node: &str) -> Result<String> {
        let script = format!(
            "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | socat -t 60 - TCP:{}:80",
            self.address()
        );
        let page = self.bed.exec(node, &["sh", "-c", &script])?.success()?;
        ensure!(
            page.contains("200 OK"),
            "{node} did not get the page: {page}"
        );
        Ok(page)
    }

    /// Waits until the guest lets an administrator in: the login prompt may come before sshd.
    ///
    /// # Errors
    /// When it does not.
    pub fn wait_ssh(&self) -> Result<()> {
        let begin = Instant::now();
        loop {
            let finished = self.clients.ssh(self.address(), "true", CLIENT)?;
            if finished.status == 0 {
                return Ok(());
            }
            let refused = finished.stderr.contains("Connection refused");
            ensure!(
                refused && begin.elapsed() < PATIENCE,
                "ssh: {}",
                finished.stderr
            );
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// Runs a command in the guest by ssh.
    ///
    /// # Errors
    /// When the guest cannot be reached.
    pub fn ssh(&self, command: &str) -> Result<Finished> {
        let finished = self.clients.ssh(self.address(), command, CLIENT)?;
        ensure!(finished.status != 255, "ssh: {}", finished.stderr);
        Ok(finished)
    }

    /// Runs a client to its end.
    fn run_at<S: AsRef<str>>(&self, whence: Whence<'_>, command: &[S]) -> Result<Finished> {
        let command = command.iter().map(AsRef::as_ref).collect::<Vec<_>>();
        match whence {
            Whence::Outside => self.clients.run(&command, CLIENT),
            Whence::Node(node) => self.bed.exec(node, &command),
        }
    }

    /// Runs a client until it succeeds: a server that is still starting refuses connections.
    fn until<S: AsRef<OsStr> + Debug>(&self, command: &[S]) -> Result<String> {
        let begin = Instant::now();
        loop {
            let finished = self.clients.run(command, CLIENT)?;
            if finished.status == 0 {
                return Ok(finished.stdout);
            }
            ensure!(
                begin.elapsed() < PATIENCE,
                "{command:?} did not succeed within {} s: {}",
                PATIENCE.as_secs(),
                finished.stderr
            );
            std::thread::sleep(Duration::from_millis(500));
        }
    }
}
