// SPDX-License-Identifier: Apache-2.0
//! Hardware that fails in a node of bed B, told by the node's own kernel as on a real host.

use anyhow::{Context, Result, ensure};

use super::Machines;
use crate::bed::Bed as _;

/// A page that a process has in memory: the middle one of those of its largest private mapping, which of a VMM is
/// the guest's RAM (proc(5), `maps` and `pagemap`). Not one that was only read, and is the page of zeroes that all
/// processes share (`Documentation/admin-guide/mm/pagemap.rst`, flags 12 and 24).
const PAGE_OF: &str = r#"
import struct, sys

def mappings(pid):
    for line in open(f'/proc/{pid}/maps'):
        place, rights = line.split()[:2]
        start, end = (int(part, 16) for part in place.split('-'))
        if rights == 'rw-p':
            yield end - start, start

pid = int(sys.argv[1])
length, start = max(mappings(pid))
with open(f'/proc/{pid}/pagemap', 'rb') as pages:
    pages.seek(start // 4096 * 8)
    entries = struct.unpack(f'{length // 4096}Q', pages.read(length // 4096 * 8))
present = [entry & (1 << 55) - 1 for entry in entries if entry >> 63]

def owned(page):
    flags.seek(page * 8)
    word = struct.unpack('Q', flags.read(8))[0]
    return word >> 12 & 1 and not word >> 24 & 1

with open('/proc/kpageflags', 'rb') as flags:
    own = [page for page in present if owned(page)]
print(own[len(own) // 2])
"#;

impl Machines {
    /// A page of the RAM of a process's guest fails, as if the node's memory controller had found it: the kernel takes
    /// the page away from the process ("hard offline", `Documentation/ABI/testing/sysfs-memory-page-offline`).
    ///
    /// # Errors
    /// When the process has no page, or the node's kernel does not do that.
    pub fn fail_page_of(&self, node: &str, pid: u32) -> Result<()> {
        let found = self
            .exec(node, &["python3", "-c", PAGE_OF, &pid.to_string()])?
            .success()
            .context("No page was found")?;
        let number: u64 = found.trim().parse().context("The number of a page")?;
        ensure!(number != 0, "The kernel does not show where pages are");
        let poison = format!(
            "echo {:#x} > /sys/devices/system/memory/hard_offline_page",
            number << 12
        );
        self.exec(node, &["sh", "-c", &poison])?
            .success()
            .context("The kernel did not take the page away")?;
        Ok(())
    }

    /// The node's processor 0 takes so many interrupts for corrected machine checks, by the kernel's own injector
    /// (`arch/x86/kernel/cpu/mce/inject.c`).
    ///
    /// # Errors
    /// When the node's kernel cannot.
    pub fn inject_corrected_errors(&self, node: &str, count: u32) -> Result<()> {
        let inject = format!(
            "set -e\n\
             mountpoint -q /sys/kernel/debug || mount -t debugfs debugfs /sys/kernel/debug\n\
             modprobe mce-inject\n\
             cd /sys/kernel/debug/mce-inject\n\
             echo th > flags\n\
             echo 0 > cpu\n\
             i=0\n\
             while [ $i -lt {count} ]; do\n\
               echo 0x9c00000000000000 > status\n\
               echo 4 > bank\n\
               i=$((i + 1))\n\
             done\n"
        );
        self.exec(node, &["sh", "-c", &inject])?
            .success()
            .context("No machine check was injected")?;
        Ok(())
    }
}
