//! Serves any ONNX graph: the guest of `guesthouse pack --onnx`.
//!
//! The signature follows from the graph in the asset `model.onnx` and from the manifest in the asset
//! `manifest.json`, if there is one. The manifest's preprocessing ([`input`]) makes inputs of the
//! graph from fields, and its postprocessing ([`output`]) makes fields from the graph's values; without
//! a manifest, tensors pass as they are.
//!
//! The first dimension of every input and output is the batch; the parameter `max_batch_size` bounds
//! it if it varies between calls. A call takes one row if the rows of a batch would depend on each
//! other: if the graph quantises dynamically, or if texts are padded in outputs as well.

mod fields;
mod input;
mod names;
mod output;
mod rows;

use guesthouse_guest::tract_onnx::prelude::{Tensor as Array, tensor1};
use guesthouse_guest::{
    Assets, Batch, Datatype, Dimension, Error, Field, GraphValue, Guest, Model, OnnxFile,
    PredictError, Signature, Tensor, export,
};
use guesthouse_onnx_manifest::OnnxManifest;

use crate::input::Inputs;
use crate::output::Sink;

/// The sizes of named dimensions that `init` tries, in this order, for the call before the snapshot.
const EXAMPLE_SIZES: [usize; 3] = [8, 32, 224];

struct Pipeline {
    inputs: Inputs,
    model: Model,
    sinks: Vec<Sink>,
    /// The graph's inputs that sinks need, by index.
    masks: Vec<usize>,
}

impl Guest for Pipeline {
    fn init(assets: &Assets) -> Result<(Self, Signature), Error> {
        let manifest = manifest(assets)?;
        let mut file = OnnxFile::read(&mut assets.open("model.onnx")?)?;
        let wanted = output::wanted(&manifest.outputs, &file.outputs())?;
        let outputs = output::graph_values(&wanted);
        file.keep_outputs(&outputs)?;
        let mut values = file.inputs()?;
        let rows_are_separate = !file.quantises_dynamically();
        let varies = rows::name_batch(&mut values)?;
        let (inputs, fields) = Inputs::new(&manifest, assets, &values)?;
        inputs.check_vocabularies(&file, &values)?;
        let builder = values.iter().map(GraphValue::model_input);
        let builder = builder.fold(Model::builder(), |builder, input| builder.input(input));
        let model = builder.build(file)?;

        let types = model.outputs()?;
        for (name, (_, shape)) in outputs.iter().zip(&types) {
            rows::check_batch(name, shape, varies)?;
        }
        let (mut sinks, mut results, mut any_varies) = (Vec::new(), Vec::<Field>::new(), false);
        for output in &wanted {
            let name = output.graph.as_ref().unwrap_or(&output.name);
            let index = outputs.iter().position(|known| known == name).unwrap_or(0);
            let (datatype, shape) = &types[index];
            let (sink, field, varies) =
                output::sink(output, index, (*datatype, &shape[1..]), &values)?;
            sinks.push(sink);
            results.push(field);
            any_varies |= varies;
        }
        let pads_outputs = inputs.most_tokens.is_some() && any_varies;
        let is_batched = varies && rows_are_separate && !pads_outputs;
        let most = if is_batched { assets.parameter("max_batch_size")? } else { 1 };
        let signature = Signature::new(fields, results).max_batch_size(most);
        let masks = sinks.iter().flat_map(Sink::masks).collect();
        let pipeline = Self { inputs, model, sinks, masks };
        pipeline.run_example(&values)?;
        Ok((pipeline, signature))
    }

    fn predict(&self, batch: &Batch) -> Result<Vec<Tensor>, PredictError> {
        let inputs = self.inputs.run(batch)?;
        let masks = self.masks.iter().map(|index| Ok((*index, output::mask_of(&inputs[*index])?)));
        let masks = masks.collect::<Result<Vec<_>, PredictError>>()?;
        let results = self.model.run(inputs)?;
        self.sinks.iter().map(|sink| sink.tensor(&results, &masks)).collect()
    }
}

/// The manifest; an artifact without one has an empty one.
fn manifest(assets: &Assets) -> Result<OnnxManifest, Error> {
    if !assets.contains("manifest.json") {
        return Ok(OnnxManifest::default());
    }
    let json = assets.read("manifest.json")?;
    serde_json::from_slice(&json).map_err(|error| Error::new(format!("the manifest: {error}")))
}

impl Pipeline {
    /// Run the graph on zeros, so that what it prepares in its first call is part of the snapshot. A
    /// graph that takes texts has to take the longest one. Zeros stand for no text, which a graph that
    /// takes texts itself may reject.
    fn run_example(&self, values: &[GraphValue]) -> Result<(), Error> {
        let longest = self.inputs.most_tokens.map(|tokens| vec![tokens]);
        let mut outcome = Ok(());
        for size in longest.unwrap_or(EXAMPLE_SIZES.to_vec()) {
            let inputs = values.iter().enumerate();
            let inputs =
                inputs.map(|(index, value)| zeros(value, size, self.inputs.largest(index)));
            let inputs = inputs.collect::<Result<Vec<_>, _>>()?;
            outcome = self.model.run(inputs).map(|_outputs| ());
            if outcome.is_ok() || values.iter().any(|value| value.datatype == Datatype::Bytes) {
                return Ok(());
            }
        }
        outcome.map_err(|error| {
            Error::new(format!("the graph cannot be run on zeros: {}", Error::from(error)))
        })
    }
}

/// An input of one row of zeros. Named dimensions have this size, or those of the largest row.
fn zeros(value: &GraphValue, size: usize, largest: Option<Vec<usize>>) -> Result<Array, Error> {
    let shape = value.shape.iter().enumerate().map(|(axis, dimension)| match dimension {
        Dimension::Fixed(size) => *size,
        Dimension::Named(name) if axis == 0 || name == rows::BATCH => 1,
        Dimension::Named(_) => {
            largest.as_ref().and_then(|row| row.get(axis - 1)).copied().unwrap_or(size)
        }
    });
    let shape: Vec<_> = shape.collect();
    let zeros = match value.datatype {
        Datatype::Bytes => tensor1(&vec![String::new(); shape.iter().product()]).into_shape(&shape),
        _ => Array::zero_dt(value.datum_type(), &shape),
    };
    zeros.map_err(|error| Error::new(format!("input {:?}: {error:#}", value.name)))
}

/// The dimensions of a row.
fn row_shape(shape: &[Dimension]) -> impl Iterator<Item = Option<u32>> {
    shape.iter().map(|dimension| match dimension {
        Dimension::Fixed(size) => u32::try_from(*size).ok(),
        Dimension::Named(_) => None,
    })
}

export!(Pipeline);
