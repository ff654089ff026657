//! Every rewrite is compared with tract's own computation of the same graph on random inputs.

mod file;
mod half;
mod images;
mod integers;
mod pipelines;
mod products;
mod published;
mod quantised;
mod recurrent;
mod rows;
mod tensors;
mod trees;

use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::element_wise::ElementWiseOp;
use tract_onnx::tract_core::ops::math;

use super::node::Node;
use super::rewrite::rewrite;

/// Numbers from -1 to 1 that are the same in every run.
struct Random(u32);

impl Random {
    fn next(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        (self.0 >> 8) as f32 / (1 << 23) as f32 - 1.0
    }

    /// An integer from -127 to 127.
    #[expect(clippy::cast_possible_truncation, reason = "the number is small")]
    fn next_integer(&mut self) -> i8 {
        (self.next() * 127.0) as i8
    }

    fn tensor(&mut self, shape: &[usize]) -> Tensor {
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| self.next()).collect();
        Tensor::from_shape(shape, &values).unwrap()
    }
}

/// A number in units of a scale, rounded and bounded.
#[expect(clippy::cast_possible_truncation, reason = "it is bounded")]
fn in_steps(number: f32, scale: f32, least: i32, greatest: i32) -> i32 {
    ((number / scale).round_ties_even() as i32).clamp(least, greatest)
}

/// A graph under construction with its random constants and inputs.
struct Graph {
    model: TypedModel,
    random: Random,
    /// The shapes of the inputs in a run; dimensions with a name may have any size.
    shapes: Vec<Vec<usize>>,
    nodes: usize,
}

impl Graph {
    fn new() -> Self {
        let model = TypedModel::default();
        Self { model, random: Random(0x9E37_79B9), shapes: Vec::new(), nodes: 0 }
    }

    /// An input of which the named dimensions are 0 in `declared`.
    fn input(&mut self, shape: &[usize]) -> OutletId {
        let fact = f32::fact(shape);
        self.shapes.push(shape.to_vec());
        self.model.add_source(format!("input{}", self.shapes.len()), fact).unwrap()
    }

    /// An input whose first dimension is called `rows`.
    fn rows(&mut self, rows: usize, rest: &[usize]) -> OutletId {
        let symbol = self.model.symbols.sym("rows");
        let mut shape: TVec<TDim> = tvec!(symbol.into());
        shape.extend(rest.iter().map(|size| size.to_dim()));
        self.shapes.push([&[rows], rest].concat());
        let name = format!("input{}", self.shapes.len());
        self.model.add_source(name, f32::fact(shape)).unwrap()
    }

    /// A random constant.
    fn constant(&mut self, shape: &[usize]) -> OutletId {
        let tensor = self.random.tensor(shape);
        let name = self.name();
        self.model.add_const(name, tensor).unwrap()
    }

    /// A constant with one element of this rank.
    fn scalar(&mut self, value: f32, rank: usize) -> OutletId {
        let tensor = tensor0(value).broadcast_into_rank(rank).unwrap();
        let name = self.name();
        self.model.add_const(name, tensor).unwrap()
    }

    fn wire(&mut self, operation: impl Into<Box<dyn TypedOp>>, inputs: &[OutletId]) -> OutletId {
        let name = self.name();
        self.model.wire_node(name, operation, inputs).unwrap()[0]
    }

    /// An operation with a scalar at the right.
    fn with(&mut self, operation: TypedBinOp, operand: OutletId, value: f32) -> OutletId {
        let rank = self.model.outlet_fact(operand).unwrap().rank();
        let scalar = self.scalar(value, rank);
        self.wire(operation, &[operand, scalar])
    }

    fn name(&mut self) -> String {
        self.nodes += 1;
        format!("node{}", self.nodes)
    }

    /// Check that the rewritten graph computes the same as tract's, and that it consists of these
    /// operations.
    fn check(self, outputs: &[OutletId], expected: &[&str]) {
        assert_eq!(self.compare(outputs), expected);
    }

    /// Check that the rewritten graph computes the same as tract's; its operations.
    fn compare(mut self, outputs: &[OutletId]) -> Vec<String> {
        self.model.select_output_outlets(outputs).unwrap();
        let inputs: TVec<TValue> =
            self.shapes.iter().map(|shape| self.random.tensor(shape).into_tvalue()).collect();
        let plain = self.model.clone().into_optimized().unwrap().into_runnable().unwrap();
        let wanted = plain.run(inputs.clone()).unwrap();
        let mut rewritten = self.model;
        rewrite(&mut rewritten).unwrap();
        let optimized = rewritten.into_optimized().unwrap();
        let operations = operations(&optimized);
        let computed = optimized.into_runnable().unwrap().run(inputs).unwrap();
        for (computed, wanted) in computed.iter().zip(&wanted) {
            let tolerance = Approximation::Custom(1e-5, 1e-5, 0.0);
            computed.close_enough(wanted, tolerance).unwrap();
        }
        operations
    }
}

/// The names of all operations but inputs and constants, in the order of execution.
fn operations(model: &TypedModel) -> Vec<String> {
    let order = model.eval_order().unwrap();
    let nodes = order.into_iter().map(|id| model.node(id));
    let names = nodes.filter(|node| !node.inputs.is_empty()).map(|node| node.op.name());
    names.map(|name| name.to_string()).collect()
}

/// The tails of our operations.
fn tails(mut graph: Graph, output: OutletId) -> Vec<guesthouse_arithmetic::Tail> {
    graph.model.select_output_outlets(&[output]).unwrap();
    rewrite(&mut graph.model).unwrap();
    let nodes = graph.model.nodes().iter().filter_map(|node| node.op_as::<Node>());
    nodes.map(|node| node.tail).collect()
}

fn unary(operation: ElementWiseOp, graph: &mut Graph, operand: OutletId) -> OutletId {
    graph.wire(operation, &[operand])
}

#[test]
fn a_clip_is_one_operation() {
    let mut graph = Graph::new();
    let input = graph.input(&[4, 32]);
    let least = graph.with(math::max(), input, -0.5);
    let clipped = graph.with(math::min(), least, 0.25);
    graph.check(&[clipped], &["Unary"]);
}

#[test]
fn a_hard_sigmoid_is_one_operation() {
    let mut graph = Graph::new();
    let input = graph.input(&[4, 32]);
    let scaled = graph.with(math::mul(), input, 0.7);
    let shifted = graph.with(math::add(), scaled, 0.5);
    let least = graph.with(math::min(), shifted, 1.0);
    let output = graph.with(math::max(), least, 0.0);
    graph.check(&[output], &["Unary"]);
}

#[test]
fn scalars_around_an_activation_join_it() {
    let mut graph = Graph::new();
    let input = graph.input(&[4, 32]);
    let output = unary(math::tanh(), &mut graph, input);
    let output = graph.with(math::mul(), output, 3.0);
    let output = graph.with(math::sub(), output, 0.5);
    graph.check(&[output], &["Unary"]);
}

#[test]
fn element_wise_functions_are_ours() {
    type Make = fn() -> ElementWiseOp;
    let functions: [Make; 6] = [
        math::tanh,
        math::exp,
        math::erf,
        math::abs,
        math::square,
        tract_onnx::tract_core::ops::nn::sigmoid,
    ];
    for function in functions {
        let mut graph = Graph::new();
        let input = graph.rows(3, &[40]);
        let output = unary(function(), &mut graph, input);
        graph.check(&[output], &["Unary"]);
    }
}

#[test]
fn roots_and_reciprocals_are_ours() {
    for function in [math::sqrt, math::rsqrt, math::recip] {
        let mut graph = Graph::new();
        let input = graph.rows(3, &[40]);
        let positive = unary(math::square(), &mut graph, input);
        let positive = graph.with(math::add(), positive, 0.5);
        let output = unary(function(), &mut graph, positive);
        graph.check(&[output], &["Unary", "Unary"]);
    }
}

#[test]
fn operands_are_broadcast() {
    for (left, right) in [
        (&[2, 3, 4, 5][..], &[1, 3, 1, 1][..]),
        (&[2, 3, 4, 5], &[2, 1, 4, 1]),
        (&[8, 1, 9], &[1, 7, 9]),
        (&[2, 3, 4, 5, 6], &[1, 1, 4, 1, 6]),
    ] {
        for operation in [math::add, math::sub, math::mul, math::max, math::min] {
            let mut graph = Graph::new();
            let inputs = [graph.input(left), graph.input(right)];
            let output = graph.wire(operation(), &inputs);
            graph.check(&[output], &["Binary"]);
        }
    }
}

#[test]
fn operands_that_alternate_too_often_stay_with_tract() {
    let mut graph = Graph::new();
    let inputs = [graph.input(&[2, 3, 2, 3, 2, 3]), graph.input(&[1, 3, 1, 3, 1, 3])];
    let output = graph.wire(math::add(), &inputs);
    graph.model.select_output_outlets(&[output]).unwrap();
    rewrite(&mut graph.model).unwrap();
    assert!(!operations(&graph.model).contains(&"Binary".to_owned()));
}

#[test]
fn gelu_is_found_in_its_three_forms() {
    for form in 0..3 {
        let mut graph = Graph::new();
        let input = graph.input(&[4, 32]);
        let scaled = graph.with(math::div(), input, 2_f32.sqrt());
        let erf = unary(math::erf(), &mut graph, scaled);
        let factor = graph.with(math::add(), erf, 1.0);
        let output = match form {
            0 => {
                let product = graph.wire(math::mul(), &[input, factor]);
                graph.with(math::mul(), product, 0.5)
            }
            1 => {
                let half = graph.with(math::mul(), input, 0.5);
                graph.wire(math::mul(), &[half, factor])
            }
            _ => {
                let half = graph.with(math::mul(), factor, 0.5);
                graph.wire(math::mul(), &[input, half])
            }
        };
        graph.check(&[output], &["Unary"]);
    }
}

#[test]
fn silu_is_one_operation() {
    let mut graph = Graph::new();
    let input = graph.input(&[4, 32]);
    let sigmoid = unary(tract_onnx::tract_core::ops::nn::sigmoid(), &mut graph, input);
    let output = graph.wire(math::mul(), &[input, sigmoid]);
    graph.check(&[output], &["Unary"]);
}

#[test]
fn rows_of_a_quantised_table_are_looked_up_first() {
    let mut graph = Graph::new();
    let input = graph.input(&[2, 5]);
    let indexes = graph.wire(tract_onnx::tract_core::ops::cast::cast(i64::datum_type()), &[input]);
    // Larger than what tract converts when a model is loaded.
    let table: Vec<i8> = (-128..127_i8).cycle().take(1_500_000).collect();
    let table = Tensor::from_shape(&[1500, 1000], &table).unwrap();
    let table = graph.model.add_const("table", table).unwrap();
    let table = graph.wire(tract_onnx::tract_core::ops::cast::cast(f32::datum_type()), &[table]);
    let table = graph.with(math::sub(), table, 3.0);
    let scales = graph.constant(&[1500, 1]);
    let table = graph.wire(math::mul(), &[table, scales]);
    let gather = tract_onnx::tract_core::ops::array::Gather::new(0);
    let output = graph.wire(gather, &[table, indexes]);
    let operations = graph.compare(&[output]);
    let table = operations.iter().position(|name| name == "Gather").unwrap();
    assert!(operations[..table].iter().filter(|name| *name == "Cast").count() <= 1);
    assert!(operations.iter().all(|name| name != "Mul" && name != "Sub"), "{operations:?}");
}

#[test]
fn rows_of_a_table_with_one_scale_are_looked_up_first() {
    let mut graph = Graph::new();
    let input = graph.input(&[2, 5]);
    let indexes = graph.wire(tract_onnx::tract_core::ops::cast::cast(i64::datum_type()), &[input]);
    let table: Vec<i8> = (-128..127_i8).cycle().take(1_500_000).collect();
    let table = Tensor::from_shape(&[1500, 1000], &table).unwrap();
    let table = graph.model.add_const("table", table).unwrap();
    let dequantise = tract_onnx::tract_core::ops::quant::DequantizeLinearF32::new(0.25, 3);
    let table = graph.wire(dequantise, &[table]);
    let output = graph.wire(tract_onnx::tract_core::ops::array::Gather::new(0), &[table, indexes]);
    graph.check(&[output], &["Cast", "Gather", "DequantizeLinearF32"]);
}

#[test]
fn calls_of_other_sizes_do_not_use_the_last_sizes() {
    let mut graph = Graph::new();
    let left = graph.rows(1, &[40]);
    let right = graph.constant(&[1, 40]);
    let output = graph.wire(math::add(), &[left, right]);
    graph.model.select_output_outlets(&[output]).unwrap();
    rewrite(&mut graph.model).unwrap();
    let plan = graph.model.into_optimized().unwrap().into_runnable().unwrap();
    for rows in [1, 3, 3, 2] {
        let input = graph.random.tensor(&[rows, 40]);
        let outputs = plan.run(tvec!(input.into_tvalue())).unwrap();
        assert_eq!(outputs[0].shape(), [rows, 40]);
    }
}
