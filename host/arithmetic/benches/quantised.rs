//! The speed of operations on 8-bit tensors, in the shapes of EfficientNet-Lite0.
//!
//! `cargo bench -p guesthouse-arithmetic --bench quantised -- [PART OF A NAME]` prints for each
//! backend of this machine the least time of each layer, the billions of operations per second, two
//! for each multiplication with addition, and the sum of the least times of all layers.
#![expect(clippy::print_stdout, reason = "the results are printed")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use guesthouse_arithmetic::{
    Backend, Convolution, K_GROUP, PANEL, Quantisation, QuantisedConvolution, QuantisedEnding,
    QuantisedOperands, QuantisedOperation, QuantisedOutput, QuantisedProduct, QuantisedSum,
    Requantisation, WEIGHT_BLOCK,
};

/// How long each operation is repeated.
const DURATION: Duration = Duration::from_millis(100);

struct Case {
    name: String,
    /// How often the network has the layer.
    count: u32,
    operation: QuantisedOperation,
    /// The lengths of the first and second operand, and of offsets and multipliers.
    lengths: [usize; 3],
    /// The operations of a call, as in the description of the program.
    work: usize,
}

fn main() {
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    println!("{:<44} {:>8} {:>10} {:>8}", "call", "backend", "least us", "G/s");
    let cases = cases();
    for backend in Backend::available() {
        let mut total = Duration::ZERO;
        for case in &cases {
            if filter.as_ref().is_some_and(|filter| !case.name.contains(filter)) {
                continue;
            }
            let least = measure(case, backend);
            total += case.count * least;
            println!(
                "{:<44} {backend:>8} {:>10.1} {:>8.2}",
                case.name,
                least.as_secs_f64() * 1e6,
                case.work as f64 / least.as_secs_f64() / 1e9,
            );
        }
        println!("{:<44} {backend:>8} {:>10.1}", "all layers", total.as_secs_f64() * 1e6);
    }
}

fn measure(case: &Case, backend: Backend) -> Duration {
    let bytes = |length: usize| -> Vec<u8> {
        (0..length).map(|index| (index * 37 % 251).to_le_bytes()[0]).collect()
    };
    let [first, second, channels] = case.lengths;
    let (first, second) = (bytes(first), bytes(second));
    let (offsets, multipliers) = (vec![-5000; channels], vec![1.0 / 3000.0; channels]);
    let operands = QuantisedOperands {
        first: &first,
        second: &second,
        offsets: &offsets,
        multipliers: &multipliers,
        ..QuantisedOperands::default()
    };
    let call = case.operation.check(operands).expect("the operands fit");
    let mut output = vec![0; call.output_len()];
    let mut least = Duration::MAX;
    let start = Instant::now();
    while start.elapsed() < DURATION {
        let start = Instant::now();
        let output = QuantisedOutput::U8(black_box(&mut output));
        call.execute(backend, output, &mut || false).expect("nobody stops it");
        least = least.min(start.elapsed());
    }
    least
}

/// The layers of the network.
fn cases() -> Vec<Case> {
    let mut cases = vec![convolution(1, [3, 32], 224, [3, 2])];
    let mut input = 32;
    let mut size = 112;
    for (expansion, outputs, count, stride, kernel) in [
        (1, 16, 1, 1, 3),
        (6, 24, 2, 2, 3),
        (6, 40, 2, 2, 5),
        (6, 80, 3, 2, 3),
        (6, 112, 3, 1, 5),
        (6, 192, 4, 2, 5),
        (6, 320, 1, 1, 3),
    ] {
        let mut inner = input * expansion;
        if expansion > 1 {
            cases.push(convolution(1, [input, inner], size, [1, 1]));
        }
        cases.push(depthwise(1, inner, size, [kernel, stride]));
        size /= stride;
        cases.push(convolution(1, [inner, outputs], size, [1, 1]));
        if count > 1 {
            inner = outputs * expansion;
            cases.push(convolution(count - 1, [outputs, inner], size, [1, 1]));
            cases.push(depthwise(count - 1, inner, size, [kernel, 1]));
            cases.push(convolution(count - 1, [inner, outputs], size, [1, 1]));
            cases.push(sum(count - 1, outputs, size));
        }
        input = outputs;
    }
    cases.push(convolution(1, [320, 1280], 7, [1, 1]));
    cases.push(product([1, 1000, 1280]));
    cases
}

fn index(size: u32) -> usize {
    size as usize
}

fn windows(channels: [u32; 2], size: u32, [kernel, stride]: [u32; 2]) -> Convolution {
    let output = size.div_ceil(stride);
    let padding = ((output - 1) * stride + kernel).saturating_sub(size) / 2;
    Convolution {
        batch: 1,
        input_channels: channels[0],
        output_channels: channels[1],
        input: [size; 2],
        output: [output; 2],
        kernel: [kernel; 2],
        stride: [stride; 2],
        padding: [padding; 2],
        dilation: [1; 2],
    }
}

fn description(geometry: Convolution) -> QuantisedConvolution {
    let ending = QuantisedEnding::Requantise(Requantisation::new(3));
    QuantisedConvolution { geometry, padding_value: 3, ending }
}

fn convolution(count: u32, channels: [u32; 2], size: u32, shape: [u32; 2]) -> Case {
    let geometry = windows(channels, size, shape);
    let [from, to] = channels.map(index);
    let taps = index(shape[0] * shape[0]);
    let blocks = to.div_ceil(WEIGHT_BLOCK) * from.div_ceil(K_GROUP) * taps;
    let [kernel, stride] = shape;
    Case {
        name: format!("convolution {to}<-{from} {kernel}x{kernel}/{stride} on {size}x{size}"),
        count,
        operation: QuantisedOperation::Convolution(description(geometry)),
        lengths: [from * index(size * size), blocks * WEIGHT_BLOCK * K_GROUP, to],
        work: 2 * to * from * taps * index(geometry.output[0] * geometry.output[1]),
    }
}

fn depthwise(count: u32, channels: u32, size: u32, shape: [u32; 2]) -> Case {
    let geometry = windows([channels, channels], size, shape);
    let [kernel, stride] = shape;
    let (channels, taps) = (index(channels), index(kernel * kernel));
    Case {
        name: format!("depthwise {channels} {kernel}x{kernel}/{stride} on {size}x{size}"),
        count,
        operation: QuantisedOperation::DepthwiseConvolution(description(geometry)),
        lengths: [channels * index(size * size), channels * taps, channels],
        work: 2 * channels * taps * index(geometry.output[0] * geometry.output[1]),
    }
}

fn sum(count: u32, channels: u32, size: u32) -> Case {
    let operand = Quantisation { scale: 0.1, zero_point: 3 };
    let output = Requantisation::new(7);
    let sum = QuantisedSum { left: operand, right: operand, scale: 0.15, output };
    let length = index(channels * size * size);
    Case {
        name: format!("sum of {channels} planes of {size}x{size}"),
        count,
        operation: QuantisedOperation::Sum(sum),
        lengths: [length, length, 0],
        work: length,
    }
}

fn product(size: [u32; 3]) -> Case {
    let [m, n, k] = size.map(index);
    let ending = QuantisedEnding::Requantise(Requantisation::new(3));
    Case {
        name: format!("product {m}x{n}x{k}"),
        count: 1,
        operation: QuantisedOperation::MatrixProduct(QuantisedProduct { size, ending }),
        lengths: [m * k, n.div_ceil(PANEL) * k.div_ceil(K_GROUP) * PANEL * K_GROUP, n],
        work: 2 * m * n * k,
    }
}
