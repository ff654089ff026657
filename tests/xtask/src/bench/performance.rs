//! Compares inference in guests with the same graphs in a native process and in onnxruntime, and the
//! server with other servers.
//!
//! Variants alternate in short blocks, so that other activity of the machine affects all of them, and
//! the ratios are medians of the blocks' ratios. Each case is checked: its outputs are compared with
//! those of onnxruntime, and a request that fails is an error of the section.

mod engine;
mod inference;
mod peers;
mod serving;
pub(super) mod setup;

use anyhow::Result;

use self::setup::Bench;
use super::Figure;

/// A section of the benchmark.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum Section {
    /// The time of a call in guests, natively and in onnxruntime.
    Inference,
    /// Throughput, latency, memory and start of this server and of others.
    Serving,
}

impl Section {
    pub(super) fn measure(&self, bench: &Bench<'_>) -> Result<Vec<Figure>> {
        match self {
            Self::Inference => inference::measure(bench),
            Self::Serving => serving::measure(bench),
        }
    }
}
