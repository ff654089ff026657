//! Serves any ONNX graph on tensors as they are: the guest of `guesthouse pack --onnx`.
//!
//! The signature follows from the graph in the asset `model.onnx`. The first dimension of every input
//! and output is the batch; the manifest's parameter `max_batch_size` bounds it if it varies between
//! calls. A graph that quantises dynamically takes one row a call: its rows would depend on each other. Names that are no names of fields are changed: other characters become `_`.

mod names;
mod rows;

use guesthouse_guest::tract_onnx::prelude::Tensor as Array;
use guesthouse_guest::{
    Assets, Batch, Dimension, Error, Field, GraphValue, Guest, Model, OnnxFile, PredictError,
    Signature, Tensor, export,
};

use crate::names::field_names;

/// The sizes of named dimensions that `init` tries, in this order, for the call before the snapshot.
const EXAMPLE_SIZES: [usize; 3] = [8, 32, 224];

struct Graph {
    model: Model,
    /// The names of fields, in the order of the graph.
    inputs: Vec<String>,
    outputs: Vec<String>,
}

impl Guest for Graph {
    fn init(assets: &Assets) -> Result<(Self, Signature), Error> {
        let file = OnnxFile::read(&mut assets.open("model.onnx")?)?;
        let mut values = file.inputs()?;
        let outputs = file.outputs();
        let rows_are_separate = !file.quantises_dynamically();
        let varies = rows::name_batch(&mut values)?;
        let builder = values.iter().map(GraphValue::model_input);
        let builder = builder.fold(Model::builder(), |builder, input| builder.input(input));
        let model = builder.build(file)?;

        let names = values.iter().map(|value| value.name.as_str());
        let names = field_names(names.chain(outputs.iter().map(String::as_str)))?;
        let (inputs, output_names) = names.split_at(values.len());
        let fields = values.iter().zip(inputs).map(|(value, name)| {
            let description = format!("the graph's input `{}`", value.name);
            Field::new(name, &description, value.datatype).row_shape(row_shape(&value.shape))
        });
        let types = model.outputs()?;
        let results = types.iter().zip(&outputs).zip(output_names);
        let results = results.map(|(((datatype, shape), output), name)| {
            rows::check_batch(output, shape, varies)?;
            let description = format!("the graph's output `{output}`");
            Ok(Field::new(name, &description, *datatype).row_shape(row_shape(shape)))
        });
        let results = results.collect::<Result<Vec<_>, Error>>()?;
        let is_batched = varies && rows_are_separate;
        let most = if is_batched { assets.parameter("max_batch_size")? } else { 1 };
        let signature = Signature::new(fields, results).max_batch_size(most);
        let graph = Self { model, inputs: inputs.to_vec(), outputs: output_names.to_vec() };
        graph.run_example(&values)?;
        Ok((graph, signature))
    }

    fn predict(&self, batch: &Batch) -> Result<Vec<Tensor>, PredictError> {
        let inputs = self.inputs.iter().map(|name| batch.array(name));
        let results = self.model.run(inputs.collect::<Result<Vec<_>, _>>()?)?;
        let outputs = self.outputs.iter().enumerate();
        outputs.map(|(index, name)| results.tensor(index, name)).collect()
    }
}

impl Graph {
    /// Run the graph on zeros, so that what it prepares in its first call is part of the snapshot.
    fn run_example(&self, values: &[GraphValue]) -> Result<(), Error> {
        let mut outcome = Ok(());
        for size in EXAMPLE_SIZES {
            let inputs = values.iter().map(|value| zeros(value, size));
            let inputs = inputs.collect::<Result<Vec<_>, _>>()?;
            outcome = self.model.run(inputs).map(|_outputs| ());
            if outcome.is_ok() {
                break;
            }
        }
        outcome.map_err(|error| {
            Error::new(format!("the graph cannot be run on zeros: {}", Error::from(error)))
        })
    }
}

/// An input of one row of zeros, whose other named dimensions have this size.
fn zeros(value: &GraphValue, size: usize) -> Result<Array, Error> {
    let shape = value.shape.iter().map(|dimension| match dimension {
        Dimension::Fixed(size) => *size,
        Dimension::Named(name) if name == rows::BATCH => 1,
        Dimension::Named(_) => size,
    });
    let shape: Vec<_> = shape.collect();
    Array::zero_dt(value.datum_type(), &shape)
        .map_err(|error| Error::new(format!("input {:?}: {error:#}", value.name)))
}

/// The dimensions of a row.
fn row_shape(shape: &[Dimension]) -> impl Iterator<Item = Option<u32>> {
    shape.iter().skip(1).map(|dimension| match dimension {
        Dimension::Fixed(size) => u32::try_from(*size).ok(),
        Dimension::Named(_) => None,
    })
}

export!(Graph);
