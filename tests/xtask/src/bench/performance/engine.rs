//! A process that runs cases, by the protocol of the crate `cases`.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::bench::process::Process;
use crate::bench::statistics::median;

/// A running process, which is killed when this is dropped.
pub(super) struct Engine {
    name: &'static str,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    _process: Process,
}

/// A block of calls.
pub(super) struct Block {
    /// The median time of a call in milliseconds.
    pub(super) median_ms: f64,
    /// The largest difference of the outputs to the expected ones.
    pub(super) difference: f64,
}

impl Engine {
    pub(super) fn start(name: &'static str, command: &mut Command) -> Result<Self> {
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Process::start(name, piped)?;
        let (requests, answers) = process.pipes()?;
        Ok(Self { name, requests, answers: BufReader::new(answers), _process: process })
    }

    /// Runs a case for some time. The inner error is the engine's reason why it cannot.
    pub(super) fn measure(
        &mut self,
        case: &str,
        variant: &str,
        seconds: f64,
    ) -> Result<Result<Block, String>> {
        let name = self.name;
        writeln!(self.requests, "{case} {variant} {seconds}")
            .and_then(|()| self.requests.flush())
            .with_context(|| format!("the {name} takes no requests"))?;
        let mut answer = String::new();
        let length = self.answers.read_line(&mut answer);
        let length = length.with_context(|| format!("the {name} does not answer"))?;
        ensure!(length > 0, "the {name} ended at {case} {variant}");
        parse(&answer).with_context(|| format!("the {name} answered {answer}"))
    }
}

fn parse(answer: &str) -> Result<Result<Block, String>> {
    let answer: Value = serde_json::from_str(answer).context("not JSON")?;
    if let Some(error) = answer["error"].as_str() {
        return Ok(Err(error.to_owned()));
    }
    let seconds = answer["seconds"].as_array().context("no times")?.iter().map(Value::as_f64);
    let seconds: Vec<f64> = seconds.collect::<Option<_>>().context("a time is not a number")?;
    ensure!(!seconds.is_empty(), "no times");
    let difference = answer["difference"].as_f64().context("no difference")?;
    Ok(Ok(Block { median_ms: median(&seconds) * 1e3, difference }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_parsed() {
        let block = parse(r#"{"seconds": [0.003, 0.001, 0.002], "difference": 1e-6}"#);
        let block = block.unwrap().unwrap();
        assert!((block.median_ms - 2.0).abs() < 1e-9 && block.difference < 1e-5);
        assert_eq!(parse(r#"{"error": "no"}"#).unwrap().err().as_deref(), Some("no"));
        assert!(parse(r#"{"seconds": [], "difference": 0}"#).is_err());
        assert!(parse(r#"{"seconds": [1]}"#).is_err());
    }

    #[test]
    fn an_engine_that_ends_is_an_error() {
        let mut engine = Engine::start("engine", &mut Command::new("true")).unwrap();
        assert!(engine.measure("a", "b", 0.0).is_err());
    }
}
