//! The functions of the interface on 8-bit integers.

use guesthouse_arithmetic::{
    QuantisedConvolution, QuantisedEnding, QuantisedOperation, QuantisedProduct, QuantisedSum,
};

use super::computation::Operand;
use super::description::{Quantisation, Requantisation, Size, Tail, Windows};
use super::operation::{DescribedOperation, QuantisedRanges};
use super::{Floats, Interface};

/// 8-bit integers: unsigned ones, or the bits of signed ones.
type Bytes = Operand<u8>;

/// What is added to sums.
type Offsets = Operand<i32>;

impl<T: 'static> Interface<'_, T> {
    /// Link the functions whose results are 8-bit integers.
    pub(super) fn add_quantised(&mut self) -> wasmtime::Result<()> {
        type Convolved = (Windows, u8, Requantisation, Bytes, Bytes, Offsets, Floats);
        fn convolution(
            kind: fn(QuantisedConvolution) -> QuantisedOperation,
            (windows, padding_value, output, input, weights, offsets, multipliers): Convolved,
        ) -> DescribedOperation {
            let ending = QuantisedEnding::Requantise(output.into());
            let geometry = windows.into();
            let operation = kind(QuantisedConvolution { geometry, padding_value, ending });
            let ranges = QuantisedRanges {
                first: input.into(),
                second: weights.into(),
                offsets: offsets.into(),
                multipliers: multipliers.into(),
                ..QuantisedRanges::default()
            };
            DescribedOperation::Quantised(operation, ranges)
        }
        self.add::<Convolved, u8>("quantised-convolution", |parameters| {
            convolution(QuantisedOperation::Convolution, parameters)
        })?;
        self.add::<Convolved, u8>("quantised-depthwise-convolution", |parameters| {
            convolution(QuantisedOperation::DepthwiseConvolution, parameters)
        })?;
        type Multiplied = (Size, Requantisation, Bytes, Bytes, Offsets, Floats);
        self.add::<Multiplied, u8>("quantised-matrix-product", |parameters| {
            let (size, output, left, right, offsets, multipliers) = parameters;
            let ending = QuantisedEnding::Requantise(output.into());
            let product = QuantisedProduct { size: size.into(), ending };
            let ranges = QuantisedRanges {
                first: left.into(),
                second: right.into(),
                offsets: offsets.into(),
                multipliers: multipliers.into(),
                ..QuantisedRanges::default()
            };
            DescribedOperation::Quantised(QuantisedOperation::MatrixProduct(product), ranges)
        })?;
        type Summed = (Quantisation, Quantisation, f32, Requantisation, Bytes, Bytes);
        self.add::<Summed, u8>("quantised-sum", |parameters| {
            let (left_quantisation, right_quantisation, scale, output, left, right) = parameters;
            let sum = QuantisedSum {
                left: left_quantisation.into(),
                right: right_quantisation.into(),
                scale,
                output: output.into(),
            };
            let ranges = QuantisedRanges {
                first: left.into(),
                second: right.into(),
                ..QuantisedRanges::default()
            };
            DescribedOperation::Quantised(QuantisedOperation::Sum(sum), ranges)
        })?;
        type Rounded = (f32, Requantisation, Floats);
        self.add::<Rounded, u8>("quantise", |(scale, output, numbers)| {
            let operation = QuantisedOperation::Quantise(scale, output.into());
            let ranges = QuantisedRanges { numbers: numbers.into(), ..QuantisedRanges::default() };
            DescribedOperation::Quantised(operation, ranges)
        })
    }

    /// Link the functions on 8-bit integers whose results are floating-point numbers.
    pub(super) fn add_dequantised(&mut self) -> wasmtime::Result<()> {
        type Convolved = (Windows, u8, Tail, Bytes, Bytes, Offsets, Floats, Floats);
        fn convolution(
            kind: fn(QuantisedConvolution) -> QuantisedOperation,
            (windows, padding_value, tail, input, weights, offsets, multipliers, bias): Convolved,
        ) -> DescribedOperation {
            let ending = QuantisedEnding::Real(tail.into());
            let geometry = windows.into();
            let operation = kind(QuantisedConvolution { geometry, padding_value, ending });
            let ranges = QuantisedRanges {
                first: input.into(),
                second: weights.into(),
                offsets: offsets.into(),
                multipliers: multipliers.into(),
                bias: bias.into(),
                ..QuantisedRanges::default()
            };
            DescribedOperation::Quantised(operation, ranges)
        }
        self.add::<Convolved, u32>("dequantised-convolution", |parameters| {
            convolution(QuantisedOperation::Convolution, parameters)
        })?;
        self.add::<Convolved, u32>("dequantised-depthwise-convolution", |parameters| {
            convolution(QuantisedOperation::DepthwiseConvolution, parameters)
        })?;
        type Multiplied = (Size, Tail, Bytes, Bytes, Offsets, Floats, Floats);
        self.add::<Multiplied, u32>("dequantised-matrix-product", |parameters| {
            let (size, tail, left, right, offsets, multipliers, bias) = parameters;
            let product =
                QuantisedProduct { size: size.into(), ending: QuantisedEnding::Real(tail.into()) };
            let ranges = QuantisedRanges {
                first: left.into(),
                second: right.into(),
                offsets: offsets.into(),
                multipliers: multipliers.into(),
                bias: bias.into(),
                ..QuantisedRanges::default()
            };
            DescribedOperation::Quantised(QuantisedOperation::MatrixProduct(product), ranges)
        })?;
        self.add::<(Quantisation, Bytes), u32>("dequantise", |(quantisation, integers)| {
            let operation = QuantisedOperation::Dequantise(quantisation.into());
            let ranges = QuantisedRanges { first: integers.into(), ..QuantisedRanges::default() };
            DescribedOperation::Quantised(operation, ranges)
        })
    }
}
