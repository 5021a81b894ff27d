// SPDX-License-Identifier: Apache-2.0
//! What fuzzers and tests feed with hostile disk images.
//!
//! An image is mostly zeroes, which a fuzzer would waste its time on, so an input is a sparse one:
//! its size in units of 1 KiB (2 bytes), then pieces, each with its place in units of 16 bytes (3
//! bytes), its length (2 bytes) and its content. All numbers are little-endian; what does not fit is
//! left out. docs/fuzzing.md says more.

/// Largest image in KiB.
const SIZE_KIB_MAX: usize = 4096;
/// Unit of a piece's place.
const UNIT: usize = 16;

/// Looks for what the image boots.
pub fn find(data: &[u8]) {
    // Found or refused; a refusal can be told.
    if let Err(error) = crate::find_in_bytes("fuzzed", expand(data)) {
        assert!(!error.to_string().is_empty());
    }
}

fn expand(data: &[u8]) -> Vec<u8> {
    let Some(([a, b], mut rest)) = data.split_first_chunk() else {
        return Vec::new();
    };
    let size = usize::from(u16::from_le_bytes([*a, *b])) % (SIZE_KIB_MAX + 1);
    let mut image = vec![0; size << 10];
    while let Some(([a, b, c, d, e], more)) = rest.split_first_chunk() {
        let place = u32::from_le_bytes([*a, *b, *c, 0]);
        let at = usize::try_from(place).map_or(usize::MAX, |place| place * UNIT);
        let length = usize::from(u16::from_le_bytes([*d, *e]));
        let (content, behind) = more.split_at(length.min(more.len()));
        for (byte, value) in image.iter_mut().skip(at).zip(content) {
            *byte = *value;
        }
        rest = behind;
    }
    image
}

#[cfg(test)]
#[path = "../../fuzz/replay.rs"]
mod replay;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn boot_disk() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let directories = [
            here.join("../fuzz/seeds/boot_disk"),
            here.join("fuzz-regressions/boot_disk"),
        ];
        replay::replay(find, &directories);
    }

    /// A seed that is refused would lead a fuzzer nowhere.
    #[test]
    fn the_seeds_boot() {
        let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds/boot_disk");
        for seed in std::fs::read_dir(seeds).unwrap() {
            let image = expand(&std::fs::read(seed.unwrap().path()).unwrap());
            crate::find_in_bytes("seed", image).unwrap();
        }
    }
}
