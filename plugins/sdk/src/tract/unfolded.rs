//! Weights of 8 bits that stay what they are while a graph is loaded.
//!
//! tract computes constants as soon as it knows the shapes of a graph. Then the rewrite would find
//! numbers where the file has 8-bit weights.

use tract_onnx::Onnx;
use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_hir::internal::*;

const DEQUANTISE: &str = "DequantizeLinear";

/// Read the dequantisations of ONNX files with this module.
pub(super) fn register(onnx: &mut Onnx) {
    onnx.op_register.insert(DEQUANTISE, parse);
}

fn parse(
    context: &ParsingContext,
    node: &NodeProto,
) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let (tracts, closures) = tracts(DEQUANTISE, context, node)?;
    Ok((expand(Unfolded(tracts)), closures))
}

/// What tract makes of a node of this type, which has to be several operations.
pub(super) fn tracts(
    operation: &str,
    context: &ParsingContext,
    node: &NodeProto,
) -> TractResult<(Box<dyn Expansion>, Vec<String>)> {
    let register = tract_onnx::onnx().op_register;
    let parse = register.0.get(operation).context("tract has no such operation")?;
    let (parsed, closures) = parse(context, node)?;
    let expansion = parsed.as_op().downcast_ref::<Box<dyn Expansion>>();
    let expansion = expansion.context("tract does not expand the operation")?;
    Ok((expansion.clone(), closures))
}

/// What tract expands, but does not compute while it does so.
#[derive(Debug, Clone)]
struct Unfolded(Box<dyn Expansion>);

impl Expansion for Unfolded {
    fn name(&self) -> StaticName {
        (*self.0).name()
    }

    fn runs_out_of_plan(&self) -> bool {
        false
    }

    fn nboutputs(&self) -> TractResult<usize> {
        (*self.0).nboutputs()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        (*self.0).rules(solver, inputs, outputs)
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        (*self.0).wire(prefix, model, inputs)
    }
}
