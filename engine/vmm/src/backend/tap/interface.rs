// SPDX-License-Identifier: Apache-2.0
//! The TAP as a network interface of the host: made or found, attached to, configured.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;

use super::{OpenTapError, TapOptions, TapOrigin};
use crate::backend::ioctl::{self, InterfaceName, Interfaces};
use crate::backend::network::PACKET_HEADER_BYTES;

/// First byte of a created TAP's own address.
const HIGHEST_LOCAL: u8 = 0xfe;

pub(super) struct Interface {
    name: String,
    raw_name: InterfaceName,
    interfaces: Interfaces,
}

/// Checks a name as the kernel does (`dev_valid_name`), and refuses `%`, which the kernel would
/// take for a place to put a number.
fn raw_name(name: &str) -> Result<InterfaceName, OpenTapError> {
    let forbidden = |byte: u8| byte.is_ascii_whitespace() || b"/:%\0\x0b".contains(&byte);
    let bad = name.is_empty() || name.len() > 15 || name == "." || name == "..";
    if bad || name.bytes().any(forbidden) {
        return Err(OpenTapError::Name {
            name: name.to_owned(),
        });
    }
    let mut raw = [0; 16];
    for (target, byte) in raw.iter_mut().zip(name.bytes()) {
        *target = byte;
    }
    Ok(InterfaceName(raw))
}

impl Interface {
    pub(super) fn new(name: &str) -> Result<Self, OpenTapError> {
        Ok(Self {
            name: name.to_owned(),
            raw_name: raw_name(name)?,
            interfaces: Interfaces::new().map_err(|source| OpenTapError::SetUp {
                name: name.to_owned(),
                step: "a socket",
                source,
            })?,
        })
    }

    /// Opens one file for each queue pair; makes the interface if it is not there.
    pub(super) fn attach(&self, pairs: usize) -> Result<(Vec<File>, TapOrigin), OpenTapError> {
        let exists = self.interfaces.index(self.raw_name).is_ok();
        let (origin, multi_queue) = if exists {
            (TapOrigin::Given, self.check_given(pairs)?)
        } else {
            (TapOrigin::Created, pairs > 1)
        };
        let files: Vec<File> = (0..pairs)
            .map(|_| self.open_queue(multi_queue))
            .collect::<Result<_, _>>()?;
        // The kernel lets several processes share a multi-queue TAP. Of two that come at the same
        // time, both may give up here, but never do both go on.
        if multi_queue
            && let Ok((_, attached)) = self.interfaces.channels(self.raw_name)
            && usize::try_from(attached) != Ok(pairs)
        {
            return Err(self.in_use());
        }
        Ok((files, origin))
    }

    /// Checks an interface that exists; tells whether it can have several queues.
    fn check_given(&self, pairs: usize) -> Result<bool, OpenTapError> {
        let driver = self.interfaces.driver(self.raw_name);
        if driver.ok().as_deref() != Some("tun") {
            return Err(self.not_a_tap());
        }
        // Linux 6.1 tells; where an old kernel does not, the attempt decides.
        let (max, attached) = self
            .interfaces
            .channels(self.raw_name)
            .unwrap_or_else(|_| (u32::from(pairs > 1) + 1, 0));
        if attached > 0 {
            return Err(self.in_use());
        }
        if pairs > 1 && max <= 1 {
            return Err(OpenTapError::SingleQueue {
                name: self.name.clone(),
                pairs,
            });
        }
        Ok(max > 1)
    }

    fn open_queue(&self, multi_queue: bool) -> Result<File, OpenTapError> {
        let tun = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .map_err(OpenTapError::NoDriver)?;
        let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        if multi_queue {
            flags |= libc::IFF_MULTI_QUEUE;
        }
        ioctl::tun_attach(&tun, self.raw_name, flags).map_err(|source| {
            let name = self.name.clone();
            match source.raw_os_error() {
                Some(libc::EBUSY | libc::E2BIG) => OpenTapError::InUse { name },
                Some(libc::EPERM | libc::EACCES) => OpenTapError::Permission { name },
                Some(libc::EINVAL) => OpenTapError::NotATap { name },
                _ => self.failed("TUNSETIFF")(source),
            }
        })?;
        let header_bytes = i32::try_from(PACKET_HEADER_BYTES).unwrap_or_default();
        ioctl::tun_set_header_bytes(&tun, header_bytes).map_err(self.failed("TUNSETVNETHDRSZ"))?;
        Ok(tun)
    }

    /// Makes the interface what the options say, and brings it up.
    pub(super) fn configure(
        &self,
        origin: TapOrigin,
        options: &TapOptions,
    ) -> Result<(), OpenTapError> {
        if origin == TapOrigin::Created {
            self.keep_quiet();
            self.take_high_address();
        }
        if let Some(mtu) = options.mtu {
            self.set_mtu(mtu)?;
        }
        if let Some(bridge) = &options.bridge {
            self.join(bridge)?;
        }
        self.bring_up()
    }

    /// Keeps the host from sending IPv6 packets of its own to the guest: without an address it has
    /// nothing to say. Where there is no IPv6, or the file may not be written, nothing is lost but
    /// quiet.
    fn keep_quiet(&self) {
        let path = format!("/proc/sys/net/ipv6/conf/{}/addr_gen_mode", self.name);
        // 1 is IN6_ADDR_GEN_MODE_NONE.
        if let Err(error) = std::fs::write(path, "1") {
            tracing::debug!(%error, tap = self.name, "IPv6 addresses are left as they are");
        }
    }

    /// Gives the TAP a high address: a bridge takes the lowest of its ports', and should not change
    /// its own when a guest comes or goes. Where that fails, nothing else does.
    fn take_high_address(&self) {
        let changed = self
            .interfaces
            .hardware_address(self.raw_name)
            .and_then(|mut address| {
                let [_, _, first, ..] = &mut address;
                *first = HIGHEST_LOCAL;
                self.interfaces
                    .set_hardware_address(self.raw_name, &address)
            });
        if let Err(error) = changed {
            tracing::debug!(%error, tap = self.name, "The TAP keeps its random address");
        }
    }

    pub(super) fn mtu(&self) -> Result<u32, OpenTapError> {
        let mtu = self.interfaces.mtu(self.raw_name);
        mtu.and_then(|mtu| u32::try_from(mtu).map_err(io::Error::other))
            .map_err(self.failed("SIOCGIFMTU"))
    }

    fn set_mtu(&self, mtu: u32) -> Result<(), OpenTapError> {
        if self.mtu()? == mtu {
            return Ok(());
        }
        let out_of_range = || OpenTapError::Mtu {
            name: self.name.clone(),
            mtu,
        };
        let value = i32::try_from(mtu).map_err(|_| out_of_range())?;
        self.interfaces
            .set_mtu(self.raw_name, value)
            .map_err(|source| match source.raw_os_error() {
                Some(libc::EINVAL) => out_of_range(),
                _ => self.refused(
                    "SIOCSIFMTU",
                    format!("ip link set dev {} mtu {mtu}", self.name),
                    source,
                ),
            })
    }

    fn join(&self, bridge: &str) -> Result<(), OpenTapError> {
        let raw_bridge = raw_name(bridge)?;
        let (name, bridge) = (self.name.clone(), bridge.to_owned());
        if self.interfaces.index(raw_bridge).is_err() {
            return Err(OpenTapError::NoBridge { name, bridge });
        }
        if self.interfaces.driver(raw_bridge).ok().as_deref() != Some("bridge") {
            return Err(OpenTapError::NotABridge { name, bridge });
        }
        let index = self
            .interfaces
            .index(self.raw_name)
            .map_err(self.failed("SIOCGIFINDEX"))?;
        // Asked first, because without CAP_NET_ADMIN the answer to the attempt would be EPERM.
        let ports = self.interfaces.bridge_ports(raw_bridge);
        if ports.is_ok_and(|ports| ports.contains(&index)) {
            return Ok(());
        }
        self.interfaces
            .add_to_bridge(raw_bridge, index)
            .map_err(|source| match source.raw_os_error() {
                Some(libc::EBUSY) => OpenTapError::OtherBridge { name, bridge },
                _ => self.refused(
                    "SIOCBRADDIF",
                    format!("ip link set dev {name} master {bridge}"),
                    source,
                ),
            })
    }

    fn bring_up(&self) -> Result<(), OpenTapError> {
        let flags = self
            .interfaces
            .flags(self.raw_name)
            .map_err(self.failed("SIOCGIFFLAGS"))?;
        let up = u16::try_from(libc::IFF_UP).unwrap_or_default();
        if flags & up != 0 {
            return Ok(());
        }
        self.interfaces
            .set_flags(self.raw_name, flags | up)
            .map_err(|source| {
                let command = format!("ip link set dev {} up", self.name);
                self.refused("SIOCSIFFLAGS", command, source)
            })
    }

    /// An error for this step of the set-up.
    pub(super) fn failed(&self, step: &'static str) -> impl FnOnce(io::Error) -> OpenTapError {
        let name = self.name.clone();
        move |source| OpenTapError::SetUp { name, step, source }
    }

    fn refused(&self, step: &'static str, command: String, source: io::Error) -> OpenTapError {
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => OpenTapError::MayNotConfigure {
                name: self.name.clone(),
                command,
            },
            _ => self.failed(step)(source),
        }
    }

    fn in_use(&self) -> OpenTapError {
        OpenTapError::InUse {
            name: self.name.clone(),
        }
    }

    fn not_a_tap(&self) -> OpenTapError {
        OpenTapError::NotATap {
            name: self.name.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_the_kernel_would_not_take_are_refused() {
        for name in [
            "",
            ".",
            "..",
            "a/b",
            "a b",
            "a\tb",
            "tap%d",
            "eth0:1",
            "a\0b",
            "sixteen-letters-",
        ] {
            let refused = raw_name(name);
            assert!(
                matches!(refused, Err(OpenTapError::Name { .. })),
                "{name:?}"
            );
        }
        assert_eq!(raw_name("fifteen-letters").unwrap().0[14..], *b"s\0");
    }
}
