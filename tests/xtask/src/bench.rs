//! Benchmarks: measured figures, each compared with its bar.
//!
//! A benchmark is a module below that returns [`Figure`]s. A figure that misses its bar is reported
//! and does not fail the command, because it depends on the load of the machine as much as on the
//! code. [`serve`] fails if a request fails, because then its figures mean something else; the
//! others report failed requests in figures that must be 0.

pub(crate) mod admin;
mod artifacts;
mod client;
pub(crate) mod edge;
mod load;
mod log;
mod process;
pub(crate) mod protocols;
mod random;
mod rig;
pub(crate) mod runtime;
pub(crate) mod serve;
pub(crate) mod server;
mod statistics;
mod trace;
pub(crate) mod versions;

use std::fmt::Debug;
use std::fs;
use std::path::{self, PathBuf};

use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};

/// The options of every benchmark.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Write the figures to this file, as a JSON array of objects.
    #[arg(long)]
    json: Option<PathBuf>,
    /// The duration of each measurement under load, in seconds.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub(crate) seconds: u64,
}

impl Options {
    pub(crate) fn absolute(self) -> Result<Self> {
        let json = self.json.map(path::absolute).transpose();
        Ok(Self { json: json.context("cannot tell the current folder")?, ..self })
    }
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
        line([name, &format!("{value:.2}"), unit, &bar, holds])
    }
}

/// Measures all sections, or those in `only`. The second result names the sections that failed;
/// they do not discard the figures of the others.
fn sections<S: Copy + PartialEq + Debug>(
    all: &[S],
    only: &[S],
    measure: impl Fn(S) -> Result<Vec<Figure>>,
) -> (Vec<Figure>, Result<()>) {
    let (mut figures, mut failed) = (Vec::new(), Vec::new());
    for section in all.iter().filter(|section| only.is_empty() || only.contains(section)) {
        match measure(*section) {
            Ok(measured) => figures.extend(measured),
            Err(error) => failed.push(format!("cannot measure {section:?}: {error:#}")),
        }
    }
    let outcome = if failed.is_empty() { Ok(()) } else { Err(anyhow!(failed.join("\n"))) };
    (figures, outcome)
}

/// Prints the figures and writes them to the file that the options name.
pub(crate) fn finish(figures: &[Figure], options: &Options) -> Result<()> {
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
