//! Bodies as clients compress them.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};

/// By gzip.
///
/// # Panics
/// Never: memory takes everything.
pub fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(data).expect("memory takes everything");
    encoder.finish().expect("memory takes everything")
}

/// By deflate, as HTTP has it: in an envelope of zlib's.
///
/// # Panics
/// Never: memory takes everything.
pub fn zlib(data: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(data).expect("memory takes everything");
    encoder.finish().expect("memory takes everything")
}
