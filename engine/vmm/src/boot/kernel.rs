// SPDX-License-Identifier: Apache-2.0
//! Recognising a kernel file and loading it: `bzImage` or ELF with a PVH note, by linux-loader.
//!
//! What linux-loader leaves open is done here: telling a person what a wrong file is, refusing what
//! does not fit, and zeroing the parts of an ELF image that have no file content (after a reset,
//! memory is not zero).

use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::{BzImage, Elf, KernelLoader};
use vm_memory::{Bytes, GuestAddress};

use super::file::OpenFile;
use super::{BootError, COMMAND_LINE_LIMIT, HIGH_MEMORY};
use crate::config::BootFile;
use crate::ram::GuestRam;

/// First boot protocol version that tells of a 64-bit entry point.
const PROTOCOL_WITH_XLOADFLAGS: u16 = 0x020c;
const XLF_KERNEL_64: u16 = 1;
const SETUP_HEADER_MAGIC: [u8; 4] = *b"HdrS";
const SETUP_HEADER_MAGIC_AT: usize = 0x202;
const ELF_MAGIC: [u8; 4] = *b"\x7fELF";
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const PROGRAM_HEADER_SIZE: usize = 56;
/// A vmlinux has about five program headers and half a KiB of notes.
const PROGRAM_HEADERS_MAX: u16 = 64;
const NOTE_SIZE_MAX: u64 = 1 << 20;

/// A loaded kernel.
pub(super) enum Kernel {
    Linux(LinuxKernel),
    Pvh(PvhKernel),
}

pub(super) struct LinuxKernel {
    pub(super) load_address: u64,
    pub(super) header: setup_header,
    end: u64,
}

pub(super) struct PvhKernel {
    pub(super) entry: u64,
    end: u64,
}

impl Kernel {
    /// First address the kernel does not use before it manages memory itself.
    pub(super) fn end(&self) -> u64 {
        match self {
            Self::Linux(kernel) => kernel.end,
            Self::Pvh(kernel) => kernel.end,
        }
    }

    /// Where an initrd must end at the latest.
    pub(super) fn initrd_end_limit(&self) -> u64 {
        match self {
            Self::Linux(kernel) => u64::from(kernel.header.initrd_addr_max) + 1,
            Self::Pvh(_) => u64::MAX,
        }
    }

    pub(super) fn command_line_limit(&self) -> usize {
        match self {
            Self::Linux(kernel) => usize::try_from(kernel.header.cmdline_size).unwrap_or(0),
            Self::Pvh(_) => COMMAND_LINE_LIMIT,
        }
    }
}

/// A kernel decompresses itself to its preferred address, or to where it was loaded if higher.
fn linux_end(header: &setup_header) -> u64 {
    let at = header.pref_address.max(HIGH_MEMORY);
    at.saturating_add(u64::from(header.init_size))
}

/// Loads the kernel `source` into memory whose low part ends at `low_end`.
pub(super) fn load(ram: &GuestRam, source: &BootFile, low_end: u64) -> Result<Kernel, BootError> {
    let mut file = OpenFile::open("kernel", source)?;
    let head = file.head(0, 4096)?;
    let loading = Loading { ram, low_end, file };
    if head.starts_with(&ELF_MAGIC) {
        return loading.elf(&head);
    }
    if head.get(SETUP_HEADER_MAGIC_AT..SETUP_HEADER_MAGIC_AT + 4) == Some(&SETUP_HEADER_MAGIC) {
        return loading.bzimage();
    }
    Err(loading.not_a_kernel(describe(&head)))
}

struct Loading<'a> {
    ram: &'a GuestRam,
    low_end: u64,
    file: OpenFile,
}

impl Loading<'_> {
    fn bzimage(mut self) -> Result<Kernel, BootError> {
        let file_end = HIGH_MEMORY.saturating_add(self.file.length()?);
        self.check_size(file_end)?;
        let loaded = BzImage::load(
            self.ram.mapping(),
            Some(GuestAddress(HIGH_MEMORY)),
            self.file.content(),
            None,
        )
        .map_err(|error| self.not_a_kernel(format!("a damaged bzImage ({error})")))?;
        let header = loaded
            .setup_header
            .ok_or_else(|| self.not_a_kernel("a bzImage without header".to_owned()))?;
        let (version, flags) = (header.version, header.xloadflags);
        if version < PROTOCOL_WITH_XLOADFLAGS || flags & XLF_KERNEL_64 == 0 {
            return Err(self.not_a_kernel("a bzImage without 64-bit entry point".to_owned()));
        }
        // A header may promise less than there is.
        let end = linux_end(&header).max(loaded.kernel_end);
        self.check_size(end)?;
        Ok(Kernel::Linux(LinuxKernel {
            load_address: loaded.kernel_load.0,
            header,
            end,
        }))
    }

    fn elf(mut self, head: &[u8]) -> Result<Kernel, BootError> {
        if let Some(found) = unusable_elf(head) {
            return Err(self.not_a_kernel(found));
        }
        let segments = self.segments(head)?;
        let end = segments.iter().map(Segment::end).max().unwrap_or(0);
        self.check_size(end)?;
        if segments.iter().any(|segment| segment.address < HIGH_MEMORY) {
            let found = "an ELF file with a segment below 1 MiB, where boot data is".to_owned();
            return Err(self.not_a_kernel(found));
        }
        let loaded = Elf::load(self.ram.mapping(), None, self.file.content(), None)
            .map_err(|error| self.not_a_kernel(format!("a damaged ELF file ({error})")))?;
        let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
            return Err(self.not_a_kernel("an ELF file without PVH entry note".to_owned()));
        };
        for segment in &segments {
            self.zero(segment)?;
        }
        Ok(Kernel::Pvh(PvhKernel {
            entry: entry.0,
            end,
        }))
    }

    /// The loadable segments, from the program headers.
    fn segments(&mut self, head: &[u8]) -> Result<Vec<Segment>, BootError> {
        let table = u64_at(head, 0x20).unwrap_or(0);
        let count = u16_at(head, 0x38).unwrap_or(0);
        // linux-loader goes through every note and every segment of every header: a table made to
        // keep it busy must not reach it.
        if count > PROGRAM_HEADERS_MAX {
            return Err(self.not_a_kernel(format!("an ELF file with {count} program headers")));
        }
        let headers = self
            .file
            .head(table, u64::from(count) * PROGRAM_HEADER_SIZE as u64)?;
        let parsed = || headers.chunks_exact(PROGRAM_HEADER_SIZE);
        if parsed().any(|header| {
            u32_at(header, 0) == Some(PT_NOTE)
                && u64_at(header, 0x20).is_none_or(|size| size > NOTE_SIZE_MAX)
        }) {
            return Err(self.not_a_kernel("an ELF file with an absurd note".to_owned()));
        }
        Ok(parsed().filter_map(Segment::parse).collect())
    }

    fn zero(&self, segment: &Segment) -> Result<(), BootError> {
        static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
        let mut at = segment.address.saturating_add(segment.file_size);
        while at < segment.end() {
            let step = (segment.end() - at).min(ZEROS.len() as u64);
            let (zeros, _) = ZEROS.split_at(usize::try_from(step).unwrap_or(0));
            self.ram.mapping().write_slice(zeros, GuestAddress(at))?;
            at += step;
        }
        Ok(())
    }

    fn check_size(&self, end: u64) -> Result<(), BootError> {
        if end <= self.low_end {
            return Ok(());
        }
        Err(BootError::MemoryTooSmall {
            what: "kernel",
            file: self.file.name().to_owned(),
            needed_mib: end.div_ceil(1 << 20),
            memory_mib: self.low_end >> 20,
        })
    }

    fn not_a_kernel(&self, found: String) -> BootError {
        BootError::NotAKernel {
            file: self.file.name().to_owned(),
            found,
        }
    }
}

/// One loadable ELF segment.
struct Segment {
    address: u64,
    file_size: u64,
    memory_size: u64,
}

impl Segment {
    fn parse(header: &[u8]) -> Option<Self> {
        if u32_at(header, 0)? != PT_LOAD {
            return None;
        }
        Some(Self {
            address: u64_at(header, 0x18)?,
            file_size: u64_at(header, 0x20)?,
            memory_size: u64_at(header, 0x28)?,
        })
    }

    fn end(&self) -> u64 {
        self.address
            .saturating_add(self.memory_size.max(self.file_size))
    }
}

/// Why an ELF file cannot be for this machine, by its identification.
fn unusable_elf(head: &[u8]) -> Option<String> {
    const CLASS_64: u8 = 2;
    const MACHINE_X86_64: u16 = 62;
    if head.get(4) != Some(&CLASS_64) {
        return Some("an ELF file that is not 64-bit".to_owned());
    }
    match u16_at(head, 0x12) {
        Some(MACHINE_X86_64) => None,
        Some(machine) => Some(format!(
            "an ELF file for machine type {machine}, not x86-64"
        )),
        None => Some("a cut ELF file".to_owned()),
    }
}

/// What a file that is no kernel seems to be.
fn describe(head: &[u8]) -> String {
    let known: [(&[u8], &str); 6] = [
        (b"\x1f\x8b", "gzip-compressed data"),
        (b"\xfd7zXZ", "xz-compressed data"),
        (b"\x28\xb5\x2f\xfd", "zstd-compressed data"),
        (b"070701", "a cpio archive (an initrd?)"),
        (b"#!", "a script"),
        (b"QFI\xfb", "a qcow2 disk image"),
    ];
    if head.is_empty() {
        return "empty".to_owned();
    }
    match known.iter().find(|(magic, _)| head.starts_with(magic)) {
        Some((_, name)) => (*name).to_owned(),
        None if head.is_ascii() => "a text file".to_owned(),
        None => {
            let start: Vec<String> = head.iter().take(8).map(|b| format!("{b:02x}")).collect();
            format!("of no known kind (it begins with {})", start.join(" "))
        }
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}
