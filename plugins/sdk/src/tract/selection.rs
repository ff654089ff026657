//! Rows that inputs select from a constant, such as embeddings of tokens.
//!
//! tract panics if an index is out of range, which ends an instance. Here it is an error that says what
//! is wrong.

use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::array::Gather;

/// Check the indexes of all selections from constants.
pub(super) fn check_indexes(model: &mut TypedModel) -> TractResult<()> {
    for index in 0..model.nodes().len() {
        let Some(gather) = model.node(index).op_as::<Gather>() else { continue };
        let gather = gather.clone();
        let is_selection = match &model.node_input_facts(index)?[..] {
            [table, indexes] => table.konst.is_some() && indexes.konst.is_none(),
            _ => false,
        };
        if is_selection {
            model.node_mut(index).op = Box::new(Selection(gather));
        }
    }
    Ok(())
}

/// A selection whose indexes are checked.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Selection(Gather);

impl Op for Selection {
    fn name(&self) -> StaticName {
        "Selection".into()
    }

    op_as_typed_op!();
}

impl EvalOp for Selection {
    op_out_of_plan!();

    fn eval(&self, context: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let size = inputs[0].shape()[self.0.axis].try_into().unwrap_or(i64::MAX);
        let indexes = inputs[1].cast_to::<i64>()?;
        let view = indexes.try_as_plain_ram()?;
        let wrong = view.as_slice::<i64>()?.iter().find(|index| !(-size..size).contains(index));
        if let Some(wrong) = wrong {
            bail!(
                "the graph selects row {wrong} of {size}: a text has too many tokens or a wrong one"
            );
        }
        self.0.eval(context, inputs)
    }
}

impl TypedOp for Selection {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        self.0.output_facts(inputs)
    }

    as_op!();
}
