//! Runs ONNX graphs natively, for the tests of operators: the code that guests have, outside of the
//! sandbox.
//!
//! Each line of the standard input is a folder with `model.onnx`, and with `inputs.onnx`, whose weights are
//! the inputs. For each, a line is printed: the outputs as `TYPE:DIMENSIONS:BYTES` in hexadecimal digits,
//! separated by spaces, or `error` and the reason.

#![expect(clippy::print_stdout, reason = "the outputs are the purpose")]

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead as _, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use guesthouse_guest::tract_onnx::pb::TensorProto;
use guesthouse_guest::tract_onnx::prelude::{DatumType, Framework as _, Tensor};
use guesthouse_guest::{GraphValue, Model, OnnxFile, tract_onnx};

type Error = Box<dyn std::error::Error>;

fn main() -> Result<(), Error> {
    // The reason is printed with the outputs.
    std::panic::set_hook(Box::new(|_panic| {}));
    for folder in std::io::stdin().lock().lines() {
        let folder = folder?;
        let outcome = catch_unwind(AssertUnwindSafe(|| run(Path::new(&folder))));
        let line = match outcome {
            Ok(Ok(outputs)) => outputs,
            Ok(Err(error)) => format!("error {error}"),
            Err(panic) => format!("error panic: {}", message(&*panic)),
        };
        println!("{}", line.replace('\n', " "));
        std::io::stdout().flush()?;
    }
    Ok(())
}

fn message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}

fn run(folder: &Path) -> Result<String, Error> {
    let file = OnnxFile::read(&mut File::open(folder.join("model.onnx"))?)?;
    let (values, names) = (file.inputs()?, file.outputs());
    let inputs = inputs(&folder.join("inputs.onnx"), &values)?;
    let builder = values.iter().map(GraphValue::model_input);
    let model =
        builder.fold(Model::builder(), |builder, input| builder.input(input)).build(file)?;
    model.outputs()?;
    let outputs = model.run(inputs).map_err(guesthouse_guest::Error::from)?;
    let mut line = String::new();
    for index in 0..names.len() {
        let array = outputs.array(index).map_err(guesthouse_guest::Error::from)?;
        let shape: Vec<_> = array.shape().iter().map(ToString::to_string).collect();
        write!(line, "{:?}:{}:", array.datum_type(), shape.join("x"))?;
        for byte in array.try_as_plain_ram()?.as_bytes() {
            write!(line, "{byte:02x}")?;
        }
        line.push(' ');
    }
    Ok(line)
}

/// The inputs in the order of the graph.
fn inputs(path: &Path, values: &[GraphValue]) -> Result<Vec<Tensor>, Error> {
    let file = tract_onnx::onnx().proto_model_for_read(&mut File::open(path)?)?;
    let tensors = file.graph.map(|graph| graph.initializer).unwrap_or_default();
    let input = |value: &GraphValue| {
        let tensor = tensors.iter().find(|tensor| tensor.name == value.name);
        array(tensor.ok_or("an input is missing")?, value.datum_type())
    };
    values.iter().map(input).collect()
}

fn array(tensor: &TensorProto, elements: DatumType) -> Result<Tensor, Error> {
    let shape: Vec<usize> =
        tensor.dims.iter().map(|size| usize::try_from(*size)).collect::<Result<_, _>>()?;
    let mut array = Tensor::zero_dt(elements, &shape)?;
    let bytes = array.as_bytes_mut();
    if bytes.len() != tensor.raw_data.len() {
        return Err("an input has another size".into());
    }
    bytes.copy_from_slice(&tensor.raw_data);
    Ok(array)
}
