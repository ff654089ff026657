//! Random operations on 8-bit tensors with operands that fit them.

use guesthouse_arithmetic::{
    ElementType, K_GROUP, PANEL, Quantisation, QuantisedConvolution, QuantisedEnding,
    QuantisedOperation, QuantisedProduct, QuantisedSum, Requantisation, WEIGHT_BLOCK,
};

use super::plain::sizes;
use super::quantised::QuantisedCase;
use super::random::{Random, input_len, len, mixed_windows, separate_windows};

/// The kinds of operations on 8-bit tensors.
pub(crate) const QUANTISED_KINDS: u32 = 6;

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
pub(crate) fn quantised_case(random: &mut Random, kind: u32) -> QuantisedCase {
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
    let mut geometry = mixed_windows(random);
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
    let mut geometry = separate_windows(random);
    if random.chance(12) {
        // Windows so far apart that not even one row of them is padded as a whole.
        geometry.input_channels = 1;
        geometry.output_channels = 1;
        geometry.stride[1] = random.between(500, 1500);
        geometry.kernel[0] = random.between(5, 20);
        geometry.dilation[0] = random.between(1, 3);
        geometry.output[1] = random.between(1, 9);
        geometry.padding[1] = random.between(0, 600);
    }
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
