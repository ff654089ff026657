//! Everything that reads bytes from outside, one function each, for the fuzzer in `tests/fuzz`.
//!
//! A function takes any bytes and returns; it panics if what the host relies on does not hold for
//! them. There is none of this in the server: the module is built for tests and with the feature
//! `fuzzing` alone. The inputs in `tests/fuzz/corpus`, a folder for each target, go through their
//! targets in every `cargo test`; the fuzzer begins with them.

mod artifacts;
mod bytes;
mod records;
mod texts;

/// One reader of bytes from outside.
pub struct FuzzTarget {
    /// Names it on the command line and names the folder of its corpus.
    pub name: &'static str,
    /// What it does with the bytes.
    pub run: fn(&[u8]),
    /// The most memory that it may take at any time for each byte of the input.
    per_byte: usize,
}

/// What a target may take on top, in bytes, however small its input is: tables that are made on first
/// use, a runtime, and a tensor of defaults.
const FIXED_BYTES: usize = 16 << 20;

impl FuzzTarget {
    const fn new(name: &'static str, run: fn(&[u8]), per_byte: usize) -> Self {
        Self { name, run, per_byte }
    }

    /// The most bytes of memory that an input of this length may take at any time.
    pub fn memory_bytes(&self, length: usize) -> usize {
        FIXED_BYTES.saturating_add(self.per_byte.saturating_mul(length))
    }
}

/// All of them. A JSON value of a byte or two takes 72 bytes, twice that in a vector that has just grown, and is there
/// several times at once, because it is compared with itself read in another way.
pub const TARGETS: [FuzzTarget; 12] = [
    FuzzTarget::new("json", records::json, 4096),
    FuzzTarget::new("record", records::record, 4096),
    FuzzTarget::new("output", records::output, 4096),
    FuzzTarget::new("signature", records::signature, 4096),
    FuzzTarget::new("artifact", artifacts::artifact, 256),
    FuzzTarget::new("sections", artifacts::sections, 4096),
    FuzzTarget::new("manifest", artifacts::manifest, 4096),
    FuzzTarget::new("config", texts::config, 4096),
    FuzzTarget::new("names", texts::names, 4096),
    FuzzTarget::new("request", texts::request, 4096),
    FuzzTarget::new("state", texts::state, 4096),
    FuzzTarget::new("oip", records::tensors, 4096),
];

#[cfg(test)]
mod tests {
    use std::fs;
    use std::panic::catch_unwind;
    use std::path::Path;

    use super::*;

    #[test]
    fn every_input_of_the_corpus_passes_its_target() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/corpus");
        for target in &TARGETS {
            let mut inputs = 0;
            for entry in fs::read_dir(corpus.join(target.name)).unwrap() {
                let path = entry.unwrap().path();
                let bytes = fs::read(&path).unwrap();
                let outcome = catch_unwind(|| (target.run)(&bytes));
                assert!(outcome.is_ok(), "{} does not pass", path.display());
                inputs += 1;
            }
            assert!(inputs >= 3, "{} has a corpus of {inputs}", target.name);
        }
        let folders = fs::read_dir(&corpus).unwrap().count();
        assert_eq!(folders, TARGETS.len(), "a folder of the corpus belongs to no target");
    }

    #[test]
    fn no_input_is_a_target_s_undoing() {
        for target in &TARGETS {
            for length in 0..40 {
                for byte in [0, b'\n', b'1', b'{', 0x7f, 0xff] {
                    (target.run)(&vec![byte; length]);
                }
            }
        }
    }
}
