//! Operations that a guest describes: whatever the description and the operands, an operation is
//! rejected, or all backends compute the bits of plain loops within the operands.

use guesthouse_arithmetic::{
    Activation, Backend, Binary, BinaryFunction, Convolution, Deconvolution, LayerNorm,
    MatrixProduct, Operands, Operation, PANEL, Pool, PoolFunction, Reduction, ReductionFunction,
    RightOperand, Softmax, Tail, WEIGHT_BLOCK,
};

use super::plain;

/// The most elements of an operand or of an output that is computed.
const MAX_ELEMENTS: u64 = 1 << 16;

/// The most multiplications of an operation that is computed, by plain loops too.
const MAX_WORK: u64 = 1 << 20;

/// Describe an operation by bytes, and compute it if it fits its operands.
pub(crate) fn arithmetic(bytes: &[u8]) {
    let mut source = Source(bytes);
    let (operation, lengths, work) = operation(&mut source);
    if lengths.iter().any(|length| *length > MAX_ELEMENTS) || work > MAX_WORK {
        // Too large to be computed here, but not too large to be checked.
        let _ = operation.output_len(Operands::default());
        return;
    }
    let mut vectors = lengths.map(|length| {
        let length = usize::try_from(length).expect("it is small");
        (0..length).map(|_| source.number()).collect::<Vec<f32>>()
    });
    change(&mut source, &mut vectors);
    let boxed = vectors.map(Vec::into_boxed_slice);
    let [first, second, bias, residual] = &boxed;
    let operands = Operands { first, second, bias, residual };
    let Ok(call) = operation.check(operands) else {
        return;
    };
    assert_eq!(operation.output_len(operands), Ok(call.output_len()));
    if call.output_len() as u64 > MAX_ELEMENTS {
        return;
    }
    let mut expected = vec![0.0; call.output_len()].into_boxed_slice();
    plain::execute(&operation, operands, &mut expected);
    for backend in Backend::available() {
        let mut output = vec![0.0; call.output_len()].into_boxed_slice();
        call.execute(backend, &mut output, &mut || false).expect("nobody stops it");
        for (expected, output) in expected.iter().zip(&output) {
            let same = expected.to_bits() == output.to_bits();
            let same = same || expected.is_nan() && output.is_nan();
            assert!(same, "{backend} computes {output:e}, not {expected:e}: {operation:?}");
        }
    }
}

/// Sometimes make an operand longer or shorter.
fn change(source: &mut Source<'_>, vectors: &mut [Vec<f32>; 4]) {
    if let Some(vector) = vectors.get_mut(usize::from(source.byte() % 16)) {
        match source.byte() {
            0 => vector.push(1.0),
            count => vector.truncate(vector.len().saturating_sub(count.into())),
        }
    }
}

/// Numbers from bytes; zeros behind their end.
struct Source<'a>(&'a [u8]);

impl Source<'_> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    /// Mostly a small size, sometimes any number.
    fn size(&mut self) -> u32 {
        match self.byte() {
            255 => u32::from_le_bytes([self.byte(), self.byte(), self.byte(), self.byte()]),
            byte @ 200.. => u32::from(byte - 199) * 17,
            byte => u32::from(byte % 20) + 1,
        }
    }

    fn pair(&mut self) -> [u32; 2] {
        [self.size(), self.size()]
    }

    fn number(&mut self) -> f32 {
        const SPECIAL: [f32; 8] =
            [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -0.0, 1e-40, 1e30, -1e30, 0.5];
        match self.byte() {
            byte @ 248.. => SPECIAL[usize::from(byte - 248)],
            byte => f32::from(byte) / 32.0 - 3.5,
        }
    }

    fn tail(&mut self) -> Tail {
        let activation = match self.byte() % 20 {
            0 => Activation::LeakyRelu(self.number()),
            1 => Activation::Clip(self.number(), self.number()),
            2 => Activation::HardSigmoid(self.number(), self.number()),
            3 => Activation::HardSwish,
            4 => Activation::Sigmoid,
            5 => Activation::Silu,
            6 => Activation::Tanh,
            7 => Activation::Gelu,
            8 => Activation::Exp,
            9 => Activation::Erf,
            10 => Activation::SquareRoot,
            11 => Activation::Reciprocal,
            12 => Activation::Square,
            13 => Activation::Relu,
            _ => Activation::Identity,
        };
        let [scale, shift] =
            if self.byte() < 128 { [1.0, 0.0] } else { [self.number(), self.number()] };
        Tail { activation, scale, shift }
    }

    fn windows(&mut self) -> Convolution {
        Convolution {
            batch: self.size() % 3,
            input_channels: self.size(),
            output_channels: self.size(),
            input: self.pair(),
            output: self.pair(),
            kernel: self.pair().map(|size| if size > 20 { size } else { size.div_ceil(4) }),
            stride: self.pair().map(|size| if size > 20 { size } else { size.div_ceil(6) }),
            padding: self.pair().map(|size| size - size.min(1)),
            dilation: self.pair().map(|size| if size > 20 { size } else { size.div_ceil(6) }),
        }
    }
}

fn product(sizes: &[u32]) -> u64 {
    sizes.iter().fold(1, |product, size| product.saturating_mul(u64::from(*size)))
}

fn padded(size: u32, block: usize) -> u32 {
    let block = u32::try_from(block).expect("blocks are small");
    size.checked_next_multiple_of(block).unwrap_or(u32::MAX)
}

/// An operation, the lengths of its operands and its multiplications.
fn operation(source: &mut Source<'_>) -> (Operation, [u64; 4], u64) {
    let kind = source.byte() % 10;
    match kind {
        0 | 1 | 8 | 9 => windows(source, kind),
        2 => matrix_product(source),
        3 => {
            let length = u64::from(source.size());
            (Operation::Unary(source.tail()), [length, 0, 0, 0], length)
        }
        4 => binary(source),
        _ => {
            let (columns, rows) = (source.size(), source.size().saturating_sub(1));
            let length = product(&[columns, rows]);
            let operation = match kind {
                5 => Operation::Softmax(Softmax { columns }),
                6 => {
                    let norm = Operation::LayerNorm(LayerNorm { columns, epsilon: 1e-5 });
                    return (norm, [length, columns.into(), columns.into(), 0], length);
                }
                _ => {
                    let function = match source.byte() % 4 {
                        0 => ReductionFunction::Sum,
                        1 => ReductionFunction::SumOfSquares,
                        2 => ReductionFunction::Maximum,
                        _ => ReductionFunction::Minimum,
                    };
                    let scale = source.number();
                    Operation::Reduction(Reduction { function, columns, scale })
                }
            };
            (operation, [length, 0, 0, 0], length)
        }
    }
}

fn windows(source: &mut Source<'_>, kind: u8) -> (Operation, [u64; 4], u64) {
    let mut windows = source.windows();
    if kind == 1 || kind == 8 {
        windows.output_channels = windows.input_channels;
    }
    let [inputs, outputs] = [windows.input_channels, windows.output_channels];
    let (kernel, batch) = (windows.kernel, windows.batch);
    let input = product(&[batch, inputs, windows.input[0], windows.input[1]]);
    let output = product(&[batch, outputs, windows.output[0], windows.output[1]]);
    let optional = |source: &mut Source<'_>, length| if source.byte() < 128 { length } else { 0 };
    let bias = optional(source, outputs.into());
    let taps = product(&kernel);
    match kind {
        0 => {
            let inner = product(&[inputs, kernel[0], kernel[1]]);
            let weights = inner.saturating_mul(padded(outputs, WEIGHT_BLOCK).into());
            let residual = optional(source, output);
            let operation = Operation::Convolution(windows, source.tail());
            (operation, [input, weights, bias, residual], output.saturating_mul(inner))
        }
        1 => {
            let weights = product(&[inputs, kernel[0], kernel[1]]);
            let residual = optional(source, output);
            let operation = Operation::DepthwiseConvolution(windows, source.tail());
            (operation, [input, weights, bias, residual], output.saturating_mul(taps))
        }
        8 => {
            let function = match source.byte() % 3 {
                0 => PoolFunction::Maximum,
                1 => PoolFunction::Average,
                _ => PoolFunction::AverageWithPadding,
            };
            let operation = Operation::Pool(Pool { function, geometry: windows });
            (operation, [input, 0, 0, 0], output.saturating_mul(taps))
        }
        _ => {
            let columns = product(&[outputs, kernel[0], kernel[1]]);
            let columns = padded(u32::try_from(columns).unwrap_or(u32::MAX), PANEL);
            let weights = product(&[inputs, columns]);
            let deconvolution = Deconvolution { geometry: windows };
            let operation = Operation::Deconvolution(deconvolution, source.tail());
            let work = input.saturating_mul(columns.into()).max(output);
            (operation, [input, weights, bias, 0], work)
        }
    }
}

/// The strides of dimensions one behind the other, some of them changed, and the length.
fn strides(source: &mut Source<'_>, sizes: [u32; 4]) -> ([u32; 4], u64) {
    let [_, b, c, d] = sizes;
    let small = |sizes: &[u32]| u32::try_from(product(sizes)).unwrap_or(u32::MAX);
    let mut strides = [small(&[b, c, d]), small(&[c, d]), d, 1];
    match source.byte() {
        place @ 0..4 => strides[usize::from(place)] = 0,
        place @ 4..8 => strides[usize::from(place - 4)] = source.size(),
        8 => strides.swap(2, 3),
        _ => {}
    }
    let distance = |(size, stride): (u32, u32)| product(&[size.saturating_sub(1), stride]);
    let distances = sizes.into_iter().zip(strides).map(distance);
    (strides, distances.fold(1, u64::saturating_add))
}

fn matrix_product(source: &mut Source<'_>) -> (Operation, [u64; 4], u64) {
    let batch = source.pair().map(|size| if size > 20 { size } else { size.div_ceil(10) });
    let size @ [m, n, k] = [source.size(), source.size(), source.size()];
    let (left, left_len) = strides(source, [batch[0], batch[1], m, k]);
    let (right, right_len) = if source.byte() < 128 {
        (RightOperand::Packed, product(&[padded(n, PANEL), k]))
    } else {
        let (strides, length) = strides(source, [batch[0], batch[1], k, n]);
        (RightOperand::Strided(strides), length)
    };
    let output = product(&[batch[0], batch[1], m, n]);
    let row = |sizes: &[u32]| u32::try_from(product(sizes)).unwrap_or(u32::MAX);
    let strides = match source.byte() % 3 {
        0 => [row(&[m, n]), row(&[batch[0], m, n]), n],
        1 => [row(&[batch[1], m, n]), n, row(&[batch[1], n])],
        _ => [row(&[batch[1], m, n]), row(&[m, n]), n],
    };
    let bias = if source.byte() < 128 { u64::from(n) } else { 0 };
    let residual = if source.byte() < 128 { output } else { 0 };
    let scale = source.number();
    let product = MatrixProduct { batch, size, left, right, output: strides, scale };
    let operation = Operation::MatrixProduct(product, source.tail());
    (operation, [left_len, right_len, bias, residual], output.saturating_mul(k.into()))
}

fn binary(source: &mut Source<'_>) -> (Operation, [u64; 4], u64) {
    let function = match source.byte() % 6 {
        0 => BinaryFunction::Add,
        1 => BinaryFunction::Subtract,
        2 => BinaryFunction::Multiply,
        3 => BinaryFunction::Divide,
        4 => BinaryFunction::Maximum,
        _ => BinaryFunction::Minimum,
    };
    let shape = [source.size(), source.size(), source.size(), source.size()];
    let (left, left_len) = strides(source, shape);
    let (right, right_len) = strides(source, shape);
    let binary = Binary { function, shape, left, right };
    (Operation::Binary(binary, source.tail()), [left_len, right_len, 0, 0], product(&shape))
}
