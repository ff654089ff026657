//! From the graph's values to the fields that callers receive.

mod steps;
mod values;

use guesthouse_guest::tract_onnx::prelude::Tensor as Array;
use guesthouse_guest::{
    Datatype, Dimension, Error, Field, GraphValue, ModelOutputs, PredictError, Tensor,
};
use guesthouse_onnx_manifest::{Output, Step};

use self::values::{Form, Values};
use crate::fields::described;
use crate::names::field_names;
use crate::row_shape;

/// A field that callers receive.
#[derive(Debug)]
pub(crate) struct Sink {
    name: String,
    /// Which of the graph's outputs it is made of.
    index: usize,
    steps: Vec<Prepared>,
    is_scalar: bool,
}

/// A step, with the input of the graph that is its mask.
#[derive(Debug)]
struct Prepared {
    step: Step,
    mask: Option<usize>,
}

/// The fields that a manifest wants; all outputs of the graph if it has none.
pub(crate) fn wanted(manifest: &[Output], outputs: &[String]) -> Result<Vec<Output>, Error> {
    if !manifest.is_empty() {
        return Ok(manifest.to_vec());
    }
    let names = field_names(outputs.iter().map(String::as_str))?;
    let fields = names.into_iter().zip(outputs).map(|(name, graph)| Output {
        name,
        graph: Some(graph.clone()),
        ..Output::default()
    });
    Ok(fields.collect())
}

/// The values of the graph that fields are made of, each once.
pub(crate) fn graph_values(wanted: &[Output]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for output in wanted {
        let name = output.graph.as_ref().unwrap_or(&output.name);
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    names
}

/// Make a field of a value of the graph, whose type and dimensions without the batch these are.
pub(crate) fn sink(
    output: &Output,
    index: usize,
    (datatype, shape): (Datatype, &[Dimension]),
    inputs: &[GraphValue],
) -> Result<(Sink, Field, bool), Error> {
    let wrong = |what: String| Error::new(format!("output {:?}: {what}", output.name));
    let mut form = Form::new(datatype, shape);
    let mut steps = Vec::new();
    for step in &output.steps {
        let mask = mask(step, inputs).map_err(wrong)?;
        form = steps::check(step, form)
            .map_err(|what| wrong(format!("step `{}`: {what}", step_name(step))))?;
        steps.push(Prepared { step: step.clone(), mask });
    }
    if output.scalar {
        if form.shape.iter().any(|size| *size != Dimension::Fixed(1)) {
            return Err(wrong(
                "`scalar` is for rows of one element: remove it, or choose one by the step `element`"
                    .to_owned(),
            ));
        }
        form.shape.clear();
    }
    let graph = output.graph.as_ref().unwrap_or(&output.name);
    let description = described(output.description.as_deref(), output.unit.as_deref(), || {
        format!("the graph's output `{graph}`")
    });
    let datatype = if steps.is_empty() { datatype } else { form.datatype() };
    let field = match (datatype, form.labels.take()) {
        (Datatype::Bytes, None) => Field::text(&output.name, &description),
        (Datatype::Bytes, Some(labels)) => Field::text(&output.name, &description).one_of(labels),
        _ => Field::new(&output.name, &description, datatype),
    };
    let bounds = match (output.minimum, output.maximum) {
        (None, None) => form.bounds.map(|(least, greatest)| (Some(least), Some(greatest))),
        given => Some(given),
    };
    let field = match bounds {
        Some(_) if matches!(datatype, Datatype::Bytes | Datatype::Bool) => {
            return Err(wrong("`minimum` and `maximum` are for numbers: remove them".to_owned()));
        }
        Some((least, greatest)) => field.bounds(least, greatest),
        None => field,
    };
    let varies = form.shape.iter().any(|size| matches!(size, Dimension::Named(_)));
    let field = field.row_shape(row_shape(&form.shape));
    let sink = Sink { name: output.name.clone(), index, steps, is_scalar: output.scalar };
    Ok((sink, field, varies))
}

/// The name of a step in a manifest.
fn step_name(step: &Step) -> &'static str {
    match step {
        Step::Softmax => "softmax",
        Step::Sigmoid => "sigmoid",
        Step::L2Norm => "l2_norm",
        Step::MeanPool { .. } => "mean_pool",
        Step::ClsPool => "cls_pool",
        Step::Element(_) => "element",
        Step::Argmax => "argmax",
        Step::TopK(_) => "top_k",
        Step::TopKIndexes(_) => "top_k_indexes",
        Step::Threshold(_) => "threshold",
        Step::Labels(_) => "labels",
    }
}

fn mask(step: &Step, inputs: &[GraphValue]) -> Result<Option<usize>, String> {
    let Step::MeanPool { mask } = step else { return Ok(None) };
    let found = inputs.iter().position(|input| input.name == *mask);
    found.map(Some).ok_or_else(|| {
        let names: Vec<&str> = inputs.iter().map(|input| &*input.name).collect();
        format!("step `mean_pool`: the graph has no input {mask:?}, but {}", names.join(", "))
    })
}

impl Sink {
    /// The inputs of the graph that it needs beside the graph's outputs.
    pub(crate) fn masks(&self) -> impl Iterator<Item = usize> {
        self.steps.iter().filter_map(|step| step.mask)
    }

    /// The field of a call. `masks` are inputs of the graph by their index.
    pub(crate) fn tensor(
        &self,
        results: &ModelOutputs,
        masks: &[(usize, Vec<f32>)],
    ) -> Result<Tensor, PredictError> {
        if self.steps.is_empty() {
            let tensor = results.tensor(self.index, &self.name)?;
            let rows = results.array(self.index)?.shape().first().copied().unwrap_or(1);
            return Ok(if self.is_scalar { tensor.reshaped(vec![rows as u64]) } else { tensor });
        }
        let mut values = Values::from_array(results.array(self.index)?)?;
        for Prepared { step, mask } in &self.steps {
            let found = mask.and_then(|wanted| masks.iter().find(|(index, _)| *index == wanted));
            let mask = found.map(|(_, mask)| mask.as_slice());
            values = steps::apply(step, values, mask).map_err(PredictError::failed)?;
        }
        if self.is_scalar {
            values.shape.truncate(1);
        }
        Ok(values.tensor(&self.name))
    }
}

/// An input of the graph as the mask of a pooling.
pub(crate) fn mask_of(input: &Array) -> Result<Vec<f32>, PredictError> {
    let input = input.cast_to::<f32>().map_err(PredictError::failed)?;
    let view = input.to_plain_array_view::<f32>().map_err(PredictError::failed)?;
    Ok(view.iter().copied().collect())
}
