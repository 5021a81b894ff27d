// SPDX-License-Identifier: Apache-2.0
//! The ioctls of block devices, TAP devices and network interfaces. All pointers end here.
//!
//! Structures and numbers are those of `linux/fs.h`, `linux/if_tun.h`, `linux/sockios.h` and
//! `linux/if_bridge.h`.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref, ioctl_with_val};

mod number {
    use libc::c_ulong;

    // linux/fs.h
    pub(super) const BLKDISCARD: c_ulong = 0x1277;
    pub(super) const BLKSSZGET: c_ulong = 0x1268;
    pub(super) const BLKGETSIZE64: c_ulong = 0x8008_1272;
    // linux/if_tun.h
    pub(super) const TUNSETIFF: c_ulong = 0x4004_54ca;
    pub(super) const TUNSETOFFLOAD: c_ulong = 0x4004_54d0;
    pub(super) const TUNSETVNETHDRSZ: c_ulong = 0x4004_54d8;
    // linux/sockios.h
    pub(super) const SIOCGIFFLAGS: c_ulong = 0x8913;
    pub(super) const SIOCSIFFLAGS: c_ulong = 0x8914;
    pub(super) const SIOCGIFMTU: c_ulong = 0x8921;
    pub(super) const SIOCSIFMTU: c_ulong = 0x8922;
    pub(super) const SIOCSIFHWADDR: c_ulong = 0x8924;
    pub(super) const SIOCGIFHWADDR: c_ulong = 0x8927;
    pub(super) const SIOCGIFINDEX: c_ulong = 0x8933;
    pub(super) const SIOCETHTOOL: c_ulong = 0x8946;
    pub(super) const SIOCBRADDIF: c_ulong = 0x89a2;
    pub(super) const SIOCDEVPRIVATE: c_ulong = 0x89f0;
    #[cfg(test)]
    pub(super) const SIOCBRADDBR: c_ulong = 0x89a0;
}

/// Size of a block device in bytes.
pub(super) fn block_device_bytes(device: &impl AsRawFd) -> io::Result<u64> {
    let mut bytes = 0u64;
    // SAFETY: the kernel writes one u64 (`linux/fs.h` says size_t, and means u64), and `bytes` is one.
    let result = unsafe { ioctl_with_mut_ref(device, number::BLKGETSIZE64, &mut bytes) };
    check(result).map(|_| bytes)
}

/// Logical block size of a block device in bytes.
pub(super) fn logical_block_bytes(device: &impl AsRawFd) -> io::Result<u32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the kernel writes one int, and `bytes` is one.
    check(unsafe { ioctl_with_mut_ref(device, number::BLKSSZGET, &mut bytes) })?;
    u32::try_from(bytes).map_err(io::Error::other)
}

/// Tells a block device that a range is of no use any more.
pub(super) fn block_discard(device: &impl AsRawFd, offset: u64, length: u64) -> io::Result<()> {
    let range: [u64; 2] = [offset, length];
    // SAFETY: the kernel reads two u64, and `range` is that.
    check(unsafe { ioctl_with_ref(device, number::BLKDISCARD, &range) }).map(|_| ())
}

/// `struct ifreq`: an interface's name, and a union of 24 bytes.
#[repr(C, align(8))]
#[derive(Debug, Clone, Copy)]
struct InterfaceRequest {
    name: [u8; 16],
    value: [u8; 24],
}

/// Name of a network interface, padded with zeroes and ending in one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct InterfaceName(pub(super) [u8; 16]);

/// What configures network interfaces, those of the network namespace it was opened in.
#[derive(Debug)]
pub(super) struct Interfaces(OwnedFd);

/// Attaches an open `/dev/net/tun` to the interface of this name, which is made if it is not there.
pub(super) fn tun_attach(
    tun: &impl AsRawFd,
    name: InterfaceName,
    flags: libc::c_int,
) -> io::Result<()> {
    let mut request = InterfaceRequest::new(name);
    request.set(&u16::try_from(flags).unwrap_or_default().to_ne_bytes());
    // SAFETY: the kernel reads and writes one `struct ifreq`, and `request` is one.
    check(unsafe { ioctl_with_mut_ref(tun, number::TUNSETIFF, &mut request) }).map(|_| ())
}

/// Sets the length of the header before each frame.
pub(super) fn tun_set_header_bytes(tun: &impl AsRawFd, bytes: libc::c_int) -> io::Result<()> {
    // SAFETY: the kernel reads one int, and `bytes` is one.
    check(unsafe { ioctl_with_ref(tun, number::TUNSETVNETHDRSZ, &bytes) }).map(|_| ())
}

/// Sets what packets to us may leave undone (`TUN_F_*`).
pub(super) fn tun_set_offloads(tun: &impl AsRawFd, offloads: libc::c_uint) -> io::Result<()> {
    // SAFETY: the argument is a number, no pointer.
    let result = unsafe { ioctl_with_val(tun, number::TUNSETOFFLOAD, offloads.into()) };
    check(result).map(|_| ())
}

impl InterfaceRequest {
    fn new(InterfaceName(name): InterfaceName) -> Self {
        Self {
            name,
            value: [0; 24],
        }
    }

    fn set(&mut self, value: &[u8]) {
        for (target, byte) in self.value.iter_mut().zip(value) {
            *target = *byte;
        }
    }

    fn get<const LENGTH: usize>(&self) -> [u8; LENGTH] {
        self.value.first_chunk().copied().unwrap_or([0; LENGTH])
    }
}

impl Interfaces {
    /// Those of this thread's network namespace.
    pub(super) fn new() -> io::Result<Self> {
        let kind = SockType::Datagram;
        Ok(Self(socket(
            AddressFamily::Inet,
            kind,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?))
    }

    /// The interface's index; an error of `ENODEV` if there is none of this name.
    pub(super) fn index(&self, name: InterfaceName) -> io::Result<i32> {
        self.get(number::SIOCGIFINDEX, name).map(i32::from_ne_bytes)
    }

    pub(super) fn flags(&self, name: InterfaceName) -> io::Result<u16> {
        self.get(number::SIOCGIFFLAGS, name).map(u16::from_ne_bytes)
    }

    pub(super) fn set_flags(&self, name: InterfaceName, flags: u16) -> io::Result<()> {
        self.set(number::SIOCSIFFLAGS, name, &flags.to_ne_bytes())
    }

    pub(super) fn mtu(&self, name: InterfaceName) -> io::Result<i32> {
        self.get(number::SIOCGIFMTU, name).map(i32::from_ne_bytes)
    }

    pub(super) fn set_mtu(&self, name: InterfaceName, mtu: i32) -> io::Result<()> {
        self.set(number::SIOCSIFMTU, name, &mtu.to_ne_bytes())
    }

    /// The hardware address as a `struct sockaddr`: two bytes of kind, six of address, more.
    pub(super) fn hardware_address(&self, name: InterfaceName) -> io::Result<[u8; 16]> {
        self.get(number::SIOCGIFHWADDR, name)
    }

    pub(super) fn set_hardware_address(
        &self,
        name: InterfaceName,
        address: &[u8; 16],
    ) -> io::Result<()> {
        self.set(number::SIOCSIFHWADDR, name, address)
    }

    /// Makes an interface a port of a bridge.
    pub(super) fn add_to_bridge(&self, bridge: InterfaceName, index: i32) -> io::Result<()> {
        self.set(number::SIOCBRADDIF, bridge, &index.to_ne_bytes())
    }

    /// The indices of the bridge's ports, zeroes among them.
    pub(super) fn bridge_ports(&self, bridge: InterfaceName) -> io::Result<Vec<i32>> {
        const BRCTL_GET_PORT_LIST: u64 = 7;
        const PORTS_MAX: u16 = 1024;
        let mut ports = vec![0i32; PORTS_MAX.into()];
        let arguments: [u64; 4] = [
            BRCTL_GET_PORT_LIST,
            ports.as_mut_ptr() as u64,
            PORTS_MAX.into(),
            0,
        ];
        let mut request = InterfaceRequest::new(bridge);
        request.set(&(std::ptr::from_ref(&arguments) as u64).to_ne_bytes());
        // SAFETY: a bridge reads four longs at the address in the request, which is `arguments`, and
        // writes at most as many ints as the third says to the address in the second, which is
        // `ports`. Another driver may take this number for something of its own: the caller has
        // made sure that this is a bridge.
        check(unsafe { ioctl_with_ref(&self.0, number::SIOCDEVPRIVATE, &request) })?;
        Ok(ports)
    }

    /// The driver's name.
    pub(super) fn driver(&self, name: InterfaceName) -> io::Result<String> {
        const ETHTOOL_GDRVINFO: u32 = 3;
        // struct ethtool_drvinfo: a command, the driver's name, and what does not matter here.
        let mut answer = [0u32; 49];
        if let Some(command) = answer.first_mut() {
            *command = ETHTOOL_GDRVINFO;
        }
        self.ethtool(name, &mut answer)?;
        let bytes = answer.iter().skip(1).flat_map(|word| word.to_ne_bytes());
        let driver: Vec<u8> = bytes.take(32).take_while(|byte| *byte != 0).collect();
        Ok(String::from_utf8_lossy(&driver).into_owned())
    }

    /// How many queue pairs the interface can have, and has.
    pub(super) fn channels(&self, name: InterfaceName) -> io::Result<(u32, u32)> {
        const ETHTOOL_GCHANNELS: u32 = 0x3c;
        // struct ethtool_channels: a command, four maxima and four counts, the combined ones last.
        let mut answer = [ETHTOOL_GCHANNELS, 0, 0, 0, 0, 0, 0, 0, 0];
        self.ethtool(name, &mut answer)?;
        let [_, _, _, _, max, _, _, _, now] = answer;
        Ok((max, now))
    }

    fn ethtool<const WORDS: usize>(
        &self,
        name: InterfaceName,
        answer: &mut [u32; WORDS],
    ) -> io::Result<()> {
        let mut request = InterfaceRequest::new(name);
        request.set(&(answer.as_mut_ptr() as u64).to_ne_bytes());
        // SAFETY: the kernel reads and writes the structure that belongs to the command, at the
        // address in the request, which is `answer`; the callers above size it for their command.
        check(unsafe { ioctl_with_ref(&self.0, number::SIOCETHTOOL, &request) }).map(|_| ())
    }

    fn get<const LENGTH: usize>(
        &self,
        number: libc::c_ulong,
        name: InterfaceName,
    ) -> io::Result<[u8; LENGTH]> {
        let mut request = InterfaceRequest::new(name);
        // SAFETY: the numbers passed here write one `struct ifreq`, and `request` is one.
        check(unsafe { ioctl_with_mut_ref(&self.0, number, &mut request) })?;
        Ok(request.get())
    }

    fn set(&self, number: libc::c_ulong, name: InterfaceName, value: &[u8]) -> io::Result<()> {
        let mut request = InterfaceRequest::new(name);
        request.set(value);
        // SAFETY: the numbers passed here read one `struct ifreq`, without pointers in it, and
        // `request` is one.
        check(unsafe { ioctl_with_ref(&self.0, number, &request) }).map(|_| ())
    }

    /// Makes a bridge.
    #[cfg(test)]
    pub(super) fn make_bridge(&self, InterfaceName(name): InterfaceName) -> io::Result<()> {
        // SAFETY: the kernel reads a name of 16 bytes, and `name` is one.
        check(unsafe { ioctl_with_ref(&self.0, number::SIOCBRADDBR, &name) }).map(|_| ())
    }
}

/// What an ioctl returned, if it was no error.
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}
