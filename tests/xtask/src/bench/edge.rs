//! Measures the public listener: overload must not affect admitted requests, rejections must be
//! fast, the server must recover, and slow or silent clients must not affect others.
//!
//! The load generator and the clients that misbehave share the processors with the server, and the
//! figures include what they use. Each module below with a `measure` is a section.

mod callers;
mod catalogues;
mod failing;
mod overload;

use anyhow::Result;

use super::artifacts::Model;
use super::rig::Rig;
use super::{Figure, Subject};

/// A section of the benchmark.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum Section {
    /// Half to ten times the requests that the server has capacity for, and the recovery
    /// afterwards.
    Overload,
    /// Good callers beside slow, silent and failing ones.
    Callers,
    /// Pages about a thousand models, and predictions beside requests for them.
    Catalogues,
}

/// What all sections share.
pub(super) struct Bench<'a> {
    rig: Rig<'a>,
    /// A model with short calls.
    short: Model,
    /// A model with long calls, so that this machine can generate ten times its capacity.
    long: Model,
}

impl<'a> Bench<'a> {
    pub(super) fn prepare(subject: &Subject<'a>) -> Result<Self> {
        let rig = Rig::new(subject, "edge")?;
        let packed =
            |name: &str| Model::inspect(rig.workspace, &rig.workspace.repository().join(name));
        let (short, long) = (packed("toxicity-1.0.0.wasm")?, packed("text-direction-1.0.0.wasm")?);
        Ok(Self { rig, short, long })
    }
}

impl Section {
    pub(super) fn measure(&self, bench: &Bench<'_>) -> Result<Vec<Figure>> {
        match self {
            Self::Overload => overload::measure(bench),
            Self::Catalogues => catalogues::measure(bench),
            Self::Callers => {
                let mut figures = callers::measure(bench)?;
                figures.extend(failing::measure(bench)?);
                Ok(figures)
            }
        }
    }
}
