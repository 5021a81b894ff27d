// SPDX-License-Identifier: Apache-2.0
//! The baseline for a lost host: the same guest under `ocf:heartbeat:VirtualDomain`, libvirt and QEMU as Debian has them.
//! Pacemaker starts it again elsewhere.
//!
//! Its console goes to the outside as bytes, over a connection of QEMU's for each life.

use std::io::Read as _;
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::bed::Bed;
use crate::ledger;
use crate::protected::GuestFiles;

const DESCRIPTION: &str = "/etc/libvirt/qemu/domain.xml";

/// No AppArmor, no cgroup controllers and no devices of its own in test nodes; the user is the one who may use `/dev/kvm`.
const QEMU_CONF: &str = "user = \"root\"\ngroup = \"root\"\nsecurity_driver = \"none\"\ncgroup_controllers = []\n\
    namespaces = []\nstdio_handler = \"file\"\n";

/// One life of the guest, as the outside saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Life {
    /// The numbers it printed, the first and the last, and when they came.
    numbers: Option<((u64, Instant), (u64, Instant))>,
    /// An unfinished line.
    rest: Vec<u8>,
}

/// What a client of the guest lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loss {
    /// From the last number to the next.
    pub silence: Duration,
    /// The number before.
    pub before: u64,
    /// The number after; 1 where all that the guest remembered is gone.
    pub after: u64,
}

/// The resource, and the outside that hears its guest.
#[derive(Debug)]
pub struct VirtualDomain<'a> {
    bed: &'a dyn Bed,
    lives: Arc<Mutex<Vec<Life>>>,
    patience: Duration,
}

impl<'a> VirtualDomain<'a> {
    /// Puts guest and description on every node and starts libvirt there. The cluster runs already.
    ///
    /// # Errors
    /// When a file cannot be read or written, or libvirt does not start.
    pub fn install(bed: &'a dyn Bed, files: &GuestFiles, patience: Duration) -> Result<Self> {
        let listener = bed.listen_outside(0)?;
        let port = listener.local_addr()?.port();
        let lives = Arc::default();
        listen(listener, Arc::clone(&lives));
        let domain = Self {
            bed,
            lives,
            patience,
        };
        for node in bed.nodes() {
            bed.put(node, &files.kernel, "/srv/domain/kernel")?;
            if let Some(initrd) = &files.initrd {
                bed.put(node, initrd, "/srv/domain/initrd")?;
            }
            let description = description(files, bed.outside(), port);
            bed.write(node, DESCRIPTION, description.as_bytes(), 0o600)?;
            bed.write(node, "/etc/libvirt/qemu.conf", QEMU_CONF.as_bytes(), 0o600)?;
            domain.prepare(node)?;
        }
        Ok(domain)
    }

    /// Starts what the resource needs on a node, perhaps one that came back.
    ///
    /// # Errors
    /// When libvirt does not start.
    pub fn prepare(&self, node: &str) -> Result<()> {
        self.bed
            .shell(node, "systemctl start libvirtd && virsh -q list")
            .map(drop)
    }

    /// Makes the resource, with the time-outs and the monitor that its agent advises.
    ///
    /// # Errors
    /// When crm refuses.
    pub fn configure(&self, node: &str) -> Result<()> {
        let line = format!(
            "crm configure primitive domain ocf:heartbeat:VirtualDomain \
             params config={DESCRIPTION} hypervisor=qemu:///system \
             op start timeout=90s interval=0 op stop timeout=90s interval=0 \
             op monitor timeout=30s interval=10s"
        );
        self.bed.shell(node, &line).map(drop)
    }

    /// Stops the resource and takes it out of the cluster.
    ///
    /// # Errors
    /// When crm refuses.
    pub fn remove(&self, node: &str) -> Result<()> {
        self.bed
            .shell(
                node,
                "crm --wait resource stop domain && crm configure delete domain",
            )
            .map(drop)
    }

    /// Waits until Pacemaker has nothing more to do.
    ///
    /// # Errors
    /// When it has, for long.
    pub fn settle(&self, node: &str) -> Result<()> {
        let seconds = self.patience.as_secs();
        self.bed
            .shell(node, &format!("crm_resource --wait --timeout={seconds}"))
            .map(drop)
    }

    /// The node on which Pacemaker has it.
    ///
    /// # Errors
    /// When it is started nowhere in time.
    pub fn wait_started(&self, observer: &str) -> Result<String> {
        self.until("Pacemaker does not start the domain", || {
            let shown = self.bed.shell(observer, "crm_mon -1 -r")?;
            let node = shown
                .lines()
                .find(|line| line.contains("VirtualDomain"))
                .and_then(|line| line.split_once("Started "))
                .and_then(|(_, node)| node.split_whitespace().next());
            Ok(node.map(str::to_owned))
        })
        .with_context(|| {
            self.bed
                .shell(observer, "crm_mon -1 -r")
                .unwrap_or_default()
        })
    }

    /// Ends QEMU on a node as a crash would.
    ///
    /// # Errors
    /// When there is none.
    pub fn kill(&self, node: &str) -> Result<()> {
        self.bed
            .shell(node, "kill -KILL $(cat /run/libvirt/qemu/domain.pid)")
            .map(drop)
    }

    fn lives(&self) -> MutexGuard<'_, Vec<Life>> {
        self.lives.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many lives have printed a number so far.
    pub fn count(&self) -> usize {
        printed(&self.lives()).len()
    }

    /// Waits until one more life than `lives` has printed, and says what lay between it and the one before.
    ///
    /// # Errors
    /// When it does not print in time.
    pub fn wait_loss(&self, lives: usize) -> Result<Loss> {
        self.until("The guest did not begin again", || {
            let printed = printed(&self.lives());
            let before = lives.checked_sub(1).and_then(|index| printed.get(index));
            let pair = before.zip(printed.get(lives));
            Ok(pair.map(|((_, (before, from)), ((after, to), _))| Loss {
                silence: to.saturating_duration_since(*from),
                before: *before,
                after: *after,
            }))
        })
    }

    /// Waits until the newest of so many lives has printed for a while.
    ///
    /// # Errors
    /// When it does not.
    pub fn wait_life(&self, lives: usize) -> Result<()> {
        self.until("The guest prints nothing", || {
            let printed = printed(&self.lives());
            let newest = printed.get(lives.saturating_sub(1));
            Ok(newest.and_then(|(_, (number, _))| (*number > 50).then_some(())))
        })
    }

    /// Looks again and again; `not_so` is what is said with what was heard when it does not come.
    fn until<T>(&self, not_so: &str, look: impl Fn() -> Result<Option<T>>) -> Result<T> {
        let begun = Instant::now();
        loop {
            if let Some(found) = look()? {
                return Ok(found);
            }
            if begun.elapsed() > self.patience {
                bail!("{not_so}; heard: {:?}", printed(&self.lives()));
            }
            // Neither Pacemaker nor the threads that hear say when; times are taken where the bytes come in.
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

type Numbers = ((u64, Instant), (u64, Instant));

fn printed(lives: &[Life]) -> Vec<Numbers> {
    lives.iter().filter_map(|life| life.numbers).collect()
}

fn listen(listener: TcpListener, lives: Arc<Mutex<Vec<Life>>>) {
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let lives = Arc::clone(&lives);
            std::thread::spawn(move || hear(stream, &lives));
        }
    });
}

fn hear(mut stream: TcpStream, lives: &Mutex<Vec<Life>>) {
    let lock = || lives.lock().unwrap_or_else(PoisonError::into_inner);
    let index = {
        let mut lives = lock();
        lives.push(Life {
            numbers: None,
            rest: Vec::new(),
        });
        lives.len() - 1
    };
    let mut buffer = [0; 16 << 10];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        let now = Instant::now();
        if let Some(life) = lock().get_mut(index) {
            life.hear(&buffer[..length], now);
        }
    }
}

impl Life {
    fn hear(&mut self, bytes: &[u8], now: Instant) {
        self.rest.extend_from_slice(bytes);
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            let line = line.trim_ascii_end();
            if let Some((number, _)) = ledger::entry(line) {
                let (first, _) = self.numbers.unwrap_or(((number, now), (number, now)));
                self.numbers = Some((first, (number, now)));
            }
        }
    }
}

/// The guest for libvirt: kernel, memory, one CPU and a serial port, as under Kemari.
fn description(files: &GuestFiles, outside: &str, port: u16) -> String {
    let initrd = files
        .initrd
        .as_ref()
        .map_or("", |_| "<initrd>/srv/domain/initrd</initrd>");
    format!(
        "<domain type='kvm'>\n <name>domain</name>\n <memory unit='MiB'>{}</memory>\n <vcpu>1</vcpu>\n \
         <os><type arch='x86_64' machine='pc'>hvm</type><kernel>/srv/domain/kernel</kernel>{initrd}\
         <cmdline>{}</cmdline></os>\n <features><acpi/></features>\n <on_reboot>destroy</on_reboot>\n <devices>\n  \
         <emulator>/usr/bin/qemu-system-x86_64</emulator>\n  <serial type='tcp'>\n   \
         <source mode='connect' host='{outside}' service='{port}'/>\n   <protocol type='raw'/>\n   \
         <target port='0'/>\n  </serial>\n  <memballoon model='none'/>\n </devices>\n</domain>\n",
        files.memory_mib, files.cmdline
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_is_its_first_and_its_last_number() {
        let mut life = Life {
            numbers: None,
            rest: Vec::new(),
        };
        let (early, late) = (Instant::now(), Instant::now() + Duration::from_secs(1));
        life.hear(b"noise\nLEDGER START\n1 0000000000000", early);
        assert_eq!(life.numbers, None);
        life.hear(b"00a\r\n2 000000000000000b\n", early);
        life.hear(b"3 000000000000000c\n4 00", late);
        assert_eq!(life.numbers, Some(((1, early), (3, late))));
    }
}
