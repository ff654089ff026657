//! Replaces what a graph computes on f32 by our operations, and leaves the rest to tract.
//!
//! The order matters. Operations on 8-bit tensors are replaced first, as long as their weights have
//! not become numbers. Convolutions are next, because tract's own simplification turns some
//! of them into sums of products. Then whatever follows a convolution or a matrix product becomes a
//! part of it, as long as something changes, before element-wise operations are replaced one by one.

mod element_wise;
mod fusion;
mod gather;
mod images;
mod normalization;
mod products;
mod quantised;
mod rows;

use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::scan::Scan;

use super::node::Node;

/// Simplify a typed graph and rewrite it.
pub(super) fn rewrite(model: &mut TypedModel) -> TractResult<()> {
    quantised::quantised(model)?;
    model.prop_consts()?;
    images::convolutions(model)?;
    model.declutter()?;
    rewrite_simplified(model)
}

fn rewrite_simplified(model: &mut TypedModel) -> TractResult<()> {
    for index in 0..model.nodes().len() {
        if let Some(scan) = model.node(index).op_as::<Scan>() {
            let mut scan = scan.clone();
            rewrite_simplified(&mut scan.body)?;
            model.node_mut(index).op = Box::new(scan);
        }
    }
    gather::look_up_first(model)?;
    products::products(model)?;
    fusion::fuse(model)?;
    normalization::layer_norms(model)?;
    element_wise::activations(model)?;
    rows::rows(model)?;
    images::pools(model)?;
    element_wise::rest(model)?;
    finish(model)
}

/// Pack the constants of our operations.
fn finish(model: &mut TypedModel) -> TractResult<()> {
    model.compact()?;
    for index in 0..model.nodes().len() {
        let Some(node) = model.node(index).op_as::<Node>() else { continue };
        let mut node = node.clone();
        node.finish(&model.node_input_facts(index)?)?;
        model.node_mut(index).op = Box::new(node);
    }
    Ok(())
}

/// Apply one rule to all operations of a type, as long as it changes something.
fn apply<O: Op>(
    model: &mut TypedModel,
    name: &'static str,
    rule: impl Fn(&TypedModel, &TypedNode, &O) -> TractResult<Option<TypedModelPatch>> + 'static,
) -> TractResult<()> {
    Rewriter::<()>::default()
        .with_rule_for::<O>(name, move |(), model, node, _name, operation| {
            rule(model, node, operation)
        })
        .rewrite(&(), model)
}
