//! Fuzz targets: a function for each reader of untrusted bytes, for the fuzzer in `tests/fuzz`.
//!
//! A target takes arbitrary bytes, and panics if an invariant of the host does not hold for them.
//! The server does not contain this module: it is only built for tests and with the feature
//! `fuzzing`. The inputs in `tests/fuzz/corpus`, a folder for each target, run in every `cargo
//! test`, and the fuzzer starts with them.

#[path = "../../arithmetic/tests/support/fuzz.rs"]
mod arithmetic;
mod artifacts;
mod bytes;
#[path = "../../arithmetic/tests/support/fuzz_quantised.rs"]
mod fuzz_quantised;
#[path = "../../arithmetic/tests/support/plain.rs"]
mod plain;
#[path = "../../arithmetic/tests/support/quantised.rs"]
mod quantised;
mod records;
mod texts;

/// A fuzz target.
pub struct FuzzTarget {
    /// The name on the command line and of the corpus folder.
    pub name: &'static str,
    /// Runs the target on an input.
    pub run: fn(&[u8]),
    /// The most bytes of memory in use at any time, for each byte of the input.
    per_byte: usize,
}

/// The memory of a target besides that for its input, in bytes: lazily created tables, a runtime,
/// and a tensor of defaults.
const FIXED_BYTES: usize = 16 << 20;

impl FuzzTarget {
    const fn new(name: &'static str, run: fn(&[u8]), per_byte: usize) -> Self {
        Self { name, run, per_byte }
    }

    /// The most bytes of memory in use at any time for an input of this length.
    pub fn memory_bytes(&self, length: usize) -> usize {
        FIXED_BYTES.saturating_add(self.per_byte.saturating_mul(length))
    }
}

/// All targets. A JSON value of one or two bytes takes 72 bytes, twice that in a vector that has
/// just grown, and several copies exist at once, because results are compared.
pub const TARGETS: [FuzzTarget; 14] = [
    FuzzTarget::new("arithmetic", arithmetic::arithmetic, 4096),
    FuzzTarget::new("quantised", fuzz_quantised::quantised, 4096),
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
    fn every_corpus_input_passes_its_target() {
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
    fn targets_pass_simple_inputs() {
        for target in &TARGETS {
            for length in 0..40 {
                for byte in [0, b'\n', b'1', b'{', 0x7f, 0xff] {
                    (target.run)(&vec![byte; length]);
                }
            }
        }
    }
}
