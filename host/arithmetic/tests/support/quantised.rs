//! Operations on 8-bit tensors with operands, and plain loops that define their bits.

use guesthouse_arithmetic::{
    Backend, Convolution, ElementType, K_GROUP, PANEL, QuantisedCall, QuantisedConvolution,
    QuantisedEnding, QuantisedOperands, QuantisedOperation, QuantisedOutput, QuantisedProduct,
    Requantisation, WEIGHT_BLOCK,
};

use super::plain::{finish, position, sizes};

/// An operation with its operands.
#[derive(Debug, Clone)]
pub(crate) struct QuantisedCase {
    pub(crate) operation: QuantisedOperation,
    pub(crate) first: Vec<u8>,
    pub(crate) second: Vec<u8>,
    pub(crate) numbers: Vec<f32>,
    pub(crate) offsets: Vec<i32>,
    pub(crate) multipliers: Vec<f32>,
    pub(crate) bias: Vec<f32>,
}

impl QuantisedCase {
    #[allow(dead_code, reason = "the fuzz target makes its cases otherwise")]
    pub(crate) fn new(operation: QuantisedOperation) -> Self {
        Self {
            operation,
            first: Vec::new(),
            second: Vec::new(),
            numbers: Vec::new(),
            offsets: Vec::new(),
            multipliers: Vec::new(),
            bias: Vec::new(),
        }
    }

    pub(crate) fn operands(&self) -> QuantisedOperands<'_> {
        QuantisedOperands {
            first: &self.first,
            second: &self.second,
            numbers: &self.numbers,
            offsets: &self.offsets,
            multipliers: &self.multipliers,
            bias: &self.bias,
        }
    }

    pub(crate) fn call(&self) -> QuantisedCall<'_> {
        self.operation.check(self.operands()).unwrap_or_else(|error| {
            panic!("{error}: {:?}", self.operation);
        })
    }
}

/// The elements of an output.
#[derive(Debug, Clone)]
pub(crate) enum Values {
    U8(Vec<u8>),
    F32(Vec<f32>),
}

impl Values {
    pub(crate) fn new(call: &QuantisedCall<'_>) -> Self {
        match call.output_type() {
            ElementType::U8 => Self::U8(vec![77; call.output_len()]),
            ElementType::F32 => Self::F32(vec![f32::NAN; call.output_len()]),
        }
    }

    pub(crate) fn output(&mut self) -> QuantisedOutput<'_> {
        match self {
            Self::U8(values) => QuantisedOutput::U8(values),
            Self::F32(values) => QuantisedOutput::F32(values),
        }
    }

    /// The bits of each element, one for all that are no number.
    pub(crate) fn bits(&self) -> Vec<u32> {
        let bits = |value: &f32| if value.is_nan() { u32::MAX } else { value.to_bits() };
        match self {
            Self::U8(values) => values.iter().map(|value| u32::from(*value)).collect(),
            Self::F32(values) => values.iter().map(bits).collect(),
        }
    }
}

pub(crate) fn compute(call: &QuantisedCall<'_>, backend: Backend) -> Values {
    let mut values = Values::new(call);
    call.execute(backend, values.output(), &mut || false).expect("nobody stops it");
    values
}

/// Compute the output of an operation that fits its operands.
pub(crate) fn execute(case: &QuantisedCase) -> Values {
    let call = case.call();
    let elements = |element: &dyn Fn(usize) -> f64, output| {
        Values::U8((0..call.output_len()).map(|index| to_u8(element(index), output)).collect())
    };
    match &case.operation {
        QuantisedOperation::Convolution(description) => {
            let windows = &description.geometry;
            let groups = (windows.input_channels as usize).div_ceil(K_GROUP);
            let weight = |channel: usize, input: usize, tap: usize, taps: usize| {
                let group = channel / WEIGHT_BLOCK * groups + input / K_GROUP;
                let row = (group * taps + tap) * WEIGHT_BLOCK + channel % WEIGHT_BLOCK;
                case.second[row * K_GROUP + input % K_GROUP].cast_signed()
            };
            let all = windows.input_channels as usize;
            let sums = sums(case, description, |_| 0..all, weight);
            endings(case, &description.ending, &sums, channel_of(windows))
        }
        QuantisedOperation::DepthwiseConvolution(description) => {
            let weight = |channel: usize, _: usize, tap: usize, taps: usize| {
                case.second[channel * taps + tap].cast_signed()
            };
            let sums = sums(case, description, |channel| channel..channel + 1, weight);
            endings(case, &description.ending, &sums, channel_of(&description.geometry))
        }
        QuantisedOperation::MatrixProduct(description) => matrix_product(case, description),
        QuantisedOperation::Sum(sum) => {
            let factors = [sum.left.scale / sum.scale, sum.right.scale / sum.scale];
            let [left, right] = [sum.left.zero_point, sum.right.zero_point];
            let zero_points = factors[0].mul_add(left.into(), factors[1] * f32::from(right));
            let constant = f32::from(sum.output.zero_point) - zero_points;
            let element = |index: usize| {
                let right = factors[1].mul_add(case.second[index].into(), constant);
                f64::from(factors[0].mul_add(case.first[index].into(), right))
            };
            elements(&element, Requantisation { zero_point: 0, ..sum.output })
        }
        QuantisedOperation::Quantise(scale, output) => {
            elements(&|index| f64::from(case.numbers[index] / scale), *output)
        }
        QuantisedOperation::Dequantise(quantisation) => {
            let number = |value: &u8| {
                let value = f32::from(*value) - f32::from(quantisation.zero_point);
                value * quantisation.scale
            };
            Values::F32(case.first.iter().map(number).collect())
        }
    }
}

/// The channel of an element of the output.
fn channel_of(windows: &Convolution) -> impl Fn(usize) -> usize {
    let [height, width] = sizes(windows.output);
    let (plane, channels) = (height * width, windows.output_channels as usize);
    move |index| index / plane % channels
}

/// The sums of a convolution.
fn sums(
    case: &QuantisedCase,
    description: &QuantisedConvolution,
    inputs: impl Fn(usize) -> std::ops::Range<usize>,
    weight: impl Fn(usize, usize, usize, usize) -> i8,
) -> Vec<i32> {
    let windows = &description.geometry;
    let ([height, width], [kernel_height, kernel_width]) =
        (sizes(windows.output), sizes(windows.kernel));
    let [input_height, input_width] = sizes(windows.input);
    let sum = |index: usize| {
        let (x, y, plane) = (index % width, index / width % height, index / width / height);
        let (channels, all) = (windows.output_channels as usize, windows.input_channels as usize);
        let (image, channel) = (plane / channels, plane % channels);
        let mut sum = 0;
        for input in inputs(channel) {
            for tap in 0..kernel_height * kernel_width {
                let (ky, kx) = (tap / kernel_width, tap % kernel_width);
                let value = match (position(windows, 0, y, ky), position(windows, 1, x, kx)) {
                    (Some(row), Some(column)) => {
                        let row = (image * all + input) * input_height + row;
                        case.first[row * input_width + column]
                    }
                    _ => description.padding_value,
                };
                let weight = weight(channel, input, tap, kernel_height * kernel_width);
                sum += i32::from(value) * i32::from(weight);
            }
        }
        sum
    };
    (0..case.call().output_len()).map(sum).collect()
}

fn matrix_product(case: &QuantisedCase, description: &QuantisedProduct) -> Values {
    let [m, n, k] = sizes(description.size);
    let mut sums = Vec::new();
    for row in 0..m {
        for column in 0..n {
            let product = |inner: usize| {
                let group = column / PANEL * k.div_ceil(K_GROUP) + inner / K_GROUP;
                let place = (group * PANEL + column % PANEL) * K_GROUP + inner % K_GROUP;
                i32::from(case.first[row * k + inner]) * i32::from(case.second[place].cast_signed())
            };
            sums.push((0..k).map(product).sum());
        }
    }
    endings(case, &description.ending, &sums, |index| index % n)
}

/// What follows the sums.
fn endings(
    case: &QuantisedCase,
    ending: &QuantisedEnding,
    sums: &[i32],
    channel: impl Fn(usize) -> usize,
) -> Values {
    let sum = |index: usize| sums[index].wrapping_add(case.offsets[channel(index)]) as f32;
    match ending {
        QuantisedEnding::Requantise(output) => {
            let number = |index| f64::from(sum(index) * case.multipliers[channel(index)]);
            Values::U8((0..sums.len()).map(|index| to_u8(number(index), *output)).collect())
        }
        QuantisedEnding::Real(tail) => {
            let number = |index| {
                let bias = case.bias.get(channel(index)).copied().unwrap_or(0.0);
                sum(index).mul_add(case.multipliers[channel(index)], bias)
            };
            let mut values: Vec<f32> = (0..sums.len()).map(number).collect();
            finish(tail, &mut values);
            Values::F32(values)
        }
    }
}

fn to_u8(number: f64, output: Requantisation) -> u8 {
    let zero_point = f64::from(output.zero_point);
    let number = if number.is_nan() { f64::NEG_INFINITY } else { number };
    let value = number.round_ties_even() + zero_point;
    let values = output.least..=output.greatest;
    // The greatest value that is not above the number, or the least one.
    values.rev().find(|candidate| f64::from(*candidate) <= value).unwrap_or(output.least)
}
