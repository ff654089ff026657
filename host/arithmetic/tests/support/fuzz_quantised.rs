//! Operations on 8-bit tensors that a guest describes: whatever the description and the operands,
//! an operation is rejected, or all backends compute the bits of plain loops within the operands.

use guesthouse_arithmetic::{
    Activation, Backend, Convolution, K_GROUP, PANEL, Quantisation, QuantisedConvolution,
    QuantisedEnding, QuantisedOperands, QuantisedOperation, QuantisedProduct, QuantisedSum,
    Requantisation, Tail, WEIGHT_BLOCK,
};

use super::quantised::{QuantisedCase, compute, execute};

/// The most elements of an operand or of an output that is computed.
const MAX_ELEMENTS: u64 = 1 << 16;

/// The most multiplications of an operation that is computed, by plain loops too.
const MAX_WORK: u64 = 1 << 20;

/// Describe an operation by bytes, and compute it if it fits its operands.
pub(crate) fn quantised(bytes: &[u8]) {
    let mut source = Source(bytes);
    let Described { operation, lengths, channels, work } = operation(&mut source);
    let too_long = |length: &u64| *length > MAX_ELEMENTS;
    if lengths.iter().any(too_long) || too_long(&channels) || work > MAX_WORK {
        // Too large to be computed here, but not too large to be checked.
        let _ = operation.output_len(QuantisedOperands::default());
        return;
    }
    let [first, second, numbers] = lengths.map(|length| source.length(length));
    let channels = source.length(channels);
    let biases = if source.byte() < 40 { channels } else { 0 };
    let case = QuantisedCase {
        operation,
        first: (0..first).map(|_| source.byte()).collect(),
        second: (0..second).map(|_| source.byte()).collect(),
        numbers: (0..numbers).map(|_| source.number()).collect(),
        offsets: (0..channels).map(|_| source.integer()).collect(),
        multipliers: (0..channels).map(|_| source.number() / 512.0).collect(),
        bias: (0..biases).map(|_| source.number()).collect(),
    };
    let Ok(call) = case.operation.check(case.operands()) else {
        return;
    };
    assert_eq!(case.operation.output_len(case.operands()), Ok(call.output_len()));
    if call.output_len() as u64 > MAX_ELEMENTS {
        return;
    }
    let expected = execute(&case).bits();
    for backend in Backend::available() {
        let output = compute(&call, backend).bits();
        assert_eq!(output, expected, "{backend}: {:?}", case.operation);
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

    fn integer(&mut self) -> i32 {
        i32::from_le_bytes([self.byte(), self.byte(), self.byte(), self.byte()])
    }

    /// Mostly a small size, sometimes any number.
    fn size(&mut self) -> u32 {
        match self.byte() {
            255 => self.integer().cast_unsigned(),
            byte @ 200.. => u32::from(byte - 199) * 17,
            byte => u32::from(byte % 20) + 1,
        }
    }

    /// A length that is sometimes another one.
    fn length(&mut self, length: u64) -> usize {
        let length = usize::try_from(length).expect("it is small");
        match self.byte() {
            0 => length + 1,
            1..8 => length.saturating_sub(self.byte().into()),
            _ => length,
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

    fn requantisation(&mut self) -> Requantisation {
        let zero_point = self.byte();
        match self.byte() {
            0..128 => Requantisation::new(zero_point),
            _ => Requantisation { zero_point, least: self.byte(), greatest: self.byte() },
        }
    }

    fn ending(&mut self) -> QuantisedEnding {
        if self.byte() < 170 {
            return QuantisedEnding::Requantise(self.requantisation());
        }
        let activation = match self.byte() % 4 {
            0 => Activation::Identity,
            1 => Activation::Clip(self.number(), self.number()),
            2 => Activation::HardSwish,
            _ => Activation::Gelu,
        };
        QuantisedEnding::Real(Tail { activation, scale: 1.0, shift: self.number() })
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

/// The size in blocks, times their size.
fn padded(size: u32, block: usize) -> u64 {
    u64::from(size).next_multiple_of(block as u64)
}

/// An operation, the lengths of its first and second operand and of its numbers, of its offsets,
/// and its multiplications.
struct Described {
    operation: QuantisedOperation,
    lengths: [u64; 3],
    channels: u64,
    work: u64,
}

fn operation(source: &mut Source<'_>) -> Described {
    let kind = source.byte() % 6;
    let elements = |operation, lengths: [u64; 3]| Described {
        operation,
        lengths,
        channels: 0,
        work: lengths.into_iter().fold(0, u64::max),
    };
    let quantisation = |source: &mut Source<'_>| Quantisation {
        scale: source.number(),
        zero_point: source.byte(),
    };
    match kind {
        0 | 1 => windows(source, kind),
        2 => {
            let size @ [m, n, k] = [source.size(), source.size(), source.size()];
            let ending = source.ending();
            let right = padded(n, PANEL).saturating_mul(padded(k, K_GROUP));
            Described {
                operation: QuantisedOperation::MatrixProduct(QuantisedProduct { size, ending }),
                lengths: [product(&[m, k]), right, 0],
                channels: n.into(),
                work: product(&size),
            }
        }
        3 => {
            let (left, right) = (quantisation(source), quantisation(source));
            let (scale, output) = (source.number(), source.requantisation());
            let length = source.size().into();
            let sum = QuantisedSum { left, right, scale, output };
            elements(QuantisedOperation::Sum(sum), [length, length, 0])
        }
        4 => {
            let quantise = QuantisedOperation::Quantise(source.number(), source.requantisation());
            elements(quantise, [0, 0, source.size().into()])
        }
        _ => {
            let dequantise = QuantisedOperation::Dequantise(quantisation(source));
            elements(dequantise, [source.size().into(), 0, 0])
        }
    }
}

fn windows(source: &mut Source<'_>, kind: u8) -> Described {
    let mut geometry = source.windows();
    if kind == 1 {
        geometry.output_channels = geometry.input_channels;
    }
    let description =
        QuantisedConvolution { geometry, padding_value: source.byte(), ending: source.ending() };
    let Convolution { batch, input_channels, output_channels, input, output, kernel, .. } =
        geometry;
    let taps = product(&kernel);
    let work = product(&[batch, output_channels, output[0], output[1]]).saturating_mul(taps);
    let (operation, weights, work) = if kind == 1 {
        let weights = product(&[output_channels, kernel[0], kernel[1]]);
        (QuantisedOperation::DepthwiseConvolution(description), weights, work)
    } else {
        let channels =
            padded(input_channels, K_GROUP).saturating_mul(padded(output_channels, WEIGHT_BLOCK));
        let work = work.saturating_mul(input_channels.into());
        (QuantisedOperation::Convolution(description), channels.saturating_mul(taps), work)
    };
    let input = product(&[batch, input_channels, input[0], input[1]]);
    Described { operation, lengths: [input, weights, 0], channels: output_channels.into(), work }
}
