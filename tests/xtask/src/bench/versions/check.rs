//! Whether `guesthouse check` rejects version steps that are too small, and only those.
//!
//! For each kind of change of a signature, in each direction, the command compares a snapshot from
//! before with one from after, as a patch, a minor and a major step. The required step is stated
//! here independently, from the rules for authors. A command that looked at one side only, or
//! confused outputs with inputs, would accept breaking changes.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::setup::Bench;
use crate::bench::{Bar, Figure};
use crate::run;
use crate::workspace::Profile;

/// The part of a version that is increased.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Bump {
    Patch,
    Minor,
    Major,
}

/// The version before.
const OLD: &str = "1.2.3";

/// The versions after, by their step.
const STEPS: [(Bump, &str); 3] =
    [(Bump::Patch, "1.2.4"), (Bump::Minor, "1.3.0"), (Bump::Major, "2.0.0")];

/// Versions that are not later.
const NO_STEPS: [&str; 2] = ["1.2.3", "1.2.2"];

/// A change of a signature and the step that it requires.
struct Case {
    what: &'static str,
    needs: Bump,
    change: fn(&mut Value),
}

/// Changes for every row of the rules.
const CASES: [Case; 34] = [
    case("nothing", Bump::Patch, |_| {}),
    case("description", Bump::Patch, |new| new["inputs"][0]["description"] = json!("other words")),
    // Compatible with old callers.
    case("optional input", Bump::Minor, |new| push(&mut new["inputs"], optional("new"))),
    case("output", Bump::Minor, |new| push(&mut new["outputs"], required("new"))),
    case("default", Bump::Minor, |new| new["inputs"][1]["default"] = json!([0, 0, 0, 0])),
    case("other default", Bump::Minor, |new| new["inputs"][2]["default"] = json!([1, 0, 0, 0])),
    case("longer texts", Bump::Minor, |new| length(new, 1, 3000)),
    case("shorter texts too", Bump::Minor, |new| length(new, 0, 2000)),
    case("wider input", Bump::Minor, |new| range(&mut new["inputs"][1], -1.0, 200.0)),
    case("input of any number", Bump::Minor, |new| new["inputs"][1]["constraints"] = json!([])),
    case("input of any shape", Bump::Minor, |new| new["inputs"][3]["row_shape"] = json!([null])),
    case("input label", Bump::Minor, |new| labels(&mut new["inputs"][4], &["en", "de", "fr"])),
    case("narrower output", Bump::Minor, |new| range(&mut new["outputs"][1], 0.1, 0.9)),
    case("output of one shape", Bump::Minor, |new| new["outputs"][2]["row_shape"] = json!([3])),
    case("batch", Bump::Minor, |new| new["max_batch_size"] = json!(9)),
    // Incompatible with old callers.
    case("input gone", Bump::Major, |new| drop_first(&mut new["inputs"])),
    case("output gone", Bump::Major, |new| drop_first(&mut new["outputs"])),
    case("input renamed", Bump::Major, |new| new["inputs"][2]["name"] = json!("other")),
    case("output renamed", Bump::Major, |new| new["outputs"][1]["name"] = json!("other")),
    case("input retyped", Bump::Major, |new| new["inputs"][1]["datatype"] = json!("FP64")),
    case("output retyped", Bump::Major, |new| new["outputs"][1]["datatype"] = json!("FP64")),
    case("order of inputs", Bump::Major, |new| reverse(&mut new["inputs"])),
    case("order of outputs", Bump::Major, |new| reverse(&mut new["outputs"])),
    case("required input", Bump::Major, |new| push(&mut new["inputs"], required("new"))),
    case("default gone", Bump::Major, |new| new["inputs"][2] = required("lots")),
    case("shorter texts only", Bump::Major, |new| length(new, 1, 1000)),
    case("narrower input", Bump::Major, |new| range(&mut new["inputs"][1], 1.0, 150.0)),
    case("input of one shape", Bump::Major, |new| new["inputs"][5]["row_shape"] = json!([3])),
    case("input label gone", Bump::Major, |new| labels(&mut new["inputs"][4], &["en"])),
    case("wider output", Bump::Major, |new| range(&mut new["outputs"][1], 0.0, 2.0)),
    case("output of any shape", Bump::Major, |new| new["outputs"][3]["row_shape"] = json!([null])),
    case("labels reordered", Bump::Major, |new| {
        labels(&mut new["outputs"][0], &["toxic", "clean"])
    }),
    case("output label", Bump::Major, |new| {
        labels(&mut new["outputs"][0], &["clean", "toxic", "other"]);
    }),
    // The larger step counts.
    case("two at once", Bump::Major, |new| {
        push(&mut new["outputs"], required("new"));
        drop_first(&mut new["inputs"]);
    }),
];

const fn case(what: &'static str, needs: Bump, change: fn(&mut Value)) -> Case {
    Case { what, needs, change }
}

pub(super) fn measure(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let folder = bench.rig.folder("check");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let host = bench.rig.workspace.host_binary(Profile::Release);
    let (mut verdicts, mut wrong) = (0, 0);
    run::step(&format!("check: {} changes", CASES.len()), || {
        for case in &CASES {
            let steps = STEPS.map(|(bump, version)| (version, bump >= case.needs));
            let no_steps = NO_STEPS.map(|version| (version, false));
            for (version, fits) in steps.into_iter().chain(no_steps) {
                verdicts += 1;
                let verdict = Verdict::ask(&host, &folder, case, version)?;
                if !verdict.is_right(case, fits) {
                    wrong += 1;
                    eprintln!("{} as {version} after {OLD}: {verdict:?}", case.what);
                }
            }
        }
        Ok(())
    })?;
    Ok(vec![
        Figure::new("check_wrong_verdicts", f64::from(wrong), "verdicts", Some(Bar::Exactly(0.0))),
        Figure::new("check_verdicts", f64::from(verdicts), "verdicts", Some(Bar::Above(0.0))),
    ])
}

/// The result of the command.
#[derive(Debug)]
struct Verdict {
    is_success: bool,
    report: Value,
}

impl Verdict {
    fn ask(host: &Path, folder: &Path, case: &Case, version: &str) -> Result<Self> {
        let mut new = signature();
        (case.change)(&mut new);
        let write = |name: &str, version: &str, signature: Value| {
            let path = folder.join(name);
            let snapshot = json!({"model": "m", "version": version, "signature": signature});
            fs::write(&path, snapshot.to_string())
                .with_context(|| format!("cannot write {}", path.display()))?;
            Ok::<_, anyhow::Error>(path)
        };
        let (old, new) = (write("old.json", OLD, signature())?, write("new.json", version, new)?);
        let mut check = Command::new(host);
        let output = check.args(["check", "--json"]).args([old, new]).output();
        let output = output.context("cannot start the host")?;
        let report = serde_json::from_slice(&output.stdout).with_context(|| {
            format!(
                "the output of `check` is not JSON: {}",
                String::from_utf8_lossy(&output.stderr)
            )
        })?;
        Ok(Self { is_success: output.status.success(), report })
    }

    fn is_right(&self, case: &Case, fits: bool) -> bool {
        let needs = match case.needs {
            Bump::Patch => "patch",
            Bump::Minor => "minor",
            Bump::Major => "major",
        };
        self.is_success == fits && self.report["fits"] == fits && self.report["needed"] == needs
    }
}

/// The signature before, with a field of each kind.
fn signature() -> Value {
    let field = |name: &str, datatype: &str, shape: Value, constraints: Value| {
        json!({
            "name": name,
            "description": "words",
            "datatype": datatype,
            "row_shape": shape,
            "constraints": constraints,
        })
    };
    let of_range = |low: f64, high: f64| json!([{"range": {"minimum": low, "maximum": high}}]);
    let of_length = json!(["text", {"length": {"minimum": 1, "maximum": 2000}}]);
    json!({
        "inputs": [
            field("text", "BYTES", json!([]), of_length),
            field("age", "FP32", json!([]), of_range(0.0, 150.0)),
            optional("lots"),
            field("fixed", "FP32", json!([3]), json!([])),
            field("language", "BYTES", json!([]), json!(["text", {"one_of": ["en", "de"]}])),
            field("any", "FP32", json!([null]), json!([])),
        ],
        "outputs": [
            field("label", "BYTES", json!([]), json!(["text", {"one_of": ["clean", "toxic"]}])),
            field("score", "FP32", json!([]), of_range(0.0, 1.0)),
            field("any", "FP32", json!([null]), json!([])),
            field("fixed", "FP32", json!([3]), json!([])),
        ],
        "max_batch_size": 8,
    })
}

fn required(name: &str) -> Value {
    json!({
        "name": name, "description": "", "datatype": "FP32", "row_shape": [], "constraints": [],
    })
}

fn optional(name: &str) -> Value {
    let mut field = required(name);
    field["default"] = json!([0, 0, 0, 0]);
    field
}

fn push(fields: &mut Value, field: Value) {
    fields.as_array_mut().into_iter().for_each(|fields| fields.push(field.clone()));
}

fn drop_first(fields: &mut Value) {
    fields.as_array_mut().into_iter().for_each(|fields| drop(fields.remove(0)));
}

fn reverse(fields: &mut Value) {
    fields.as_array_mut().into_iter().for_each(|fields| fields.reverse());
}

fn length(signature: &mut Value, minimum: u32, maximum: u32) {
    let length = json!({"length": {"minimum": minimum, "maximum": maximum}});
    signature["inputs"][0]["constraints"] = json!(["text", length]);
}

fn range(field: &mut Value, minimum: f64, maximum: f64) {
    field["constraints"] = json!([{"range": {"minimum": minimum, "maximum": maximum}}]);
}

fn labels(field: &mut Value, labels: &[&str]) {
    field["constraints"] = json!(["text", {"one_of": labels}]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_but_the_first_changes_the_signature() {
        for case in &CASES[1..] {
            let mut new = signature();
            (case.change)(&mut new);
            assert_ne!(new, signature(), "{}", case.what);
            let fields = |side: &str| new[side].as_array().map_or(0, Vec::len);
            assert!(fields("inputs") >= 5 && fields("outputs") >= 3, "{}", case.what);
        }
        let mut names: Vec<_> = CASES.iter().map(|case| case.what).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), CASES.len());
    }

    #[test]
    fn a_verdict_is_right_only_in_all_parts() {
        let verdict = |is_success, needed: &str, fits: bool| {
            Verdict { is_success, report: json!({"needed": needed, "fits": fits}) }
                .is_right(&case("", Bump::Minor, |_| {}), true)
        };
        assert!(verdict(true, "minor", true));
        assert!(!verdict(false, "minor", true));
        assert!(!verdict(true, "minor", false));
        assert!(!verdict(true, "major", true));
    }
}
