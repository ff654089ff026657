//! Fields that are inputs of the graph as they are.

use guesthouse_guest::{Batch, Datatype, Dimension, Error, GraphValue, PredictError, Rejections};
use guesthouse_onnx_manifest::Input;

use super::{Feed, Preprocess, position};
use crate::fields::Wanted;
use crate::row_shape;

/// A field that is an input of the graph.
pub(super) struct Pass {
    field: String,
    index: usize,
    wanted: Wanted,
    /// The dimensions of a row of the graph's input, if the field is without them.
    ones: Option<usize>,
}

impl Pass {
    pub(super) fn new(input: &Input, values: &[GraphValue]) -> Result<Self, Error> {
        let wrong = |what: String| Error::new(format!("input {:?}: {what}", input.name));
        let graph = input.graph.as_ref().unwrap_or(&input.name);
        let index = position(values, graph).map_err(|what| {
            wrong(format!(
                "{what}: set `graph` to one of them, or let preprocessing take the field"
            ))
        })?;
        let value = &values[index];
        let row = &value.shape[1..];
        if input.scalar && row.iter().any(|size| *size != Dimension::Fixed(1)) {
            let what =
                format!("`scalar` is for rows of one element, which those of {graph:?} are not");
            return Err(wrong(what));
        }
        let wanted = Wanted {
            is_text: value.datatype == Datatype::Bytes,
            row_shape: if input.scalar { vec![] } else { row_shape(row).collect() },
            ..Wanted::element(value.datatype, &format!("the graph's input `{}`", value.name))
        };
        let ones = input.scalar.then_some(row.len());
        Ok(Self { field: input.name.clone(), index, wanted, ones })
    }

    pub(super) fn wanted(&self) -> &Wanted {
        &self.wanted
    }
}

impl Preprocess for Pass {
    fn takes(&self) -> Vec<(String, Wanted)> {
        vec![(self.field.clone(), self.wanted.clone())]
    }

    fn makes(&self) -> Vec<usize> {
        vec![self.index]
    }

    fn largest(&self) -> Option<Vec<usize>> {
        None
    }

    fn run(
        &self,
        batch: &Batch,
        _rejections: &mut Rejections,
        feed: &mut Feed,
    ) -> Result<(), PredictError> {
        let mut array = batch.array(&self.field)?;
        for _ in 0..self.ones.unwrap_or(0) {
            array.insert_axis(1).map_err(PredictError::failed)?;
        }
        feed.set(self.index, array);
        Ok(())
    }
}
