// SPDX-License-Identifier: Apache-2.0
//! Asking the boot loaders in order, and reading what the first one chose.

use std::fmt;
use std::fs::File;
use std::path::Path;
use std::rc::Rc;

use crate::choice::Choice;
use crate::error::{BootDiskError, Looked, Problem, printable};
use crate::image::Image;
use crate::limits::{COMMAND_LINE_BYTES_MAX, INITRD_BYTES_MAX, KERNEL_BYTES_MAX};
use crate::volumes::{FileAt, Volumes};
use crate::{bare, bls, grub, syslinux};

/// What a disk boots.
#[derive(Clone, PartialEq, Eq)]
pub struct BootFiles {
    /// The kernel's content.
    pub kernel: Vec<u8>,
    /// Where it is from, for messages.
    pub kernel_name: String,
    /// The content of all initrds, one after another as a boot loader lays them.
    pub initrd: Option<Vec<u8>>,
    /// Where they are from, for messages.
    pub initrd_name: Option<String>,
    /// The kernel's command line.
    pub cmdline: String,
    /// What was chosen and from where, in one line for the log.
    pub described: String,
}

impl fmt::Debug for BootFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BootFiles")
            .field("kernel_bytes", &self.kernel.len())
            .field("initrd_bytes", &self.initrd.as_ref().map(Vec::len))
            .field("cmdline", &self.cmdline)
            .field("described", &self.described)
            .finish()
    }
}

/// Finds what the raw image file or block device boots.
///
/// Reads the disk as it is now: where a guest runs on it, or an earlier run of one left writes in
/// the host's caches elsewhere, call this when that is over.
///
/// # Errors
/// The disk cannot be read, is no raw image, or has nothing that can be booted; each says what was
/// found and what would help.
pub fn find(disk: &Path) -> Result<BootFiles, BootDiskError> {
    find_in(Image::open(disk)?)
}

/// The same for a disk that is open already, at whatever position; `path` is for messages.
///
/// # Errors
/// As [`find`].
pub fn find_in_file(path: &Path, disk: &File) -> Result<BootFiles, BootDiskError> {
    find_in(Image::of_file(path, disk)?)
}

/// The same for an image in memory, called `name` in messages.
///
/// # Errors
/// As [`find`].
pub fn find_in_bytes(name: &str, content: Vec<u8>) -> Result<BootFiles, BootDiskError> {
    find_in(Image::from_bytes(name, content))
}

type Loader = fn(&Volumes, &mut Looked) -> Result<Option<Choice>, BootDiskError>;

/// In the order of preference.
const LOADERS: [Loader; 4] = [bls::choose, grub::choose, syslinux::choose, bare::choose];

fn find_in(image: Image) -> Result<BootFiles, BootDiskError> {
    let mut looked = Looked::default();
    let volumes = Volumes::open(&Rc::new(image), &mut looked)?;
    for loader in LOADERS {
        if let Some(choice) = loader(&volumes, &mut looked)? {
            return read(&volumes, &choice);
        }
    }
    Err(BootDiskError::Nothing {
        image: volumes.image().to_owned(),
        looked,
    })
}

fn read(volumes: &Volumes, choice: &Choice) -> Result<BootFiles, BootDiskError> {
    if choice.cmdline.len() > COMMAND_LINE_BYTES_MAX {
        let text = format!("the command line of {} is absurdly long", choice.named_by);
        let config = volumes.get(choice.config);
        return Err(config.error(&choice.named_by, Problem::Unsupported(text)));
    }
    let kernel = content(volumes, choice, &choice.kernel, KERNEL_BYTES_MAX)?;
    let initrd = initrds(volumes, choice)?;
    let kernel_name = name(volumes, &choice.kernel);
    let described = format!(
        "{}, by {} on {}: kernel {} ({} KiB), {}",
        choice.title,
        choice.named_by,
        volumes.get(choice.config).place(),
        choice.kernel.path,
        kernel.len() >> 10,
        match &initrd {
            Some(initrd) => format!(
                "initrd {} ({} KiB)",
                paths(&choice.initrds),
                initrd.len() >> 10
            ),
            None => "no initrd".to_owned(),
        }
    );
    Ok(BootFiles {
        kernel,
        kernel_name,
        initrd_name: choice.initrds.first().map(|file| name(volumes, file)),
        initrd,
        cmdline: choice.cmdline.clone(),
        described: printable(&described),
    })
}

/// All initrds as one: each begins at a multiple of four, with zeros before it, as the kernel wants
/// archives that follow one another (Documentation/driver-api/early-userspace/buffer-format.rst).
fn initrds(volumes: &Volumes, choice: &Choice) -> Result<Option<Vec<u8>>, BootDiskError> {
    if choice.initrds.is_empty() {
        return Ok(None);
    }
    let mut all = Vec::new();
    for file in &choice.initrds {
        let left = INITRD_BYTES_MAX.saturating_sub(all.len() as u64);
        let part = content(volumes, choice, file, left)?;
        if all.is_empty() {
            all = part;
        } else {
            all.resize(all.len().next_multiple_of(4), 0);
            all.extend(part);
        }
    }
    Ok(Some(all))
}

fn content(
    volumes: &Volumes,
    choice: &Choice,
    file: &FileAt,
    limit: u64,
) -> Result<Vec<u8>, BootDiskError> {
    let volume = volumes.get(file.volume);
    volume.read(&file.path, limit)?.ok_or_else(|| {
        let problem = Problem::Missing {
            named_by: choice.named_by.clone(),
        };
        volume.error(&file.path, problem)
    })
}

fn name(volumes: &Volumes, file: &FileAt) -> String {
    let place = volumes.get(file.volume).place();
    printable(&format!("{} on {place}", file.path))
}

fn paths(files: &[FileAt]) -> String {
    let paths: Vec<&str> = files.iter().map(|file| file.path.as_str()).collect();
    paths.join(", ")
}
