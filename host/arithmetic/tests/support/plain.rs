//! Plain loops, element by element, which define the bits of every operation. Only functions of one
//! element are those of the crate; other tests compare them with f64.

use guesthouse_arithmetic::{
    Activation, Backend, Binary, BinaryFunction, Convolution, LayerNorm, MatrixProduct, Operands,
    Operation, PANEL, Pool, PoolFunction, Reduction, ReductionFunction, RightOperand, Tail,
    WEIGHT_BLOCK,
};

/// Reductions of rows accumulate so many sums, of the elements with equal remainders.
const LANES: usize = 16;

/// Compute the output of an operation that fits its operands.
pub(crate) fn execute(operation: &Operation, operands: Operands<'_>, output: &mut [f32]) {
    match operation {
        Operation::Convolution(windows, tail) => {
            let weight = |channel: usize, position: usize, inner: usize| {
                let block = channel / WEIGHT_BLOCK * inner + position;
                operands.second[block * WEIGHT_BLOCK + channel % WEIGHT_BLOCK]
            };
            let all = windows.input_channels as usize;
            convolution(windows, operands, |_| 0..all, weight, output);
            finish(tail, output)
        }
        Operation::DepthwiseConvolution(windows, tail) => {
            let weight = |channel: usize, position: usize, inner: usize| {
                operands.second[channel * inner + position]
            };
            let own = |channel| channel..channel + 1;
            convolution(windows, operands, own, weight, output);
            finish(tail, output)
        }
        Operation::MatrixProduct(product, tail) => {
            matrix_product(product, operands, output);
            finish(tail, output)
        }
        Operation::Unary(tail) => {
            output.copy_from_slice(operands.first);
            finish(tail, output)
        }
        Operation::Binary(description, tail) => {
            binary(description, operands, output);
            finish(tail, output)
        }
        Operation::Softmax(description) => {
            rows(description.columns, operands.first, output, softmax)
        }
        Operation::LayerNorm(norm) => {
            let normalise =
                |row: &[f32], output: &mut [f32]| layer_norm(norm, operands, row, output);
            rows(norm.columns, operands.first, output, normalise)
        }
        Operation::Reduction(reduction) => {
            let columns = reduction.columns as usize;
            for (row, output) in operands.first.chunks_exact(columns).zip(output) {
                *output = reduce(reduction, row);
            }
        }
        Operation::Pool(description) => pool(description, operands, output),
        Operation::Deconvolution(description, tail) => {
            deconvolution(&description.geometry, operands, output);
            finish(tail, output)
        }
    }
}

pub(crate) fn finish(tail: &Tail, output: &mut [f32]) {
    let input = output.to_vec();
    let operands = Operands { first: &input, ..Operands::default() };
    let call = Operation::Unary(*tail).check(operands).expect("any input fits");
    call.execute(Backend::Scalar, output, &mut || false).expect("nobody stops it");
}

fn exp(values: &mut [f32]) {
    finish(&Tail { activation: Activation::Exp, scale: 1.0, shift: 0.0 }, values);
}

/// The position in the input of a value of a window, if it is not in the padding.
pub(crate) fn position(
    windows: &Convolution,
    axis: usize,
    window: usize,
    value: usize,
) -> Option<usize> {
    let padded = window * windows.stride[axis] as usize + value * windows.dilation[axis] as usize;
    let position = padded.checked_sub(windows.padding[axis] as usize)?;
    (position < windows.input[axis] as usize).then_some(position)
}

pub(crate) fn sizes<const N: usize>(sizes: [u32; N]) -> [usize; N] {
    sizes.map(|size| size as usize)
}

fn convolution(
    windows: &Convolution,
    operands: Operands<'_>,
    channels: impl Fn(usize) -> std::ops::Range<usize>,
    weight: impl Fn(usize, usize, usize) -> f32,
    output: &mut [f32],
) {
    let ([height, width], [kernel_height, kernel_width]) =
        (sizes(windows.output), sizes(windows.kernel));
    let [input_height, input_width] = sizes(windows.input);
    let all = windows.input_channels as usize;
    for (index, output) in output.iter_mut().enumerate() {
        let (x, y) = (index % width, index / width % height);
        let channel = index / width / height % windows.output_channels as usize;
        let image = index / width / height / windows.output_channels as usize;
        let channels = channels(channel);
        let inner = channels.len() * kernel_height * kernel_width;
        let mut sum = 0.0;
        for k in 0..inner {
            let (kx, ky) = (k % kernel_width, k / kernel_width % kernel_height);
            let plane = image * all + channels.start + k / kernel_width / kernel_height;
            let value = match (position(windows, 0, y, ky), position(windows, 1, x, kx)) {
                (Some(row), Some(column)) => {
                    operands.first[(plane * input_height + row) * input_width + column]
                }
                _ => 0.0,
            };
            sum = value.mul_add(weight(channel, k, inner), sum);
        }
        *output = with_bias(sum, operands, channel, index);
    }
}

fn with_bias(sum: f32, operands: Operands<'_>, channel: usize, index: usize) -> f32 {
    let sum = sum + operands.bias.get(channel).copied().unwrap_or(0.0);
    operands.residual.get(index).map_or(sum, |residual| sum + residual)
}

fn matrix_product(product: &MatrixProduct, operands: Operands<'_>, output: &mut [f32]) {
    let [batch0, batch1] = sizes(product.batch);
    let [m, n, k] = product.size.map(|size| size as usize);
    let left = product.left.map(|stride| stride as usize);
    let to = product.output.map(|stride| stride as usize);
    for row in 0..batch0 * batch1 * m {
        let (b0, b1, m) = (row / m / batch1, row / m % batch1, row % m);
        let first = b0 * left[0] + b1 * left[1] + m * left[2];
        for column in 0..n {
            let mut sum = 0.0;
            for inner in 0..k {
                let right = match product.right {
                    RightOperand::Strided(strides) => {
                        let strides = strides.map(|stride| stride as usize);
                        b0 * strides[0] + b1 * strides[1] + inner * strides[2] + column * strides[3]
                    }
                    RightOperand::Packed => (column / PANEL * k + inner) * PANEL + column % PANEL,
                };
                let left = operands.first[first + inner * left[3]];
                sum = left.mul_add(operands.second[right], sum);
            }
            let bias = operands.bias.get(column).copied().unwrap_or(0.0);
            let sum = sum.mul_add(product.scale, bias);
            let index = b0 * to[0] + b1 * to[1] + m * to[2] + column;
            output[index] = operands.residual.get(index).map_or(sum, |residual| sum + residual);
        }
    }
}

fn deconvolution(windows: &Convolution, operands: Operands<'_>, output: &mut [f32]) {
    let [height, width] = sizes(windows.input);
    let [kernel_height, kernel_width] = sizes(windows.kernel);
    let [output_height, output_width] = sizes(windows.output);
    let channels = windows.input_channels as usize;
    let columns = windows.output_channels as usize * kernel_height * kernel_width;
    // In the output, windows and planes have changed places.
    let placed = Convolution { input: windows.output, output: windows.input, ..*windows };
    output.fill(0.0);
    for pixel in 0..windows.batch as usize * height * width {
        let (image, pixel) = (pixel / height / width, pixel % (height * width));
        for column in 0..columns {
            let (kx, ky) = (column % kernel_width, column / kernel_width % kernel_height);
            let channel = column / kernel_width / kernel_height;
            let mut sum = 0.0_f32;
            for inner in 0..channels {
                let left = operands.first[(image * channels + inner) * height * width + pixel];
                let right = (column / PANEL * channels + inner) * PANEL + column % PANEL;
                sum = left.mul_add(operands.second[right], sum);
            }
            let row = position(&placed, 0, pixel / width, ky);
            let column = position(&placed, 1, pixel % width, kx);
            if let (Some(row), Some(column)) = (row, column) {
                let plane = image * windows.output_channels as usize + channel;
                output[(plane * output_height + row) * output_width + column] += sum;
            }
        }
    }
    let plane = output_height * output_width;
    for (index, output) in output.iter_mut().enumerate() {
        let channel = index / plane % windows.output_channels as usize;
        *output += operands.bias.get(channel).copied().unwrap_or(0.0);
    }
}

fn pool(pool: &Pool, operands: Operands<'_>, output: &mut [f32]) {
    let windows = &pool.geometry;
    let ([height, width], [kernel_height, kernel_width]) =
        (sizes(windows.output), sizes(windows.kernel));
    let [input_height, input_width] = sizes(windows.input);
    for (index, output) in output.iter_mut().enumerate() {
        let (x, y, plane) = (index % width, index / width % height, index / width / height);
        let value =
            |row, column| operands.first[(plane * input_height + row) * input_width + column];
        let (mut greatest, mut sum, mut count) = (f32::NEG_INFINITY, 0.0, 0_u32);
        for k in 0..kernel_height * kernel_width {
            let row = position(windows, 0, y, k / kernel_width);
            let column = position(windows, 1, x, k % kernel_width);
            if let (Some(row), Some(column)) = (row, column) {
                let value = value(row, column);
                greatest = if value > greatest { value } else { greatest };
                sum += value;
                count += 1;
            } else {
                sum += 0.0;
            }
        }
        let kernel = (kernel_height * kernel_width) as f32;
        *output = match pool.function {
            PoolFunction::Maximum => greatest,
            PoolFunction::Average => sum / count.max(1) as f32,
            PoolFunction::AverageWithPadding => sum / kernel,
        };
    }
}

fn binary(binary: &Binary, operands: Operands<'_>, output: &mut [f32]) {
    for (index, output) in output.iter_mut().enumerate() {
        let (mut rest, mut left, mut right) = (index, 0, 0);
        for axis in (0..4).rev() {
            let position = rest % binary.shape[axis] as usize;
            rest /= binary.shape[axis] as usize;
            left += position * binary.left[axis] as usize;
            right += position * binary.right[axis] as usize;
        }
        let (left, right) = (operands.first[left], operands.second[right]);
        *output = match binary.function {
            BinaryFunction::Add => left + right,
            BinaryFunction::Subtract => left - right,
            BinaryFunction::Multiply => left * right,
            BinaryFunction::Divide => left / right,
            BinaryFunction::Maximum => greater(left, right),
            BinaryFunction::Minimum => lesser(left, right),
        };
    }
}

fn greater(left: f32, right: f32) -> f32 {
    if left > right { left } else { right }
}

fn lesser(left: f32, right: f32) -> f32 {
    if left < right { left } else { right }
}

fn rows(columns: u32, input: &[f32], output: &mut [f32], function: impl Fn(&[f32], &mut [f32])) {
    let columns = columns as usize;
    for (row, output) in input.chunks_exact(columns).zip(output.chunks_exact_mut(columns)) {
        function(row, output);
    }
}

/// Combine the elements of a row in 16 lanes, as if it went on with `beyond` to a multiple of 16,
/// and then the lanes, the upper half with the lower one.
fn combine(
    row: impl Iterator<Item = f32>,
    (start, beyond): (f32, f32),
    step: impl Fn(f32, f32) -> f32,
    merge: impl Fn(f32, f32) -> f32,
) -> f32 {
    let mut lanes = [start; LANES];
    let mut count = 0;
    for value in row {
        lanes[count % LANES] = step(lanes[count % LANES], value);
        count += 1;
    }
    while !usize::is_multiple_of(count, LANES) {
        lanes[count % LANES] = step(lanes[count % LANES], beyond);
        count += 1;
    }
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            lanes[lane] = merge(lanes[lane], lanes[lane + half]);
        }
    }
    lanes[0]
}

fn add(left: f32, right: f32) -> f32 {
    left + right
}

/// `value` if it is greater than the greatest so far.
fn greatest(row: &[f32]) -> f32 {
    let step = |greatest, value| greater(value, greatest);
    let infinity = f32::NEG_INFINITY;
    combine(row.iter().copied(), (infinity, infinity), step, step)
}

fn softmax(row: &[f32], output: &mut [f32]) {
    let greatest = greatest(row);
    for (value, output) in row.iter().zip(&mut *output) {
        *output = value - greatest;
    }
    exp(output);
    let sum = combine(output.iter().copied(), (0.0, 0.0), add, add);
    let factor = 1.0 / sum;
    for output in output {
        *output *= factor;
    }
}

fn layer_norm(norm: &LayerNorm, operands: Operands<'_>, row: &[f32], output: &mut [f32]) {
    let columns = row.len() as f32;
    let mean = combine(row.iter().copied(), (0.0, 0.0), add, add) / columns;
    let square = |sum, value: f32| (value - mean).mul_add(value - mean, sum);
    let variance = combine(row.iter().copied(), (0.0, mean), square, add) / columns;
    let factor = 1.0 / (variance + norm.epsilon).sqrt();
    for (column, (value, output)) in row.iter().zip(output).enumerate() {
        let scaled = (value - mean) * factor;
        *output = scaled.mul_add(operands.second[column], operands.bias[column]);
    }
}

fn reduce(reduction: &Reduction, row: &[f32]) -> f32 {
    let values = row.iter().copied();
    let result = match reduction.function {
        ReductionFunction::Sum => combine(values, (0.0, 0.0), add, add),
        ReductionFunction::SumOfSquares => {
            combine(values, (0.0, 0.0), |sum, value| value.mul_add(value, sum), add)
        }
        ReductionFunction::Maximum => greatest(row),
        ReductionFunction::Minimum => {
            let step = |least, value| lesser(value, least);
            combine(values, (f32::INFINITY, f32::INFINITY), step, step)
        }
    };
    result * reduction.scale
}
