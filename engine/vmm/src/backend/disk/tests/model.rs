// SPDX-License-Identifier: Apache-2.0
//! Random requests against a disk and against a model in memory.

use std::collections::HashMap;
use std::ops::Range;

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
pub(super) enum Step {
    Read(Range<usize>),
    Write(Range<usize>, u8),
    Flush,
    Discard(Range<usize>),
    WriteZeroes(Range<usize>, bool),
    Take,
    Drain,
}

fn sectors() -> impl Strategy<Value = Range<usize>> {
    // Many are whole 4 KiB blocks, so that the direct way is walked on any file system.
    let any = (0..SECTORS, 0..=64usize).prop_map(|(start, count)| start..start + count);
    let blocks = (0..SECTORS / 8, 0..=8usize).prop_map(|(a, count)| a * 8..(a + count) * 8);
    prop_oneof![any, blocks].prop_map(|range| range.start..range.end.min(SECTORS))
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => sectors().prop_map(Step::Read),
        4 => (sectors(), any::<u8>()).prop_map(|(range, fill)| Step::Write(range, fill)),
        1 => Just(Step::Flush),
        1 => sectors().prop_map(Step::Discard),
        1 => (sectors(), any::<bool>()).prop_map(|(range, unmap)| Step::WriteZeroes(range, unmap)),
        2 => Just(Step::Take),
        1 => Just(Step::Drain),
    ]
}

/// What the disk should hold, and what should come back.
struct Model {
    content: Vec<u8>,
    frees_space: bool,
    in_flight: HashMap<u32, (Range<usize>, Option<Vec<u8>>)>,
}

impl Model {
    fn request(&mut self, step: &Step) -> Option<(Range<usize>, DiskRequest)> {
        let bytes = |range: &Range<usize>| range.start * SECTOR..range.end * SECTOR;
        let offset = |range: &Range<usize>| u64::try_from(range.start * SECTOR).unwrap();
        let length = |range: &Range<usize>| u64::try_from(range.len() * SECTOR).unwrap();
        Some(match step {
            Step::Read(range) => (
                range.clone(),
                DiskRequest::Read {
                    offset: offset(range),
                    buffer: vec![0xee; range.len() * SECTOR],
                },
            ),
            Step::Write(range, fill) => {
                let buffer: Vec<u8> = (0..range.len() * SECTOR)
                    .map(|index| fill.wrapping_add(u8::try_from(index % 256).unwrap()))
                    .collect();
                self.content[bytes(range)].copy_from_slice(&buffer);
                let offset = offset(range);
                (range.clone(), DiskRequest::Write { offset, buffer })
            }
            Step::Flush => (0..0, DiskRequest::Flush),
            Step::Discard(range) => {
                if self.frees_space {
                    self.content[bytes(range)].fill(0);
                }
                let (offset, length) = (offset(range), length(range));
                (range.clone(), DiskRequest::Discard { offset, length })
            }
            Step::WriteZeroes(range, unmap) => {
                self.content[bytes(range)].fill(0);
                let request = DiskRequest::WriteZeroes {
                    offset: offset(range),
                    length: length(range),
                    unmap: if *unmap {
                        Unmap::Allowed
                    } else {
                        Unmap::Forbidden
                    },
                };
                (range.clone(), request)
            }
            Step::Take | Step::Drain => return None,
        })
    }

    /// A request that would touch what another in flight touches has no defined outcome.
    fn conflicts(&self, step: &Step) -> bool {
        let (Step::Read(wanted)
        | Step::Write(wanted, _)
        | Step::Discard(wanted)
        | Step::WriteZeroes(wanted, _)) = step
        else {
            return false;
        };
        self.in_flight
            .values()
            .any(|(range, _)| range.start < wanted.end && wanted.start < range.end)
    }

    fn check(&mut self, done: Vec<DiskCompletion>) {
        for completion in done {
            completion.result.unwrap();
            let (_, expected) = self.in_flight.remove(&completion.tag).expect("known tag");
            if let Some(expected) = expected {
                assert!(completion.buffer == expected, "read {}", completion.tag);
            }
        }
    }
}

/// Does the steps and compares everything that comes back. Returns what the disk should hold now.
pub(super) fn run_against_model(disk: &mut RawDisk, content: Vec<u8>, steps: &[Step]) -> Vec<u8> {
    let mut model = Model {
        content,
        frees_space: disk.geometry().discard,
        in_flight: HashMap::new(),
    };
    for (tag, step) in (0..).zip(steps) {
        let mut done = Vec::new();
        if matches!(step, Step::Drain) || model.conflicts(step) {
            disk.drain().unwrap();
            disk.completed(&mut done);
            model.check(done);
            assert!(model.in_flight.is_empty(), "all is done after a drain");
        } else {
            disk.completed(&mut done);
            model.check(done);
        }
        if let Some((range, request)) = model.request(step) {
            let expected = match &request {
                DiskRequest::Read { .. } | DiskRequest::Write { .. } => {
                    Some(model.content[range.start * SECTOR..range.end * SECTOR].to_vec())
                }
                _ => Some(Vec::new()),
            };
            model.in_flight.insert(tag, (range, expected));
            disk.submit(tag, request);
        }
    }
    while !model.in_flight.is_empty() {
        let done = wait(disk);
        model.check(done);
    }
    model.content
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn engines_do_what_the_model_does(steps in proptest::collection::vec(step(), 1..200)) {
        for options in all_options() {
            let (file, content) = image(SECTORS);
            let Some(mut disk) = open(file.path(), options) else { continue };
            let expected = run_against_model(&mut disk, content, &steps);
            drop(disk);
            prop_assert!(std::fs::read(file.path()).unwrap() == expected, "{options:?}");
        }
    }
}
