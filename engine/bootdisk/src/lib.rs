// SPDX-License-Identifier: Apache-2.0
//! Finds what a raw disk image boots: kernel, initrd and command line, as `pygrub` did.
//!
//! ```no_run
//! # fn example() -> Result<(), kemari_bootdisk::BootDiskError> {
//! let files = kemari_bootdisk::find("/srv/vm/disk.raw".as_ref())?;
//! println!("{}: {}", files.described, files.cmdline);
//! # Ok(()) }
//! ```
//!
//! The order (docs/boot.md has the details): entries of the Boot Loader Specification, GRUB's
//! `grub.cfg`, `extlinux.conf`, and on an image without boot loader the newest kernel of `/boot`.
//!
//! # The parts
//!
//! * `image`: bytes of a file or block device, with a budget; `table`: partitions; `magic`: what a
//!   partition holds; `volume`: ext4 and FAT read alike; `volumes`: all of them.
//! * `bls`, `grub`, `syslinux`, `bare`: one boot loader each. Each returns a choice or nothing; the
//!   first that finds a configuration decides, and a configuration that cannot be used is an error,
//!   never a reason to boot something else in silence.
//! * `find`: asks them in order and reads the files that were chosen.
//!
//! # Invariants
//!
//! * The image is the guest's, hence hostile: nothing here panics on it, every loop and every
//!   allocation has a bound of `limits`, and bytes read from the image count against a budget, so
//!   that no chain on the disk is followed for ever.
//! * The image is only read. Counters that a boot loader would write (boot counting, one-time
//!   entries) are read and left alone.
//! * What is chosen depends on the image only: not on time, environment or the host's devices.
//!
//! # Not here
//!
//! XFS, btrfs, LVM, LUKS, software RAID, compressed or layered image formats (qcow2): recognised,
//! and refused with the name of what was found. Unified kernel images, EFI programs, Xen, Windows.
//! No `console=` or other word is added to a command line that the guest configured.
#![forbid(unsafe_code)]

mod bare;
mod bls;
mod choice;
mod error;
mod find;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod glob;
mod grub;
mod image;
mod limits;
mod magic;
mod syslinux;
mod table;
mod version;
mod volume;
mod volumes;

pub use error::{BootDiskError, Looked, Place, Problem};
pub use find::{BootFiles, find, find_in_bytes, find_in_file};
