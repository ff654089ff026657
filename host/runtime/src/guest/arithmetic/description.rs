//! The records and variants of `interface arithmetic` in `wit/model.wit`, and what they mean for the
//! kernels. wasmtime compares them with what a component imports when it is linked.

use guesthouse_arithmetic as kernels;
use wasmtime::component::{ComponentType, Lift};

type Pair = (u32, u32);
type Triple = (u32, u32, u32);

/// `m`, `n` and `k` of a matrix product.
pub(super) type Size = Triple;

type Quadruple = (u32, u32, u32, u32);

#[derive(Clone, Copy, ComponentType, Lift)]
#[component(variant)]
pub(super) enum Activation {
    #[component(name = "identity")]
    Identity,
    #[component(name = "relu")]
    Relu,
    #[component(name = "leaky-relu")]
    LeakyRelu(f32),
    #[component(name = "clip")]
    Clip((f32, f32)),
    #[component(name = "hard-sigmoid")]
    HardSigmoid((f32, f32)),
    #[component(name = "hard-swish")]
    HardSwish,
    #[component(name = "sigmoid")]
    Sigmoid,
    #[component(name = "silu")]
    Silu,
    #[component(name = "tanh")]
    Tanh,
    #[component(name = "gelu")]
    Gelu,
    #[component(name = "exp")]
    Exp,
    #[component(name = "erf")]
    Erf,
    #[component(name = "square-root")]
    SquareRoot,
    #[component(name = "reciprocal-square-root")]
    ReciprocalSquareRoot,
    #[component(name = "reciprocal")]
    Reciprocal,
    #[component(name = "square")]
    Square,
    #[component(name = "absolute")]
    Absolute,
}

#[derive(Clone, Copy, ComponentType, Lift)]
#[component(record)]
pub(super) struct Tail {
    activation: Activation,
    scale: f32,
    shift: f32,
}

#[derive(Clone, Copy, ComponentType, Lift)]
#[component(record)]
pub(super) struct Windows {
    batch: u32,
    #[component(name = "input-channels")]
    input_channels: u32,
    #[component(name = "output-channels")]
    output_channels: u32,
    input: Pair,
    output: Pair,
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
}

#[derive(Clone, Copy, ComponentType, Lift)]
#[component(variant)]
pub(super) enum RightOperand {
    #[component(name = "strided")]
    Strided(Quadruple),
    #[component(name = "packed")]
    Packed,
}

#[derive(Clone, Copy, ComponentType, Lift)]
#[component(record)]
pub(super) struct Products {
    batch: Pair,
    size: Triple,
    left: Quadruple,
    right: RightOperand,
    output: Triple,
    scale: f32,
}

#[derive(Clone, Copy, ComponentType, Lift)]
#[component(enum)]
#[expect(dead_code, reason = "the derived code makes them from their numbers")]
#[repr(u8)]
pub(super) enum BinaryFunction {
    #[component(name = "add")]
    Add,
    #[component(name = "subtract")]
    Subtract,
    #[component(name = "multiply")]
    Multiply,
    #[component(name = "divide")]
    Divide,
    #[component(name = "maximum")]
    Maximum,
    #[component(name = "minimum")]
    Minimum,
}

#[derive(Clone, Copy, ComponentType, Lift)]
#[component(record)]
pub(super) struct Broadcast {
    pub(super) shape: Quadruple,
    pub(super) left: Quadruple,
    pub(super) right: Quadruple,
}

#[derive(Clone, Copy, ComponentType, Lift)]
#[component(enum)]
#[expect(dead_code, reason = "the derived code makes them from their numbers")]
#[repr(u8)]
pub(super) enum ReductionFunction {
    #[component(name = "sum")]
    Sum,
    #[component(name = "sum-of-squares")]
    SumOfSquares,
    #[component(name = "maximum")]
    Maximum,
    #[component(name = "minimum")]
    Minimum,
}

#[derive(Clone, Copy, ComponentType, Lift)]
#[component(enum)]
#[expect(dead_code, reason = "the derived code makes them from their numbers")]
#[repr(u8)]
pub(super) enum PoolFunction {
    #[component(name = "maximum")]
    Maximum,
    #[component(name = "average")]
    Average,
    #[component(name = "average-with-padding")]
    AverageWithPadding,
}

#[derive(Clone, Copy, ComponentType, Lift)]
#[component(record)]
pub(super) struct Quantisation {
    scale: f32,
    #[component(name = "zero-point")]
    zero_point: u8,
}

#[derive(Clone, Copy, ComponentType, Lift)]
#[component(record)]
pub(super) struct Requantisation {
    #[component(name = "zero-point")]
    zero_point: u8,
    least: u8,
    greatest: u8,
}

impl From<Activation> for kernels::Activation {
    fn from(activation: Activation) -> Self {
        match activation {
            Activation::Identity => Self::Identity,
            Activation::Relu => Self::Relu,
            Activation::LeakyRelu(slope) => Self::LeakyRelu(slope),
            Activation::Clip((least, greatest)) => Self::Clip(least, greatest),
            Activation::HardSigmoid((slope, offset)) => Self::HardSigmoid(slope, offset),
            Activation::HardSwish => Self::HardSwish,
            Activation::Sigmoid => Self::Sigmoid,
            Activation::Silu => Self::Silu,
            Activation::Tanh => Self::Tanh,
            Activation::Gelu => Self::Gelu,
            Activation::Exp => Self::Exp,
            Activation::Erf => Self::Erf,
            Activation::SquareRoot => Self::SquareRoot,
            Activation::ReciprocalSquareRoot => Self::ReciprocalSquareRoot,
            Activation::Reciprocal => Self::Reciprocal,
            Activation::Square => Self::Square,
            Activation::Absolute => Self::Absolute,
        }
    }
}

impl From<Tail> for kernels::Tail {
    fn from(tail: Tail) -> Self {
        let Tail { activation, scale, shift } = tail;
        Self { activation: activation.into(), scale, shift }
    }
}

impl From<Windows> for kernels::Convolution {
    fn from(windows: Windows) -> Self {
        Self {
            batch: windows.batch,
            input_channels: windows.input_channels,
            output_channels: windows.output_channels,
            input: windows.input.into(),
            output: windows.output.into(),
            kernel: windows.kernel.into(),
            stride: windows.stride.into(),
            padding: windows.padding.into(),
            dilation: windows.dilation.into(),
        }
    }
}

impl From<Products> for kernels::MatrixProduct {
    fn from(products: Products) -> Self {
        let Products { batch, size, left, right, output, scale } = products;
        let right = match right {
            RightOperand::Strided(strides) => kernels::RightOperand::Strided(strides.into()),
            RightOperand::Packed => kernels::RightOperand::Packed,
        };
        Self {
            batch: batch.into(),
            size: size.into(),
            left: left.into(),
            right,
            output: output.into(),
            scale,
        }
    }
}

impl From<BinaryFunction> for kernels::BinaryFunction {
    fn from(function: BinaryFunction) -> Self {
        match function {
            BinaryFunction::Add => Self::Add,
            BinaryFunction::Subtract => Self::Subtract,
            BinaryFunction::Multiply => Self::Multiply,
            BinaryFunction::Divide => Self::Divide,
            BinaryFunction::Maximum => Self::Maximum,
            BinaryFunction::Minimum => Self::Minimum,
        }
    }
}

impl From<ReductionFunction> for kernels::ReductionFunction {
    fn from(function: ReductionFunction) -> Self {
        match function {
            ReductionFunction::Sum => Self::Sum,
            ReductionFunction::SumOfSquares => Self::SumOfSquares,
            ReductionFunction::Maximum => Self::Maximum,
            ReductionFunction::Minimum => Self::Minimum,
        }
    }
}

impl From<PoolFunction> for kernels::PoolFunction {
    fn from(function: PoolFunction) -> Self {
        match function {
            PoolFunction::Maximum => Self::Maximum,
            PoolFunction::Average => Self::Average,
            PoolFunction::AverageWithPadding => Self::AverageWithPadding,
        }
    }
}

impl From<Quantisation> for kernels::Quantisation {
    fn from(quantisation: Quantisation) -> Self {
        let Quantisation { scale, zero_point } = quantisation;
        Self { scale, zero_point }
    }
}

impl From<Requantisation> for kernels::Requantisation {
    fn from(requantisation: Requantisation) -> Self {
        let Requantisation { zero_point, least, greatest } = requantisation;
        Self { zero_point, least, greatest }
    }
}
