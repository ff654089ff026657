//! ONNX models in this process, loaded as a guest of the SDK loads them.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use cases::{Case, Cases, Datatype, Dimension, TensorFile};
use tract_onnx::prelude::*;

/// A plan that can run.
pub(crate) type Plan = Arc<TypedRunnableModel>;

/// Loads a graph with these types and dimensions of its inputs.
pub(crate) fn load(path: &Path, inputs: &[(DatumType, Vec<Dimension>)]) -> Result<Plan> {
    let mut model = tract_onnx::onnx().model_for_path(path)?;
    for (index, (datatype, shape)) in inputs.iter().enumerate() {
        let shape: TVec<TDim> = shape
            .iter()
            .map(|dimension| match dimension {
                Dimension::Fixed(size) => TDim::from(*size),
                Dimension::Named(name) => model.symbols.sym(name).into(),
            })
            .collect();
        model.set_input_fact(index, datatype.fact(shape).into())?;
    }
    model.into_optimized()?.into_runnable()
}

/// Loads the graph of a case.
pub(crate) fn load_case(cases: &Cases, case: &Case) -> Result<Plan> {
    let inputs = case.inputs.iter().map(|it| Ok((datum_type(it)?, it.declared.clone())));
    let inputs = inputs.collect::<Result<Vec<_>>>()?;
    load(&cases.model(case), &inputs).with_context(|| format!("failed to load {}", case.model))
}

/// A tensor with the type and shape of an input and these elements.
pub(crate) fn tensor(input: &TensorFile, bytes: &[u8]) -> Result<Tensor> {
    match input.datatype {
        Datatype::Fp32 => Tensor::from_shape(&input.shape, &cases::numbers(bytes)),
        Datatype::Int64 => {
            let elements = bytes.as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes));
            Tensor::from_shape(&input.shape, &elements.collect::<Vec<_>>())
        }
        Datatype::Bytes => bail!("graphs take no byte strings"),
    }
}

fn datum_type(input: &TensorFile) -> Result<DatumType> {
    match input.datatype {
        Datatype::Fp32 => Ok(f32::datum_type()),
        Datatype::Int64 => Ok(i64::datum_type()),
        Datatype::Bytes => bail!("graphs take no byte strings"),
    }
}
