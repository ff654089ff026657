//! The cases of the performance benchmark, as `tests/performance/models.py` writes them, and the
//! protocol of the programs that run them.
//!
//! A program that measures variants reads lines from its standard input, `<case> <variant> <seconds>`,
//! and answers each with one line of JSON: the times of the calls and the largest difference to the
//! expected outputs, or the reason why it cannot run the case. So the benchmark can alternate between variants whose models are all loaded.

use std::fs;
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

/// The calls before each measurement: caches and branch predictors belong to the variant that ran
/// last.
const WARM_UP_CALLS: usize = 2;

/// The fewest calls of a measurement.
const MIN_CALLS: usize = 3;

/// All cases of a folder.
#[derive(Debug)]
pub struct Cases {
    folder: PathBuf,
    cases: Vec<Case>,
}

/// A model with inputs and the outputs that onnxruntime computes for them.
#[derive(Debug, Clone, Deserialize)]
pub struct Case {
    /// The name of the case.
    #[serde(rename = "case")]
    pub name: String,
    /// The name of the model: `<model>.onnx`.
    pub model: String,
    /// The inputs in the order of the graph.
    pub inputs: Vec<TensorFile>,
    /// The outputs in the order of the graph.
    pub outputs: Vec<TensorFile>,
}

/// A tensor in a file of little-endian elements.
#[derive(Debug, Clone, Deserialize)]
pub struct TensorFile {
    /// The name of the input or output.
    pub name: String,
    /// The type of the elements.
    pub datatype: Datatype,
    /// The dimensions.
    pub shape: Vec<usize>,
    /// The dimensions as the graph is loaded with.
    pub declared: Vec<Dimension>,
    file: String,
}

/// The types of elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Datatype {
    /// Single-precision numbers.
    Fp32,
    /// 64-bit integers.
    Int64,
    /// Byte strings, each after its length.
    Bytes,
}

impl Datatype {
    /// The size of an element, if all have the same.
    pub fn bytes(self) -> Option<usize> {
        match self {
            Self::Fp32 => Some(size_of::<f32>()),
            Self::Int64 => Some(size_of::<i64>()),
            Self::Bytes => None,
        }
    }
}

/// A dimension of an input.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Dimension {
    /// It is the same for every call.
    Fixed(usize),
    /// It varies between calls. Dimensions of the same name have the same size.
    Named(String),
}

impl Cases {
    /// Reads the list of cases.
    ///
    /// # Errors
    /// The list is not as `models.py` writes it.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("cases.json");
        let text = fs::read(&path).with_context(|| format!("failed to read {}", path.display()))?;
        let cases = serde_json::from_slice(&text).context("failed to parse the list of cases")?;
        Ok(Self { folder: folder.to_owned(), cases })
    }

    /// The case of this name.
    ///
    /// # Errors
    /// There is none.
    pub fn find(&self, name: &str) -> Result<&Case> {
        let case = self.cases.iter().find(|case| case.name == name);
        case.with_context(|| format!("there is no case {name:?}"))
    }

    /// The ONNX file of a case.
    pub fn model(&self, case: &Case) -> PathBuf {
        self.folder.join(format!("{}.onnx", case.model))
    }

    /// The elements of a tensor.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn bytes(&self, tensor: &TensorFile) -> Result<Vec<u8>> {
        let path = self.folder.join(&tensor.file);
        fs::read(&path).with_context(|| format!("failed to read {}", path.display()))
    }

    /// The largest difference between outputs and the expected ones.
    ///
    /// # Errors
    /// There are more or fewer elements than expected, or a value is not a number.
    pub fn difference(&self, case: &Case, outputs: &[Vec<f32>]) -> Result<f64> {
        ensure!(outputs.len() == case.outputs.len(), "{} has other outputs", case.name);
        let mut largest = 0_f64;
        for (output, expected) in outputs.iter().zip(&case.outputs) {
            let expected = numbers(&self.bytes(expected)?);
            ensure!(output.len() == expected.len(), "{} has other outputs", case.name);
            for (value, wanted) in output.iter().zip(&expected) {
                let difference = (f64::from(*value) - f64::from(*wanted)).abs();
                ensure!(difference.is_finite(), "{} has outputs that are no numbers", case.name);
                largest = largest.max(difference);
            }
        }
        Ok(largest)
    }
}

/// Single-precision numbers from little-endian bytes.
pub fn numbers(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// A case that a variant has loaded.
pub trait Caller {
    /// Does what has to precede a call and is not measured.
    ///
    /// # Errors
    /// It failed.
    fn prepare(&mut self) -> Result<()> {
        Ok(())
    }

    /// Computes the outputs and keeps them. This is measured.
    ///
    /// # Errors
    /// The call failed.
    fn call(&mut self) -> Result<()>;

    /// The outputs of the last call.
    ///
    /// # Errors
    /// An output is not of single-precision numbers.
    fn outputs(&self) -> Result<Vec<Vec<f32>>>;
}

/// Answers requests until the input ends. `open` loads a case for a variant, which happens once.
///
/// # Errors
/// The requests cannot be read, or the answers cannot be written.
pub fn answer(
    cases: &Cases,
    requests: impl BufRead,
    mut answers: impl Write,
    mut open: impl FnMut(&Case, &str) -> Result<Box<dyn Caller>>,
) -> Result<()> {
    let mut opened: Vec<(String, Box<dyn Caller>)> = Vec::new();
    for request in requests.lines() {
        let request = request.context("failed to read a request")?;
        let answer = respond(cases, &request, &mut opened, &mut open);
        let answer = answer.unwrap_or_else(|error| json!({ "error": format!("{error:#}") }));
        writeln!(answers, "{answer}").and_then(|()| answers.flush()).context("failed to answer")?;
    }
    Ok(())
}

fn respond(
    cases: &Cases,
    request: &str,
    opened: &mut Vec<(String, Box<dyn Caller>)>,
    mut open: impl FnMut(&Case, &str) -> Result<Box<dyn Caller>>,
) -> Result<Value> {
    let Some((key, seconds)) = request.rsplit_once(' ') else {
        bail!("the request {request:?} has no duration")
    };
    let Some((name, variant)) = key.split_once(' ') else {
        bail!("the request {request:?} is not of the form `<case> <variant> <seconds>`")
    };
    let duration = seconds.parse().ok().and_then(|it| Duration::try_from_secs_f64(it).ok());
    let duration = duration.with_context(|| format!("{seconds:?} is not a duration"))?;
    let case = cases.find(name)?;
    let place = opened.iter().position(|(opened, _)| opened == key);
    let place = match place {
        Some(place) => place,
        None => {
            opened.push((key.to_owned(), open(case, variant)?));
            opened.len() - 1
        }
    };
    let caller = opened[place].1.as_mut();
    let times = measure(caller, duration)?;
    let difference = cases.difference(case, &caller.outputs()?)?;
    let times: Vec<f64> = times.iter().map(Duration::as_secs_f64).collect();
    Ok(json!({ "seconds": times, "difference": difference }))
}

fn measure(caller: &mut dyn Caller, duration: Duration) -> Result<Vec<Duration>> {
    let mut times = Vec::new();
    for _ in 0..WARM_UP_CALLS {
        caller.prepare()?;
        caller.call()?;
    }
    let begin = Instant::now();
    while times.len() < MIN_CALLS || begin.elapsed() < duration {
        caller.prepare()?;
        let start = Instant::now();
        caller.call()?;
        times.push(start.elapsed());
    }
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = r#"[{"case": "double-2", "model": "double",
        "inputs": [{"name": "x", "datatype": "fp32", "shape": [2], "declared": ["n"], "file": "x"}],
        "outputs": [{"name": "y", "datatype": "fp32", "shape": [2], "declared": ["n"], "file": "y"}]}]"#;

    struct Fixed(Vec<f32>);

    impl Caller for Fixed {
        fn call(&mut self) -> Result<()> {
            Ok(())
        }

        fn outputs(&self) -> Result<Vec<Vec<f32>>> {
            Ok(vec![self.0.clone()])
        }
    }

    fn answer_to(request: &str, outputs: &[f32]) -> Value {
        let folder = std::env::temp_dir().join(format!("cases-{}-{outputs:?}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("cases.json"), LIST).unwrap();
        let wanted: Vec<u8> = [1_f32, 2.0].iter().flat_map(|value| value.to_le_bytes()).collect();
        fs::write(folder.join("y"), wanted).unwrap();
        let cases = Cases::open(&folder).unwrap();
        let mut written = Vec::new();
        let open = |_: &Case, _: &str| Ok(Box::new(Fixed(outputs.to_vec())) as Box<dyn Caller>);
        answer(&cases, request.as_bytes(), &mut written, open).unwrap();
        fs::remove_dir_all(&folder).unwrap();
        serde_json::from_slice(&written).unwrap()
    }

    #[test]
    fn answers_have_times_and_the_largest_difference() {
        let answer = answer_to("double-2 a 0\n", &[1.0, 2.5]);
        assert_eq!(answer["difference"], 0.5);
        assert_eq!(answer["seconds"].as_array().unwrap().len(), MIN_CALLS);
    }

    #[test]
    fn wrong_requests_and_outputs_are_errors() {
        for request in ["double-2 0", "triple a 0", "double-2 a soon", "double-2 a -1"] {
            assert!(answer_to(request, &[1.0, 2.0])["error"].is_string(), "{request}");
        }
        assert!(answer_to("double-2 a 0", &[1.0])["error"].is_string());
        assert!(answer_to("double-2 a 0", &[1.0, f32::NAN])["error"].is_string());
    }
}
