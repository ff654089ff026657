//! The cost of creating, keeping and dropping instances, measured in a process of its own.
//!
//! If dropping were deferred, the time of the next instance would include it. If weights were
//! copied, each further instance would add at least the pages that a call reads, up to the whole
//! linear memory, which is reported as well.

use anyhow::{Error, Result};

use super::setup::{Bench, value};
use crate::bench::artifacts::Model;
use crate::bench::{Bar, Figure};
use crate::run;

/// The state folder in which both models are compiled.
const STATE: &str = "state";

/// A new instance for each request must not be noticeable.
const MAKE_AND_DROP_US: Bar = Bar::Below(100.0);

/// Instances must share the weights.
const MIB_PER_INSTANCE: Bar = Bar::Below(2.0);

pub(super) fn measure(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let artifacts: Vec<_> = bench.models().map(|model| model.artifact.as_path()).collect();
    let setup = bench.rig.setup(STATE, "", &artifacts)?;
    // The probe needs the compiled code and the folder's lock.
    run::step("instances: compile", || bench.rig.warm_server(&setup)?.stop())?;
    let mut figures = Vec::new();
    for model in bench.models() {
        let name = &model.name;
        figures.extend(run::step(&format!("instances of {name}: time"), || time(bench, model))?);
        figures
            .extend(run::step(&format!("instances of {name}: memory"), || memory(bench, model))?);
    }
    Ok(figures)
}

/// The time of creating and dropping an instance that was never called, and of one that served one
/// request.
fn time(bench: &Bench<'_>, model: &Model) -> Result<Vec<Figure>> {
    let report = bench.rig.probe("instances", model, &bench.rig.folder(STATE))?;
    let figure = |name: &str, pointer: &str, bar| -> Result<Figure> {
        let name = format!("instance_{name}_us_{}", model.name);
        Ok(Figure::new(&name, value(&report, pointer)?, "us", bar))
    };
    Ok(vec![
        figure("make_and_drop_idle", "/idle/both_us/p50", Some(MAKE_AND_DROP_US))?,
        figure("make_and_drop", "/served/both_us/p50", Some(MAKE_AND_DROP_US))?,
        figure("make", "/served/make_us/p50", None)?,
        figure("drop", "/served/drop_us/p50", None)?,
    ])
}

/// The memory that each further instance adds after all have served. What it added before it served
/// is the host's part; the rest is what a call writes to.
fn memory(bench: &Bench<'_>, model: &Model) -> Result<Vec<Figure>> {
    let report = bench.rig.probe("memory", model, &bench.rig.folder(STATE))?;
    let further = value(&report, "/instances")? - 1.0;
    let one = value(&report, "/with_one_kib")?;
    let added = |pointer| Ok::<_, Error>((value(&report, pointer)? - one) / further / 1024.0);
    let linear = value(&report, "/linear_memory_kib")? / 1024.0;
    let figure = |name: &str, value, bar| {
        Figure::new(&format!("instance_{name}_mib_{}", model.name), value, "MiB", bar)
    };
    Ok(vec![
        figure("pss_added", added("/with_all_kib")?, Some(MIB_PER_INSTANCE)),
        figure("pss_added_before_it_serves", added("/with_idle_kib")?, None),
        figure("linear_memory", linear, None),
    ])
}
