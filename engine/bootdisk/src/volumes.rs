// SPDX-License-Identifier: Apache-2.0
//! All file systems of the disk that can be read, and notes on those that cannot.

use std::rc::Rc;

use crate::error::{BootDiskError, Looked, Place};
use crate::image::Image;
use crate::magic::{self, Contents};
use crate::table::{self, Partition, Purpose, Scheme};
use crate::volume::Volume;

/// A file system of [`Volumes`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct VolumeIndex(usize);

/// A file of one of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileAt {
    pub(crate) volume: VolumeIndex,
    pub(crate) path: String,
}

pub(crate) struct Volumes {
    image: String,
    list: Vec<Volume>,
    /// `PARTUUID` of the partition that says it is Linux' root, also if it cannot be read.
    root_partuuid: Option<String>,
}

impl Volumes {
    pub(crate) fn open(image: &Rc<Image>, looked: &mut Looked) -> Result<Self, BootDiskError> {
        let mut volumes = Self {
            image: image.name().to_owned(),
            list: Vec::new(),
            root_partuuid: None,
        };
        let whole = image.window(0, u64::MAX);
        let failed = |source| BootDiskError::Read {
            image: image.name().to_owned(),
            source,
        };
        if let Some((found, remedy)) = magic::not_a_disk(&whole).map_err(failed)? {
            return Err(BootDiskError::NotADisk {
                image: image.name().to_owned(),
                found: found.to_owned(),
                remedy: remedy.to_owned(),
            });
        }
        match table::read(image, looked)? {
            None => volumes.add(image, None, looked)?,
            Some((scheme, partitions)) => {
                if partitions.is_empty() {
                    looked.note("the partition table is empty");
                }
                for partition in partitions {
                    volumes.add(image, Some((scheme, partition)), looked)?;
                }
            }
        }
        Ok(volumes)
    }

    fn add(
        &mut self,
        image: &Rc<Image>,
        partition: Option<(Scheme, Partition)>,
        looked: &mut Looked,
    ) -> Result<(), BootDiskError> {
        let place = Place {
            image: image.name().to_owned(),
            partition: partition.as_ref().map(|(_, partition)| partition.number),
        };
        let window = match &partition {
            Some((_, partition)) => image.window(partition.start, partition.bytes),
            None => image.window(0, u64::MAX),
        };
        let name = match &partition {
            Some((_, partition)) => format!("partition {}", partition.number),
            None => "the whole disk".to_owned(),
        };
        if let Some((_, partition)) = &partition
            && partition.purpose == Purpose::Root
        {
            self.root_partuuid = Some(partition.partuuid.clone());
        }
        let contents = magic::contents(&window).map_err(|source| BootDiskError::Read {
            image: image.name().to_owned(),
            source,
        })?;
        match Volume::open(place, partition, contents, window) {
            Some(Ok(volume)) => {
                looked.note(format!("{name}: {}", volume.kind()));
                self.list.push(volume);
            }
            Some(Err(problem)) => looked.note(format!("{name}: {problem}")),
            None => looked.note(match contents {
                Contents::Other(what) => format!("{name}: {what}, which cannot be read here"),
                _ => format!("{name}: nothing known"),
            }),
        }
        Ok(())
    }

    pub(crate) fn image(&self) -> &str {
        &self.image
    }

    pub(crate) fn root_partuuid(&self) -> Option<&str> {
        self.root_partuuid.as_deref()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (VolumeIndex, &Volume)> {
        self.list
            .iter()
            .enumerate()
            .map(|(at, volume)| (VolumeIndex(at), volume))
    }

    pub(crate) fn get(&self, index: VolumeIndex) -> &Volume {
        self.list
            .get(index.0)
            .expect("an index comes from iter() of the same volumes, which never shrink")
    }

    pub(crate) fn find(&self, wanted: impl Fn(&Volume) -> bool) -> Option<VolumeIndex> {
        let mut all = self.iter();
        all.find(|(_, volume)| wanted(volume))
            .map(|(index, _)| index)
    }

    #[cfg(test)]
    pub(crate) fn in_memory(list: Vec<Volume>) -> Self {
        Self {
            image: "disk.raw".into(),
            list,
            root_partuuid: None,
        }
    }
}
