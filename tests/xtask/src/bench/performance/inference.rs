//! The time of a call, without a server: guests, tract natively, and onnxruntime.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};
use serde_json::Value;

use super::engine::{Block, Engine};
use super::setup::Bench;
use crate::bench::statistics::{Pair, median, median_ratio};
use crate::bench::{Bar, Figure};
use crate::run;

/// The number of rounds. Odd, so that the medians are measured values.
const ROUNDS: u32 = 5;

/// A case of `cases.json`.
struct Case {
    name: String,
    model: String,
    /// Whether a graph is loaded with dimensions that vary between calls.
    has_named_dimensions: bool,
}

/// The processes that run cases.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Runner {
    Native,
    Onnxruntime,
    Guest,
}

/// One way of running cases.
struct Variant {
    /// Its name in figures.
    name: &'static str,
    runner: Runner,
    /// Its name in requests.
    request: &'static str,
}

/// All guests have deadlines but those whose name ends in `free`.
const VARIANTS: [Variant; 12] = [
    Variant { name: "native", runner: Runner::Native, request: "declared" },
    Variant { name: "native_fixed", runner: Runner::Native, request: "fixed" },
    Variant { name: "onnxruntime_1", runner: Runner::Onnxruntime, request: "1" },
    Variant { name: "onnxruntime_all", runner: Runner::Onnxruntime, request: "0" },
    Variant { name: "guest", runner: Runner::Guest, request: "reuse" },
    Variant { name: "guest_fresh", runner: Runner::Guest, request: "fresh" },
    Variant { name: "guest_free", runner: Runner::Guest, request: "reuse+free" },
    Variant { name: "guest_avx2", runner: Runner::Guest, request: "reuse+avx2" },
    Variant { name: "guest_scalar", runner: Runner::Guest, request: "reuse+scalar" },
    Variant { name: "guest_no_grant", runner: Runner::Guest, request: "reuse+none" },
    Variant { name: "guest_no_grant_free", runner: Runner::Guest, request: "reuse+none+free" },
    Variant { name: "guest_tract", runner: Runner::Guest, request: "reuse+none+tract" },
];

/// A ratio of two variants with its bar, which may depend on the case.
struct Ratio {
    name: &'static str,
    variant: &'static str,
    baseline: &'static str,
    bar: fn(&str) -> Option<f64>,
}

const RATIOS: [Ratio; 7] = [
    Ratio {
        name: "guest_to_native",
        variant: "guest",
        baseline: "native",
        bar: |case| match case {
            "cls" => Some(0.35),
            "det" | "rec" | "minilm-1x128" | "efficientnet-lite0" => Some(0.75),
            "toxicity" | "trees-1" | "trees-64" => Some(1.3),
            _ => None,
        },
    },
    Ratio {
        name: "guest_to_onnxruntime_1",
        variant: "guest",
        baseline: "onnxruntime_1",
        bar: |case| match case {
            "cls" | "det" | "rec" | "minilm-1x128" | "minilm-8x128" | "efficientnet-lite0" => {
                Some(1.0)
            }
            "minilm-1x16" | "efficientnet-lite0-int8" => Some(1.2),
            _ if case.starts_with("minilm-int8") => Some(1.2),
            _ => None,
        },
    },
    // Both sides use AVX2 where there is nothing wider.
    Ratio {
        name: "guest_to_native_on_avx2",
        variant: "guest",
        baseline: "native",
        bar: |case| (!has_avx512() && is_network(case)).then_some(1.0),
    },
    Ratio {
        name: "no_grant_to_native",
        variant: "guest_no_grant",
        baseline: "native",
        bar: |case| match case {
            "cls" => Some(1.5),
            _ => is_network(case).then_some(2.3),
        },
    },
    Ratio {
        name: "cost_of_deadlines",
        variant: "guest",
        baseline: "guest_free",
        bar: |_| Some(1.02),
    },
    Ratio {
        name: "no_grant_cost_of_deadlines",
        variant: "guest_no_grant",
        baseline: "guest_no_grant_free",
        bar: |_| Some(1.08),
    },
    Ratio {
        name: "fresh_to_reuse",
        variant: "guest_fresh",
        baseline: "guest",
        bar: |case| (case == "cls").then_some(1.05),
    },
];

/// Whether a case is one of the neural networks with single-precision weights.
fn is_network(case: &str) -> bool {
    ["cls", "det", "rec", "minilm-1x128", "efficientnet-lite0"].contains(&case)
}

/// Whether this processor has vectors of 512 bits, which both sides then use.
fn has_avx512() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx512f");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// The largest difference of a guest's outputs to those of onnxruntime.
const DIFFERENCE: f64 = 1e-5;

pub(super) fn measure(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let mut engines = Engines::start(bench)?;
    let mut figures = Vec::new();
    for case in cases(bench)? {
        let measure = || engines.measure(&case, bench.rig.seconds / f64::from(ROUNDS));
        let measured = run::step(&format!("inference of {}", case.name), measure)?;
        figures.extend(report(&case, &measured));
    }
    Ok(figures)
}

fn cases(bench: &Bench<'_>) -> Result<Vec<Case>> {
    let text = fs::read_to_string(bench.models.join("cases.json"));
    let list: Value = serde_json::from_str(&text.context("cannot read the cases")?)?;
    let cases = list.as_array().into_iter().flatten().map(|case| {
        let mut dimensions = case["inputs"][0]["declared"].as_array().into_iter().flatten();
        Some(Case {
            name: case["case"].as_str()?.to_owned(),
            model: case["model"].as_str()?.to_owned(),
            has_named_dimensions: dimensions.any(Value::is_string),
        })
    });
    cases.collect::<Option<_>>().context("a case has no name or model")
}

struct Engines {
    native: Engine,
    onnxruntime: Engine,
    guest: Engine,
}

/// The blocks of a variant, or why it cannot run the case.
type Blocks = Result<Vec<Block>, String>;

impl Engines {
    fn start(bench: &Bench<'_>) -> Result<Self> {
        let workspace = bench.rig.workspace;
        let mut native = std::process::Command::new(workspace.native_binary());
        native.arg("infer").arg("--models").arg(&bench.models);
        native.arg("--toxicity").arg(bench.toxicity());
        let mut onnxruntime = bench.python.run("python");
        onnxruntime.arg(workspace.performance().join("infer.py")).arg(&bench.models);
        let mut guest = std::process::Command::new(workspace.probe_binary());
        guest.arg("infer").arg("--models").arg(&bench.models);
        guest.arg("--artifacts").arg(&bench.artifacts);
        guest.arg("--state").arg(bench.rig.folder("state-inference"));
        Ok(Self {
            native: Engine::start("native process", &mut native)?,
            onnxruntime: Engine::start("onnxruntime process", &mut onnxruntime)?,
            guest: Engine::start("guest process", &mut guest)?,
        })
    }

    /// Measures the variants in turn, and begins each round with another one.
    fn measure(&mut self, case: &Case, seconds: f64) -> Result<BTreeMap<&'static str, Blocks>> {
        let variants: Vec<_> = VARIANTS.iter().filter(|variant| applies(variant, case)).collect();
        let mut measured = BTreeMap::new();
        for variant in &variants {
            // Loading takes seconds, and the first calls are slow.
            let loaded = self.block(case, variant, 0.0)?;
            measured.insert(variant.name, loaded.map(|_block| Vec::new()));
        }
        for round in 0..ROUNDS as usize {
            for turn in 0..variants.len() {
                let variant = variants[(round + turn) % variants.len()];
                if let Some(Ok(blocks)) = measured.get_mut(variant.name) {
                    let block = self.block(case, variant, seconds)?;
                    let block = block.map_err(anyhow::Error::msg);
                    blocks.push(block.with_context(|| format!("{} failed", variant.name))?);
                }
            }
        }
        Ok(measured)
    }

    fn block(
        &mut self,
        case: &Case,
        variant: &Variant,
        seconds: f64,
    ) -> Result<Result<Block, String>> {
        let engine = match variant.runner {
            Runner::Native => &mut self.native,
            Runner::Onnxruntime => &mut self.onnxruntime,
            Runner::Guest => &mut self.guest,
        };
        engine.measure(&case.name, variant.request, seconds)
    }
}

fn applies(variant: &Variant, case: &Case) -> bool {
    match variant.name {
        // Its preprocessing is not part of a graph.
        _ if case.model == "toxicity" => {
            variant.runner != Runner::Onnxruntime && variant.name != "native_fixed"
        }
        "native_fixed" => case.has_named_dimensions,
        // Where there is nothing wider, it is the variant `guest`.
        "guest_avx2" => has_avx512(),
        // Once for each network; the interruption of other cases is no different.
        "guest_free" | "guest_no_grant_free" => {
            is_network(&case.name) || case.name.starts_with("trees")
        }
        // Portable code takes seconds for the other networks.
        "guest_scalar" => case.name == "cls",
        // What guests did before the SDK had operations of its own.
        "guest_tract" => is_network(&case.name),
        _ => true,
    }
}

fn report(case: &Case, measured: &BTreeMap<&'static str, Blocks>) -> Vec<Figure> {
    let name = |what: &str| format!("{}_{what}", case.name);
    let mut figures = Vec::new();
    for variant in &VARIANTS {
        let variant = variant.name;
        match measured.get(variant) {
            Some(Ok(blocks)) => {
                let time = median(&blocks.iter().map(|block| block.median_ms).collect::<Vec<_>>());
                figures.push(Figure::new(&name(&format!("{variant}_ms")), time, "ms", None));
                let differences = blocks.iter().map(|block| block.difference);
                let difference = differences.fold(0.0, f64::max);
                let bar = variant.starts_with("guest").then_some(Bar::AtMost(DIFFERENCE));
                let name = name(&format!("{variant}_difference"));
                figures.push(Figure::new(&name, difference, "", bar));
            }
            Some(Err(reason)) => {
                eprintln!("{variant} cannot run {}: {reason}", case.name);
                let name = name(&format!("{variant}_failed"));
                figures.push(Figure::new(&name, 1.0, "", Some(Bar::Exactly(0.0))));
            }
            None => {}
        }
    }
    for ratio in &RATIOS {
        if ratio.name == "guest_to_native_on_avx2" && has_avx512() {
            continue;
        }
        let blocks = |variant| measured.get(variant)?.as_ref().ok();
        if let Some((values, baselines)) = blocks(ratio.variant).zip(blocks(ratio.baseline)) {
            let pairs = values.iter().zip(baselines);
            let pairs: Vec<_> = pairs
                .map(|(value, base)| Pair { baseline: base.median_ms, value: value.median_ms })
                .collect();
            let bar = (ratio.bar)(&case.name).map(Bar::AtMost);
            figures.push(Figure::new(&name(ratio.name), median_ratio(&pairs), "ratio", bar));
        }
    }
    figures
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variant_that_cannot_run_is_a_missed_figure() {
        let case = Case { name: "a".into(), model: "a".into(), has_named_dimensions: false };
        let block = |median_ms| Block { median_ms, difference: 0.0 };
        let measured = BTreeMap::from([
            ("native", Err("unsupported".to_owned())),
            ("onnxruntime_1", Ok(vec![block(1.0), block(2.0), block(40.0)])),
            ("guest", Ok(vec![block(3.0), block(4.0), block(80.0)])),
        ]);
        let figures = report(&case, &measured);
        let find = |name: &str| figures.iter().find(|figure| figure.name == name);
        assert_eq!(find("a_native_failed").and_then(Figure::holds), Some(false));
        assert!(find("a_guest_to_native").is_none());
        let ratio = find("a_guest_to_onnxruntime_1").map(Figure::value);
        assert!(ratio.is_some_and(|ratio| (ratio - 2.0).abs() < 1e-9));
    }
}
