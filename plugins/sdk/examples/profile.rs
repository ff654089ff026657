//! Runs an ONNX model natively, as tract computes it and with the operations of this crate, and
//! prints what each kind of operation takes and how far the results are apart.
//!
//! `profile MODEL INPUT...`: an input is `fp32:` or `int64:`, its dimensions separated by `x`, and
//! optionally `@` and a file with its elements, little-endian. A dimension such as `rows=8` has a
//! name and may vary. `--expect FILE` is a file with the elements of the first output.

#![expect(clippy::print_stdout, reason = "the report is the purpose")]

use std::fs::{self, File};
use std::time::Duration;

use guesthouse_guest::tract_onnx::prelude::{Datum, Tensor, TractResult};
use guesthouse_guest::{Model, ModelBuilder, ModelInput};

/// Runs before those that count, and those that count.
const WARM_UP: usize = 3;
const RUNS: usize = 15;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: profile MODEL INPUT...")?;
    let (mut inputs, mut builders) =
        (Vec::new(), [ModelBuilder::default(), Model::builder().left_to_tract()]);
    let mut expected = None;
    while let Some(argument) = arguments.next() {
        if argument == "--expect" {
            expected = Some(floats(&arguments.next().ok_or("--expect needs a file")?)?);
            continue;
        }
        let (input, tensor) = parse(&argument)?;
        builders = builders.map(|builder| builder.input(input.clone()));
        inputs.push(tensor);
    }
    let mut models = Vec::new();
    for builder in builders {
        models.push(builder.read_onnx(&mut File::open(&path)?)?);
    }
    let outputs = models.iter().map(|model| run(model, &inputs)).collect::<Result<Vec<_>, _>>()?;
    let mut best = [f64::INFINITY; 2];
    for _ in 0..WARM_UP + RUNS {
        for (model, best) in models.iter().zip(&mut best) {
            let start = now();
            run(model, &inputs)?;
            *best = best.min((now() - start).as_secs_f64());
        }
    }
    println!("ours {:.3} ms, tract {:.3} ms", best[0] * 1e3, best[1] * 1e3);
    println!("ours differs from tract by {:.1e}", difference(&outputs[0], &outputs[1]));
    if let Some(expected) = expected {
        println!("ours differs from the file by {:.1e}", difference(&outputs[0], &expected));
        println!("tract differs from the file by {:.1e}", difference(&outputs[1], &expected));
    }
    let mut times = match inputs.len() {
        1 => models[0].profile(take::<1>(&inputs), now),
        2 => models[0].profile(take::<2>(&inputs), now),
        _ => models[0].profile(take::<3>(&inputs), now),
    }
    .map_err(|error| format!("{error:?}"))?;
    times.sort_by_key(|entry| std::cmp::Reverse(entry.time));
    for entry in times.iter().filter(|entry| !matches!(&*entry.name, "Const" | "Source")) {
        let by = if entry.is_ours { "ours " } else { "tract" };
        let micros = entry.time.as_secs_f64() * 1e6;
        println!("{micros:10.1} us {by} {:4} x {}", entry.count, entry.name);
    }
    Ok(())
}

/// The time that this thread has spent on a processor, which other programs hardly change.
fn now() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let [seconds, nanos] = [time.tv_sec, time.tv_nsec].map(|part| part.try_into().unwrap_or(0));
    Duration::from_secs(seconds) + Duration::from_nanos(nanos)
}

fn take<const N: usize>(inputs: &[Tensor]) -> [Tensor; N] {
    std::array::from_fn(|index| inputs[index].clone())
}

fn run(model: &Model, inputs: &[Tensor]) -> Result<Vec<f32>, Box<dyn std::error::Error>> {
    let outputs = match inputs.len() {
        1 => model.run(take::<1>(inputs)),
        2 => model.run(take::<2>(inputs)),
        3 => model.run(take::<3>(inputs)),
        _ => return Err("one to three inputs".into()),
    };
    let elements = outputs.and_then(|outputs| outputs.fp32(0));
    elements.map_err(|error| format!("{error:?}").into())
}

fn parse(argument: &str) -> Result<(ModelInput, Tensor), Box<dyn std::error::Error>> {
    let (argument, file) = match argument.split_once('@') {
        Some((argument, file)) => (argument, Some(file)),
        None => (argument, None),
    };
    let (datatype, dimensions) = argument.split_once(':').ok_or("an input is TYPE:DIMENSIONS")?;
    let mut input =
        if datatype == "fp32" { ModelInput::new::<f32>() } else { ModelInput::new::<i64>() };
    let mut shape = Vec::new();
    for dimension in dimensions.split('x') {
        let size = if let Some((name, size)) = dimension.split_once('=') {
            input = input.named(name);
            size.parse()?
        } else {
            let size = dimension.parse()?;
            input = input.fixed(size);
            size
        };
        shape.push(size);
    }
    let count = shape.iter().product();
    let bytes = file.map(fs::read).transpose()?;
    let tensor = if datatype == "fp32" {
        tensor(&shape, bytes, |index| (index % 17) as f32 / 17.0, f32::from_le_bytes, count)?
    } else {
        tensor(&shape, bytes, |index| 1 + index as i64 % 5, i64::from_le_bytes, count)?
    };
    Ok((input, tensor))
}

fn tensor<T: Datum + Copy, const N: usize>(
    shape: &[usize],
    bytes: Option<Vec<u8>>,
    invent: impl Fn(usize) -> T,
    decode: impl Fn([u8; N]) -> T,
    count: usize,
) -> TractResult<Tensor> {
    let elements: Vec<T> = match bytes {
        Some(bytes) => bytes.as_chunks().0.iter().map(|chunk| decode(*chunk)).collect(),
        None => (0..count).map(invent).collect(),
    };
    Tensor::from_shape(shape, &elements)
}

fn floats(path: &str) -> Result<Vec<f32>, std::io::Error> {
    let bytes = fs::read(path)?;
    Ok(bytes.as_chunks().0.iter().map(|chunk| f32::from_le_bytes(*chunk)).collect())
}

fn difference(left: &[f32], right: &[f32]) -> f32 {
    if left.len() != right.len() {
        return f32::INFINITY;
    }
    left.iter().zip(right).map(|(left, right)| (left - right).abs()).fold(0.0, f32::max)
}
