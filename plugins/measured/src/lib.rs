//! Runs any ONNX graph on tensors as they are: the guest of the performance benchmark.
//!
//! The manifest's parameter `inputs` declares the inputs of the graph, separated by `;`, each with its
//! name, its datatype and its dimensions: `x fp32 1 3 48 192` or `input_ids int64 batch sequence`.
//! `outputs` declares the outputs in the same way; those are of type fp32. The first dimension is the
//! batch. The parameter `rows` is the largest batch, and `example` the size of named dimensions in the
//! call that `init` makes before the snapshot. With `engine = "tract"`, the graph is left to tract
//! instead of being rewritten into the operations of the SDK (`engine = "sdk"`).

use guesthouse_guest::tract_onnx::prelude::{Datum, Tensor as Array};
use guesthouse_guest::{
    Assets, Batch, Datatype, Dimension, Error, Field, Guest, Model, ModelInput, PredictError,
    Signature, Tensor, export,
};

struct Measured {
    model: Model,
    inputs: Vec<Declared>,
    outputs: Vec<Declared>,
}

/// A declared input or output.
struct Declared {
    name: String,
    datatype: Datatype,
    dimensions: Vec<Dimension>,
}

impl Guest for Measured {
    fn init(assets: &Assets) -> Result<(Self, Signature), Error> {
        let inputs = parse(&assets.parameter::<String>("inputs")?)?;
        let outputs = parse(&assets.parameter::<String>("outputs")?)?;
        let builder = match assets.parameter::<String>("engine")?.as_str() {
            "sdk" => Model::builder(),
            "tract" => Model::builder().left_to_tract(),
            other => return Err(Error::new(format!("there is no engine {other:?}"))),
        };
        let model = inputs.iter().map(Declared::model_input);
        let model = model.fold(builder, |builder, input| builder.input(input));
        let measured = Self { model: model.load_onnx(assets, "model.onnx")?, inputs, outputs };
        let example: usize = assets.parameter("example")?;
        let example = measured.inputs.iter().map(|input| input.zeros(example));
        let example = example.collect::<Result<Vec<_>, _>>()?;
        measured.model.run(example)?;

        let inputs: Vec<_> = measured.inputs.iter().map(Declared::field).collect();
        let outputs: Vec<_> = measured.outputs.iter().map(Declared::field).collect();
        let signature = Signature::new(inputs, outputs).max_batch_size(assets.parameter("rows")?);
        Ok((measured, signature))
    }

    fn predict(&self, batch: &Batch) -> Result<Vec<Tensor>, PredictError> {
        let inputs = self.inputs.iter().map(|input| batch.array(&input.name));
        let results = self.model.run(inputs.collect::<Result<Vec<_>, _>>()?)?;
        let outputs = self.outputs.iter().enumerate();
        outputs.map(|(index, output)| results.tensor(index, &output.name)).collect()
    }
}

impl Declared {
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        let name = words.next()?.to_owned();
        let datatype = match words.next()? {
            "fp32" => Datatype::Fp32,
            "int64" => Datatype::Int64,
            _ => return None,
        };
        let dimension = |word: &str| match word.parse() {
            Ok(size) => Dimension::Fixed(size),
            Err(_) => Dimension::Named(word.to_owned()),
        };
        let dimensions: Vec<_> = words.map(dimension).collect();
        (!dimensions.is_empty()).then_some(Self { name, datatype, dimensions })
    }

    fn model_input(&self) -> ModelInput {
        let input = match self.datatype {
            Datatype::Fp32 => ModelInput::new::<f32>(),
            _ => ModelInput::new::<i64>(),
        };
        self.dimensions.iter().fold(input, |input, dimension| match dimension {
            Dimension::Fixed(size) => input.fixed(*size),
            Dimension::Named(name) => input.named(name),
        })
    }

    fn field(&self) -> Field {
        let row = self.dimensions.iter().skip(1).map(|dimension| match dimension {
            Dimension::Fixed(size) => u32::try_from(*size).ok(),
            Dimension::Named(_) => None,
        });
        Field::new(&self.name, "a tensor of the graph", self.datatype).row_shape(row)
    }

    /// An input of zeros.
    fn zeros(&self, named: usize) -> Result<Array, PredictError> {
        let sizes = self.dimensions.iter().map(|dimension| match dimension {
            Dimension::Fixed(size) => *size,
            Dimension::Named(_) => named,
        });
        let shape: Vec<_> = sizes.collect();
        let count = shape.iter().product();
        match self.datatype {
            Datatype::Fp32 => array(&shape, &vec![0_f32; count]),
            _ => array(&shape, &vec![0_i64; count]),
        }
    }
}

fn array<T: Datum + Copy>(shape: &[usize], elements: &[T]) -> Result<Array, PredictError> {
    Array::from_shape(shape, elements).map_err(PredictError::failed)
}

fn parse(list: &str) -> Result<Vec<Declared>, Error> {
    let parsed = list.split(';').map(|text| {
        Declared::parse(text).ok_or_else(|| Error::new(format!("{text:?} is not a declaration")))
    });
    parsed.collect()
}

export!(Measured);
