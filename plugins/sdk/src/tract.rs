//! ONNX models with tract: parsed, optimised and run once in `init`.
//!
//! Graphs are rewritten into the operations of `guesthouse-arithmetic`, in single precision and in 8
//! bits; what cannot be rewritten is left to tract. Half precision becomes single precision.
//!
//! Memory is bounded by the guest's limit. The protobuf is streamed from the asset and dropped
//! before `init` ends, so that the snapshot only contains the optimised plan.

mod broadcast;
mod categories;
mod convolution;
mod crop;
mod dynamic;
mod execute;
mod file;
mod graph;
mod node;
mod product;
mod proto;
mod quantised;
mod reduction;
mod rewrite;
mod selection;
mod tensors;
#[cfg(test)]
mod tests;
mod trees;
mod unfolded;
mod vectors;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tract_onnx::Onnx;
use tract_onnx::pb::ModelProto;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::model::typed::TypedSimpleState;
use tract_onnx::tract_hir::internal::DimLike as _;

use self::dynamic::DynamicProduct;
pub use self::file::{GraphValue, OnnxFile};
use self::quantised::QuantisedNode;
use crate::{Assets, Datatype, Error, PredictError};

/// An input of the ONNX graph: its element type and its shape. Named dimensions vary between calls.
#[derive(Debug, Clone)]
pub struct ModelInput {
    datum_type: DatumType,
    shape: Vec<Dimension>,
}

/// A dimension of an input or an output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dimension {
    /// Its size.
    Fixed(usize),
    /// The name of a size that varies between calls, or how it follows from others.
    Named(String),
}

impl ModelInput {
    /// Create an input of elements of type `T` without dimensions. Add dimensions beginning with
    /// the outermost.
    pub fn new<T: Datum>() -> Self {
        Self { datum_type: T::datum_type(), shape: Vec::new() }
    }

    /// Add a dimension of fixed size.
    #[must_use]
    pub fn fixed(mut self, size: usize) -> Self {
        self.shape.push(Dimension::Fixed(size));
        self
    }

    /// Add a dimension whose size varies between calls. Dimensions of the same name have the same
    /// size.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        self.shape.push(Dimension::Named(name.to_owned()));
        self
    }
}

/// Builds a [`Model`].
#[derive(Debug, Default)]
pub struct ModelBuilder {
    inputs: Vec<ModelInput>,
    is_left_to_tract: bool,
}

impl ModelBuilder {
    /// Declare the next input of the graph.
    #[must_use]
    pub fn input(mut self, input: ModelInput) -> Self {
        self.inputs.push(input);
        self
    }

    /// Let tract compute everything, instead of the operations that the host offers or that this
    /// crate has. Only to find out what they change.
    #[must_use]
    pub fn left_to_tract(mut self) -> Self {
        self.is_left_to_tract = true;
        self
    }

    /// Parse the asset and optimise the graph. A graph in half precision computes in single
    /// precision: its inputs and outputs of type float16 keep their type, those of type bfloat16 are
    /// f32.
    ///
    /// # Errors
    /// The asset is missing, is not ONNX, or does not take the inputs that were declared.
    pub fn load_onnx(self, assets: &Assets, asset: &str) -> Result<Model, Error> {
        let mut reader = assets.open(asset)?;
        let plan = self.plan(&mut reader);
        plan.map(Model::new).map_err(|error| Error::new(format!("loading {asset:?}: {error:#}")))
    }

    /// Parse ONNX from anywhere and optimise the graph, such as in a test that runs natively.
    ///
    /// # Errors
    /// The bytes are not ONNX, or the graph does not take the inputs that were declared.
    pub fn read_onnx(self, reader: &mut dyn std::io::Read) -> Result<Model, Error> {
        self.plan(reader).map(Model::new).map_err(|error| Error::new(format!("{error:#}")))
    }

    /// Optimise the graph of a file.
    ///
    /// # Errors
    /// tract lacks an operator, or the graph does not take the inputs that were declared.
    pub fn build(self, mut file: OnnxFile) -> Result<Model, Error> {
        // They name dimensions as the inputs of the file do, which may have been declared otherwise;
        // tract finds out what they say.
        file.0.graph.iter_mut().for_each(|graph| graph.value_info.clear());
        file.0.graph.iter_mut().for_each(proto::expand);
        let missing = file.missing_operators(&self.onnx());
        if !missing.is_empty() {
            return Err(Error::new(missing));
        }
        self.plan_of(file.0).map(Model::new).map_err(|error| Error::new(format!("{error:#}")))
    }

    /// What reads files.
    fn onnx(&self) -> Onnx {
        let mut onnx = tract_onnx::onnx();
        trees::add_missing(&mut onnx);
        categories::register(&mut onnx);
        vectors::register(&mut onnx);
        if !self.is_left_to_tract {
            trees::replace(&mut onnx);
            unfolded::register(&mut onnx);
        }
        onnx
    }

    fn plan(self, reader: &mut dyn std::io::Read) -> TractResult<Arc<TypedRunnableModel>> {
        let file = tract_onnx::onnx().proto_model_for_read(reader)?;
        self.plan_of(file)
    }

    fn plan_of(self, mut file: ModelProto) -> TractResult<Arc<TypedRunnableModel>> {
        let onnx = self.onnx();
        file.graph.iter_mut().for_each(proto::expand);
        if !self.is_left_to_tract {
            file.graph.iter_mut().for_each(proto::widen);
        }
        let typed = self.typed(&onnx, &file).or_else(|error| {
            let is_changed = file.graph.as_mut().is_some_and(proto::keep_sizes_symbolic);
            if is_changed { self.typed(&onnx, &file) } else { Err(error) }
        });
        drop(file);
        let model = typed?;
        let model = if self.is_left_to_tract { model.into_optimized()? } else { rewritten(model)? };
        model.into_runnable()
    }

    fn typed(&self, onnx: &Onnx, file: &ModelProto) -> TractResult<TypedModel> {
        let mut model = onnx.model_for_proto_model(file)?;
        for (index, input) in self.inputs.iter().enumerate() {
            let shape: TVec<TDim> = input
                .shape
                .iter()
                .map(|dimension| match dimension {
                    Dimension::Fixed(size) => TDim::from(*size),
                    Dimension::Named(name) => model.symbols.sym(name).into(),
                })
                .collect();
            model.set_input_fact(index, input.datum_type.fact(shape).into())?;
        }
        model.into_typed()
    }
}

/// Rewrite and optimise a graph. If the rewrite fails, tract computes all of it.
fn rewritten(model: TypedModel) -> TractResult<TypedModel> {
    // Asks the host here, because only what happens in `init` is part of the snapshot.
    crate::arithmetic::executor();
    let mut rewritten = model.clone();
    match rewrite::rewrite(&mut rewritten) {
        Ok(()) => {
            let mut optimised = rewritten.into_optimized()?;
            selection::check_indexes(&mut optimised)?;
            Ok(optimised)
        }
        Err(error) => {
            crate::log::warn(&format!("the graph is left to tract: {error:#}"));
            model.into_optimized()
        }
    }
}

/// An optimised model, ready to run.
#[derive(Debug)]
pub struct Model {
    plan: Arc<TypedRunnableModel>,
    /// What the last call has left for the next one, which saves allocations.
    state: Mutex<Option<TypedSimpleState>>,
}

impl Model {
    /// Create a builder, to declare the inputs of the graph.
    pub fn builder() -> ModelBuilder {
        ModelBuilder::default()
    }

    fn new(plan: Arc<TypedRunnableModel>) -> Self {
        Self { plan, state: Mutex::default() }
    }

    /// Run the graph.
    ///
    /// # Errors
    /// [`PredictError::Failed`] with the error of tract.
    pub fn run(
        &self,
        inputs: impl IntoIterator<Item = tract_onnx::prelude::Tensor>,
    ) -> Result<ModelOutputs, PredictError> {
        let inputs = inputs.into_iter().map(IntoTValue::into_tvalue).collect();
        let last = self.state.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut state = match last {
            Some(state) => state,
            None => self.plan.spawn().map_err(failed)?,
        };
        let outputs = state.run(inputs).map_err(failed)?;
        // What operations such as loops remember is not for another call.
        if state.op_states.iter().all(Option::is_none) {
            *self.state.lock().unwrap_or_else(PoisonError::into_inner) = Some(state);
        }
        Ok(ModelOutputs(outputs))
    }

    /// The types of the outputs and their dimensions.
    ///
    /// # Errors
    /// Elements of an output are of a type that signatures do not have.
    pub fn outputs(&self) -> Result<Vec<(Datatype, Vec<Dimension>)>, Error> {
        let model = self.plan.model();
        let outputs = (0..model.outputs.len()).map(|index| {
            let fact = model.output_fact(index)?;
            let shape = fact.shape.iter().map(|size| match size.to_usize() {
                Ok(size) => Dimension::Fixed(size),
                Err(_varies) => Dimension::Named(size.to_string()),
            });
            Ok((tensors::datatype(fact.datum_type)?, shape.collect()))
        });
        let outputs: TractResult<_> = outputs.collect();
        outputs.map_err(|error| Error::new(format!("outputs: {error:#}")))
    }

    /// Run the graph once, and add up what each kind of operation took by this clock. The clocks of
    /// the sandbox stand still, so that this is for tests and tools that run natively.
    ///
    /// # Errors
    /// [`PredictError::Failed`] with the error of tract.
    pub fn profile<const N: usize>(
        &self,
        inputs: [tract_onnx::prelude::Tensor; N],
        clock: impl Fn() -> Duration,
    ) -> Result<Vec<OperationTime>, PredictError> {
        let inputs = inputs.into_iter().map(IntoTValue::into_tvalue).collect();
        let mut times: Vec<OperationTime> = Vec::new();
        let mut state = self.plan.spawn().map_err(failed)?;
        let outputs = state.run_plan_with_eval(inputs, |context, state, node, inputs| {
            let start = clock();
            let outputs = tract_onnx::tract_core::plan::eval(context, state, node, inputs);
            let time = clock().saturating_sub(start);
            let name = node.op.name();
            let is_ours = node.op_is::<node::Node>()
                || node.op_is::<QuantisedNode>()
                || node.op_is::<DynamicProduct>();
            match times.iter_mut().find(|entry| entry.name == name && entry.is_ours == is_ours) {
                Some(entry) => {
                    entry.count += 1;
                    entry.time += time;
                }
                None => times.push(OperationTime { name: name.into(), is_ours, count: 1, time }),
            }
            outputs
        });
        outputs.map_err(failed)?;
        Ok(times)
    }
}

/// What all operations of a kind took in one run of a [`Model`].
#[derive(Debug, Clone)]
pub struct OperationTime {
    /// The kind of the operation.
    pub name: String,
    /// Whether the host computes it if it grants that; else tract does.
    pub is_ours: bool,
    /// The number of such operations.
    pub count: usize,
    /// The sum of their times.
    pub time: Duration,
}

/// The outputs of a [`Model`], in the order of the graph.
#[derive(Debug)]
pub struct ModelOutputs(TVec<TValue>);

impl ModelOutputs {
    /// The elements of an output of single or half precision, row-major.
    ///
    /// # Errors
    /// [`PredictError::Failed`] if the graph has no such output or it is of another type.
    pub fn fp32(&self, index: usize) -> Result<Vec<f32>, PredictError> {
        let output = self.output(index)?;
        let view = output.try_as_plain_ram().map_err(failed)?;
        if output.datum_type() == f16::datum_type() {
            let elements = view.as_slice::<f16>().map_err(failed)?;
            return Ok(elements.iter().map(|element| element.to_f32()).collect());
        }
        view.as_slice::<f32>().map(<[f32]>::to_vec).map_err(failed)
    }

    fn output(&self, index: usize) -> Result<&TValue, PredictError> {
        self.0.get(index).ok_or_else(|| PredictError::failed(format!("no output {index}")))
    }
}

fn failed(error: TractError) -> PredictError {
    PredictError::failed(format!("{error:#}"))
}
