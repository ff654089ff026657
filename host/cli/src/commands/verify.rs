//! `guesthouse verify`: runs an artifact's golden examples, and recorded rows if there are any, as a
//! server would, and measures the calls.
//!
//! Every policy of isolation is tried with and without the host's arithmetic, on real instances. What
//! is compared with what was recorded is bounded by the size of that file; the time of a call is
//! bounded by the runtime.

mod measure;
mod recorded;
mod report;

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context as _, bail};
use guesthouse_artifact::{Artifact, Tolerances};
use guesthouse_runtime::embed::{OpenError, Runtime, RuntimeOptions};
use guesthouse_runtime::guest::Backend;
use guesthouse_runtime::pool::{Isolation, ReuseLimits};

use self::measure::Policy;
use self::report::{Report, Verdict};
use super::exit_code::Failure;

#[derive(Debug, clap::Args)]
pub(crate) struct VerifyArguments {
    /// The artifact.
    file: PathBuf,
    /// Recorded rows to compare with as well: lines of JSON, {"inputs": {…}, "outputs": {…}} each, such
    /// as the outputs of the framework that the model comes from, or of the version that serves now.
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// How far the numbers of an output may be from the expected ones, such as `score=1e-3`. By default,
    /// the tolerance in the artifact. May be repeated.
    #[arg(long, value_name = "OUTPUT=NUMBER")]
    tolerance: Vec<Tolerance>,
    /// A state folder that keeps compiled code, so that the next start takes no time. No server may be
    /// using it. By default a temporary one.
    #[arg(long, value_name = "FOLDER")]
    state: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// A tolerance on the command line.
#[derive(Debug, Clone)]
struct Tolerance {
    output: String,
    tolerance: f64,
}

impl FromStr for Tolerance {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str = "a tolerance is like score=1e-3";
        let (output, tolerance) = text.split_once('=').ok_or(EXPECTED)?;
        let tolerance: f64 = tolerance.parse().map_err(|_no_number| EXPECTED)?;
        let is_valid = tolerance.is_finite() && tolerance >= 0.0 && !output.is_empty();
        if is_valid { Ok(Self { output: output.to_owned(), tolerance }) } else { Err(EXPECTED) }
    }
}

/// Fails with [`Failure::Rejected`] if an example fails.
pub(crate) fn run(arguments: &VerifyArguments) -> anyhow::Result<()> {
    let report = verify(arguments)
        .with_context(|| format!("failed to verify {}", arguments.file.display()))?;
    report.print(arguments.json)?;
    match report.verdict() {
        Verdict::Passed => Ok(()),
        Verdict::Failed { failures, examples } => {
            let name = arguments.file.display();
            let reason = format!("{name} fails {failures} of {examples} checks of examples");
            Err(Failure::Rejected(reason).into())
        }
    }
}

fn verify(arguments: &VerifyArguments) -> anyhow::Result<Report> {
    let artifact = Artifact::open(&arguments.file)?;
    let tolerances = tolerances(&artifact, &arguments.tolerance)?;
    let recorded = arguments.against.as_deref().map(recorded::read).transpose()?;
    let temporary = tempfile::tempdir().context("cannot create a temporary folder")?;
    let mut report = Report::new(&artifact);
    for policy in policies(&artifact) {
        let state = match &arguments.state {
            // A state folder keeps one compiled form of an artifact.
            Some(state) if policy.arithmetic == Some(false) => state.join("without-arithmetic"),
            Some(state) => state.clone(),
            None => temporary.path().to_owned(),
        };
        let runtime = open(&state, policy)?;
        let trial = match runtime.try_out(&arguments.file) {
            Ok(trial) => trial,
            // The artifact is at fault, perhaps under this policy alone.
            Err(error @ (OpenError::Preinit(_) | OpenError::Signature(_))) => {
                report.add_unloadable(policy, artifact.golden().len(), &error);
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        report.add(measure::golden(&trial, policy, artifact.golden(), &tolerances));
        // What a server does by default is the last policy that is granted what the guest asks for.
        if policy.is_default
            && let Some(recorded) = &recorded
        {
            report.set_recorded(policy, recorded::compare(&trial, recorded, &tolerances));
        }
    }
    Ok(report)
}

/// The tolerances of the artifact, and those of the command line instead of them.
fn tolerances(artifact: &Artifact, given: &[Tolerance]) -> anyhow::Result<Tolerances> {
    let mut tolerances = artifact.descriptor().tolerances.clone();
    let signature = artifact.signature().context("the artifact has no signature")?;
    let outputs = || signature.outputs.iter().map(|field| field.name.as_str());
    for Tolerance { output, tolerance } in given {
        if !outputs().any(|name| name == output) {
            let names: Vec<_> = outputs().collect();
            let names = names.join(", ");
            bail!(Failure::Usage(format!(
                "the artifact has no output `{output}`, it has {names}: correct --tolerance"
            )))
        }
        tolerances.insert(output.clone(), *tolerance);
    }
    Ok(tolerances)
}

/// What is tried, in this order.
fn policies(artifact: &Artifact) -> Vec<Policy> {
    let grants: &[_] =
        if artifact.imports_arithmetic() { &[Some(true), Some(false)] } else { &[None] };
    let isolations = [Isolation::Fresh, Isolation::Reuse(ReuseLimits::default())];
    let of_grant = |arithmetic: &Option<bool>| {
        let arithmetic = *arithmetic;
        isolations.map(|isolation| Policy {
            isolation,
            arithmetic,
            is_default: isolation != Isolation::Fresh && arithmetic != Some(false),
        })
    };
    grants.iter().flat_map(of_grant).collect()
}

fn open(state: &Path, policy: Policy) -> anyhow::Result<Runtime> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut options = RuntimeOptions::for_one_artifact(program);
    options.model.isolation = policy.isolation;
    let is_granted = policy.arithmetic != Some(false);
    options.model.instance.arithmetic = is_granted.then(Backend::fastest);
    Ok(Runtime::open(state, options)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tolerance_names_its_output() {
        let parsed: Tolerance = "score=1e-3".parse().unwrap();
        assert_eq!((parsed.output.as_str(), parsed.tolerance), ("score", 0.001));
        for bad in ["", "score", "=1", "score=", "score=-1", "score=nan", "score=inf", "score=1e"] {
            assert!(bad.parse::<Tolerance>().is_err(), "{bad}");
        }
    }
}
