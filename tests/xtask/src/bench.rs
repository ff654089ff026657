//! Benchmarks: measured figures, each compared with its bar.
//!
//! A benchmark is a module below that returns [`Figure`]s. A figure that misses its bar is reported
//! and does not fail the command, because it depends on the load of the machine as much as on the
//! code. [`serve`] fails if a request fails, because then its figures mean something else; the
//! others report failed requests in figures that must be 0.

pub(crate) mod admin;
mod artifacts;
mod charts;
mod client;
mod compare;
mod edge;
mod load;
mod log;
mod performance;
mod process;
mod protocols;
mod random;
mod rig;
mod runtime;
mod serve;
pub(crate) mod server;
mod statistics;
mod tables;
mod trace;
mod versions;

use std::fmt::Debug;
use std::path::{self, PathBuf};
use std::{fs, io};

use anyhow::{Context, Result, anyhow};
use clap::ValueEnum;
use serde_json::{Value, json};

use crate::workspace::{Profile, Workspace};
use crate::{guests, pack, run};

/// A benchmark with its options.
#[derive(clap::Subcommand)]
pub(crate) enum Benchmark {
    /// Measure startup, latency and throughput of the server.
    Serve(Options),
    /// Measure the cost of instances and isolation, deadlines, deployments, faults and crashes.
    Runtime(SectionOptions<runtime::Section>),
    /// Measure swaps, rollbacks, splits, shadows and crashes under load.
    Versions {
        #[command(flatten)]
        options: SectionOptions<versions::Section>,
        /// Swap versions 1000 times in each configuration, under a million requests.
        #[arg(long)]
        long: bool,
    },
    /// Measure overload, and slow, silent and failing clients.
    Edge(SectionOptions<edge::Section>),
    /// Measure the overhead of each protocol, batching and cancellation.
    Protocols(SectionOptions<protocols::Section>),
    /// Compare inference in guests with native inference, and the server with others.
    Performance(SectionOptions<performance::Section>),
    /// Draw charts for the book, and fill its tables, from figures of the performance benchmark.
    Charts(charts::Options),
}

/// The options of every benchmark.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Write the figures to this file, as a JSON array of objects.
    #[arg(long, value_name = "FILE", value_parser = absolute)]
    json: Option<PathBuf>,
    /// The duration of each measurement under load, in seconds.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Measure this build of the server instead of building it.
    #[arg(long, value_name = "PROGRAM", value_parser = absolute)]
    program: Option<PathBuf>,
    /// Measure this other build of the server in turn, and report ratios to it.
    #[arg(long, value_name = "PROGRAM", value_parser = absolute)]
    against: Option<PathBuf>,
}

/// The options of a benchmark with sections.
#[derive(clap::Args)]
pub(crate) struct SectionOptions<S: ValueEnum + Send + Sync + 'static> {
    #[command(flatten)]
    general: Options,
    /// Measure only this section. Can be repeated.
    #[arg(long, value_enum)]
    only: Vec<S>,
}

/// The build of the server under measurement.
#[derive(Clone)]
pub(crate) struct Subject<'a> {
    workspace: &'a Workspace,
    program: PathBuf,
    /// Distinguishes its working folders from those of another build.
    folder_suffix: &'static str,
    /// The duration of each measurement under load.
    seconds: f64,
}

/// Figures, and what could not be measured.
type Measurement = (Vec<Figure>, Result<()>);

/// Paths are made absolute, because xtask changes to the root of the repository.
fn absolute(path: &str) -> io::Result<PathBuf> {
    path::absolute(path)
}

impl Benchmark {
    /// Builds what the benchmark needs, measures, and reports the figures.
    pub(crate) fn run(self) -> Result<()> {
        match self {
            Self::Serve(options) => options.run(&["load"], &[], |subject| {
                let measured = serve::measure(subject);
                measured.map_or_else(|error| (Vec::new(), Err(error)), |figures| (figures, Ok(())))
            }),
            Self::Runtime(options) => {
                options.general.run(&["load", "probe"], &["misbehave", "arithmetic"], |it| {
                    sections(
                        &options.only,
                        it,
                        runtime::setup::Bench::prepare,
                        runtime::Section::measure,
                    )
                })
            }
            Self::Versions { options, long } => {
                options.general.run(&["load", "probe"], &["misbehave"], |it| {
                    let prepare = |it: &_| versions::setup::Bench::prepare(it, long);
                    sections(&options.only, it, prepare, versions::Section::measure)
                })
            }
            Self::Edge(options) => {
                let guests = ["misbehave", "identity", "growing"];
                options.general.run(&["load", "probe"], &guests, |it| {
                    sections(&options.only, it, edge::Bench::prepare, edge::Section::measure)
                })
            }
            Self::Protocols(options) => {
                let guests = ["misbehave", "identity", "row-sum", "simple", "simple-string"];
                options.general.run(&["load", "probe"], &guests, |it| {
                    sections(
                        &options.only,
                        it,
                        protocols::Bench::prepare,
                        protocols::Section::measure,
                    )
                })
            }
            Self::Charts(options) => charts::draw(&options),
            Self::Performance(options) => {
                let packages = ["load", "probe", "native"];
                options.general.run(&packages, &[guests::OF_BENCHMARK], |it| {
                    let prepare = performance::setup::Bench::prepare;
                    sections(&options.only, it, prepare, performance::Section::measure)
                })
            }
        }
    }
}

impl Options {
    /// Builds the server, these packages and guests; measures one build, or both in turn.
    fn run(
        &self,
        packages: &[&str],
        guests: &[&str],
        measure: impl Fn(&Subject<'_>) -> Measurement,
    ) -> Result<()> {
        let mut workspace = Workspace::load()?;
        match &self.program {
            Some(program) => workspace.use_release_host(program.clone()),
            None => build_release("guesthouse")?,
        }
        packages.iter().try_for_each(|package| build_release(package))?;
        let models = pack::models(&workspace)?;
        let guests = guests.iter().map(|guest| (*guest).to_owned());
        guests::build(&workspace, &guests.chain(pack::guests_of(&models)).collect::<Vec<_>>())?;
        let program = workspace.host_binary(Profile::Release);
        pack::pack(&workspace, &models, &program)?;

        let seconds = self.seconds as f64;
        let current = Subject { workspace: &workspace, program, folder_suffix: "", seconds };
        let (figures, outcome) = match &self.against {
            None => measure(&current),
            Some(program) => {
                let folder_suffix = "-baseline";
                let baseline =
                    Subject { program: program.clone(), folder_suffix, ..current.clone() };
                compare::alternate(&current, &baseline, measure)
            }
        };
        report(&figures, self)?;
        outcome
    }
}

fn build_release(package: &str) -> Result<()> {
    run::shown(run::cargo().args(["build", "--locked", "--release", "--package", package]))
}

/// The condition that a value must satisfy.
#[derive(Clone, Copy)]
pub(crate) enum Bar {
    Below(f64),
    Above(f64),
    AtLeast(f64),
    AtMost(f64),
    Exactly(f64),
}

/// One measured value.
pub(crate) struct Figure {
    name: String,
    value: f64,
    unit: &'static str,
    bar: Option<Bar>,
}

impl Figure {
    pub(crate) fn new(name: &str, value: f64, unit: &'static str, bar: Option<Bar>) -> Self {
        Self { name: name.to_owned(), value, unit, bar }
    }

    #[cfg(test)]
    fn value(&self) -> f64 {
        self.value
    }

    /// Whether the value satisfies its bar; none if it has no bar.
    fn holds(&self) -> Option<bool> {
        self.bar.map(|bar| match bar {
            Bar::Below(bar) => self.value < bar,
            Bar::Above(bar) => self.value > bar,
            Bar::AtLeast(bar) => self.value >= bar,
            Bar::AtMost(bar) => self.value <= bar,
            Bar::Exactly(bar) => self.value == bar,
        })
    }

    fn to_json(&self) -> Value {
        let bar = self.bar.map(|bar| match bar {
            Bar::Below(bar)
            | Bar::Above(bar)
            | Bar::AtLeast(bar)
            | Bar::AtMost(bar)
            | Bar::Exactly(bar) => bar,
        });
        json!({
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "bar": bar,
            "holds": self.holds(),
        })
    }

    fn to_line(&self) -> String {
        let bar = match self.bar {
            None => "-".to_owned(),
            Some(Bar::Below(bar)) => format!("< {bar}"),
            Some(Bar::Above(bar)) => format!("> {bar}"),
            Some(Bar::AtLeast(bar)) => format!(">= {bar}"),
            Some(Bar::AtMost(bar)) => format!("<= {bar}"),
            Some(Bar::Exactly(bar)) => format!("= {bar}"),
        };
        let holds = match self.holds() {
            None => "-",
            Some(true) => "holds",
            Some(false) => "MISSED",
        };
        let Self { name, value, unit, .. } = self;
        let is_tiny = *value != 0.0 && value.abs() < 0.01;
        let value = if is_tiny { format!("{value:.1e}") } else { format!("{value:.2}") };
        line([name, &value, unit, &bar, holds])
    }
}

/// Measures all sections, or those in `only`. The second result names the sections that failed; they
/// do not discard the figures of the others.
fn sections<'a, S: ValueEnum + Debug, B>(
    only: &[S],
    subject: &Subject<'a>,
    prepare: impl Fn(&Subject<'a>) -> Result<B>,
    measure: impl Fn(&S, &B) -> Result<Vec<Figure>>,
) -> Measurement {
    let bench = match prepare(subject) {
        Ok(bench) => bench,
        Err(error) => return (Vec::new(), Err(error)),
    };
    let sections = if only.is_empty() { S::value_variants() } else { only };
    let (mut figures, mut failed) = (Vec::new(), Vec::new());
    for section in sections {
        match measure(section, &bench) {
            Ok(measured) => figures.extend(measured),
            Err(error) => failed.push(format!("cannot measure {section:?}: {error:#}")),
        }
    }
    (figures, to_result(&failed))
}

fn to_result(failed: &[String]) -> Result<()> {
    if failed.is_empty() { Ok(()) } else { Err(anyhow!(failed.join("\n"))) }
}

/// Prints the figures and writes them to the file that the options name.
fn report(figures: &[Figure], options: &Options) -> Result<()> {
    println!("{}", line(["figure", "value", "unit", "bar", ""]));
    for figure in figures {
        println!("{}", figure.to_line());
    }
    if let Some(path) = &options.json {
        let figures: Vec<Value> = figures.iter().map(Figure::to_json).collect();
        let text = serde_json::to_string_pretty(&figures)? + "\n";
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn line([name, value, unit, bar, holds]: [&str; 5]) -> String {
    format!("{name:<48} {value:>10} {unit:<12} {bar:>8}  {holds}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_reports_whether_its_bar_holds() {
        let figure = |bar| Figure::new("start_ms", 5.0, "ms", bar).to_json();
        let judged = |bar, holds| json!({"name": "start_ms", "value": 5.0, "unit": "ms", "bar": bar, "holds": holds});
        assert_eq!(figure(None), judged(json!(null), json!(null)));
        assert_eq!(figure(Some(Bar::Below(6.0))), judged(json!(6.0), json!(true)));
        assert_eq!(figure(Some(Bar::Below(5.0))), judged(json!(5.0), json!(false)));
        assert_eq!(figure(Some(Bar::Above(4.0))), judged(json!(4.0), json!(true)));
        assert_eq!(figure(Some(Bar::AtMost(5.0))), judged(json!(5.0), json!(true)));
        assert_eq!(figure(Some(Bar::AtMost(4.9))), judged(json!(4.9), json!(false)));
        assert_eq!(figure(Some(Bar::Exactly(5.0))), judged(json!(5.0), json!(true)));
        assert_eq!(figure(Some(Bar::Exactly(0.0))), judged(json!(0.0), json!(false)));
    }
}
