// SPDX-License-Identifier: Apache-2.0
//! A complete transaction on its way to being merged, and pages apart from RAM.
//!
//! Buffers grow with what has really arrived, never with what was announced, and are used again
//! for later epochs.

use kemari_api::{Epoch, Generation};

use super::changes::StagedChanges;
use crate::output::Output;
use crate::page::{PAGE_BYTES, PageContent, PageIndex};
use crate::wire::WireError;
use crate::wire::pages::PageReader;

/// A buffer larger than this is given back to the system after use.
const KEPT_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Pages that have been checked against the RAM layout and may be applied as they are.
#[derive(Debug, Clone)]
pub struct PageBatch<'a> {
    reader: PageReader<'a>,
}

impl<'a> PageBatch<'a> {
    pub(super) const fn checked(reader: PageReader<'a>) -> Self {
        Self { reader }
    }
}

impl<'a> Iterator for PageBatch<'a> {
    type Item = (PageIndex, PageContent<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        self.reader.next()?.ok()
    }
}

#[derive(Debug, Clone, Copy)]
struct StagedPage {
    index: PageIndex,
    /// Which raw page of the arena holds it; `None` for zeros.
    raw: Option<usize>,
}

/// The pages of one checkpoint, in the order they were sent. A page sent twice counts twice; the
/// later one is what it holds.
#[derive(Debug, Default)]
pub struct StagedPages {
    pages: Vec<StagedPage>,
    arena: Vec<u8>,
}

impl StagedPages {
    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.pages.len()
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// The pages, in the order they are to be applied.
    pub fn iter(&self) -> impl Iterator<Item = (PageIndex, PageContent<'_>)> {
        let (raws, _) = self.arena.as_chunks::<PAGE_BYTES>();
        self.pages.iter().map(move |page| {
            let content = match page.raw.and_then(|raw| raws.get(raw)) {
                Some(bytes) => PageContent::Raw(bytes),
                None => PageContent::Zero,
            };
            (page.index, content)
        })
    }

    pub(super) fn push(&mut self, index: PageIndex, content: PageContent<'_>) {
        let raw = match content {
            PageContent::Zero => None,
            PageContent::Raw(bytes) => {
                let raw = self.arena.len() / PAGE_BYTES;
                self.arena.extend_from_slice(bytes);
                Some(raw)
            }
        };
        self.pages.push(StagedPage { index, raw });
    }

    fn clear(&mut self) {
        self.pages.clear();
        self.arena.clear();
        if self.arena.capacity() > KEPT_BYTES_MAX {
            *self = Self::default();
        }
    }
}

/// A complete transaction whose totals and digest were verified.
///
/// The process decodes `state`, then calls [`super::PassiveSession::accept`]; it keeps the
/// checkpoint until its pages are merged into RAM and then hands it to
/// [`super::PassiveSession::recycle`].
#[derive(Debug, Default)]
pub struct Checkpoint {
    /// Generation of the session.
    pub generation: Generation,
    /// Its epoch.
    pub epoch: Epoch,
    /// Every output up to and including this epoch was taken by the outside.
    pub delivered_up_to: Epoch,
    /// Position of the console's stream at the end of the epoch.
    pub console_position: u64,
    /// Pages that differ from the checkpoint before.
    pub pages: StagedPages,
    /// Machine state; its form is the process's affair.
    pub state: Vec<u8>,
    /// What the guest changed on disks since the checkpoint before.
    pub changes: StagedChanges,
    /// Outputs that wait for this commit. Taken out by `accept`.
    pub outputs: Vec<Output>,
}

impl Checkpoint {
    pub(super) fn clear(&mut self) {
        self.pages.clear();
        self.state.clear();
        self.changes.clear();
        self.outputs.clear();
    }
}

/// Checks that a payload is nothing but well-formed pages accepted by `allowed`, and counts them.
pub(super) fn check_pages<E: From<WireError>>(
    reader: PageReader<'_>,
    mut allowed: impl FnMut(PageIndex) -> Result<(), E>,
) -> Result<u64, E> {
    let mut count = 0;
    for page in reader {
        let (index, _) = page?;
        allowed(index)?;
        count += 1;
    }
    Ok(count)
}
