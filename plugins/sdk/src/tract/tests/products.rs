//! Matrix products, and what they absorb.

use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::einsum::EinSum;
use tract_onnx::tract_core::ops::math;

use super::{Graph, unary};

fn sum_of_products(graph: &mut Graph, axes: &str, inputs: [OutletId; 2]) -> OutletId {
    let axes: AxesMapping = axes.parse().unwrap();
    graph.wire(EinSum::new(axes, f32::datum_type()), &inputs)
}

/// Sizes by letter, so that a letter has the same size everywhere.
fn sizes(axes: &str) -> Vec<usize> {
    axes.chars().map(|axis| 2 + (axis as usize - 'a' as usize) % 5).collect()
}

#[test]
fn products_of_two_inputs_are_ours() {
    for axes in [
        "mk,kn->mn",
        "mk,nk->mn",
        "km,kn->mn",
        "mk,kn->nm",
        "bmk,bkn->bmn",
        "bmk,kn->bmn",
        "bshk,bthk->bhst",
        "bhst,bthk->bshk",
        "bck,ko->bco",
        "mk,k->m",
        "k,kn->n",
        "abmk,abkn->abmn",
        "abmk,abkn->bman",
        "amk,bkn->abmn",
        "cmk,ckn->cmn",
        "mab,nab->mn",
        "oi,nihw->nohw",
    ] {
        let (operands, _output) = axes.split_once("->").unwrap();
        let (left, right) = operands.split_once(',').unwrap();
        let mut graph = Graph::new();
        let inputs = [graph.input(&sizes(left)), graph.input(&sizes(right))];
        let output = sum_of_products(&mut graph, axes, inputs);
        graph.check(&[output], &["MatrixProduct"]);
    }
}

#[test]
fn products_with_a_constant_are_ours() {
    for axes in ["mk,kn->mn", "mk,nk->mn", "bmk,kn->bmn", "bmk,khd->bmhd", "bmk,khd->bhmd"] {
        let (operands, _output) = axes.split_once("->").unwrap();
        let (left, right) = operands.split_once(',').unwrap();
        for constant_left in [false, true] {
            let mut graph = Graph::new();
            let inputs = if constant_left {
                [graph.constant(&sizes(left)), graph.input(&sizes(right))]
            } else {
                [graph.input(&sizes(left)), graph.constant(&sizes(right))]
            };
            let output = sum_of_products(&mut graph, axes, inputs);
            graph.check(&[output], &["MatrixProduct"]);
        }
    }
}

#[test]
fn a_product_of_rows_whose_number_varies_is_ours() {
    for rows in [1, 7] {
        let mut graph = Graph::new();
        let input = graph.rows(rows, &[5, 24]);
        let weights = graph.constant(&[24, 50]);
        let output = sum_of_products(&mut graph, "bmk,kn->bmn", [input, weights]);
        let bias = graph.constant(&[1, 1, 50]);
        let output = graph.wire(math::add(), &[bias, output]);
        graph.check(&[output], &["MatrixProduct"]);
    }
}

#[test]
fn scale_bias_residual_and_activation_join_the_product() {
    let mut graph = Graph::new();
    let (input, residual) = (graph.rows(3, &[24]), graph.rows(3, &[50]));
    let weights = graph.constant(&[24, 50]);
    let output = sum_of_products(&mut graph, "mk,kn->mn", [input, weights]);
    let output = graph.with(math::mul(), output, 0.125);
    let bias = graph.constant(&[1, 50]);
    let output = graph.wire(math::add(), &[output, bias]);
    let output = graph.wire(math::add(), &[residual, output]);
    let output = unary(math::tanh(), &mut graph, output);
    let output = graph.with(math::mul(), output, 2.0);
    graph.check(&[output], &["MatrixProduct"]);
}

#[test]
fn a_bias_of_rows_is_no_bias_of_columns() {
    let mut graph = Graph::new();
    let input = graph.input(&[10, 24]);
    let weights = graph.constant(&[24, 10]);
    let output = sum_of_products(&mut graph, "mk,kn->mn", [input, weights]);
    let bias = graph.constant(&[10, 1]);
    let output = graph.wire(math::add(), &[output, bias]);
    graph.check(&[output], &["MatrixProduct", "Binary"]);
}

#[test]
fn gelu_joins_the_product() {
    let mut graph = Graph::new();
    let input = graph.input(&[6, 24]);
    let weights = graph.constant(&[24, 50]);
    let x = sum_of_products(&mut graph, "mk,kn->mn", [input, weights]);
    let scaled = graph.with(math::div(), x, 2_f32.sqrt());
    let erf = unary(math::erf(), &mut graph, scaled);
    let factor = graph.with(math::add(), erf, 1.0);
    let product = graph.wire(math::mul(), &[x, factor]);
    let output = graph.with(math::mul(), product, 0.5);
    graph.check(&[output], &["MatrixProduct"]);
}

#[test]
fn factors_of_operands_join_the_product() {
    let mut graph = Graph::new();
    let (left, right) = (graph.rows(2, &[5, 8]), graph.rows(2, &[6, 8]));
    let scaled = graph.with(math::mul(), left, 0.5);
    let scaled_too = graph.with(math::mul(), right, 0.25);
    let output = sum_of_products(&mut graph, "bsk,btk->bst", [scaled, scaled_too]);
    graph.check(&[output], &["MatrixProduct"]);
}

#[test]
fn attention_is_ours() {
    let mut graph = Graph::new();
    let inputs = [(); 3].map(|()| graph.rows(2, &[5, 3, 8]));
    let scores = sum_of_products(&mut graph, "bshk,bthk->bhst", [inputs[0], inputs[1]]);
    let scores = graph.with(math::mul(), scores, 8_f32.sqrt().recip());
    let softmax = super::rows::softmax(3);
    let weights = graph.wire(softmax, &[scores]);
    let output = sum_of_products(&mut graph, "bhst,bthk->bshk", [weights, inputs[2]]);
    graph.check(&[output], &["MatrixProduct", "ArithmeticSoftmax", "MatrixProduct"]);
}

#[test]
fn sums_that_are_no_matrix_product_stay_with_tract() {
    for axes in ["mkb,knb->mnb", "mkj,jkn->mn"] {
        let (operands, _output) = axes.split_once("->").unwrap();
        let (left, right) = operands.split_once(',').unwrap();
        let mut graph = Graph::new();
        let inputs = [graph.input(&sizes(left)), graph.input(&sizes(right))];
        let output = sum_of_products(&mut graph, axes, inputs);
        graph.model.select_output_outlets(&[output]).unwrap();
        super::rewrite(&mut graph.model).unwrap();
        assert!(!super::operations(&graph.model).contains(&"MatrixProduct".to_owned()), "{axes}");
    }
}
