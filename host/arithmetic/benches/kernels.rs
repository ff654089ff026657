//! The speed of the kernels on every backend of this machine.
//!
//! `cargo bench -p guesthouse-arithmetic -- [PART OF A NAME]` prints the least and the median time of
//! a call, and the billions of operations per second in the least time: two for each multiplication
//! with addition, one for each element that is read otherwise.
#![expect(clippy::print_stdout, reason = "the results are printed")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use guesthouse_arithmetic::{
    Activation, Backend, Binary, BinaryFunction, Convolution, Deconvolution, LayerNorm,
    MatrixProduct, Operands, Operation, PANEL, Pool, PoolFunction, Reduction, ReductionFunction,
    RightOperand, Softmax, Tail, WEIGHT_BLOCK,
};

/// How long each operation is repeated.
const DURATION: Duration = Duration::from_millis(150);

struct Case {
    name: String,
    operation: Operation,
    /// The lengths of the operands.
    lengths: [usize; 4],
    /// The operations of a call, as in the description of the program.
    work: usize,
}

fn main() {
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    println!("{:<44} {:>8} {:>10} {:>10} {:>8}", "call", "backend", "least us", "median us", "G/s");
    for case in cases() {
        if filter.as_ref().is_some_and(|filter| !case.name.contains(filter)) {
            continue;
        }
        for backend in Backend::available() {
            measure(&case, backend);
        }
    }
}

fn measure(case: &Case, backend: Backend) {
    let numbers = |length: usize| -> Vec<f32> {
        (0..length).map(|index| (index * 37 % 101) as f32 / 64.0 - 0.7).collect()
    };
    let [first, second, bias, residual] = case.lengths.map(numbers);
    let operands = Operands { first: &first, second: &second, bias: &bias, residual: &residual };
    let call = case.operation.check(operands).expect("the operands fit");
    let mut output = vec![0.0; call.output_len()];
    let mut times = Vec::new();
    let start = Instant::now();
    while start.elapsed() < DURATION || times.len() < 3 {
        let start = Instant::now();
        call.execute(backend, black_box(&mut output), &mut || false).expect("nobody stops it");
        times.push(start.elapsed());
    }
    times.sort_unstable();
    let (least, median) = (times[0], times[times.len() / 2]);
    let speed = case.work as f64 / least.as_secs_f64() / 1e9;
    println!(
        "{:<44} {backend:>8} {:>10.1} {:>10.1} {speed:>8.2}",
        case.name,
        least.as_secs_f64() * 1e6,
        median.as_secs_f64() * 1e6,
    );
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for [m, n, k] in [
        [128, 384, 384],
        [128, 1536, 384],
        [128, 384, 1536],
        [16, 384, 384],
        [16, 1536, 384],
        [1, 384, 384],
        [1024, 384, 384],
    ] {
        cases.push(product(m, n, k, Tail::NONE));
    }
    cases.push(product(128, 1536, 384, Tail { activation: Activation::Gelu, ..Tail::NONE }));
    for tokens in [16, 128] {
        cases.push(attention_scores(tokens));
        cases.push(attention_values(tokens));
    }
    let relu = Tail { activation: Activation::Relu, ..Tail::NONE };
    let hard_swish = Tail { activation: Activation::HardSwish, scale: 1.0 / 6.0, shift: 0.0 };
    for (channels, size, kernel, stride, tail) in [
        ([32, 200], [12, 16], 1, 1, hard_swish),
        ([200, 32], [12, 16], 1, 1, Tail::NONE),
        ([3, 8], [48, 192], 3, 2, hard_swish),
        ([3, 32], [224, 224], 3, 2, relu),
        ([16, 96], [20, 80], 1, 1, relu),
        ([96, 96], [20, 80], 1, 1, relu),
        ([96, 24], [8, 80], 3, 1, relu),
        ([512, 512], [7, 7], 1, 1, relu),
        ([200, 50], [1, 1], 1, 1, relu),
        ([64, 64], [8, 56], 3, 1, relu),
    ] {
        cases.push(convolution(channels, size, kernel, stride, tail));
    }
    for (channels, size, kernel, stride) in
        [(200, [2, 96], 5, 1), (96, [112, 112], 3, 2), (144, [56, 56], 3, 1), (480, [3, 12], 5, 1)]
    {
        cases.push(depthwise(channels, size, kernel, stride, hard_swish));
    }
    cases.push(deconvolution(24, 24));
    cases.push(deconvolution(24, 1));
    cases.extend(small_functions());
    cases
}

fn index(size: u32) -> usize {
    size as usize
}

fn product(m: u32, n: u32, k: u32, tail: Tail) -> Case {
    let product = MatrixProduct {
        batch: [1, 1],
        size: [m, n, k],
        left: [0, 0, k, 1],
        right: RightOperand::Packed,
        output: [0, 0, n],
        scale: 1.0,
    };
    Case {
        name: format!("product {m}x{n}x{k} {:?}", tail.activation),
        operation: Operation::MatrixProduct(product, tail),
        lengths: [index(m * k), index(n).div_ceil(PANEL) * PANEL * index(k), index(n), 0],
        work: 2 * index(m * n * k),
    }
}

/// The scores of twelve heads of 32, from `[tokens][heads][32]`.
fn attention_scores(tokens: u32) -> Case {
    let product = MatrixProduct {
        batch: [1, 12],
        size: [tokens, tokens, 32],
        left: [0, 32, 384, 1],
        right: RightOperand::Strided([0, 32, 1, 384]),
        output: [0, tokens * tokens, tokens],
        scale: 0.125,
    };
    Case {
        name: format!("attention scores of {tokens} tokens"),
        operation: Operation::MatrixProduct(product, Tail::NONE),
        lengths: [index(tokens * 384), index(tokens * 384), 0, 0],
        work: 2 * 12 * index(tokens * tokens * 32),
    }
}

/// The scores of twelve heads times their values, to `[tokens][heads][32]`.
fn attention_values(tokens: u32) -> Case {
    let product = MatrixProduct {
        batch: [1, 12],
        size: [tokens, 32, tokens],
        left: [0, tokens * tokens, tokens, 1],
        right: RightOperand::Strided([0, 32, 384, 1]),
        output: [0, 32, 384],
        scale: 1.0,
    };
    Case {
        name: format!("attention values of {tokens} tokens"),
        operation: Operation::MatrixProduct(product, Tail::NONE),
        lengths: [index(12 * tokens * tokens), index(tokens * 384), 0, 0],
        work: 2 * 12 * index(tokens * tokens * 32),
    }
}

fn windows(channels: [u32; 2], input: [u32; 2], kernel: u32, stride: u32) -> Convolution {
    let padding = kernel / 2;
    Convolution {
        batch: 1,
        input_channels: channels[0],
        output_channels: channels[1],
        input,
        output: input.map(|size| (size + 2 * padding - kernel) / stride + 1),
        kernel: [kernel; 2],
        stride: [stride; 2],
        padding: [padding; 2],
        dilation: [1; 2],
    }
}

fn plane(size: [u32; 2]) -> usize {
    index(size[0] * size[1])
}

fn convolution(channels: [u32; 2], input: [u32; 2], kernel: u32, stride: u32, tail: Tail) -> Case {
    let windows = windows(channels, input, kernel, stride);
    let k = index(channels[0] * kernel * kernel);
    let outputs = index(channels[1]);
    let [height, width] = input;
    let (from, to) = (channels[0], channels[1]);
    Case {
        name: format!("convolution {to}<-{from} {kernel}x{kernel}/{stride} on {height}x{width}"),
        operation: Operation::Convolution(windows, tail),
        lengths: [
            index(channels[0]) * plane(input),
            outputs.div_ceil(WEIGHT_BLOCK) * WEIGHT_BLOCK * k,
            outputs,
            0,
        ],
        work: 2 * outputs * k * plane(windows.output),
    }
}

fn depthwise(channels: u32, input: [u32; 2], kernel: u32, stride: u32, tail: Tail) -> Case {
    let windows = windows([channels, channels], input, kernel, stride);
    let k = index(kernel * kernel);
    let [height, width] = input;
    Case {
        name: format!("depthwise {channels} {kernel}x{kernel}/{stride} on {height}x{width}"),
        operation: Operation::DepthwiseConvolution(windows, tail),
        lengths: [index(channels) * plane(input), index(channels) * k, index(channels), 0],
        work: 2 * index(channels) * k * plane(windows.output),
    }
}

fn deconvolution(inputs: u32, outputs: u32) -> Case {
    let geometry = Convolution {
        output: [160, 160],
        stride: [2, 2],
        padding: [0, 0],
        ..windows([inputs, outputs], [80, 80], 2, 1)
    };
    let columns = index(outputs * 4);
    Case {
        name: format!("deconvolution {outputs}<-{inputs} 2x2/2 on 80x80"),
        operation: Operation::Deconvolution(Deconvolution { geometry }, Tail::NONE),
        lengths: [
            index(inputs) * 6400,
            columns.div_ceil(PANEL) * PANEL * index(inputs),
            index(outputs),
            0,
        ],
        work: 2 * index(inputs) * columns * 6400,
    }
}

fn small_functions() -> Vec<Case> {
    let case = |name: &str, operation: Operation, lengths: [usize; 4]| Case {
        name: name.to_owned(),
        operation,
        lengths,
        work: lengths[0],
    };
    let unary = |activation| Operation::Unary(Tail { activation, ..Tail::NONE });
    let add = |right| Binary {
        function: BinaryFunction::Add,
        shape: [1, 1, 128, 384],
        left: [0, 0, 384, 1],
        right,
    };
    let pool = |function| Pool { function, geometry: windows([64, 64], [80, 80], 3, 2) };
    let norm = LayerNorm { columns: 384, epsilon: 1e-5 };
    let mean = Reduction { function: ReductionFunction::Sum, columns: 192, scale: 1.0 };
    let rows = 128 * 384;
    vec![
        case("hard swish", unary(Activation::HardSwish), [rows, 0, 0, 0]),
        case("gelu", unary(Activation::Gelu), [rows, 0, 0, 0]),
        case("sigmoid", unary(Activation::Sigmoid), [rows, 0, 0, 0]),
        case("tanh", unary(Activation::Tanh), [rows, 0, 0, 0]),
        case("exp", unary(Activation::Exp), [rows, 0, 0, 0]),
        case("add", Operation::Binary(add([0, 0, 384, 1]), Tail::NONE), [rows, rows, 0, 0]),
        case("add a row", Operation::Binary(add([0, 0, 0, 1]), Tail::NONE), [rows, 384, 0, 0]),
        case("add a column", Operation::Binary(add([0, 0, 1, 0]), Tail::NONE), [rows, 128, 0, 0]),
        case("softmax of 384", Operation::Softmax(Softmax { columns: 384 }), [rows, 0, 0, 0]),
        case("softmax of 16", Operation::Softmax(Softmax { columns: 16 }), [rows, 0, 0, 0]),
        case("layer norm of 384", Operation::LayerNorm(norm), [rows, 384, 384, 0]),
        case("mean of 192", Operation::Reduction(mean), [rows, 0, 0, 0]),
        case("max pool 3x3/2", Operation::Pool(pool(PoolFunction::Maximum)), [64 * 6400, 0, 0, 0]),
        case("mean pool 3x3/2", Operation::Pool(pool(PoolFunction::Average)), [64 * 6400, 0, 0, 0]),
    ]
}
