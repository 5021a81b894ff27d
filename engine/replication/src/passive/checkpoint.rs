// SPDX-License-Identifier: Apache-2.0
//! A complete transaction on its way to being merged, and pages apart from RAM.
//!
//! Buffers grow with what has really arrived, never with what was announced, and are used again
//! for later epochs.

use kemari_api::{Epoch, Generation};

use super::changes::StagedChanges;
use crate::output::Output;
use crate::page::{PAGE_BYTES, PageContent, PageIndex};
use crate::wire::pages::{ENCODING_DELTA, EncodedPage, PageReader, unpack_page};
use crate::wire::{FrameKind, WireError};

/// A buffer larger than this is given back to the system after use.
const KEPT_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Pages that have been checked as a whole, contents too, and may be applied.
#[derive(Debug, Clone)]
pub struct PageBatch<'a> {
    kind: FrameKind,
    reader: PageReader<'a>,
}

impl<'a> PageBatch<'a> {
    /// Checks that a payload is nothing but well-formed pages that stand alone and are accepted by
    /// `allowed`. Blocks are unpacked for that, and again by [`Self::apply`]: the copy waits for
    /// the link, and nothing may be applied of a frame that is not right as a whole.
    pub(super) fn checked<E: From<WireError>>(
        kind: FrameKind,
        reader: PageReader<'a>,
        mut allowed: impl FnMut(PageIndex) -> Result<(), E>,
    ) -> Result<Self, E> {
        let batch = Self { kind, reader };
        for page in batch.reader.clone() {
            let (index, encoded) = page?;
            allowed(index)?;
            with_content(kind, index, encoded, |_| ())?;
        }
        Ok(batch)
    }

    /// Which pages there are, in their order.
    pub fn indices(&self) -> impl Iterator<Item = PageIndex> {
        self.reader.clone().filter_map(|page| Some(page.ok()?.0))
    }

    /// Gives each page to `apply`, in the order they are to be applied.
    ///
    /// # Errors
    /// The first error of `apply`.
    pub fn apply<E>(
        self,
        mut apply: impl FnMut(PageIndex, PageContent<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        // All of it was read before: nothing is left out here.
        for (index, encoded) in self.reader.flatten() {
            if let Ok(applied) =
                with_content(self.kind, index, encoded, |content| apply(index, content))
            {
                applied?;
            }
        }
        Ok(())
    }
}

/// Gives the content of a page that stands alone to `use_it`.
fn with_content<T>(
    kind: FrameKind,
    index: PageIndex,
    encoded: EncodedPage<'_>,
    use_it: impl FnOnce(PageContent<'_>) -> T,
) -> Result<T, WireError> {
    match encoded {
        EncodedPage::Zero => Ok(use_it(PageContent::Zero)),
        EncodedPage::Raw(bytes) => Ok(use_it(PageContent::Raw(bytes))),
        EncodedPage::Lz4(block) => {
            let mut page = [0; PAGE_BYTES];
            unpack_page(kind, block, &mut page)?;
            Ok(use_it(PageContent::Raw(&page)))
        }
        EncodedPage::Delta(_) => Err(WireError::UnknownPageEncoding {
            index,
            code: ENCODING_DELTA,
        }),
    }
}

#[derive(Debug, Clone, Copy)]
struct StagedPage {
    index: PageIndex,
    /// Which raw page of the arena holds it; `None` for zeros.
    raw: Option<usize>,
}

/// The pages of one checkpoint that change, in the order they were sent, all of them whole: what
/// came as a difference was applied to RAM as of the epoch before. A page sent twice counts twice;
/// the later one is what it holds.
#[derive(Debug, Clone, Default)]
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
#[derive(Debug, Clone, Default)]
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
