// SPDX-License-Identifier: Apache-2.0
//! The server guest in QEMU's emulation on this machine: it boots from its disk and serves, and knows nothing of Kemari.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kemari_cluster_tests::console::{ConsoleText, Listening};
use kemari_cluster_tests::debian_guest::{self, PASSWORD};
use kemari_cluster_tests::supervisor;

const PATIENCE: Duration = Duration::from_secs(600);

/// Killed when dropped.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A port that nobody listens on now.
fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

#[test]
fn the_server_guest_boots_from_its_partition_and_serves() {
    if Command::new("qemu-system-x86_64")
        .arg("--version")
        .output()
        .is_err()
    {
        eprintln!("SKIPPED: qemu-system-x86 is not installed");
        return;
    }
    let _turn = supervisor::turn().expect("tests run as root");
    let guest = debian_guest::ensure().unwrap();
    let disk = guest.partitioned_disk().unwrap();
    let serial = TcpListener::bind("127.0.0.1:0").unwrap();
    let (console_port, web_port) = (serial.local_addr().unwrap().port(), free_port().unwrap());
    let begin = Instant::now();
    let child = Command::new("qemu-system-x86_64")
        .args(["-accel", "tcg,thread=multi", "-cpu", "max,la57=off"])
        .args(["-machine", "pc", "-m", "768", "-nodefaults"])
        .args(["-display", "none", "-no-reboot"])
        .args(["-serial", &format!("tcp:127.0.0.1:{console_port}")])
        .arg("-kernel")
        .arg(guest.kernel())
        .arg("-initrd")
        .arg(guest.initrd())
        .args(["-append", &guest.command_line()])
        // What the guest writes goes into a temporary file: the image in the cache stays as it is.
        .args(["-device", "virtio-blk-pci,drive=disk", "-drive"])
        .arg(format!(
            "if=none,id=disk,format=raw,snapshot=on,file.locking=off,file={}",
            disk.display()
        ))
        .args(["-device", "virtio-net-pci,netdev=lan,romfile=", "-netdev"])
        .arg(format!("user,id=lan,hostfwd=tcp:127.0.0.1:{web_port}-:80"))
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let _machine = Machine(child);
    let console = Listening::on(serial);
    let said = console.wait_for(&["login: "], 0, PATIENCE).unwrap();
    eprintln!("login prompt after {} s", begin.elapsed().as_secs());

    console.send("root\n").unwrap();
    let said = console.wait_for(&["Password: "], said, PATIENCE).unwrap();
    console.send(&format!("{PASSWORD}\n")).unwrap();
    let said = console.wait_for(&["# "], said, PATIENCE).unwrap();
    console
        .send("findmnt -no SOURCE /; echo $((6 * 7))\n")
        .unwrap();
    let end = console.wait_for(&["\n42"], said, PATIENCE).unwrap();
    let text = String::from_utf8_lossy(&console.bytes()[said..end]).into_owned();
    assert!(text.contains("/dev/vda1"), "{text}");

    let page = get(web_port);
    assert!(page.contains("Welcome to nginx!"), "{page}");
    eprintln!(
        "logged in and got the page after {} s",
        begin.elapsed().as_secs()
    );
}

/// The page behind a port that QEMU forwards. QEMU takes the connection also before the guest does.
fn get(port: u16) -> String {
    let begin = Instant::now();
    loop {
        let mut page = String::new();
        if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) {
            let _ = stream.set_read_timeout(Some(Duration::from_secs(30)));
            let _ = stream.write_all(b"GET / HTTP/1.0\r\n\r\n");
            let _ = stream.read_to_string(&mut page);
        }
        if page.contains("200 OK") {
            return page;
        }
        assert!(begin.elapsed() < PATIENCE, "no page: {page:?}");
        std::thread::sleep(Duration::from_millis(500));
    }
}
