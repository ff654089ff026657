//! Random operations on 8-bit tensors, and plain loops that define their bits.

use guesthouse_arithmetic::{
    Backend, Convolution, ElementType, K_GROUP, PANEL, Quantisation, QuantisedCall,
    QuantisedConvolution, QuantisedEnding, QuantisedOperands, QuantisedOperation, QuantisedOutput,
    QuantisedProduct, QuantisedSum, Requantisation, WEIGHT_BLOCK,
};

use super::plain::{finish, position, sizes};
use super::random::{Random, input_len, len, windows};

/// The kinds of operations on 8-bit tensors.
pub(crate) const QUANTISED_KINDS: u32 = 6;

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
    fn new(operation: QuantisedOperation) -> Self {
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

impl Random {
    fn byte(&mut self) -> u8 {
        // The extreme values are where a narrow sum would overflow.
        match self.between(0, 7) {
            0 => u8::MAX,
            1 => 0x80,
            _ => u8::try_from(self.between(0, 255)).expect("it fits"),
        }
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.byte()).collect()
    }

    fn requantisation(&mut self) -> Requantisation {
        let bounds = [self.byte(), self.byte()];
        let [least, greatest] = if self.chance(2) { bounds } else { [0, 255] };
        let (least, greatest) = (least.min(greatest), least.max(greatest));
        Requantisation { zero_point: self.byte(), least, greatest }
    }

    fn scale(&mut self) -> f32 {
        self.between(1, 4000) as f32 / 2000.0
    }

    fn ending(&mut self) -> QuantisedEnding {
        if self.chance(3) {
            QuantisedEnding::Real(self.tail())
        } else {
            QuantisedEnding::Requantise(self.requantisation())
        }
    }

    /// Fill in what follows the sums of so many channels with about `k` products.
    fn fill_ending(&mut self, case: &mut QuantisedCase, channels: usize, k: usize) {
        let range = u32::try_from(k).expect("it is small") * 8000;
        case.offsets = (0..channels)
            .map(|_| {
                let extreme = self.chance(20);
                let offset = self.between(0, 2 * range).cast_signed() - range.cast_signed();
                if extreme { i32::MAX - 5 } else { offset }
            })
            .collect();
        case.multipliers = (0..channels)
            .map(|_| match self.between(0, 20) {
                0 => self.number(true),
                // Many results lie half-way between integers.
                1..6 => 1.0 / 1024.0,
                _ => self.scale() / (k as f32) / 40.0,
            })
            .collect();
        if case.operation.output_type() == ElementType::F32 && self.chance(2) {
            case.bias = self.numbers(channels, false);
        }
    }
}

/// An operation of the given kind, and operands that fit it.
pub(crate) fn case(random: &mut Random, kind: u32) -> QuantisedCase {
    match kind {
        0 => convolution(random),
        1 => depthwise(random),
        2 => product(random),
        3 => {
            let quantisation = |random: &mut Random| Quantisation {
                scale: random.scale(),
                zero_point: random.byte(),
            };
            let (left, right) = (quantisation(random), quantisation(random));
            let (scale, output) = (random.scale(), random.requantisation());
            let length = random.between(0, 300) as usize;
            QuantisedCase {
                first: random.bytes(length),
                second: random.bytes(length),
                ..QuantisedCase::new(QuantisedOperation::Sum(QuantisedSum {
                    left,
                    right,
                    scale,
                    output,
                }))
            }
        }
        4 => {
            let scale = [0.5, random.scale() / 40.0][random.between(0, 1) as usize];
            let quantise = QuantisedOperation::Quantise(scale, random.requantisation());
            let count = random.between(0, 300) as usize;
            let special = random.chance(2);
            let numbers = random.numbers(count, special);
            QuantisedCase { numbers, ..QuantisedCase::new(quantise) }
        }
        _ => {
            let quantisation = Quantisation { scale: random.scale(), zero_point: random.byte() };
            let length = random.between(0, 300) as usize;
            let first = random.bytes(length);
            QuantisedCase {
                first,
                ..QuantisedCase::new(QuantisedOperation::Dequantise(quantisation))
            }
        }
    }
}

fn convolution(random: &mut Random) -> QuantisedCase {
    let mut geometry = windows(random);
    if random.chance(8) {
        geometry.input_channels = random.between(100, 1300);
        geometry.input = [random.between(1, 4), random.between(1, 14)];
        geometry.kernel = [1, 1];
        geometry.padding = [0, 0];
        geometry.stride = [1, 1];
        geometry.output = geometry.input;
    }
    let description =
        QuantisedConvolution { geometry, padding_value: random.byte(), ending: random.ending() };
    let mut case = QuantisedCase::new(QuantisedOperation::Convolution(description));
    let taps = len(&geometry.kernel);
    let (inputs, outputs) = (geometry.input_channels as usize, geometry.output_channels as usize);
    case.first = random.bytes(input_len(&geometry));
    let blocks = outputs.div_ceil(WEIGHT_BLOCK) * inputs.div_ceil(K_GROUP) * taps;
    case.second = random.bytes(blocks * WEIGHT_BLOCK * K_GROUP);
    random.fill_ending(&mut case, outputs, inputs * taps);
    case
}

fn depthwise(random: &mut Random) -> QuantisedCase {
    let mut geometry = windows(random);
    geometry.output_channels = geometry.input_channels;
    let description =
        QuantisedConvolution { geometry, padding_value: random.byte(), ending: random.ending() };
    let mut case = QuantisedCase::new(QuantisedOperation::DepthwiseConvolution(description));
    let (channels, taps) = (geometry.input_channels as usize, len(&geometry.kernel));
    case.first = random.bytes(input_len(&geometry));
    case.second = random.bytes(channels * taps);
    random.fill_ending(&mut case, channels, taps);
    case
}

fn product(random: &mut Random) -> QuantisedCase {
    let mut size = [random.between(1, 20), random.between(1, 120), random.between(1, 40)];
    if random.chance(8) {
        size = [random.between(1, 140), random.between(1, 60), random.between(1, 1300)];
    }
    let description = QuantisedProduct { size, ending: random.ending() };
    let mut case = QuantisedCase::new(QuantisedOperation::MatrixProduct(description));
    let [m, n, k] = sizes(size);
    case.first = random.bytes(m * k);
    case.second = random.bytes(n.div_ceil(PANEL) * k.div_ceil(K_GROUP) * PANEL * K_GROUP);
    random.fill_ending(&mut case, n, k);
    case
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
    let (plane, channels) = (len(&windows.output), windows.output_channels as usize);
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
