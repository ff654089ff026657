//! Random operations with operands that fit them.

use guesthouse_arithmetic::{
    Activation, Binary, BinaryFunction, Convolution, Deconvolution, LayerNorm, MatrixProduct,
    Operands, Operation, PANEL, Pool, PoolFunction, Reduction, ReductionFunction, RightOperand,
    Softmax, Tail, WEIGHT_BLOCK,
};

/// Random numbers, the same in every run.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed ^ 0x9e37_79b9_7f4a_7c15)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number from `least` to `greatest`.
    pub(crate) fn between(&mut self, least: u32, greatest: u32) -> u32 {
        let count = u64::from(greatest - least) + 1;
        least + u32::try_from(self.next() % count).expect("it is less than the count")
    }

    pub(crate) fn chance(&mut self, one_in: u32) -> bool {
        self.between(1, one_in) == 1
    }

    /// A number between -2 and 2, or sometimes a special one.
    pub(crate) fn number(&mut self, special: bool) -> f32 {
        const SPECIAL: [f32; 10] = [
            0.0,
            -0.0,
            1e-40,
            -1e-40,
            1e30,
            -1e30,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::NAN,
            f32::MIN_POSITIVE,
        ];
        if special && self.chance(12) {
            return SPECIAL[self.between(0, 9) as usize];
        }
        self.between(0, 4000) as f32 / 1000.0 - 2.0
    }

    pub(crate) fn numbers(&mut self, count: usize, special: bool) -> Vec<f32> {
        (0..count).map(|_| self.number(special)).collect()
    }

    pub(crate) fn tail(&mut self) -> Tail {
        let [first, second] = [self.number(false), self.number(false)];
        let activation = match self.between(0, 22) {
            0 => Activation::LeakyRelu(first),
            1 => Activation::Clip(first.min(second), first.max(second)),
            2 => Activation::HardSigmoid(first, second),
            3 | 4 => Activation::HardSwish,
            5 => Activation::Sigmoid,
            6 => Activation::Silu,
            7 => Activation::Tanh,
            8 => Activation::Gelu,
            9 => Activation::Exp,
            10 => Activation::Erf,
            11 => Activation::SquareRoot,
            12 => Activation::ReciprocalSquareRoot,
            13 => Activation::Reciprocal,
            14 => Activation::Square,
            15 => Activation::Absolute,
            16..19 => Activation::Relu,
            _ => Activation::Identity,
        };
        let [scale, shift] =
            if self.chance(2) { [1.0, 0.0] } else { [self.number(false), self.number(false)] };
        Tail { activation, scale, shift }
    }
}

/// An operation with its operands.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) operation: Operation,
    pub(crate) first: Vec<f32>,
    pub(crate) second: Vec<f32>,
    pub(crate) bias: Vec<f32>,
    pub(crate) residual: Vec<f32>,
}

impl Case {
    pub(crate) fn operands(&self) -> Operands<'_> {
        Operands {
            first: &self.first,
            second: &self.second,
            bias: &self.bias,
            residual: &self.residual,
        }
    }
}

/// The kinds of operations.
pub(crate) const KINDS: u32 = 10;

/// An operation of the given kind, and operands that fit it; `special` numbers include infinities
/// and what is no number.
pub(crate) fn case(random: &mut Random, kind: u32, special: bool) -> Case {
    let (operation, lengths) = match kind {
        0 => convolution(random),
        1 => depthwise(random),
        2 => product(random),
        3 => (Operation::Unary(random.tail()), [random.between(0, 200) as usize, 0, 0, 0]),
        4 => binary(random),
        5 => {
            let columns = random.between(1, 100);
            let rows = random.between(0, 4) * columns;
            (Operation::Softmax(Softmax { columns }), [rows as usize, 0, 0, 0])
        }
        6 => {
            let columns = random.between(1, 100);
            let norm = LayerNorm { columns, epsilon: 1e-5 };
            let rows = (random.between(0, 4) * columns) as usize;
            (Operation::LayerNorm(norm), [rows, columns as usize, columns as usize, 0])
        }
        7 => {
            let function = match random.between(0, 3) {
                0 => ReductionFunction::Sum,
                1 => ReductionFunction::SumOfSquares,
                2 => ReductionFunction::Maximum,
                _ => ReductionFunction::Minimum,
            };
            let columns = random.between(1, 100);
            let rows = (random.between(0, 4) * columns) as usize;
            let reduction = Reduction { function, columns, scale: random.number(false) };
            (Operation::Reduction(reduction), [rows, 0, 0, 0])
        }
        8 => pool(random),
        _ => deconvolution(random),
    };
    let [first, second, bias, residual] = lengths.map(|length| random.numbers(length, special));
    Case { operation, first, second, bias, residual }
}

pub(crate) fn windows(random: &mut Random) -> Convolution {
    let mut windows = Convolution {
        batch: random.between(1, 2),
        input_channels: random.between(1, 9),
        output_channels: random.between(1, 20),
        input: [random.between(1, 12), random.between(1, 60)],
        output: [1, 1],
        kernel: [random.between(1, 5), random.between(1, 5)],
        stride: [random.between(1, 3), random.between(1, 3)],
        padding: [random.between(0, 4), random.between(0, 4)],
        dilation: [random.between(1, 2), random.between(1, 3)],
    };
    if random.chance(3) {
        windows.kernel = [1, 1];
        windows.stride = [1, 1];
        windows.padding = [0, 0];
    }
    if random.chance(30) {
        // Planes that are not padded as a whole.
        windows.input_channels = random.between(1, 2);
        windows.output_channels = random.between(1, 2);
        let long = random.between(0, 1) as usize;
        windows.input[long] = random.between(2000, 9000);
        windows.input[1 - long] = random.between(1, 3);
        windows.dilation[0] = [1, 1, 500, 2000][random.between(0, 3) as usize];
    }
    for axis in 0..2 {
        let reach = (windows.kernel[axis] - 1) * windows.dilation[axis] + 1;
        let padded = windows.input[axis] + windows.padding[axis] + random.between(0, 4);
        windows.output[axis] = padded.saturating_sub(reach) / windows.stride[axis] + 1;
    }
    if windows.kernel == [1, 1] && windows.stride == [1, 1] && random.chance(2) {
        windows.output = windows.input;
    }
    windows
}

pub(crate) fn len(sizes: &[u32]) -> usize {
    sizes.iter().map(|size| *size as usize).product()
}

pub(crate) fn input_len(windows: &Convolution) -> usize {
    len(&[windows.batch, windows.input_channels, windows.input[0], windows.input[1]])
}

fn output_len(windows: &Convolution) -> usize {
    len(&[windows.batch, windows.output_channels, windows.output[0], windows.output[1]])
}

pub(crate) fn optional(random: &mut Random, length: usize) -> usize {
    if random.chance(2) { length } else { 0 }
}

/// Windows of all channels, sometimes of elements whose number is one more than that of whole
/// vectors.
pub(crate) fn mixed_windows(random: &mut Random) -> Convolution {
    let mut windows = windows(random);
    if random.chance(6) {
        windows.input_channels = random.between(1, 300);
        windows.output_channels = random.between(7, 80);
        windows.input = [[1, 1], [7, 7], [1, 17], [3, 11]][random.between(0, 3) as usize];
        windows.kernel = [1, 1];
        windows.padding = [0, 0];
        windows.stride = [1, 1];
        windows.output = windows.input;
    }
    windows
}

fn convolution(random: &mut Random) -> (Operation, [usize; 4]) {
    let mut windows = mixed_windows(random);
    if random.chance(8) {
        windows.input_channels = random.between(100, 450);
        windows.input = [random.between(1, 4), random.between(1, 14)];
        windows.kernel = [1, 1];
        windows.padding = [0, 0];
        windows.stride = [1, 1];
        windows.output = windows.input;
    }
    let inner = len(&[windows.input_channels, windows.kernel[0], windows.kernel[1]]);
    let channels = windows.output_channels as usize;
    let weights = channels.div_ceil(WEIGHT_BLOCK) * inner * WEIGHT_BLOCK;
    let (bias, residual) = (optional(random, channels), optional(random, output_len(&windows)));
    let operation = Operation::Convolution(windows, random.tail());
    (operation, [input_len(&windows), weights, bias, residual])
}

/// Windows with a kernel of their own for each channel, often one for which code is generated.
pub(crate) fn separate_windows(random: &mut Random) -> Convolution {
    let mut windows = windows(random);
    windows.output_channels = windows.input_channels;
    if random.chance(2) {
        windows.kernel = [[3, 3], [5, 5]][random.between(0, 1) as usize];
        windows.stride = [random.between(1, 2); 2];
        windows.padding = [random.between(0, 2), random.between(0, 2)];
        windows.dilation = [1, 1];
        windows.input = windows.input.map(|size| size.min(60));
        for axis in 0..2 {
            let padded = windows.input[axis] + windows.padding[axis] + random.between(0, 2);
            let last = padded.saturating_sub(windows.kernel[axis]);
            windows.output[axis] = last / windows.stride[axis] + 1;
        }
    }
    windows
}

fn depthwise(random: &mut Random) -> (Operation, [usize; 4]) {
    let windows = separate_windows(random);
    let weights = len(&[windows.input_channels, windows.kernel[0], windows.kernel[1]]);
    let bias = optional(random, windows.output_channels as usize);
    let residual = optional(random, output_len(&windows));
    let operation = Operation::DepthwiseConvolution(windows, random.tail());
    (operation, [input_len(&windows), weights, bias, residual])
}

fn pool(random: &mut Random) -> (Operation, [usize; 4]) {
    let mut windows = windows(random);
    windows.output_channels = windows.input_channels;
    let function = match random.between(0, 2) {
        0 => PoolFunction::Maximum,
        1 => PoolFunction::Average,
        _ => PoolFunction::AverageWithPadding,
    };
    (Operation::Pool(Pool { function, geometry: windows }), [input_len(&windows), 0, 0, 0])
}

fn deconvolution(random: &mut Random) -> (Operation, [usize; 4]) {
    let mut windows = windows(random);
    (windows.input, windows.output) = (windows.output, windows.input);
    if random.chance(3) {
        windows.kernel = windows.stride;
        windows.dilation = [1, 1];
        windows.padding = [0, 0];
        windows.output = [0, 1].map(|axis| windows.input[axis] * windows.stride[axis]);
    }
    let columns = len(&[windows.output_channels, windows.kernel[0], windows.kernel[1]]);
    let weights = columns.div_ceil(PANEL) * windows.input_channels as usize * PANEL;
    let bias = optional(random, windows.output_channels as usize);
    let operation = Operation::Deconvolution(Deconvolution { geometry: windows }, random.tail());
    (operation, [input_len(&windows), weights, bias, 0])
}

/// The strides of dimensions that lie in memory in a random order, and the length.
fn strides<const N: usize>(random: &mut Random, sizes: [u32; N]) -> ([u32; N], usize) {
    let mut order: Vec<usize> = (0..N).collect();
    for position in (1..N).rev() {
        order.swap(
            position,
            random.between(0, u32::try_from(position).expect("there are few")) as usize,
        );
    }
    let (mut strides, mut length) = ([0; N], 1);
    for axis in order {
        strides[axis] = u32::try_from(length).expect("operands are small");
        length *= sizes[axis] as usize;
    }
    (strides, length)
}

fn product(random: &mut Random) -> (Operation, [usize; 4]) {
    let batch = [random.between(1, 2), random.between(1, 3)];
    let mut size = [random.between(1, 20), random.between(1, 120), random.between(1, 40)];
    if random.chance(8) {
        size = [random.between(1, 140), random.between(1, 60), random.between(1, 420)];
    }
    let [m, n, k] = size;
    let (left, left_len) = strides(random, [batch[0], batch[1], m, k]);
    let (right, right_len) = if random.chance(2) {
        (RightOperand::Packed, (n as usize).div_ceil(PANEL) * k as usize * PANEL)
    } else {
        let (mut strides, length) = strides(random, [batch[0], batch[1], k, n]);
        if random.chance(2) {
            strides[random.between(0, 3) as usize] = 0;
        }
        (RightOperand::Strided(strides), length)
    };
    let (output, _) = strides(random, [batch[0], batch[1], m]);
    let output = output.map(|stride| stride * n);
    let (bias, residual) =
        (optional(random, n as usize), optional(random, len(&[batch[0], batch[1], m, n])));
    let scale = if random.chance(2) { 1.0 } else { random.number(false) };
    let product = MatrixProduct { batch, size, left, right, output, scale };
    (Operation::MatrixProduct(product, random.tail()), [left_len, right_len, bias, residual])
}

fn binary(random: &mut Random) -> (Operation, [usize; 4]) {
    let function = match random.between(0, 5) {
        0 => BinaryFunction::Add,
        1 => BinaryFunction::Subtract,
        2 => BinaryFunction::Multiply,
        3 => BinaryFunction::Divide,
        4 => BinaryFunction::Maximum,
        _ => BinaryFunction::Minimum,
    };
    let shape =
        [random.between(1, 3), random.between(1, 4), random.between(1, 6), random.between(1, 70)];
    let mut operand = || {
        let (mut strides, mut length) = if random.chance(3) {
            strides(random, shape)
        } else {
            let [_, b, c, d] = shape;
            ([b * c * d, c * d, d, 1], len(&shape))
        };
        for stride in &mut strides {
            if random.chance(5) {
                *stride = 0;
            }
        }
        let last: u32 = (0..4).map(|axis| (shape[axis] - 1) * strides[axis]).sum();
        length = length.min(last as usize + 1 + random.between(0, 2) as usize);
        (strides, length)
    };
    let ((left, left_len), (right, right_len)) = (operand(), operand());
    let binary = Binary { function, shape, left, right };
    (Operation::Binary(binary, random.tail()), [left_len, right_len, 0, 0])
}
