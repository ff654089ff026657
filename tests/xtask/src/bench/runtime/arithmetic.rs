//! What the host's arithmetic adds to a guest's calls, measured in a process of its own: the cost of
//! a crossing, and how late a long operation is interrupted.
//!
//! If operands or results were copied or allocated, a crossing would cost more. If an operation did
//! not look at its deadline often enough, it would be interrupted too late.

use anyhow::Result;

use super::setup::{Bench, value};
use crate::bench::artifacts::{Model, pack_arithmetic};
use crate::bench::{Bar, Figure};
use crate::run;

/// The state folder in which the model is compiled.
const STATE: &str = "state-arithmetic";

/// A small network makes a hundred crossings in half a millisecond; they must be a small part.
const CROSSING_NS: Bar = Bar::Below(400.0);

/// What a deadline promises, and time for the scheduler.
const LATE_US: Bar = Bar::AtMost(1000.0);

/// The operations that the probe interrupts.
const OPERATIONS: [&str; 4] =
    ["matrix_product", "wide_matrix_product", "narrow_matrix_product", "binary"];

pub(super) fn measure(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let artifact = pack_arithmetic(bench.rig.workspace, &bench.rig.folder("."))?;
    let model = Model::inspect(bench.rig.workspace, &artifact)?;
    let setup = bench.rig.setup(STATE, "", &[&artifact])?;
    // The probe needs the compiled code and the folder's lock.
    run::step("arithmetic: compile", || bench.rig.warm_server(&setup)?.stop())?;
    let probe = || bench.rig.probe("arithmetic", &model, &bench.rig.folder(STATE));
    let report = run::step("arithmetic: crossings and interruptions", probe)?;
    let crossing = value(&report, "/crossing_ns")?;
    let mut figures =
        vec![Figure::new("arithmetic_crossing_ns", crossing, "ns", Some(CROSSING_NS))];
    for operation in OPERATIONS {
        for (quantile, bar) in [("p50", None), ("p95", Some(LATE_US)), ("max", None)] {
            let late = value(&report, &format!("/late_us/{operation}/{quantile}"))?;
            let name = format!("arithmetic_interrupted_late_{quantile}_{operation}_us");
            figures.push(Figure::new(&name, late, "us", bar));
        }
    }
    Ok(figures)
}
